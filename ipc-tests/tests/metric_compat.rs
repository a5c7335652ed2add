//! The names of LMCache 0.5.6: `--metrics-compat 0.5` and `both`.

mod common;

use std::collections::BTreeMap;

use common::*;
use ipc_tests::otlp::Collector;
use ipc_tests::scrape::Page;
use lmcached::events::{Event, EvictionCause, LookupEnd};
use lmcached::telemetry::catalogue::{CATALOGUE, Set};
use lmcached::telemetry::{AdapterReading, L1Readings, Readings};

/// One of everything that only 0.5.6 counts.
async fn run(compat: &str) -> (Page, Collector) {
    let readings = Readings {
        l1: L1Readings { used_bytes: 1, capacity_bytes: 2, writing_bytes: 4096, ..L1Readings::default() },
        adapters: vec![AdapterReading {
            name: "fs".into(),
            used_bytes: Some(77),
            inflight_stores: 1,
            stores: true,
            loads: true,
            ..AdapterReading::default()
        }],
        kv_events_log_depth: 85,
        ..Readings::default()
    };
    let rig = Rig::start(&["--metrics-compat", compat], readings, vec![]).await;
    rig.publish(Event::L1WriteFinished { keys: keys("", 0..4) });
    rig.publish(Event::L1ReadFinished { keys: keys("tenant", 0..3) });
    for cause in [EvictionCause::Policy, EvictionCause::Cleared] {
        rig.publish(Event::L1KeysEvicted { keys: keys("", 0..2), cause });
    }
    let salts = by_salt(&[("", 2), ("tenant", 5)]);
    let (fs, s) = (adapter(0, "fs"), session("a"));
    let adapter = || fs.clone();
    let (task, keys, bytes) = (1, 7, 0);
    let (session, by_salt) = (|| s.clone(), || salts.clone());
    rig.publish(Event::L2StoreSubmitted { adapter: adapter(), task, keys, bytes, by_salt: by_salt() });
    let (succeeded, failed) = (7, 0);
    rig.publish(Event::L2StoreCompleted {
        adapter: adapter(),
        task,
        bytes,
        succeeded,
        failed,
        by_salt: by_salt(),
    });
    rig.publish(Event::L2PrefetchLookupSubmitted {
        session: session(),
        keys,
        adapters: 1,
        by_salt: by_salt(),
    });
    rig.publish(Event::L2PrefetchLoadSubmitted { session: session(), keys, adapters: 3, by_salt: by_salt() });
    rig.publish(Event::L2PrefetchLoadCompleted { session: session(), loaded: 7, failed, by_salt: by_salt() });
    rig.publish(Event::L2KeysEvicted { keys, by_salt: by_salt() });
    rig.publish(Event::TimeoutRaised { session: session(), message: text("late"), kind: "TimeoutError" });
    for (early, reason) in [(false, ""), (true, "empty_chunk_hashes")] {
        let of = |count| if early { 0 } else { count };
        let end = LookupEnd {
            found_count: of(4),
            requested_tokens: of(2048),
            hit_tokens: of(1024),
            l1_hit_tokens: of(768),
            l2_hit_tokens: of(256),
            l1_hit_keys: of(3),
            l2_hit_keys: of(1),
            early_exit_reason: reason,
            model: text("m"),
            salt: text(""),
        };
        rig.publish(Event::MpLookupPrefetchEnd { session: session(), end });
    }
    let (transfer, w) = (transfer(1), worker(1, "cuda:0"));
    let (device, end) = (|| w.clone(), || end(4, 1_000_000_000, 64));
    rig.publish(Event::MpStoreSubmitted { session: session(), transfer, worker: device() });
    rig.publish(Event::MpStoreStart { session: session(), transfer, worker: device() });
    rig.at(0.5, Event::MpStoreEnd { session: session(), transfer, worker: device(), end: end() });
    rig.publish(Event::MpRetrieveSubmitted { session: session(), transfer, worker: device() });
    rig.at(0.7, Event::MpRetrieveEnd { session: session(), transfer, worker: device(), end: end() });
    rig.finish().await
}

/// Series of 0.5.6 that the events above make.
const THEIRS: &[(&str, &str, f64)] = &[
    ("lmcache_mp_l1_write_chunks_total", r#"l1_tag="_default""#, 4.0),
    ("lmcache_mp_l1_read_chunks_total", r#"cache_salt="tenant",l1_tag="_default""#, 3.0),
    ("lmcache_mp_l1_evicted_chunks_total", r#"l1_tag="_default""#, 4.0),
    ("lmcache_mp_l2_store_submitted_requests_total", "", 1.0),
    ("lmcache_mp_l2_store_submitted_objects_chunks_total", "", 2.0),
    ("lmcache_mp_l2_store_submitted_objects_chunks_total", r#"cache_salt="tenant""#, 5.0),
    ("lmcache_mp_l2_store_completed_requests_total", r#"l2_name="fs""#, 1.0),
    ("lmcache_mp_l2_store_completed_objects_chunks_total", r#"cache_salt="tenant""#, 5.0),
    ("lmcache_mp_l2_prefetch_lookup_requests_total", "", 1.0),
    ("lmcache_mp_l2_prefetch_lookup_objects_chunks_total", r#"cache_salt="tenant""#, 5.0),
    ("lmcache_mp_l2_prefetch_load_submitted_requests_total", "", 3.0),
    ("lmcache_mp_l2_prefetch_load_submitted_objects_chunks_total", r#"cache_salt="tenant""#, 5.0),
    ("lmcache_mp_l2_prefetch_load_completed_chunks_total", r#"cache_salt="tenant""#, 5.0),
    ("lmcache_mp_l2_evicted_objects_chunks_total", "", 2.0),
    ("lmcache_mp_timeouts_total", r#"exception_type="TimeoutError""#, 1.0),
    ("lmcache_mp_lookup_hit_l1_tokens_total", r#"model_name="m",cache_salt="""#, 768.0),
    ("lmcache_mp_lookup_hit_l2_tokens_total", r#"model_name="m",cache_salt="""#, 256.0),
    ("lmcache_mp_lookup_hit_l1_keys_total", r#"model_name="m",cache_salt="""#, 3.0),
    ("lmcache_mp_lookup_hit_l2_keys_total", r#"model_name="m",cache_salt="""#, 1.0),
    ("lmcache_mp_lookups_requests_total", r#"model_name="m",cache_salt="""#, 2.0),
    (
        "lmcache_mp_lookup_early_exit_requests_total",
        r#"model_name="m",cache_salt="",reason="empty_chunk_hashes""#,
        1.0,
    ),
    ("lmcache_mp_num_submitted_stores_total", r#"device="cuda:0""#, 1.0),
    ("lmcache_mp_num_finished_stores_total", r#"device="cuda:0""#, 1.0),
    ("lmcache_mp_num_submitted_retrieves_total", r#"device="cuda:0""#, 1.0),
    ("lmcache_mp_num_finished_retrieves_total", r#"device="cuda:0""#, 1.0),
    ("lmcache_mp_l1_staging_bytes", r#"backend="dram",l1_tag="_default""#, 4096.0),
    ("lmcache_mp_l2_store_adapters", r#"state="active",l1_tag="_default""#, 1.0),
    ("lmcache_mp_l2_prefetch_adapters", r#"state="draining""#, 0.0),
    ("lmcache_mp_l2_usage_bytes", r#"l2_name="fs""#, 77.0),
    ("lmcache_mp_kv_events_log_depth", "", 85.0),
    ("lmcache_mp_active_p2p_lookup_jobs", "", 0.0),
];

fn check_theirs(page: &Page, compat: &str) {
    for (name, labels, value) in THEIRS {
        let there: Vec<_> = page.series(name).collect();
        assert_eq!(page.value(name, labels), Some(*value), "{name}{{{labels}}} in {there:?} with {compat}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dashboard_made_for_0_5_6_finds_its_families() {
    let (page, collector) = run("0.5").await;
    check_theirs(&page, "0.5");
    for metric in CATALOGUE.iter().filter(|metric| metric.set != Set::Own) {
        if let Some(name) = metric.v05 {
            assert_eq!(page.types.get(name.prometheus).map(String::as_str), Some(metric.kind.prometheus()));
        }
        if let Some(name) =
            metric.seed.filter(|seed| Some(seed.prometheus) != metric.v05.map(|v| v.prometheus))
        {
            assert!(!page.types.contains_key(name.prometheus), "{} has another name", name.prometheus);
        }
    }
    let engine = r#"engine_id="1",device="cuda:0",model_name="m""#;
    assert_eq!(page.value("lmcache_mp_l0_l1_store_throughput_GB_per_second_count", engine), Some(1.0));
    // Coinciding names have 0.5.6's labels here.
    let labels = r#"backend="dram",l1_tag="_default""#;
    assert_eq!(page.value("lmcache_mp_l1_usage_ratio", labels), Some(0.5));
    let stores = r#"l2_name="fs",adapter_index="0",l1_tag="_default""#;
    assert_eq!(page.value("lmcache_mp_num_inflight_l2_stores", stores), Some(1.0));
    let lifetimes = page.value("lmcache_mp_l1_chunk_lifetime_seconds_count", r#"l1_tag="_default""#);
    assert_eq!(lifetimes, Some(2.0));

    let [point] = &collector.points("lmcache_mp.l1_write")[..] else { panic!("one point") };
    let tag = BTreeMap::from([("l1_tag".to_owned(), "_default".to_owned())]);
    assert_eq!((point.unit.as_str(), &point.attributes, point.value), ("chunks", &tag, 4.0));
    assert!(collector.points("lmcache_mp.l1_write_keys").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sets_are_there_and_coinciding_families_once_with_the_documented_labels() {
    let (page, collector) = run("both").await;
    check_theirs(&page, "both");
    for metric in CATALOGUE.iter() {
        for name in metric.seed.iter().chain(&metric.v05) {
            assert!(page.types.contains_key(name.prometheus), "{}", name.prometheus);
        }
    }
    assert_eq!(page.value("lmcache_mp_l1_usage_ratio", ""), Some(0.5));
    assert_eq!(page.series("lmcache_mp_l1_usage_ratio").count(), 1);
    assert_eq!(page.value("lmcache_mp_l1_write_keys_total", ""), Some(4.0));
    let engine = r#"engine_id="1",device="cuda:0",model_name="m""#;
    for family in ["lmcache_mp_l0_l1_store_throughput_gbs", "lmcache_mp_l0_l1_store_throughput_GB_per_second"]
    {
        assert_eq!(page.value(&format!("{family}_count"), engine), Some(1.0), "{family}");
    }
    assert_eq!(collector.points("lmcache_mp.l2_store_completed").len(), 1, "the names differ by unit only");
    assert_eq!(collector.points("lmcache_mp.l1_write").len(), 1);
    assert_eq!(collector.points("lmcache_mp.l1_write_keys").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_0_5_6_alone_is_there_by_default() {
    let (page, _) = run("seed").await;
    for (name, ..) in THEIRS {
        assert!(!page.types.contains_key(*name), "{name}");
    }
}

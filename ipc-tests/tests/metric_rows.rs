//! Every metric of the documented page: typed events go through the real bus, and the computed amount is read from both
//! sinks, the scrape text (name, type and labels literally) and a real OTLP receiver. The last test of the file is that
//! no row is missing.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::*;
use ipc_tests::otlp::Collector;
use ipc_tests::scrape::Page;
use lmcache_proto::wire::BlockAllocationRecord;
use lmcached::events::{
    During, Event, EvictionCause, LookupEnd, PrefetchFailure, ReadFailure, Stamped, Subscriber,
};
use lmcached::telemetry::catalogue::PAGE;
use lmcached::telemetry::{AdapterReading, L1Readings, Readings};
use parking_lot::Mutex;

/// What a row must be on both sinks.
struct Row {
    /// Name, unit and scope over OTLP.
    otel: (&'static str, &'static str, &'static str),
    /// Family and type on the page.
    prometheus: (&'static str, &'static str),
    /// Labels as written on the page; the attributes over OTLP are the same.
    labels: &'static str,
    amount: Amount,
}

enum Amount {
    /// Of a counter or a gauge.
    Is(f64),
    /// A gauge that depends on time.
    AtLeast(f64),
    /// How many, their sum, and the first bucket that holds them all.
    Histogram(u64, f64, &'static str),
}

use Amount::{AtLeast, Histogram, Is};

fn row(
    otel: (&'static str, &'static str, &'static str),
    prometheus: (&'static str, &'static str),
    labels: &'static str,
    amount: Amount,
) -> Row {
    Row { otel, prometheus, labels, amount }
}

/// A counter of the scope with neither unit nor labels: `lmcache_mp.x` is `lmcache_mp_x_total`.
fn counter(otel: &'static str, scope: &'static str, prometheus: &'static str, count: u64) -> Row {
    row((otel, "", scope), (prometheus, "counter"), "", Is(count as f64))
}

fn check(page: &Page, collector: &Collector, rows: &[Row]) -> BTreeSet<&'static str> {
    for Row { otel: (otel, unit, scope), prometheus: (family, kind), labels, amount } in rows {
        assert_eq!(page.types.get(*family).map(String::as_str), Some(*kind), "{family}");
        let value = |suffix: &str, labels: &str| {
            let name = format!("{family}{suffix}");
            page.value(&name, labels).unwrap_or_else(|| {
                let there: Vec<_> = page.series(&name).map(|sample| &sample.labels).collect();
                panic!("no {name}{{{labels}}} but {there:?}")
            })
        };
        let points = collector.points(otel);
        let wanted = pairs(labels);
        let point = points
            .iter()
            .find(|point| point.attributes.iter().map(|(k, v)| (k.clone(), v.clone())).eq(wanted.clone()))
            .unwrap_or_else(|| panic!("no {otel}{wanted:?} but {points:?}"));
        assert_eq!((point.unit.as_str(), point.scope.as_str()), (*unit, *scope), "{otel}");
        let otlp_kind = if *kind == "counter" { "sum" } else { kind };
        assert_eq!(point.kind, otlp_kind, "{otel}");
        assert!(point.times.0 > 0 && point.times.1 >= point.times.0, "{otel}");
        match amount {
            Is(amount) => {
                assert_eq!(value("", labels), *amount, "{family}");
                assert_eq!(point.value, *amount, "{otel}");
            }
            AtLeast(least) => {
                assert!(value("", labels) >= *least, "{family}");
                assert!(point.value >= *least, "{otel}: {}", point.value);
            }
            Histogram(count, sum, bound) => {
                assert_eq!(value("_count", labels), *count as f64, "{family}");
                assert!((value("_sum", labels) - sum).abs() < 1e-6, "{family}: {}", value("_sum", labels));
                let separator = if labels.is_empty() { "" } else { "," };
                let le = |bound: &str| value("_bucket", &format!("{labels}{separator}le=\"{bound}\""));
                assert_eq!((le(bound), le("+Inf")), (*count as f64, *count as f64), "{family}");
                assert!((point.value - sum).abs() < 1e-6, "{otel}");
                let position = point.bounds.iter().position(|b| format!("{b:?}") == *bound).expect("a bound");
                let up_to: u64 = point.buckets[..=position].iter().sum();
                assert_eq!((up_to, point.buckets.iter().sum::<u64>()), (*count, *count), "{otel}");
                let below: u64 = point.buckets[..position].iter().sum();
                assert!(below < *count, "{otel}: {bound} is the first that holds them all");
            }
        }
    }
    rows.iter().map(|row| row.otel.0).collect()
}

/// Labels as sorted pairs.
fn pairs(labels: &str) -> std::vec::IntoIter<(String, String)> {
    let parts = labels.split("\",").filter(|part| !part.is_empty());
    let mut pairs: Vec<_> = parts
        .map(|part| {
            let (name, value) = part.split_once("=\"").expect("a label");
            (name.to_owned(), value.trim_end_matches('"').to_owned())
        })
        .collect();
    pairs.sort();
    pairs.into_iter()
}

async fn storage_counters() -> BTreeSet<&'static str> {
    let rig = Rig::start(&[], Readings::default(), vec![]).await;
    rig.publish(Event::SmReadPrefetched { succeeded: keys("s", 0..3), failed: 2 });
    rig.publish(Event::SmReadPrefetched { succeeded: keys("", []), failed: 4 });
    rig.publish(Event::SmWriteReserved { succeeded: 5, failed: 1 });
    let (page, collector) = rig.finish().await;
    let sm = |otel, prometheus, count| counter(otel, "lmcache.sm", prometheus, count);
    check(
        &page,
        &collector,
        &[
            sm("lmcache_mp.sm_read_requests", "lmcache_mp_sm_read_requests_total", 2),
            sm("lmcache_mp.sm_read_succeed_keys", "lmcache_mp_sm_read_succeed_keys_total", 3),
            sm("lmcache_mp.sm_read_failed_keys", "lmcache_mp_sm_read_failed_keys_total", 6),
            sm("lmcache_mp.sm_write_requests", "lmcache_mp_sm_write_requests_total", 1),
            sm("lmcache_mp.sm_write_succeed_keys", "lmcache_mp_sm_write_succeed_keys_total", 5),
            sm("lmcache_mp.sm_write_failed_keys", "lmcache_mp_sm_write_failed_keys_total", 1),
        ],
    )
}

async fn l1_counters() -> BTreeSet<&'static str> {
    let rig = Rig::start(&[], Readings::default(), vec![]).await;
    rig.publish(Event::L1WriteFinished { keys: keys("s", 0..4) });
    rig.publish(Event::L1WriteFinishedAndReadReserved { keys: keys("", 4..6) });
    rig.publish(Event::L1ReadReserved { keys: keys("", 0..6) });
    rig.publish(Event::L1ReadFinished { keys: keys("s", 0..3) });
    for cause in [EvictionCause::Cleared, EvictionCause::Replaced, EvictionCause::Temporary] {
        rig.publish(Event::L1KeysEvicted { keys: keys("s", 0..1), cause });
    }
    rig.publish(Event::L1KeysEvicted { keys: keys("s", 1..3), cause: EvictionCause::Policy });
    for triggered in [false, true, false] {
        rig.publish(Event::L1EvictionLoopTick { usage: 0.9, watermark: 0.8, triggered });
    }
    let (page, collector) = rig.finish().await;
    let l1 = |otel, prometheus, count| counter(otel, "lmcache.l1", prometheus, count);
    check(
        &page,
        &collector,
        &[
            l1("lmcache_mp.l1_read_keys", "lmcache_mp_l1_read_keys_total", 3),
            l1("lmcache_mp.l1_write_keys", "lmcache_mp_l1_write_keys_total", 6),
            l1("lmcache_mp.l1_evicted_keys", "lmcache_mp_l1_evicted_keys_total", 2),
            l1("lmcache_mp.l1_eviction_loop_ticks", "lmcache_mp_l1_eviction_loop_ticks_total", 3),
            l1("lmcache_mp.l1_eviction_loop_triggered", "lmcache_mp_l1_eviction_loop_triggered_total", 1),
        ],
    )
}

async fn l1_lifecycle() -> BTreeSet<&'static str> {
    let rig = Rig::start(&[], Readings::default(), vec![]).await;
    let policy = |numbers: std::ops::Range<u8>| Event::L1KeysEvicted {
        keys: keys("s", numbers),
        cause: EvictionCause::Policy,
    };
    // Chunks 0 and 1; only 0 is read. Then both go, and only 0 comes back in time.
    rig.at(0.0, Event::L1WriteFinished { keys: keys("s", 0..2) });
    rig.at(10.0, Event::L1ReadFinished { keys: keys("s", 0..1) });
    rig.at(40.0, policy(0..2));
    rig.at(140.0, Event::L1WriteFinishedAndReadReserved { keys: keys("s", 0..1) });
    // Written over: a use, and a new life.
    rig.at(160.0, Event::L1WriteFinished { keys: keys("s", 0..1) });
    // 1 is given up here: 300 s after it went. A clear is no eviction.
    rig.at(341.0, Event::L1EvictionLoopTick { usage: 0.1, watermark: 0.8, triggered: false });
    rig.at(342.0, Event::L1KeysEvicted { keys: keys("s", 0..1), cause: EvictionCause::Cleared });
    let (page, collector) = rig.finish().await;
    let l1 = |otel, prometheus, amount| row((otel, "s", "lmcache.l1"), (prometheus, "histogram"), "", amount);
    check(
        &page,
        &collector,
        &[
            l1(
                "lmcache_mp.l1_chunk_lifetime_seconds",
                "lmcache_mp_l1_chunk_lifetime_seconds",
                Histogram(2, 80.0, "60.0"),
            ),
            l1(
                "lmcache_mp.l1_chunk_idle_before_evict_seconds",
                "lmcache_mp_l1_chunk_idle_before_evict_seconds",
                Histogram(2, 70.0, "60.0"),
            ),
            l1(
                "lmcache_mp.l1_chunk_reuse_gap_seconds",
                "lmcache_mp_l1_chunk_reuse_gap_seconds",
                Histogram(2, 30.0, "30.0"),
            ),
            l1(
                "lmcache_mp.l1_chunk_evict_reuse_gap_seconds",
                "lmcache_mp_l1_chunk_evict_reuse_gap_seconds",
                Histogram(2, 400.0, "300.0"),
            ),
        ],
    )
}

async fn real_reuse() -> BTreeSet<&'static str> {
    let rig = Rig::start(&[], Readings::default(), vec![]).await;
    // Two ranks and two groups hold chunk 0: one access. Accesses 1 and 2 of the salt.
    let everywhere =
        |number| (0..2u32).flat_map(move |group| (0..2u32).map(move |rank| cell(number, 2, rank, group)));
    let written = cells("s", everywhere(0).chain(everywhere(1)));
    rig.at(0.0, Event::SmWriteFinished { succeeded: written, failed: 0 });
    // Another tenant's accesses do not count.
    rig.at(1.0, Event::SmWriteFinished { succeeded: keys("other", 0..9), failed: 0 });
    // Each rank tells of its own read: access 3, gap 2, 20 s.
    for rank in 0..2 {
        let read = cells("s", [cell(0, 2, rank, 0)]);
        rig.at(20.0, Event::SmReadPrefetchedFinished { succeeded: read, failed: 0 });
    }
    // Accesses 4 and 5, gaps 1 and 3, 5 s and 25 s.
    let read = keys("s", [0, 1]);
    rig.at(25.0, Event::SmReadPrefetchedFinished { succeeded: read, failed: 7 });
    // An empty salt is a label all the same.
    rig.at(30.0, Event::SmWriteFinished { succeeded: keys("", 0..1), failed: 0 });
    rig.at(33.0, Event::SmReadPrefetchedFinished { succeeded: keys("", 0..1), failed: 0 });
    let (page, collector) = rig.finish().await;
    let sm = |otel, unit, prometheus, labels, amount| {
        row((otel, unit, "lmcache.sm"), (prometheus, "histogram"), labels, amount)
    };
    let seconds = ("lmcache_mp.real_reuse_gap_seconds", "lmcache_mp_real_reuse_gap_seconds");
    let chunks = ("lmcache_mp.real_reuse_gap_chunks", "lmcache_mp_real_reuse_gap_chunks");
    let moved = check(
        &page,
        &collector,
        &[
            sm(seconds.0, "s", seconds.1, r#"cache_salt="s""#, Histogram(3, 50.0, "30.0")),
            sm(chunks.0, "{chunks}", chunks.1, r#"cache_salt="s""#, Histogram(3, 6.0, "4.0")),
            sm(seconds.0, "s", seconds.1, r#"cache_salt="""#, Histogram(1, 3.0, "5.0")),
            sm(chunks.0, "{chunks}", chunks.1, r#"cache_salt="""#, Histogram(1, 1.0, "1.0")),
        ],
    );
    assert_eq!(page.series("lmcache_mp_real_reuse_gap_chunks_count").count(), 2, "writes are no samples");
    moved
}

async fn l2() -> BTreeSet<&'static str> {
    let rig = Rig::start(&[], Readings::default(), vec![]).await;
    let (fs, resp) = (adapter(0, "fs"), adapter(1, "resp"));
    let none = by_salt(&[]);
    for (task, adapter, at) in [(1, &fs, 0.0), (2, &resp, 0.0), (1, &resp, 1.0)] {
        let submitted = Event::L2StoreSubmitted {
            adapter: adapter.clone(),
            task,
            keys: 4,
            bytes: 0,
            by_salt: none.clone(),
        };
        rig.at(at, submitted);
    }
    let done = |adapter: &_, task, bytes, succeeded, failed| Event::L2StoreCompleted {
        adapter: lmcached::events::AdapterId::clone(adapter),
        task,
        bytes,
        succeeded,
        failed,
        by_salt: none.clone(),
    };
    // 4 GB in 2 s: 2 GB/s; 1 GB in 4 s: 0.25 GB/s; a failure has no speed.
    rig.at(2.0, done(&fs, 1, 4_000_000_000, 4, 0));
    rig.at(4.0, done(&resp, 2, 1_000_000_000, 3, 1));
    rig.at(5.0, done(&resp, 1, 0, 0, 4));
    for (session, keys, hits) in [("a", 8, 5), ("b", 2, 0)] {
        let session = common::session(session);
        let by_salt = none.clone();
        rig.publish(Event::L2PrefetchLookupSubmitted {
            session: session.clone(),
            keys,
            adapters: 2,
            by_salt,
        });
        rig.publish(Event::L2PrefetchLookupCompleted { session, prefix_hits: hits });
    }
    let a = common::session("a");
    rig.publish(Event::L2PrefetchLoadSubmitted {
        session: a.clone(),
        keys: 5,
        adapters: 2,
        by_salt: none.clone(),
    });
    for (adapter, task, bytes, ended) in [(&fs, 7, 3_000_000_000, 11.0), (&resp, 7, 600_000_000, 12.0)] {
        let adapter = adapter.clone();
        let (session, keys) = (a.clone(), 2);
        rig.at(10.0, Event::L2LoadTaskSubmitted { session, adapter: adapter.clone(), task, keys, bytes });
        rig.at(ended, Event::L2LoadTaskCompleted { session: a.clone(), adapter, task });
    }
    rig.publish(Event::L2PrefetchLoadCompleted { session: a, loaded: 4, failed: 1, by_salt: none.clone() });
    let (page, collector) = rig.finish().await;
    let l2 = |otel, prometheus, count| counter(otel, "lmcache.l2", prometheus, count);
    let named = |otel, prometheus, labels, count| {
        row((otel, "", "lmcache.l2"), (prometheus, "counter"), labels, Is(count))
    };
    let speed = |otel, prometheus, labels, gbs, bound| {
        row((otel, "GB/s", "lmcache_mp.perf"), (prometheus, "histogram"), labels, Histogram(1, gbs, bound))
    };
    let stores = ("lmcache_mp.l2_store_completed", "lmcache_mp_l2_store_completed_total");
    let loads = ("lmcache_mp.l2_load_completed", "lmcache_mp_l2_load_completed_total");
    let store_speed = ("lmcache_mp.l2_store_throughput_gbs", "lmcache_mp_l2_store_throughput_gbs");
    let load_speed = ("lmcache_mp.l2_load_throughput_gbs", "lmcache_mp_l2_load_throughput_gbs");
    check(
        &page,
        &collector,
        &[
            l2("lmcache_mp.l2_store_tasks", "lmcache_mp_l2_store_tasks_total", 3),
            l2("lmcache_mp.l2_store_keys", "lmcache_mp_l2_store_keys_total", 12),
            named(stores.0, stores.1, r#"l2_name="fs""#, 1.0),
            named(stores.0, stores.1, r#"l2_name="resp""#, 2.0),
            l2("lmcache_mp.l2_store_succeeded_keys", "lmcache_mp_l2_store_succeeded_keys_total", 7),
            l2("lmcache_mp.l2_store_failed_keys", "lmcache_mp_l2_store_failed_keys_total", 5),
            l2("lmcache_mp.l2_prefetch_lookups", "lmcache_mp_l2_prefetch_lookups_total", 2),
            l2("lmcache_mp.l2_prefetch_lookup_keys", "lmcache_mp_l2_prefetch_lookup_keys_total", 10),
            l2("lmcache_mp.l2_prefetch_hit_keys", "lmcache_mp_l2_prefetch_hit_keys_total", 5),
            l2("lmcache_mp.l2_prefetch_load_tasks", "lmcache_mp_l2_prefetch_load_tasks_total", 2),
            l2("lmcache_mp.l2_prefetch_load_keys", "lmcache_mp_l2_prefetch_load_keys_total", 5),
            l2("lmcache_mp.l2_prefetch_loaded_keys", "lmcache_mp_l2_prefetch_loaded_keys_total", 4),
            l2("lmcache_mp.l2_prefetch_failed_keys", "lmcache_mp_l2_prefetch_failed_keys_total", 1),
            named(loads.0, loads.1, r#"l2_name="fs""#, 1.0),
            named(loads.0, loads.1, r#"l2_name="resp""#, 1.0),
            speed(store_speed.0, store_speed.1, r#"l2_name="fs""#, 2.0, "3.2"),
            speed(store_speed.0, store_speed.1, r#"l2_name="resp""#, 0.25, "0.4"),
            speed(load_speed.0, load_speed.1, r#"l2_name="fs""#, 3.0, "3.2"),
            speed(load_speed.0, load_speed.1, r#"l2_name="resp""#, 0.3, "0.4"),
        ],
    )
}

async fn failures() -> BTreeSet<&'static str> {
    let rig = Rig::start(&[], Readings::default(), vec![]).await;
    for (during, keys) in [(During::L1Store, 3), (During::L2Prefetch, 2), (During::L1Store, 1)] {
        rig.publish(Event::L1AllocationFailed { during, model: text("m"), keys });
    }
    for (during, reason) in [
        (During::L1Retrieve, ReadFailure::NotFound),
        (During::L1Retrieve, ReadFailure::WriteLocked),
        (During::L2Store, ReadFailure::NotFound),
        (During::L2Store, ReadFailure::WriteLocked),
    ] {
        rig.publish(Event::L1ReadFailed { during, reason, model: text("org/m"), keys: 2 });
    }
    for (reason, keys) in
        [(PrefetchFailure::L1Oom, 4), (PrefetchFailure::NotFound, 5), (PrefetchFailure::SerdeFailure, 6)]
    {
        rig.publish(Event::L2PrefetchFailed { reason, model: text("m"), keys });
    }
    let (page, collector) = rig.finish().await;
    let health = |otel, prometheus, labels, count| {
        row((otel, "", "lmcache_mp.health"), (prometheus, "counter"), labels, Is(count))
    };
    let allocation = ("lmcache_mp.l1_allocation_failure", "lmcache_mp_l1_allocation_failure_total");
    let read = ("lmcache_mp.l1_read_failure", "lmcache_mp_l1_read_failure_total");
    let prefetch = ("lmcache_mp.l2_prefetch_failure", "lmcache_mp_l2_prefetch_failure_total");
    let (a, r, p) = (allocation, read, prefetch);
    check(
        &page,
        &collector,
        &[
            health(a.0, a.1, r#"during="l1_store",model_name="m""#, 4.0),
            health(a.0, a.1, r#"during="l2_prefetch",model_name="m""#, 2.0),
            health(r.0, r.1, r#"during="l1_retrieve",reason="not_found",model_name="org/m""#, 2.0),
            health(r.0, r.1, r#"during="l1_retrieve",reason="write_locked",model_name="org/m""#, 2.0),
            health(r.0, r.1, r#"during="l2_store",reason="not_found",model_name="org/m""#, 2.0),
            health(r.0, r.1, r#"during="l2_store",reason="write_locked",model_name="org/m""#, 2.0),
            health(p.0, p.1, r#"reason="l1_oom",model_name="m""#, 4.0),
            health(p.0, p.1, r#"reason="not_found",model_name="m""#, 5.0),
            health(p.0, p.1, r#"reason="serde_failure",model_name="m""#, 6.0),
        ],
    )
}

async fn hit_rate() -> BTreeSet<&'static str> {
    let rig = Rig::start(&[], Readings::default(), vec![]).await;
    let lookup = |salt: &str, requested, hit, early| LookupEnd {
        found_count: hit / 256,
        requested_tokens: requested,
        hit_tokens: hit,
        l1_hit_tokens: hit,
        l2_hit_tokens: 0,
        l1_hit_keys: hit / 256,
        l2_hit_keys: 0,
        early_exit_reason: early,
        model: text("m"),
        salt: text(salt),
    };
    // "d" was abandoned: it has a start and no end. "c" ended early and counts 0.
    for name in ["a", "b", "c", "d"] {
        rig.publish(Event::MpLookupPrefetchStart { session: session(name) });
    }
    for (name, end) in [
        ("a", lookup("", 1024, 512, "")),
        ("b", lookup("", 2048, 2048, "")),
        ("c", lookup("tenant", 256, 0, "no_gpu_context")),
    ] {
        rig.publish(Event::MpLookupPrefetchEnd { session: session(name), end });
    }
    let (page, collector) = rig.finish().await;
    let tokens = |otel, prometheus, labels, count| {
        row((otel, "tokens", "lmcache.lookup"), (prometheus, "counter"), labels, Is(count))
    };
    let requested = ("lmcache_mp.lookup_requested_tokens", "lmcache_mp_lookup_requested_tokens_total");
    let hit = ("lmcache_mp.lookup_hit_tokens", "lmcache_mp_lookup_hit_tokens_total");
    let (shared, tenant) = (r#"model_name="m",cache_salt="""#, r#"model_name="m",cache_salt="tenant""#);
    check(
        &page,
        &collector,
        &[
            tokens(requested.0, requested.1, shared, 3072.0),
            tokens(hit.0, hit.1, shared, 2560.0),
            tokens(requested.0, requested.1, tenant, 0.0),
            tokens(hit.0, hit.1, tenant, 0.0),
        ],
    )
}

async fn blocks() -> BTreeSet<&'static str> {
    let rig = Rig::start(&[], Readings::default(), vec![]).await;
    let allocate =
        |request: &str, blocks: &[i64], tokens: std::ops::Range<i64>| Event::MpVllmBlockAllocation {
            instance: 12345,
            model: text("llama-7b"),
            records: vec![BlockAllocationRecord {
                req_id: request.into(),
                new_block_ids: blocks.to_vec(),
                new_token_ids: tokens.collect(),
            }]
            .into(),
        };
    let ended = |name: &str| Event::MpVllmEndSession { session: session(name) };
    rig.at(0.0, allocate("a", &[1, 2], 0..32));
    // Told again, and shared while in use: no reuse.
    rig.at(1.0, allocate("a", &[1], 0..16));
    rig.at(2.0, allocate("b", &[1], 0..16));
    rig.at(3.0, ended("a"));
    rig.at(4.0, ended("b"));
    // Block 1 is used again after 20 s, block 2 gets other tokens after 50 s without a use, block 1 after 90 s.
    rig.at(20.0, allocate("c", &[1], 0..16));
    rig.at(50.0, allocate("d", &[2], 100..116));
    rig.at(90.0, allocate("d", &[1], 200..216));
    // No tokens: a placeholder.
    rig.at(91.0, allocate("e", &[1, 2, 3], 0..0));
    let (page, collector) = rig.finish().await;
    let labels = r#"instance_id="12345",model_name="llama-7b""#;
    let l0 =
        |otel, prometheus, amount| row((otel, "s", "lmcache.l0"), (prometheus, "histogram"), labels, amount);
    check(
        &page,
        &collector,
        &[
            l0(
                "lmcache_mp.l0_block_lifetime_seconds",
                "lmcache_mp_l0_block_lifetime_seconds",
                Histogram(2, 140.0, "120.0"),
            ),
            l0(
                "lmcache_mp.l0_block_idle_before_evict_seconds",
                "lmcache_mp_l0_block_idle_before_evict_seconds",
                Histogram(2, 120.0, "120.0"),
            ),
            l0(
                "lmcache_mp.l0_block_reuse_gap_seconds",
                "lmcache_mp_l0_block_reuse_gap_seconds",
                Histogram(1, 20.0, "30.0"),
            ),
        ],
    )
}

async fn transfers() -> BTreeSet<&'static str> {
    let rig = Rig::start(&[], Readings::default(), vec![]).await;
    let (cpu, cuda) = (worker(7, "cpu"), worker(8, "cuda:3"));
    // Two ranks of one request overlap: 2 GB in 1 s and in 4 s.
    let of = |number, worker: &std::sync::Arc<lmcached::events::Worker>| {
        (session("r"), transfer(number), worker.clone())
    };
    for (number, worker, ended) in [(1, &cpu, 1.0), (2, &cuda, 4.0)] {
        let (session, transfer, worker) = of(number, worker);
        rig.at(0.0, Event::MpStoreSubmitted { session: session.clone(), transfer, worker: worker.clone() });
        rig.at(0.0, Event::MpStoreStart { session: session.clone(), transfer, worker: worker.clone() });
        rig.at(ended, Event::MpStoreEnd { session, transfer, worker, end: end(4, 2_000_000_000, 1024) });
    }
    for (number, start, ended, count, bytes) in [(3, 10.0, 10.5, 4, 1_000_000_000), (4, 11.0, 12.0, 2, 0)] {
        let (session, transfer, worker) = of(number, &cuda);
        rig.at(start, Event::MpRetrieveStart { session: session.clone(), transfer, worker: worker.clone() });
        rig.at(ended, Event::MpRetrieveEnd { session, transfer, worker, end: end(count, bytes, 0) });
    }
    let (page, collector) = rig.finish().await;
    let speed = |otel, prometheus, labels, gbs, bound| {
        row((otel, "GB/s", "lmcache_mp.perf"), (prometheus, "histogram"), labels, Histogram(1, gbs, bound))
    };
    let store = ("lmcache_mp.l0_l1_store_throughput_gbs", "lmcache_mp_l0_l1_store_throughput_gbs");
    let load = ("lmcache_mp.l0_l1_load_throughput_gbs", "lmcache_mp_l0_l1_load_throughput_gbs");
    check(
        &page,
        &collector,
        &[
            speed(store.0, store.1, r#"engine_id="7",device="cpu",model_name="m""#, 2.0, "3.2"),
            speed(store.0, store.1, r#"engine_id="8",device="cuda:3",model_name="m""#, 0.5, "0.8"),
            speed(load.0, load.1, r#"engine_id="8",device="cuda:3",model_name="m""#, 2.0, "3.2"),
            row(
                ("lmcache_mp.num_chunks_loaded", "", "lmcache_mp.engine"),
                ("lmcache_mp_num_chunks_loaded_total", "counter"),
                r#"worker_id="8",model_name="m",cache_salt="s""#,
                Is(6.0),
            ),
        ],
    )
}

async fn gauges() -> BTreeSet<&'static str> {
    let adapter = |index, stores, loads, bytes| AdapterReading {
        name: "fs".into(),
        index,
        inflight_stores: stores,
        inflight_loads: loads,
        inflight_load_bytes: bytes,
        ..AdapterReading::default()
    };
    let readings = Readings {
        active_prefetch_jobs: 3,
        l1: L1Readings { used_bytes: 1 << 30, capacity_bytes: 4 << 30, ..L1Readings::default() },
        adapters: vec![adapter(0, 2, 1, 4096), adapter(1, 0, 0, 0), adapter(2, 5, 0, 0)],
        ..Readings::default()
    };
    let (page, collector) = Rig::start(&[], readings, vec![]).await.finish().await;
    let gauge = |otel, scope, prometheus, labels, value| {
        row((otel, "", scope), (prometheus, "gauge"), labels, Is(value))
    };
    let stores = ("lmcache_mp.num_inflight_l2_stores", "lmcache_mp_num_inflight_l2_stores");
    let (first, third) = (r#"l2_name="fs",adapter_index="0""#, r#"l2_name="fs",adapter_index="2""#);
    let moved = check(
        &page,
        &collector,
        &[
            gauge(
                "lmcache_mp.active_prefetch_jobs",
                "lmcache.mp_server",
                "lmcache_mp_active_prefetch_jobs",
                "",
                3.0,
            ),
            gauge(
                "lmcache_mp.l1_memory_usage_bytes",
                "lmcache.l1_manager",
                "lmcache_mp_l1_memory_usage_bytes",
                "",
                f64::from(1 << 30),
            ),
            gauge("lmcache_mp.l1_usage_ratio", "lmcache.l1_manager", "lmcache_mp_l1_usage_ratio", "", 0.25),
            gauge(stores.0, "lmcache.l2_store", stores.1, first, 2.0),
            gauge(stores.0, "lmcache.l2_store", stores.1, third, 5.0),
            gauge(
                "lmcache_mp.num_inflight_l2_loads",
                "lmcache.l2_prefetch",
                "lmcache_mp_num_inflight_l2_loads",
                first,
                1.0,
            ),
            gauge(
                "lmcache_mp.inflight_load_memory_usage_bytes",
                "lmcache.l2_prefetch",
                "lmcache_mp_inflight_load_memory_usage_bytes",
                first,
                4096.0,
            ),
        ],
    );
    assert_eq!(
        page.series("lmcache_mp_num_inflight_l2_loads").count(),
        1,
        "adapters without work have no point"
    );
    moved
}

struct Panics;

impl Subscriber for Panics {
    fn name(&self) -> &'static str {
        "Panics"
    }

    fn on_event(&mut self, _event: &Stamped) {
        panic!("on purpose");
    }
}

/// Waits in its first event until the gate opens.
struct Stuck(Arc<Mutex<()>>);

impl Subscriber for Stuck {
    fn name(&self) -> &'static str {
        "Stuck"
    }

    fn on_event(&mut self, _event: &Stamped) {
        drop(self.0.lock());
    }
}

async fn bus() -> BTreeSet<&'static str> {
    let rig = Rig::start(&[], Readings::default(), vec![Box::new(Panics)]).await;
    let tick = || Event::L1EvictionLoopTick { usage: 0.1, watermark: 0.8, triggered: false };
    (0..3).for_each(|_| rig.publish(tick()));
    let (page, collector) = rig.finish().await;
    let of_bus = |otel, prometheus, kind, labels, amount| {
        row((otel, "", "lmcache.event_bus"), (prometheus, kind), labels, amount)
    };
    let exceptions =
        ("lmcache_mp.event_bus.subscriber_exceptions", "lmcache_mp_event_bus_subscriber_exceptions_total");
    let mut moved = check(
        &page,
        &collector,
        &[
            of_bus(exceptions.0, exceptions.1, "counter", r#"subscriber_name="Panics""#, Is(3.0)),
            of_bus(exceptions.0, exceptions.1, "counter", r#"subscriber_name="L1Metrics""#, Is(0.0)),
        ],
    );
    assert_eq!(page.value("lmcache_mp_l1_eviction_loop_ticks_total", ""), Some(3.0), "the others go on");

    let gate = Arc::new(Mutex::new(()));
    let rig =
        Rig::start(&["--event-bus-queue-size=1"], Readings::default(), vec![Box::new(Stuck(gate.clone()))]);
    let rig = rig.await;
    let (published, dropped) = {
        let closed = gate.lock();
        (0..1000).for_each(|_| rig.bus.publish(tick));
        // One is being delivered for ever, one waits, and so the lag rises.
        while rig.bus.status().queue_depth < 1 || rig.bus.status().drain_lag_seconds < 0.01 {
            rig.bus.publish(tick);
            std::thread::yield_now();
        }
        let page = Page::parse(&rig.telemetry.scrape());
        assert_eq!(page.value("lmcache_mp_event_bus_queue_depth", ""), Some(1.0));
        assert!(page.value("lmcache_mp_event_bus_drain_lag_seconds", "").expect("a gauge") >= 0.01);
        // The push, with the bus still stuck.
        let telemetry = rig.telemetry.clone();
        let push = std::thread::spawn(move || telemetry.shutdown());
        tokio::task::block_in_place(|| push.join()).expect("no panic");
        let status = rig.bus.status();
        drop(closed);
        (status.published, status.dropped)
    };
    assert!(dropped >= 990 && published >= 1, "{dropped} {published}");
    let points = |metric: &str| rig.collector.points(metric);
    assert_eq!(points("lmcache_mp.event_bus.queue_depth")[0].value, 1.0);
    let (page, collector) = rig.finish().await;
    let dropped = dropped as f64;
    assert_eq!(page.value("lmcache_mp_event_bus_dropped_events_total", ""), Some(dropped));
    assert_eq!(page.value("lmcache_mp_event_bus_queue_depth", ""), Some(0.0), "all is delivered");
    for (otel, prometheus, kind, pushed) in [
        ("lmcache_mp.event_bus.queue_depth", "lmcache_mp_event_bus_queue_depth", "gauge", Is(1.0)),
        (
            "lmcache_mp.event_bus.drain_lag_seconds",
            "lmcache_mp_event_bus_drain_lag_seconds",
            "gauge",
            AtLeast(0.01),
        ),
        (
            "lmcache_mp.event_bus.dropped_events_total",
            "lmcache_mp_event_bus_dropped_events_total",
            "counter",
            Is(dropped),
        ),
    ] {
        assert_eq!(page.types.get(prometheus).map(String::as_str), Some(kind));
        let [point] = &collector.points(otel)[..] else { panic!("one point of {otel}") };
        assert_eq!((point.scope.as_str(), point.unit.as_str()), ("lmcache.event_bus", ""));
        assert!(match pushed {
            AtLeast(least) => point.value >= least,
            Is(value) => point.value == value,
            Histogram(..) => false,
        });
        moved.insert(otel);
    }
    moved
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_of_the_page_moves_by_the_computed_amount_on_both_sinks() {
    let mut moved = BTreeSet::new();
    moved.extend(storage_counters().await);
    moved.extend(l1_counters().await);
    moved.extend(l1_lifecycle().await);
    moved.extend(real_reuse().await);
    moved.extend(l2().await);
    moved.extend(failures().await);
    moved.extend(hit_rate().await);
    moved.extend(blocks().await);
    moved.extend(transfers().await);
    moved.extend(gauges().await);
    moved.extend(bus().await);
    let page: BTreeSet<_> = PAGE.iter().filter_map(|metric| metric.seed).map(|name| name.otel).collect();
    assert_eq!(moved, page);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_scrape_has_every_family_and_counters_at_zero() {
    let (page, collector) = Rig::start(&[], Readings::default(), vec![]).await.finish().await;
    for metric in &PAGE {
        let name = metric.seed.expect("a documented name").prometheus;
        assert_eq!(page.types.get(name).map(String::as_str), Some(metric.kind.prometheus()), "{name}");
        assert!(page.helped.iter().any(|family| family == name), "{name} has no HELP");
        if metric.kind.name() == "Counter" && metric.attributes.is_empty() {
            assert_eq!(page.value(name, ""), Some(0.0), "{name}");
        }
    }
    let target: Vec<_> = page.series("target_info").collect();
    let labels = &target[0].labels;
    for label in
        [r#"service_instance_id="rig""#, r#"service_name="lmcached""#, r#"telemetry_sdk_language="rust""#]
    {
        assert!(labels.contains(label), "{label} in {labels}");
    }
    let resource = collector.received(|received| received.resource.clone());
    assert_eq!(resource.get("service.instance.id").map(String::as_str), Some("rig"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_instance_id_stays_empty_on_both_sinks() {
    let flags = ["--service-instance-id="];
    let (page, collector) = Rig::start(&flags, Readings::default(), vec![]).await.finish().await;
    let target: Vec<_> = page.series("target_info").collect();
    assert!(target[0].labels.contains(r#"service_instance_id="""#), "{}", target[0].labels);
    let resource = collector.received(|received| received.resource.clone());
    assert_eq!(resource.get("service.instance.id").map(String::as_str), Some(""));
}

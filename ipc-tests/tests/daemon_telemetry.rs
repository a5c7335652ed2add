//! One request through the real daemon, as its page, its collector and its log tell it.

use ipc_tests::daemon::Daemon;
use ipc_tests::otlp::Collector;
use ipc_tests::pool::Pool;
use ipc_tests::scrape::Page;
use ipc_tests::worker::{Model, commit_retrieve, lookup, prepare_retrieve, prepare_store, prompt, store};
use ipc_tests::{eventually, http};
use lmcache_proto::wire::{BlockAllocationRecord, Request};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_and_retrieved_prompt_is_on_every_sink() {
    let collector = Collector::start().await;
    let environment = [
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("OTEL_BLRP_SCHEDULE_DELAY", "50"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "100"),
    ];
    let endpoint = collector.endpoint();
    let flags = ["--enable-tracing", "--otlp-endpoint", &endpoint, "--metrics-sample-rate=1.0"];
    let mut daemon = Daemon::start_in(&environment, &flags).await;
    let (mut scheduler, mut worker) = (daemon.connect().await, daemon.connect().await);
    let model = Model::small("m");
    let tokens = prompt(1, 4);
    worker.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    assert_eq!(lookup(&mut scheduler, &model, "cold", &tokens, 1).await, 0);
    assert_eq!(store(&mut worker, &pool, &model, "cold", &tokens, 7, 100).await, 4);
    scheduler.call(&Request::EndSession { request_id: "cold" }).await.expect("end");
    assert_eq!(lookup(&mut scheduler, &model, "warm", &tokens, 1).await, 4);
    let frame = model.key("warm", &tokens).frame(Some(0), 0, tokens.len() as u64);
    assert_eq!(prepare_retrieve(&mut worker, &frame, 7).await.expect("slots").len(), 4);
    assert!(commit_retrieve(&mut worker, &frame, 7).await);
    scheduler.call(&Request::EndSession { request_id: "warm" }).await.expect("end");

    let (_, page) = http::get(daemon.http_port(), "/metrics").await.expect("a page");
    let page = Page::parse(&page);
    let model_labels = r#"model_name="m",cache_salt="""#;
    let transfer = r#"engine_id="7",device="cpu",model_name="m""#;
    let rows = [
        ("lmcache_mp_sm_read_requests_total", "lmcache_mp.sm_read_requests", "", 2.0),
        ("lmcache_mp_sm_read_succeed_keys_total", "lmcache_mp.sm_read_succeed_keys", "", 4.0),
        ("lmcache_mp_sm_read_failed_keys_total", "lmcache_mp.sm_read_failed_keys", "", 4.0),
        ("lmcache_mp_sm_write_requests_total", "lmcache_mp.sm_write_requests", "", 1.0),
        ("lmcache_mp_sm_write_succeed_keys_total", "lmcache_mp.sm_write_succeed_keys", "", 4.0),
        ("lmcache_mp_sm_write_failed_keys_total", "lmcache_mp.sm_write_failed_keys", "", 0.0),
        ("lmcache_mp_l1_read_keys_total", "lmcache_mp.l1_read_keys", "", 4.0),
        ("lmcache_mp_l1_write_keys_total", "lmcache_mp.l1_write_keys", "", 4.0),
        (
            "lmcache_mp_lookup_requested_tokens_total",
            "lmcache_mp.lookup_requested_tokens",
            model_labels,
            2048.0,
        ),
        ("lmcache_mp_lookup_hit_tokens_total", "lmcache_mp.lookup_hit_tokens", model_labels, 1024.0),
        (
            "lmcache_mp_num_chunks_loaded_total",
            "lmcache_mp.num_chunks_loaded",
            r#"worker_id="7",model_name="m",cache_salt="""#,
            4.0,
        ),
        ("lmcache_mp_l1_memory_usage_bytes", "lmcache_mp.l1_memory_usage_bytes", "", f64::from(4 << 18)),
    ];
    for (name, _, labels, value) in rows {
        let there: Vec<_> = page.series(name).collect();
        assert_eq!(page.value(name, labels), Some(value), "{name}{{{labels}}} in {there:?}");
    }
    for (name, labels, count) in [
        ("lmcache_mp_l0_l1_store_throughput_gbs_count", transfer, 1.0),
        ("lmcache_mp_l0_l1_load_throughput_gbs_count", transfer, 1.0),
        ("lmcache_mp_l1_chunk_reuse_gap_seconds_count", "", 4.0),
        ("lmcache_mp_real_reuse_gap_seconds_count", r#"cache_salt="""#, 4.0),
        ("lmcache_mp_real_reuse_gap_chunks_count", r#"cache_salt="""#, 4.0),
    ] {
        assert_eq!(page.value(name, labels), Some(count), "{name}");
    }
    assert!(page.value("lmcached_request_seconds_count", r#"operation="lookup""#).is_some_and(|n| n >= 2.0));

    eventually("both requests have arrived as spans", async || {
        (collector.spans("request").len() == 2).then_some(())
    })
    .await;
    daemon.terminate();
    for (_, otel, _, value) in rows {
        let points = collector.points(otel);
        assert!(points.iter().any(|point| point.value == value), "{otel}: {points:?}");
    }
    for root in collector.spans("request") {
        let children: Vec<String> = collector.received(|received| {
            let of_root = |span: &&ipc_tests::otlp::Span| span.parent == root.id && span.trace == root.trace;
            received.spans.iter().filter(of_root).map(|span| span.name.clone()).collect()
        });
        let has = |name: &str| children.iter().filter(|child| *child == name).count();
        let warm = root.attributes["session_id"] == "warm";
        assert_eq!(has("mp.lookup_prefetch"), 1, "{children:?}");
        assert_eq!((has("mp.store"), has("mp.retrieve")), if warm { (0, 1) } else { (1, 0) }, "{children:?}");
        assert_eq!(root.attributes["hit_rate"], if warm { "1.0" } else { "0.0" });
        assert_eq!(root.attributes["requested_tokens"], "1024");
        assert!(!root.failed);
    }
    for line in [
        "Stored 1024 tokens in ",
        "Retrieved 1024 tokens in ",
        "Prefetch request completed (L1+L2): 4/4 prefix hits",
    ] {
        daemon.says(line).await;
        assert!(
            collector.received(|received| received.records.iter().any(|r| r.body.contains(line))),
            "{line}"
        );
    }
}

/// The same series on both sinks; of a histogram it is the count.
async fn on_both(collector: &Collector, page: &Page, name: &str, labels: &str, otel: &str, value: f64) {
    let there: Vec<_> = page.series(name).collect();
    assert_eq!(page.value(name, labels), Some(value), "{name}{{{labels}}} in {there:?}");
    eventually(&format!("the collector has {value} of {otel}"), async || {
        collector.points(otel).iter().any(|point| point.count() == value).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evictions_failures_and_blocks_are_on_both_sinks() {
    let collector = Collector::start().await;
    let endpoint = collector.endpoint();
    // Room for 64 objects; 52 are above the watermark, and a round frees a fifth of what is used.
    let flags = [
        "--otlp-endpoint",
        &endpoint,
        "--metrics-sample-rate=1.0",
        "--l1-size-gb=0.015625",
        "--eviction-trigger-watermark=0.8",
        "--eviction-ratio=0.2",
    ];
    let daemon = Daemon::start_in(&[("OTEL_METRIC_EXPORT_INTERVAL", "100")], &flags).await;
    let (mut scheduler, mut worker) = (daemon.connect().await, daemon.connect().await);
    let model = Model::small("m");
    worker.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let page = async || Page::parse(&http::get(daemon.http_port(), "/metrics").await.expect("a page").1);
    let object = f64::from(1 << 18);

    // Two prompts fill 60 of 64 places: 12 go.
    let (first, second) = (prompt(1, 40), prompt(2, 20));
    assert_eq!(store(&mut worker, &pool, &model, "first", &first, 7, 0).await, 40);
    assert_eq!(store(&mut worker, &pool, &model, "second", &second, 7, 0).await, 20);
    eventually("the evictor has run", async || {
        (page().await.value("lmcache_mp_l1_evicted_keys_total", "") == Some(12.0)).then_some(())
    })
    .await;
    let seen = page().await;
    let both = async |page: &Page, name: &str, labels: &str, otel: &str, value: f64| {
        on_both(&collector, page, name, labels, otel, value).await;
    };
    both(&seen, "lmcache_mp_l1_evicted_keys_total", "", "lmcache_mp.l1_evicted_keys", 12.0).await;
    both(
        &seen,
        "lmcache_mp_l1_eviction_loop_triggered_total",
        "",
        "lmcache_mp.l1_eviction_loop_triggered",
        1.0,
    )
    .await;
    let lifetimes = "lmcache_mp_l1_chunk_lifetime_seconds_count";
    both(&seen, lifetimes, "", "lmcache_mp.l1_chunk_lifetime_seconds", 12.0).await;
    let idle = "lmcache_mp_l1_chunk_idle_before_evict_seconds_count";
    both(&seen, idle, "", "lmcache_mp.l1_chunk_idle_before_evict_seconds", 12.0).await;
    both(&seen, "lmcache_mp_l1_usage_ratio", "", "lmcache_mp.l1_usage_ratio", 0.75).await;
    both(&seen, "lmcache_mp_l1_memory_usage_bytes", "", "lmcache_mp.l1_memory_usage_bytes", 48.0 * object)
        .await;
    both(&seen, "lmcache_mp_active_prefetch_jobs", "", "lmcache_mp.active_prefetch_jobs", 0.0).await;
    // The loop goes round once a second, and once for the commit.
    let ticks = seen.value("lmcache_mp_l1_eviction_loop_ticks_total", "").expect("ticks");
    eventually("the loop goes round", async || {
        let now = page().await.value("lmcache_mp_l1_eviction_loop_ticks_total", "").expect("ticks");
        (now > ticks && collector.points("lmcache_mp.l1_eviction_loop_ticks").iter().any(|p| p.value > ticks))
            .then_some(())
    })
    .await;

    // A retrieve of what is gone: the first prompt's 12 oldest, which are its tail.
    let frame = model.key("gone", &first).frame(Some(0), 0, first.len() as u64);
    assert!(prepare_retrieve(&mut worker, &frame, 7).await.is_none());
    let seen = page().await;
    let labels = r#"during="l1_retrieve",reason="not_found",model_name="m""#;
    both(&seen, "lmcache_mp_l1_read_failure_total", labels, "lmcache_mp.l1_read_failure", 12.0).await;

    // It is stored again: each of the 12 comes back. That is 60 again, and 12 more go.
    assert_eq!(store(&mut worker, &pool, &model, "again", &first, 7, 0).await, 12);
    eventually("the evictor has run again", async || {
        (page().await.value("lmcache_mp_l1_evicted_keys_total", "") == Some(24.0)).then_some(())
    })
    .await;
    let seen = page().await;
    let reuse = "lmcache_mp_l1_chunk_evict_reuse_gap_seconds_count";
    both(&seen, reuse, "", "lmcache_mp.l1_chunk_evict_reuse_gap_seconds", 12.0).await;

    // Everything is leased: a store finds no room, and says of how many keys.
    daemon.clear().await;
    let held = prompt(3, 48);
    assert_eq!(store(&mut worker, &pool, &model, "held", &held, 7, 0).await, 48);
    assert_eq!(lookup(&mut scheduler, &model, "reader", &held, 1).await, 48);
    let late = prompt(4, 20);
    let frame = model.key("late", &late).frame(Some(0), 0, late.len() as u64);
    assert!(prepare_store(&mut worker, &frame, 7).await.is_none());
    let seen = page().await;
    let labels = r#"during="l1_store",model_name="m""#;
    both(&seen, "lmcache_mp_l1_allocation_failure_total", labels, "lmcache_mp.l1_allocation_failure", 20.0)
        .await;

    // The engine's blocks: one is used again after its request, one is given other tokens.
    let report =
        |request: &str, blocks: &[i64], tokens: std::ops::Range<i64>| Request::ReportBlockAllocation {
            instance_id: 7,
            model_name: "m",
            records: vec![BlockAllocationRecord {
                req_id: request.into(),
                new_block_ids: blocks.to_vec(),
                new_token_ids: tokens.collect(),
            }],
        };
    worker.call(&report("a", &[1, 2], 0..32)).await.expect("report");
    scheduler.call(&Request::EndSession { request_id: "a" }).await.expect("end");
    worker.call(&report("b", &[1], 0..16)).await.expect("report");
    worker.call(&report("c", &[2], 100..116)).await.expect("report");
    let seen = page().await;
    let labels = r#"instance_id="7",model_name="m""#;
    for (row, count) in [("lifetime", 1.0), ("idle_before_evict", 1.0), ("reuse_gap", 1.0)] {
        let (name, otel) = (
            format!("lmcache_mp_l0_block_{row}_seconds_count"),
            format!("lmcache_mp.l0_block_{row}_seconds"),
        );
        both(&seen, &name, labels, &otel, count).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_tells_of_itself_on_both_sinks() {
    let collector = Collector::start().await;
    let endpoint = collector.endpoint();
    let flags = ["--otlp-endpoint", &endpoint, "--event-bus-queue-size=1"];
    let daemon = Daemon::start_in(&[("OTEL_METRIC_EXPORT_INTERVAL", "100")], &flags).await;
    let (mut scheduler, mut worker) = (daemon.connect().await, daemon.connect().await);
    let model = Model::small("m");
    worker.call(&model.registration(7)).await.expect("register");
    let page = async || Page::parse(&http::get(daemon.http_port(), "/metrics").await.expect("a page").1);
    let dropped = "lmcache_mp_event_bus_dropped_events_total";
    // A lookup publishes several events in a row, and the queue holds one.
    let mut number = 0;
    eventually("an event did not fit", async || {
        number += 1;
        let tokens = prompt(number, 2);
        lookup(&mut scheduler, &model, &format!("r{number}"), &tokens, 1).await;
        page().await.value(dropped, "").filter(|count| *count > 0.0).map(|_| ())
    })
    .await;
    let seen = page().await;
    let lost = seen.value(dropped, "").expect("counted");
    on_both(&collector, &seen, dropped, "", "lmcache_mp.event_bus.dropped_events_total", lost).await;
    on_both(
        &collector,
        &seen,
        "lmcache_mp_event_bus_queue_depth",
        "",
        "lmcache_mp.event_bus.queue_depth",
        0.0,
    )
    .await;
    let lag = "lmcache_mp_event_bus_drain_lag_seconds";
    assert!(seen.value(lag, "").is_some_and(|lag| (0.0..60.0).contains(&lag)));
    assert!(!collector.points("lmcache_mp.event_bus.drain_lag_seconds").is_empty());
    // No subscriber of this daemon panics; telemetry_faults.rs has one that does.
    let exceptions = "lmcache_mp_event_bus_subscriber_exceptions_total";
    assert!(seen.series(exceptions).all(|sample| sample.value == 0.0));
}

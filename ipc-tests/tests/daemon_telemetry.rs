//! One request through the real daemon, as its page, its collector and its log tell it.

use ipc_tests::daemon::Daemon;
use ipc_tests::otlp::Collector;
use ipc_tests::pool::Pool;
use ipc_tests::scrape::Page;
use ipc_tests::worker::{Model, commit_retrieve, lookup, prepare_retrieve, prompt, store};
use ipc_tests::{eventually, http};
use lmcache_proto::wire::Request;

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
        assert!(daemon.log().iter().any(|found| found.contains(line)), "{line}");
        assert!(
            collector.received(|received| received.records.iter().any(|r| r.body.contains(line))),
            "{line}"
        );
    }
}

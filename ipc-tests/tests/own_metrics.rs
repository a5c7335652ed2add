//! The daemon's own metrics, and the page of the real daemon.

mod common;

use std::time::Duration;

use common::{Rig, session};
use ipc_tests::daemon::Daemon;
use ipc_tests::http;
use ipc_tests::scrape::Page;
use lmcache_proto::wire::Request;
use lmcached::events::{Event, Timing};
use lmcached::telemetry::catalogue::{CATALOGUE, OWN, PAGE};
use lmcached::telemetry::{L1Readings, OperationTiming, QuotaReading, Readings};

async fn page(port: u16) -> Page {
    let (status, text) = http::get(port, "/metrics").await.expect("a page");
    assert_eq!(status, 200);
    Page::parse(&text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_daemon_has_all_families_on_both_ports() {
    let daemon = Daemon::start(&["--service-instance-id=node-1"]).await;
    let mut client = daemon.connect().await;
    client.call(&Request::Noop).await.expect("noop");
    for port in [daemon.http_port(), daemon.prometheus_port()] {
        let page = page(port).await;
        for metric in PAGE.iter().chain(&OWN) {
            let name = metric.seed.expect("a name").prometheus;
            assert_eq!(page.types.get(name).map(String::as_str), Some(metric.kind.prometheus()), "{name}");
        }
        let noops = page.value("lmcached_requests_total", r#"operation="noop",outcome="ok""#);
        assert_eq!(noops, Some(1.0));
        let build: Vec<_> = page.series("lmcached_build_info").collect();
        assert!(build[0].labels.ends_with(r#"lmcache_version="0.5.6""#) && build[0].value == 1.0);
        assert!(page.value("lmcached_l1_capacity_bytes", "").expect("a gauge") >= f64::from(64 << 20));
        assert!(page.value("lmcached_connections", "").expect("a gauge") >= 1.0);
        assert!(page.value("process_resident_memory_bytes", "").expect("a gauge") > 1e6);
        assert!(page.value("lmcached_uptime_seconds", "").expect("a gauge") > 0.0);
        let target: Vec<_> = page.series("target_info").collect();
        assert!(target[0].labels.contains(r#"service_instance_id="node-1""#));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_metrics_the_admin_page_has_only_what_costs_nothing() {
    let daemon = Daemon::start(&["--disable-metrics"]).await;
    assert_eq!(http::get(daemon.prometheus_port(), "/metrics").await, None, "the port is not opened");
    let page = page(daemon.http_port()).await;
    for metric in &CATALOGUE {
        if let Some(name) = metric.seed.filter(|_| metric.is_pushed() && PAGE.contains(metric)) {
            assert!(!page.types.contains_key(name.prometheus), "{}", name.prometheus);
        }
    }
    assert!(page.types.contains_key("lmcached_l1_objects"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_at_a_scrape_arrives_on_both_sinks() {
    let (queued, total) = (Timing::default(), Timing::default());
    for microseconds in [5, 50, 2_000_000] {
        queued.record(Duration::from_micros(microseconds));
        total.record(Duration::from_micros(2 * microseconds));
    }
    let timing = OperationTiming { operation: "lookup", queued: queued.read(), total: total.read() };
    let readings = Readings {
        l1: L1Readings {
            used_bytes: 1,
            capacity_bytes: 2,
            reserved_bytes: 3,
            writing_bytes: 4,
            objects: 5,
            writing_objects: 6,
            quarantined_objects: 7,
            leases: 8,
            pins: 9,
            names: 33,
            evicted_bytes: 10,
            replaced_objects: 11,
            quarantined: 12,
            full: 13,
            damaged: 31,
        },
        requests: vec![("lookup", "ok", 14), ("store", "pool_full", 15)],
        timings: vec![timing],
        stored_tokens: 16,
        retrieved_tokens: 17,
        malformed_messages: 18,
        unknown_operations: 19,
        peers_refused: vec![("slow_message", 20)],
        peer_pauses: vec![("rate", 32)],
        cuda_errors: vec![("cuEventRecord", "launch failure".into(), 39)],
        workers_reaped: 21,
        leases_expired: 22,
        ring_lost: vec![(99, 23)],
        workers: 24,
        registration_bytes: 34,
        ring_lanes_used: 35,
        session_bytes: 36,
        kv_events_log_bytes: 40,
        http_connections: 37,
        http_refused: vec![("body_timeout", 38)],
        sessions: 25,
        connections: 26,
        queued_bytes: 27,
        quotas: vec![QuotaReading {
            cache_salt: "tenant".into(),
            limit_bytes: 28,
            used_bytes: vec![("l1".into(), 29), ("fs#1".into(), 30)],
        }],
        ..Readings::default()
    };
    let rig = Rig::start(&[], readings, vec![]).await;
    rig.publish(Event::MpRequestEnd { session: session("s") });
    let (page, collector) = rig.finish().await;
    for (name, labels, value) in [
        ("lmcached_l1_capacity_bytes", "", 2.0),
        ("lmcached_l1_reserved_bytes", "", 3.0),
        ("lmcached_l1_objects", "", 5.0),
        ("lmcached_l1_writing_objects", "", 6.0),
        ("lmcached_l1_quarantined_objects", "", 7.0),
        ("lmcached_l1_leases", "", 8.0),
        ("lmcached_l1_pins", "", 9.0),
        ("lmcached_l1_evicted_bytes_total", "", 10.0),
        ("lmcached_l1_replaced_objects_total", "", 11.0),
        ("lmcached_l1_quarantined_total", "", 12.0),
        ("lmcached_l1_full_total", "", 13.0),
        ("lmcached_l1_damaged_objects_total", "", 31.0),
        ("lmcached_requests_total", r#"operation="lookup",outcome="ok""#, 14.0),
        ("lmcached_requests_total", r#"operation="store",outcome="pool_full""#, 15.0),
        ("lmcached_stored_tokens_total", "", 16.0),
        ("lmcached_retrieved_tokens_total", "", 17.0),
        ("lmcached_malformed_messages_total", "", 18.0),
        ("lmcached_unknown_operations_total", "", 19.0),
        ("lmcached_peers_refused_total", r#"reason="slow_message""#, 20.0),
        ("lmcached_peer_pauses_total", r#"reason="rate""#, 32.0),
        ("lmcached_cuda_errors_total", r#"call="cuEventRecord",error="launch failure""#, 39.0),
        ("lmcached_workers_reaped_total", "", 21.0),
        ("lmcached_leases_expired_total", "", 22.0),
        ("lmcached_ring_lost_events_total", r#"worker_id="99""#, 23.0),
        ("lmcached_l1_names", "", 33.0),
        ("lmcached_registration_bytes", "", 34.0),
        ("lmcached_ring_lanes_used", "", 35.0),
        ("lmcached_session_bytes", "", 36.0),
        ("lmcached_kv_events_log_bytes", "", 40.0),
        ("lmcached_http_connections", "", 37.0),
        ("lmcached_http_refused_total", r#"reason="body_timeout""#, 38.0),
        ("lmcached_workers", "", 24.0),
        ("lmcached_sessions", "", 25.0),
        ("lmcached_connections", "", 26.0),
        ("lmcached_queued_bytes", "", 27.0),
        ("lmcached_quota_limit_bytes", r#"cache_salt="tenant""#, 28.0),
        ("lmcached_quota_usage_bytes", r#"cache_salt="tenant",tier="l1""#, 29.0),
        ("lmcached_quota_usage_bytes", r#"cache_salt="tenant",tier="fs#1""#, 30.0),
        ("lmcached_events_published_total", "", 1.0),
        ("lmcached_metric_series_retired_total", "", 0.0),
    ] {
        assert_eq!(page.value(name, labels), Some(value), "{name}{{{labels}}}");
        assert!(collector.points(name).iter().any(|point| point.value == value), "{name}");
    }
    let bucket = |name: &str, le: &str| page.value(name, &format!("operation=\"lookup\",le=\"{le}\""));
    assert_eq!(bucket("lmcached_request_queue_seconds_bucket", "1e-5"), Some(1.0));
    assert_eq!(bucket("lmcached_request_queue_seconds_bucket", "5e-5"), Some(2.0));
    assert_eq!(bucket("lmcached_request_seconds_bucket", "1.0"), Some(2.0));
    assert_eq!(bucket("lmcached_request_seconds_bucket", "5.0"), Some(3.0));
    let [point] = &collector.points("lmcached_request_seconds")[..] else { panic!("one point") };
    assert_eq!((point.kind, point.buckets.iter().sum::<u64>()), ("histogram", 3));
}

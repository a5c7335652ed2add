//! What goes wrong around the telemetry must not reach the requests: collectors that are dead or slow, tenants without
//! number, numbers that cannot be read.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use ipc_tests::otlp::{Collector, Manners};
use ipc_tests::scrape::Page;
use lmcached::events::{Bus, Event, EvictionCause, LookupEnd};
use lmcached::telemetry::{self, Gauges, Outlet, Readings};

fn lookup(salt: String) -> Event {
    let end = LookupEnd {
        found_count: 1,
        requested_tokens: 512,
        hit_tokens: 256,
        l1_hit_tokens: 256,
        l2_hit_tokens: 0,
        l1_hit_keys: 1,
        l2_hit_keys: 0,
        early_exit_reason: "",
        model: text("m"),
        salt: salt.into(),
    };
    Event::MpLookupPrefetchEnd { session: session("s"), end }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_salts_are_bounded_counted_and_add_up() {
    let rig = Rig::start(&["--event-bus-queue-size=50000"], Readings::default(), vec![]).await;
    for salt in 0..10_000 {
        rig.publish(lookup(format!("tenant-{salt}")));
    }
    let (page, collector) = rig.finish().await;
    let name = "lmcache_mp_lookup_hit_tokens_total";
    assert_eq!(page.series(name).count(), 2001);
    let sum: f64 = page.series(name).map(|sample| sample.value).sum();
    assert_eq!(sum, 256.0 * 10_000.0);
    assert_eq!(page.value(name, r#"otel_metric_overflow="true""#), Some(256.0 * 8000.0));
    let overflow = page.value("lmcached_metric_series_overflow_total", &format!("metric=\"{name}\""));
    assert_eq!(overflow, Some(8000.0));
    let points = collector.points("lmcache_mp.lookup_hit_tokens");
    assert_eq!(points.len(), 2001);
    let together = points.iter().filter(|point| point.attributes.contains_key("otel.metric.overflow"));
    assert_eq!(together.map(|point| point.value).collect::<Vec<_>>(), [256.0 * 8000.0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_collector_costs_nothing_but_what_it_misses() {
    let collector = Collector::start().await;
    let endpoint = collector.endpoint();
    drop(collector);
    let config = config(&["--otlp-endpoint", &endpoint, "--enable-tracing"]);
    let outlet = Outlet::new(&config).expect("nothing is sent yet");
    let started = telemetry::start(&config, &outlet).expect("telemetry");
    let (bus, drain) = Bus::start(50_000, started.subscribers);
    started.telemetry.attach(bus.clone(), Arc::new(Fixed(Readings::default())));
    for request in 0..1000 {
        let session = session(&format!("r{request}"));
        bus.publish(|| Event::MpRequestStart { session: session.clone(), traceparent: None });
        bus.publish(|| Event::MpRequestEnd { session });
    }
    let page = tokio::task::spawn_blocking(move || {
        drop(drain);
        started.telemetry.shutdown();
        let page = started.telemetry.scrape();
        drop(outlet);
        page
    });
    let page = Page::parse(&page.await.expect("no panic"));
    assert_eq!(page.value("lmcache_mp_event_bus_dropped_events_total", ""), Some(0.0));
    assert_eq!(page.value("lmcached_otlp_dropped_total", r#"signal="traces""#), Some(1000.0));
    for signal in ["metrics", "traces"] {
        let exports = |outcome: &str| {
            let labels = format!("signal=\"{signal}\",outcome=\"{outcome}\"");
            page.value("lmcached_otlp_exports_total", &labels).expect("counted")
        };
        assert!(exports("failed") >= 1.0 && exports("ok") == 0.0, "{signal}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_collector_gets_what_there_is_room_for_and_the_rest_is_counted() {
    let collector = Collector::start().await;
    collector.behave(Manners::Slow);
    let flags = ["--event-bus-queue-size=100000", "--enable-tracing"];
    let rig = Rig::with(collector, &flags, Readings::default(), vec![]).await;
    for request in 0..30_000 {
        let session = session(&format!("r{request}"));
        rig.publish(Event::MpRequestStart { session: session.clone(), traceparent: None });
        rig.publish(Event::MpRequestEnd { session });
    }
    rig.bus.flush(Duration::from_secs(60));
    let page = Page::parse(&rig.telemetry.scrape());
    assert_eq!(page.value("lmcache_mp_event_bus_dropped_events_total", ""), Some(0.0));
    let dropped = page.value("lmcached_otlp_dropped_total", r#"signal="traces""#).expect("counted");
    // 16,384 have room, in the queue and on their way.
    assert_eq!(dropped, 30_000.0 - 16_384.0);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_comes_back_gets_everything_there_is() {
    let collector = Collector::start().await;
    collector.behave(Manners::Refusing);
    let rig = Rig::with(collector, &[], Readings::default(), vec![]).await;
    rig.publish(lookup("a".into()));
    rig.bus.flush(Duration::from_secs(60));
    rig.collector.behave(Manners::Good);
    let (_, collector) = rig.finish().await;
    assert_eq!(collector.points("lmcache_mp.lookup_hit_tokens")[0].value, 256.0);
}

struct Unreadable;

impl Gauges for Unreadable {
    fn read(&self) -> Readings {
        panic!("on purpose");
    }
}

#[test]
fn numbers_that_cannot_be_read_do_not_take_the_page_with_them() {
    let config = config(&[]);
    let started = telemetry::start(&config, &Outlet::new(&config).expect("no collector")).expect("telemetry");
    let (bus, drain) = Bus::start(10, started.subscribers);
    started.telemetry.attach(bus, Arc::new(Unreadable));
    let page = Page::parse(&started.telemetry.scrape());
    assert_eq!(page.value("lmcache_mp_l1_usage_ratio", ""), Some(0.0));
    drop(drain);
}

/// Prints how long a scrape takes with 100,000 chunks followed and four families full. Run it with `--nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrape_of_a_full_daemon() {
    let rig = Rig::start(&["--event-bus-queue-size=400000"], Readings::default(), vec![]).await;
    for batch in 0..1000u32 {
        let cells = (0..100u32).map(|index| {
            let mut cell = cell(0, 1, 0, 0);
            cell.hash[..4].copy_from_slice(&(batch * 100 + index).to_be_bytes());
            cell
        });
        let keys = cells_of(&format!("tenant-{}", batch % 500), cells);
        rig.publish(Event::L1WriteFinished { keys: keys.clone() });
        rig.publish(Event::SmWriteFinished { succeeded: keys.clone(), failed: 0 });
        rig.publish(Event::SmReadPrefetchedFinished { succeeded: keys.clone(), failed: 0 });
        if batch % 2 == 0 {
            rig.publish(Event::L1KeysEvicted { keys, cause: EvictionCause::Policy });
        }
        rig.publish(lookup(format!("tenant-{batch}")));
    }
    rig.bus.flush(Duration::from_secs(60));
    let mut times = Vec::new();
    let mut page = String::new();
    for _ in 0..20 {
        let start = Instant::now();
        page = rig.telemetry.scrape();
        times.push(start.elapsed());
    }
    times.sort();
    let lines = page.lines().count();
    println!("scrape of {lines} lines: median {:?}, slowest {:?}", times[10], times[19]);
    assert!(lines > 10_000, "{lines}");
    rig.finish().await;
}

fn cells_of(salt: &str, from: impl Iterator<Item = lmcached::events::Cell>) -> lmcached::events::Keys {
    cells(salt, from)
}

//! The telemetry without a daemon: a bus, its subscribers, a fake engine's numbers, and a collector.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use ipc_tests::otlp::Collector;
use ipc_tests::scrape::Page;
use lmcache_proto::hash::ChunkHash;
use lmcache_proto::object_key::kv_rank;
use lmcached::config::ObservabilityConfig;
use lmcached::events::{
    AdapterId, Bus, Cell, Drain, Event, Keys, SaltCounts, SessionId, Subscriber, TransferEnd, TransferId,
    Worker,
};
use lmcached::telemetry::{self, Gauges, Outlet, Readings, Telemetry};

/// Numbers that never change.
pub struct Fixed(pub Readings);

impl Gauges for Fixed {
    fn read(&self) -> Readings {
        self.0.clone()
    }
}

/// Everything but the engine.
pub struct Rig {
    pub bus: Arc<Bus>,
    pub telemetry: Arc<Telemetry>,
    pub collector: Collector,
    drain: Option<Drain>,
    outlet: Outlet,
    /// Time 0 of the events.
    pub start: Instant,
}

/// The configuration of a command line.
pub fn config(args: &[&str]) -> ObservabilityConfig {
    let args = ["lmcached", "--l1-size-gb=1"].iter().chain(args).map(std::ffi::OsString::from);
    lmcached::config::parse(args).expect("a valid command line").config.observability
}

impl Rig {
    /// Starts it with all requests and chunks sampled.
    pub async fn start(flags: &[&str], readings: Readings, more: Vec<Box<dyn Subscriber>>) -> Rig {
        let collector = Collector::start().await;
        Rig::with(collector, flags, readings, more).await
    }

    /// Starts it with a collector that is there already.
    pub async fn with(
        collector: Collector,
        flags: &[&str],
        readings: Readings,
        more: Vec<Box<dyn Subscriber>>,
    ) -> Rig {
        let endpoint = collector.endpoint();
        let mut args =
            vec!["--metrics-sample-rate=1.0", "--service-instance-id=rig", "--otlp-endpoint", &endpoint];
        args.extend(flags);
        let config = config(&args);
        let outlet = Outlet::new(&config).expect("a collector");
        let mut started = telemetry::start(&config, &outlet).expect("telemetry");
        started.subscribers.extend(more);
        let (bus, drain) = Bus::start(config.event_bus_queue_size.get(), started.subscribers);
        started.telemetry.attach(bus.clone(), Arc::new(Fixed(readings)));
        Rig {
            bus,
            telemetry: started.telemetry,
            collector,
            drain: Some(drain),
            outlet,
            start: Instant::now(),
        }
    }

    /// Publishes an event that happened `seconds` after the start.
    pub fn at(&self, seconds: f64, event: Event) {
        self.bus.publish_at(self.start + Duration::from_secs_f64(seconds), || event);
    }

    /// Publishes an event.
    pub fn publish(&self, event: Event) {
        self.at(0.0, event);
    }

    /// Delivers everything, reads the page, sends the last export.
    pub async fn finish(mut self) -> (Page, Collector) {
        let drain = self.drain.take();
        let telemetry = self.telemetry.clone();
        // On a thread that may block: the collector needs this one.
        let page = tokio::task::spawn_blocking(move || {
            drop(drain);
            let page = telemetry.scrape();
            telemetry.shutdown();
            page
        });
        let page = page.await.expect("no panic");
        // The runtime inside must not end on this one.
        tokio::task::spawn_blocking(move || drop((self.outlet, self.telemetry))).await.expect("no panic");
        (Page::parse(&page), self.collector)
    }
}

/// A shared string.
pub fn text(value: &str) -> Arc<str> {
    value.into()
}

/// Objects of rank 0 of one worker, with hashes made of `numbers`.
pub fn keys(salt: &str, numbers: impl IntoIterator<Item = u8>) -> Keys {
    cells(salt, numbers.into_iter().map(|number| cell(number, 1, 0, 0)))
}

/// Objects.
pub fn cells(salt: &str, cells: impl IntoIterator<Item = Cell>) -> Keys {
    Keys::new("m".into(), salt.into(), cells.into_iter().collect())
}

/// An object.
pub fn cell(number: u8, world: u32, rank: u32, group: u32) -> Cell {
    let hash: ChunkHash = [number; 32];
    Cell { hash, rank: kv_rank(world, rank), group }
}

pub fn adapter(index: u32, name: &str) -> AdapterId {
    AdapterId { index, name: name.into() }
}

pub fn session(name: &str) -> SessionId {
    name.into()
}

pub fn worker(engine_id: u64, device: &str) -> Arc<Worker> {
    Arc::new(Worker { engine_id, device: device.into(), model: "m".into() })
}

pub fn end(count: u64, total_bytes: u64, num_tokens: u64) -> TransferEnd {
    TransferEnd { count, total_bytes, num_tokens, salt: "s".into() }
}

pub fn by_salt(counts: &[(&str, u64)]) -> SaltCounts {
    counts.iter().map(|(salt, count)| (text(salt), *count)).collect()
}

pub fn transfer(number: u64) -> TransferId {
    TransferId(number)
}

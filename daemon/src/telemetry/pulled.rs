//! Turns what is read at a scrape into points of the catalogue's metrics.

use std::sync::Arc;
use std::time::Duration;

use lmcache_proto::wire::LMCACHE_RELEASE;

use super::catalogue::{Bounds, CATALOGUE, Id};
use super::health::{Health, Signal};
use super::process::Process;
use super::readings::Readings;
use super::series::{Histogram, Store, Value};
use crate::events::{BusStatus, TimingReading};

/// A value with the values of its metric's attributes.
type Point = (Box<[Arc<str>]>, Value);

/// Points of every observable metric, by [`Id`].
#[derive(Debug)]
pub struct Pulled {
    points: Vec<Vec<Point>>,
}

/// Everything that is read.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// The engine's numbers.
    pub readings: &'a Readings,
    /// The bus's, unless it is off.
    pub bus: Option<&'a BusStatus>,
    /// The telemetry's own.
    pub health: &'a Health,
    /// The series'.
    pub store: &'a Store,
    /// Since the start.
    pub uptime: Duration,
}

impl Pulled {
    /// The points of now.
    pub fn new(sources: Sources<'_>) -> Pulled {
        let mut pulled = Pulled { points: CATALOGUE.iter().map(|_| Vec::new()).collect() };
        pulled.engine(sources.readings);
        pulled.adapters(sources.readings);
        pulled.quotas(sources.readings);
        if let Some(bus) = sources.bus {
            pulled.bus(bus);
        }
        pulled.telemetry(sources.health, sources.store);
        pulled.process(sources.uptime);
        pulled
    }

    /// Points of a metric.
    pub fn points(&self, id: Id) -> &[Point] {
        &self.points[id as usize]
    }

    fn push(&mut self, id: Id, labels: &[&str], value: Value) {
        debug_assert_eq!(labels.len(), id.metric().attributes.len(), "{id:?}");
        self.points[id as usize].push((labels.iter().map(|label| Arc::from(*label)).collect(), value));
    }

    fn count(&mut self, id: Id, labels: &[&str], count: u64) {
        self.push(id, labels, Value::Count(count));
    }

    fn gauge(&mut self, id: Id, labels: &[&str], value: f64) {
        self.push(id, labels, Value::Number(value));
    }

    fn engine(&mut self, readings: &Readings) {
        let l1 = &readings.l1;
        let ratio =
            if l1.capacity_bytes == 0 { 0.0 } else { l1.used_bytes as f64 / l1.capacity_bytes as f64 };
        self.gauge(Id::L1UsageRatio, &[], ratio);
        for (id, value) in [
            (Id::ActivePrefetchJobs, readings.active_prefetch_jobs),
            (Id::L1MemoryUsageBytes, l1.used_bytes),
            (Id::L1StagingBytes, l1.writing_bytes),
            (Id::KvEventsLogDepth, readings.kv_events_log_depth),
            (Id::ActiveP2pLookupJobs, 0),
            (Id::L1CapacityBytes, l1.capacity_bytes),
            (Id::L1ReservedBytes, l1.reserved_bytes),
            (Id::L1Objects, l1.objects),
            (Id::L1WritingObjects, l1.writing_objects),
            (Id::L1QuarantinedObjects, l1.quarantined_objects),
            (Id::L1Leases, l1.leases),
            (Id::L1Pins, l1.pins),
            (Id::L1Names, l1.names),
            (Id::RegistrationBytes, readings.registration_bytes),
            (Id::RingLanesUsed, readings.ring_lanes_used),
            (Id::SessionBytes, readings.session_bytes),
            (Id::KvEventsLogBytes, readings.kv_events_log_bytes),
            (Id::HttpConnections, readings.http_connections),
            (Id::Workers, readings.workers),
            (Id::Sessions, readings.sessions),
            (Id::Connections, readings.connections),
            (Id::QueuedBytes, readings.queued_bytes),
        ] {
            self.gauge(id, &[], value as f64);
        }
        for (id, value) in [
            (Id::StoredTokens, readings.stored_tokens),
            (Id::RetrievedTokens, readings.retrieved_tokens),
            (Id::L1EvictedBytes, l1.evicted_bytes),
            (Id::L1ReplacedObjects, l1.replaced_objects),
            (Id::L1Quarantined, l1.quarantined),
            (Id::L1Full, l1.full),
            (Id::L1DamagedObjects, l1.damaged),
            (Id::MalformedMessages, readings.malformed_messages),
            (Id::UnknownOperations, readings.unknown_operations),
            (Id::WorkersReaped, readings.workers_reaped),
            (Id::LeasesExpired, readings.leases_expired),
        ] {
            self.count(id, &[], value);
        }
        for (reason, count) in &readings.peers_refused {
            self.count(Id::PeersRefused, &[reason], *count);
        }
        for (reason, count) in &readings.http_refused {
            self.count(Id::HttpRefused, &[reason], *count);
        }
        for (reason, count) in &readings.peer_pauses {
            self.count(Id::PeerPauses, &[reason], *count);
        }
        for (call, error, count) in &readings.cuda_errors {
            self.count(Id::CudaErrors, &[call, error], *count);
        }
        for (operation, outcome, count) in &readings.requests {
            self.count(Id::Requests, &[operation, outcome], *count);
        }
        for timing in &readings.timings {
            self.push(Id::RequestQueueSeconds, &[timing.operation], histogram(&timing.queued));
            self.push(Id::RequestSeconds, &[timing.operation], histogram(&timing.total));
        }
        for (worker, lost) in &readings.ring_lost {
            self.count(Id::RingLostEvents, &[&worker.to_string()], *lost);
        }
    }

    fn adapters(&mut self, readings: &Readings) {
        for adapter in &readings.adapters {
            let index = adapter.index.to_string();
            for (id, value) in [
                (Id::NumInflightL2Stores, adapter.inflight_stores),
                (Id::NumInflightL2Loads, adapter.inflight_loads),
                (Id::InflightLoadMemoryUsageBytes, adapter.inflight_load_bytes),
            ] {
                // An adapter without work has no point, as documented.
                if value > 0 {
                    self.gauge(id, &[&adapter.name, &index], value as f64);
                }
            }
            if let Some(used) = adapter.used_bytes {
                self.gauge(Id::L2UsageBytes, &[&adapter.name], used as f64);
            }
        }
        for (state, draining) in [("active", false), ("draining", true)] {
            let those = || readings.adapters.iter().filter(move |adapter| adapter.draining == draining);
            let stores = those().filter(|adapter| adapter.stores).count();
            let loads = those().filter(|adapter| adapter.loads).count();
            self.gauge(Id::L2StoreAdapters, &[state], stores as f64);
            self.gauge(Id::L2PrefetchAdapters, &[state], loads as f64);
        }
    }

    fn quotas(&mut self, readings: &Readings) {
        for quota in &readings.quotas {
            self.gauge(Id::QuotaLimitBytes, &[&quota.cache_salt], quota.limit_bytes as f64);
            for (tier, used) in &quota.used_bytes {
                self.gauge(Id::QuotaUsageBytes, &[&quota.cache_salt, tier], *used as f64);
            }
        }
    }

    fn bus(&mut self, bus: &BusStatus) {
        self.gauge(Id::BusQueueDepth, &[], bus.queue_depth as f64);
        self.gauge(Id::BusDrainLag, &[], bus.drain_lag_seconds);
        self.count(Id::BusDroppedEvents, &[], bus.dropped);
        self.count(Id::EventsPublished, &[], bus.published);
        for (subscriber, exceptions) in &bus.exceptions {
            self.count(Id::BusSubscriberExceptions, &[subscriber], *exceptions);
        }
    }

    fn telemetry(&mut self, health: &Health, store: &Store) {
        let load =
            |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        for signal in Signal::ALL {
            let (exported, failed, dropped) = health.of(signal);
            self.count(Id::OtlpExports, &[signal.name(), "ok"], exported);
            self.count(Id::OtlpExports, &[signal.name(), "failed"], failed);
            if signal != Signal::Metrics {
                self.count(Id::OtlpDropped, &[signal.name()], dropped);
            }
        }
        self.count(Id::LogLinesDropped, &[], health.lost_lines());
        self.gauge(Id::SpansOpen, &[], load(&health.spans_open) as f64);
        self.count(Id::SpansUnfinished, &[], load(&health.spans_unfinished));
        self.count(Id::SeriesRetired, &[], store.retired());
        for (metric, overflowed) in store.overflows() {
            let name = metric.seed.or(metric.v05).map_or("", |name| name.prometheus);
            self.count(Id::SeriesOverflow, &[name], overflowed);
        }
    }

    fn process(&mut self, uptime: Duration) {
        let process = Process::read();
        self.gauge(Id::BuildInfo, &[env!("CARGO_PKG_VERSION"), LMCACHE_RELEASE], 1.0);
        self.gauge(Id::UptimeSeconds, &[], uptime.as_secs_f64());
        self.push(Id::ProcessCpuSeconds, &[], Value::Number(process.cpu_seconds));
        for (id, value) in [
            (Id::ProcessResidentBytes, process.resident_bytes),
            (Id::ProcessVirtualBytes, process.virtual_bytes),
            (Id::ProcessOpenFds, process.open_fds),
            (Id::ProcessMaxFds, process.max_fds),
            (Id::ProcessThreads, process.threads),
        ] {
            self.gauge(id, &[], value as f64);
        }
        self.gauge(Id::ProcessStartTime, &[], process.start_time_seconds);
    }
}

fn histogram(reading: &TimingReading) -> Value {
    let mut buckets = reading.buckets.clone();
    // A reading nobody filled has no buckets.
    buckets.resize(Bounds::Latency.values().len() + 1, 0);
    Value::Histogram(Histogram { buckets: buckets.into(), sum: reading.sum_seconds, count: reading.count() })
}

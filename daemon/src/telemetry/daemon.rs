//! The daemon's numbers for the scrape, read from the engine and the listening side.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lmcache_proto::wire::Operation;

use crate::l2::adapter::L2Adapter;
use crate::l2::control::Attached;

use super::http::HttpCounters;
use super::readings::{AdapterReading, Gauges, L1Readings, OperationTiming, QuotaReading, Readings};
use crate::device::cuda;
use crate::engine::{Engine, OpOutcome};
use crate::quota::Quota;
use crate::server::{BadMessage, Server};

/// Reads the engine and the server.
#[derive(Debug)]
pub struct DaemonGauges {
    /// The engine.
    pub engine: Arc<Engine>,
    /// The listening side.
    pub server: Arc<Server>,
    /// The HTTP ports.
    pub http: Arc<HttpCounters>,
}

impl DaemonGauges {
    /// The L2 tiers.
    fn adapters(&self) -> Vec<AdapterReading> {
        let Some(l2) = self.engine.l2() else { return Vec::new() };
        let reading = |attached: &Arc<Attached>| {
            let in_flight = attached.in_flight();
            AdapterReading {
                name: attached.id.name.to_string(),
                index: attached.id.index,
                inflight_stores: in_flight.stores,
                inflight_loads: in_flight.loads,
                inflight_load_bytes: in_flight.load_bytes,
                used_bytes: Some(attached.tier.usage().bytes),
                draining: attached.is_draining(),
                stores: true,
                loads: true,
            }
        };
        l2.opened.tiers.all().iter().map(reading).collect()
    }

    /// Salts with a quota.
    fn quotas(&self) -> Vec<QuotaReading> {
        let reading = |quota: Quota| {
            let usage = self.engine.salt_usage(&quota.salt);
            QuotaReading {
                cache_salt: quota.salt.to_string(),
                limit_bytes: quota.limit,
                used_bytes: std::iter::once(("l1".to_owned(), usage.l1)).chain(usage.tiers).collect(),
            }
        };
        self.engine.quotas().into_iter().map(reading).collect()
    }

    /// Operations that have been asked for.
    fn timings(&self) -> Vec<OperationTiming> {
        let timing = |operation: Operation| {
            let times = self.server.stats().timing(operation);
            let total = times.total.read();
            (total.count() > 0).then(|| OperationTiming {
                operation: operation.name(),
                queued: times.queued.read(),
                total,
            })
        };
        Operation::all().filter_map(timing).collect()
    }
}

impl Gauges for DaemonGauges {
    fn read(&self) -> Readings {
        let stats = self.engine.stats();
        let l1 = self.engine.l1().stats();
        let kv_events = self.engine.kv_event_status();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let bad = |which: fn(BadMessage) -> bool| {
            let counts = self.server.stats().bad_messages();
            counts.filter(|(reason, _)| which(*reason)).map(|(_, count)| count).sum()
        };
        let requests = stats.requests().map(|(operation, outcome, count)| {
            let outcome = match outcome {
                OpOutcome::Ok => "ok",
                OpOutcome::Refused(reason) => reason.name(),
            };
            (operation.name(), outcome, count)
        });
        Readings {
            l1: L1Readings {
                used_bytes: l1.used,
                capacity_bytes: l1.capacity,
                reserved_bytes: l1.frontier,
                objects: l1.objects,
                writing_objects: l1.writing,
                quarantined_objects: l1.quarantined,
                leases: l1.leases,
                pins: l1.pins,
                names: l1.names,
                evicted_bytes: l1.totals.evicted_bytes,
                replaced_objects: l1.totals.replaced,
                quarantined: l1.totals.quarantined,
                full: l1.totals.full,
                damaged: l1.totals.damaged,
                ..L1Readings::default()
            },
            requests: requests.collect(),
            stored_tokens: load(&stats.stored_tokens),
            retrieved_tokens: load(&stats.retrieved_tokens),
            malformed_messages: bad(|reason| {
                !matches!(reason, BadMessage::Unserved | BadMessage::Unknown | BadMessage::Foreign)
            }),
            unknown_operations: bad(|reason| matches!(reason, BadMessage::Unserved | BadMessage::Unknown)),
            peers_refused: self
                .server
                .stats()
                .ended()
                .map(|(reason, count)| (reason.name(), count))
                .collect(),
            peer_pauses: self.server.stats().paused().map(|(reason, count)| (reason.name(), count)).collect(),
            cuda_errors: cuda::failed_calls(),
            workers_reaped: load(&stats.reaped),
            leases_expired: load(&stats.leases_expired),
            timings: self.timings(),
            active_prefetch_jobs: self.engine.l2().map_or(0, |l2| l2.opened.loader.jobs()),
            adapters: self.adapters(),
            workers: self.engine.workers() as u64,
            registration_bytes: self.engine.registration_bytes() as u64,
            ring_lanes_used: self.engine.ring().lanes_used() as u64,
            sessions: self.engine.session_usage().0 as u64,
            session_bytes: self.engine.session_usage().1 as u64,
            http_connections: self.http.connections(),
            http_refused: self.http.refused().map(|(reason, count)| (reason.name(), count)).collect(),
            kv_events_log_depth: kv_events.depth as u64,
            kv_events_log_bytes: kv_events.bytes as u64,
            connections: self.server.connections() as u64,
            queued_bytes: self.server.queued_bytes() as u64,
            quotas: self.quotas(),
            ..Readings::default()
        }
    }
}

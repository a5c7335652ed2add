//! The daemon's numbers for the scrape, read from the engine and the listening side.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lmcache_proto::wire::Operation;

use super::readings::{Gauges, L1Readings, OperationTiming, Readings};
use crate::engine::{Engine, OpOutcome};
use crate::server::{BadMessage, Server};

/// Reads the engine and the server.
#[derive(Debug)]
pub struct DaemonGauges {
    /// The engine.
    pub engine: Arc<Engine>,
    /// The listening side.
    pub server: Arc<Server>,
}

impl DaemonGauges {
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
                evicted_bytes: l1.totals.evicted_bytes,
                replaced_objects: l1.totals.replaced,
                quarantined: l1.totals.quarantined,
                full: l1.totals.full,
                ..L1Readings::default()
            },
            requests: requests.collect(),
            stored_tokens: load(&stats.stored_tokens),
            retrieved_tokens: load(&stats.retrieved_tokens),
            malformed_messages: bad(|reason| {
                !matches!(reason, BadMessage::Unserved | BadMessage::Unknown | BadMessage::Foreign)
            }),
            unknown_operations: bad(|reason| matches!(reason, BadMessage::Unserved | BadMessage::Unknown)),
            peers_refused: self.server.stats().ended().map(|(_, count)| count).sum(),
            workers_reaped: load(&stats.reaped),
            leases_expired: load(&stats.leases_expired),
            timings: self.timings(),
            workers: self.engine.workers() as u64,
            sessions: self.engine.session_usage().0 as u64,
            kv_events_log_depth: self.engine.kv_event_status().depth as u64,
            connections: self.server.connections() as u64,
            queued_bytes: self.server.queued_bytes() as u64,
            ..Readings::default()
        }
    }
}

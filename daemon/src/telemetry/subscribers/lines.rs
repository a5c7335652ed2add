//! The documented log lines, made from events.

use std::time::Instant;

use tracing::Level;

use super::pending::Pending;
use crate::events::{Event, SessionId, Stamped, Subscriber, TransferEnd, TransferId, Worker};

/// Transfers whose end is awaited.
const ROOM: usize = 16_384;

/// Writes them.
pub(super) struct Lines {
    transfers: Pending<TransferId, Instant>,
}

impl Default for Lines {
    fn default() -> Lines {
        Lines { transfers: Pending::new(ROOM) }
    }
}

impl Lines {
    fn seconds(&mut self, transfer: TransferId, at: Instant) -> Option<f64> {
        let start = self.transfers.end(&transfer)?;
        Some(at.saturating_duration_since(start).as_secs_f64())
    }

    fn stored(
        &mut self,
        session: &SessionId,
        transfer: TransferId,
        worker: &Worker,
        end: &TransferEnd,
        at: Instant,
    ) {
        let seconds = self.seconds(transfer, at);
        if let (Some(seconds), 1..) = (seconds, end.num_tokens) {
            tracing::info!(target: "lmcached::events", %session, engine_id = worker.engine_id, "Stored {} tokens in {seconds:.3} seconds", end.num_tokens);
        }
        tracing::debug!(target: "lmcached::events", "MP store end: session={session} device={} stored_count={} total_bytes={}", worker.device, end.count, end.total_bytes);
    }

    fn retrieved(
        &mut self,
        session: &SessionId,
        transfer: TransferId,
        worker: &Worker,
        end: &TransferEnd,
        at: Instant,
    ) {
        let seconds = self.seconds(transfer, at);
        if let (Some(seconds), 1..) = (seconds, end.num_tokens) {
            tracing::info!(target: "lmcached::events", %session, engine_id = worker.engine_id, "Retrieved {} tokens in {seconds:.3} seconds", end.num_tokens);
        }
        tracing::debug!(target: "lmcached::events", "MP retrieve end: session={session} device={} retrieved_count={} total_bytes={}", worker.device, end.count, end.total_bytes);
    }
}

impl Subscriber for Lines {
    fn name(&self) -> &'static str {
        "Lines"
    }

    fn on_event(&mut self, event: &Stamped) {
        if !tracing::enabled!(target: "lmcached::events", Level::INFO) {
            return;
        }
        match &event.event {
            Event::MpStoreStart { session, transfer, worker } => {
                self.transfers.begin(*transfer, event.at);
                tracing::debug!(target: "lmcached::events", "MP store start: session={session} device={}", worker.device);
            }
            Event::MpRetrieveStart { session, transfer, worker } => {
                self.transfers.begin(*transfer, event.at);
                tracing::debug!(target: "lmcached::events", "MP retrieve start: session={session} device={}", worker.device);
            }
            Event::MpStoreEnd { session, transfer, worker, end } => {
                self.stored(session, *transfer, worker, end, event.at);
            }
            Event::MpRetrieveEnd { session, transfer, worker, end } => {
                self.retrieved(session, *transfer, worker, end, event.at);
            }
            Event::SmReadPrefetched { succeeded, failed } => {
                let found = succeeded.len();
                let all = found as u64 + failed;
                tracing::info!(target: "lmcached::events", model = &**succeeded.model(), "Prefetch request completed (L1+L2): {found}/{all} prefix hits");
            }
            Event::L1EvictionLoopTick { usage, watermark, triggered: true } => {
                tracing::info!(target: "lmcached::events", "L1 memory usage {usage:.2} above watermark {watermark:.2}; triggering eviction.");
            }
            Event::TimeoutRaised { session, message, kind } => {
                tracing::warn!(target: "lmcached::events", %session, kind, "{message}");
            }
            _ if tracing::enabled!(target: "lmcached::events", Level::DEBUG) => debug(&event.event),
            _ => {}
        }
    }
}

/// What only somebody who looks for a fault wants to read.
fn debug(event: &Event) {
    match event {
        Event::MpLookupPrefetchStart { session } => {
            tracing::debug!(target: "lmcached::events", "MP lookup start: session={session}");
        }
        Event::MpLookupPrefetchEnd { session, end } => {
            tracing::debug!(target: "lmcached::events", "MP lookup end: session={session} found_count={} hit_tokens={} requested_tokens={}", end.found_count, end.hit_tokens, end.requested_tokens);
        }
        Event::MpRequestStart { session, .. } => {
            tracing::debug!(target: "lmcached::events", "MP request start: session={session}");
        }
        Event::MpRequestEnd { session } => {
            tracing::debug!(target: "lmcached::events", "MP request end: session={session}");
        }
        Event::L1ReadReserved { keys } => keys_line("L1 read reserved", keys.len()),
        Event::L1ReadFinished { keys } => keys_line("L1 read finished", keys.len()),
        Event::L1WriteReserved { keys } => keys_line("L1 write reserved", keys.len()),
        Event::L1WriteFinished { keys } => keys_line("L1 write finished", keys.len()),
        Event::L1WriteFinishedAndReadReserved { keys } => {
            keys_line("L1 write finished and read reserved", keys.len())
        }
        Event::L1KeysEvicted { keys, cause } => {
            tracing::debug!(target: "lmcached::events", "L1 keys evicted: keys={} cause={cause:?}", keys.len());
        }
        Event::SmReadPrefetchedFinished { succeeded, failed } => {
            tracing::debug!(target: "lmcached::events", "SM read prefetched finished: succeeded={} failed={failed}", succeeded.len());
        }
        Event::SmWriteReserved { succeeded, failed } => {
            tracing::debug!(target: "lmcached::events", "SM write reserved: succeeded={succeeded} failed={failed}");
        }
        Event::SmWriteFinished { succeeded, failed } => {
            tracing::debug!(target: "lmcached::events", "SM write finished: succeeded={} failed={failed}", succeeded.len());
        }
        Event::L2StoreSubmitted { adapter, task, keys, bytes, .. } => {
            tracing::debug!(target: "lmcached::events", "L2 store submitted: adapter={} task={task} keys={keys} bytes={bytes}", adapter.name);
        }
        Event::L2StoreCompleted { adapter, task, succeeded, failed, .. } => {
            tracing::debug!(target: "lmcached::events", "L2 store completed: adapter={} task={task} succeeded={succeeded} failed={failed}", adapter.name);
        }
        Event::L2PrefetchLookupSubmitted { session, keys, .. } => {
            tracing::debug!(target: "lmcached::events", "L2 prefetch lookup submitted: session={session} keys={keys}");
        }
        Event::L2PrefetchLoadSubmitted { session, keys, .. } => {
            tracing::debug!(target: "lmcached::events", "L2 prefetch load submitted: session={session} keys={keys}");
        }
        Event::L2PrefetchLoadCompleted { session, loaded, failed, .. } => {
            tracing::debug!(target: "lmcached::events", "L2 prefetch load completed: session={session} loaded={loaded} failed={failed}");
        }
        Event::L2KeysEvicted { keys, .. } => keys_line("L2 keys evicted", *keys as usize),
        Event::MpVllmBlockAllocation { instance, records, .. } => {
            tracing::debug!(target: "lmcached::events", "Block allocation: instance={instance} records={}", records.len());
        }
        _ => {}
    }
}

fn keys_line(what: &str, keys: usize) {
    tracing::debug!(target: "lmcached::events", "{what}: keys={keys}");
}

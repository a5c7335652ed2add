//! Speed of copies: bytes over the time from start to end, for a part of the requests and tasks.

use std::sync::Arc;
use std::time::Instant;

use super::pending::Pending;
use crate::events::{Event, SessionId, Stamped, Subscriber, TransferEnd, TransferId, Worker};
use crate::telemetry::catalogue::Id;
use crate::telemetry::sample::Sampler;
use crate::telemetry::series::Store;

/// Copies whose end is awaited.
const ROOM: usize = 16_384;

/// GB/s, decimal; nothing for what moved no bytes or took no time.
fn gigabytes_per_second(bytes: u64, start: Instant, end: Instant) -> Option<f64> {
    let seconds = end.checked_duration_since(start)?.as_secs_f64();
    (bytes > 0 && seconds > 0.0).then(|| bytes as f64 / seconds / 1e9)
}

/// Between workers and L1.
pub(super) struct L0L1Throughput {
    store: Arc<Store>,
    sampler: Sampler,
    started: Pending<TransferId, Instant>,
}

impl L0L1Throughput {
    pub(super) fn new(store: Arc<Store>, sampler: Sampler) -> L0L1Throughput {
        L0L1Throughput { store, sampler, started: Pending::new(ROOM) }
    }

    fn begin(&mut self, session: &SessionId, transfer: TransferId, at: Instant) {
        if self.sampler.takes(&**session) && self.started.begin_at(transfer, at).is_some() {
            self.store.add(Id::UntrackedItems, &[self.name()], 1);
        }
    }

    fn end(&mut self, id: Id, transfer: TransferId, worker: &Worker, end: &TransferEnd, at: Instant) {
        let Some(start) = self.started.end(&transfer) else { return };
        if let Some(speed) = gigabytes_per_second(end.total_bytes, start, at) {
            let labels: &[&str] = &[&worker.engine_id.to_string(), &worker.device, &worker.model];
            self.store.record(id, labels, speed);
        }
    }
}

impl Subscriber for L0L1Throughput {
    fn name(&self) -> &'static str {
        "L0L1Throughput"
    }

    fn on_event(&mut self, event: &Stamped) {
        match &event.event {
            Event::MpStoreStart { session, transfer, .. }
            | Event::MpRetrieveStart { session, transfer, .. } => {
                self.begin(session, *transfer, event.at);
            }
            Event::MpStoreEnd { transfer, worker, end, .. } => {
                self.end(Id::L0L1StoreThroughput, *transfer, worker, end, event.at);
            }
            Event::MpRetrieveEnd { transfer, worker, end, .. } => {
                self.end(Id::L0L1LoadThroughput, *transfer, worker, end, event.at);
            }
            _ => {}
        }
    }
}

/// Between L1 and L2. Waiting in the adapter is included.
pub(super) struct L2Throughput {
    store: Arc<Store>,
    sampler: Sampler,
    /// By adapter and task.
    stores: Pending<(u32, u64), Instant>,
    /// By request and adapter, with the bytes asked for: a completion does not tell them.
    loads: Pending<(SessionId, u32, u64), (Instant, u64)>,
}

impl L2Throughput {
    pub(super) fn new(store: Arc<Store>, sampler: Sampler) -> L2Throughput {
        L2Throughput { store, sampler, stores: Pending::new(ROOM), loads: Pending::new(ROOM) }
    }

    fn begin_store(&mut self, store: (u32, u64), at: Instant) {
        if self.sampler.takes(&store) && self.stores.begin_at(store, at).is_some() {
            self.store.add(Id::UntrackedItems, &[self.name()], 1);
        }
    }

    fn begin_load(&mut self, load: (SessionId, u32, u64), at: Instant, bytes: u64) {
        if self.sampler.takes(&*load.0) && self.loads.begin(load, (at, bytes)).is_some() {
            self.store.add(Id::UntrackedItems, &[self.name()], 1);
        }
    }
}

impl Subscriber for L2Throughput {
    fn name(&self) -> &'static str {
        "L2Throughput"
    }

    fn on_event(&mut self, event: &Stamped) {
        let at = event.at;
        match &event.event {
            Event::L2StoreSubmitted { adapter, task, .. } => self.begin_store((adapter.index, *task), at),
            Event::L2StoreCompleted { adapter, task, bytes, .. } => {
                let start = self.stores.end(&(adapter.index, *task));
                if let Some(speed) = start.and_then(|start| gigabytes_per_second(*bytes, start, at)) {
                    self.store.record(Id::L2StoreThroughput, &[&adapter.name], speed);
                }
            }
            Event::L2LoadTaskSubmitted { session, adapter, task, bytes, .. } => {
                self.begin_load((session.clone(), adapter.index, *task), at, *bytes);
            }
            Event::L2LoadTaskCompleted { session, adapter, task } => {
                let load = self.loads.end(&(session.clone(), adapter.index, *task));
                let speed = load.and_then(|(start, bytes)| gigabytes_per_second(bytes, start, at));
                if let Some(speed) = speed {
                    self.store.record(Id::L2LoadThroughput, &[&adapter.name], speed);
                }
            }
            _ => {}
        }
    }
}

//! Periodic lines with throughput and pool use (`--enable-extra-logging`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::pending::Pending;
use crate::events::{Event, Stamped, Subscriber, TransferEnd, TransferId};

const ROOM: usize = 16_384;
/// Devices that get a line of their own.
const DEVICES: usize = 64;
const GIB: f64 = (1u64 << 30) as f64;

#[derive(Default)]
struct Moved {
    operations: u64,
    bytes: u64,
    tokens: u64,
    /// Time spent copying, the sum over all transfers.
    busy: Duration,
}

impl Moved {
    fn add(&mut self, end: &TransferEnd, took: Duration) {
        self.operations += 1;
        self.bytes += end.total_bytes;
        self.tokens += end.num_tokens;
        self.busy += took;
    }

    fn speed(&self) -> f64 {
        let seconds = self.busy.as_secs_f64();
        if seconds > 0.0 { self.bytes as f64 / seconds / 1e9 } else { 0.0 }
    }
}

#[derive(Default)]
struct Device {
    stored: Moved,
    retrieved: Moved,
}

/// Sums up and writes.
pub(super) struct Statistics {
    every: Duration,
    since: Option<Instant>,
    transfers: Pending<TransferId, Instant>,
    devices: FxHashMap<Arc<str>, Device>,
    usage: f64,
    capacity: u64,
}

impl Statistics {
    pub(super) fn new(every: Duration) -> Statistics {
        Statistics {
            every,
            since: None,
            transfers: Pending::new(ROOM),
            devices: FxHashMap::default(),
            usage: 0.0,
            capacity: 0,
        }
    }

    fn device(&mut self, name: &Arc<str>) -> Option<&mut Device> {
        if self.devices.len() >= DEVICES && !self.devices.contains_key(name) {
            return None;
        }
        Some(self.devices.entry(name.clone()).or_default())
    }

    fn write(&mut self, last: Duration) {
        let seconds = last.as_secs_f64();
        for (name, Device { stored, retrieved }) in self.devices.drain() {
            tracing::info!(
                target: "lmcached::statistics",
                "L0<->L1 stats [{name}] last {seconds:.1}s: store ops={} tokens={} bytes={} {:.2} GB/s; retrieve ops={} tokens={} bytes={} {:.2} GB/s",
                stored.operations,
                stored.tokens,
                stored.bytes,
                stored.speed(),
                retrieved.operations,
                retrieved.tokens,
                retrieved.bytes,
                retrieved.speed(),
            );
        }
        let capacity = self.capacity as f64 / GIB;
        let percent = self.usage * 100.0;
        if self.capacity > 0 {
            let used = self.usage * capacity;
            tracing::info!(target: "lmcached::statistics", "L1 memory usage: {used:.2}/{capacity:.2} GiB ({percent:.1}%)");
        } else {
            tracing::info!(target: "lmcached::statistics", "L1 memory usage: {percent:.1}%");
        }
    }
}

impl Subscriber for Statistics {
    fn name(&self) -> &'static str {
        "Statistics"
    }

    fn on_event(&mut self, event: &Stamped) {
        let at = event.at;
        match &event.event {
            Event::MpStoreStart { transfer, .. } | Event::MpRetrieveStart { transfer, .. } => {
                self.transfers.begin_at(*transfer, at);
            }
            Event::MpStoreEnd { transfer, worker, end, .. } => {
                let took =
                    self.transfers.end(transfer).map_or(Duration::ZERO, |s| at.saturating_duration_since(s));
                if let Some(device) = self.device(&worker.device) {
                    device.stored.add(end, took);
                }
            }
            Event::MpRetrieveEnd { transfer, worker, end, .. } => {
                let took =
                    self.transfers.end(transfer).map_or(Duration::ZERO, |s| at.saturating_duration_since(s));
                if let Some(device) = self.device(&worker.device) {
                    device.retrieved.add(end, took);
                }
            }
            Event::SmCapacityChanged { l1_bytes } => self.capacity = *l1_bytes,
            Event::L1EvictionLoopTick { usage, .. } => self.usage = *usage,
            _ => {}
        }
        // The eviction loop's tick comes every second, whatever else happens or does not.
        let since = *self.since.get_or_insert(at);
        let last = at.saturating_duration_since(since);
        if last >= self.every {
            self.since = Some(at);
            self.write(last);
        }
    }
}

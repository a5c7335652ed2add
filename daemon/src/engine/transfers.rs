//! Slots that workers are touching right now: prepared and not yet committed.

use std::time::{Duration, Instant};

use lmcache_proto::wire::{CacheKey, Slot};
use rustc_hash::FxHashMap;

use crate::l1::{Owner, Pin};
use crate::process::ProcessId;

/// Store or retrieve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Direction {
    Store,
    Retrieve,
}

/// Names a transfer between its prepare and its commit. The request id is part of it: two requests of one worker may
/// store the same prefix at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TransferKey {
    pub(super) instance: u64,
    pub(super) direction: Direction,
    rank: Option<u32>,
    start: u64,
    end: u64,
    request_id: Box<str>,
}

impl TransferKey {
    pub(super) fn new(key: &CacheKey<'_>, instance: u64, direction: Direction) -> TransferKey {
        TransferKey {
            instance,
            direction,
            rank: key.worker_id,
            start: key.start,
            end: key.end,
            request_id: key.request_id.into(),
        }
    }
}

/// A prepared transfer.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) pins: Vec<Pin>,
    pub(super) slots: Vec<Slot>,
    pub(super) chunk_indices: Vec<u64>,
    pub(super) started: Instant,
    /// Connection that prepared it.
    pub(super) client: u64,
    pub(super) process: Option<ProcessId>,
    /// The worker's time is over; its bytes stay untouched until it commits or is dead.
    pub(super) quarantined: bool,
}

/// All prepared transfers, and the pins that an earlier daemon left.
#[derive(Debug)]
pub(super) struct Transfers {
    map: FxHashMap<TransferKey, Transfer>,
    adopted: Vec<(Owner, Pin)>,
}

/// What to do with transfers after a look at the clock and the owners.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// Write pins whose time is over and whose owner may still write.
    pub(super) quarantine: Vec<Pin>,
    /// Write pins of dead owners.
    pub(super) abort: Vec<Pin>,
    /// Other pins of dead owners.
    pub(super) unpin: Vec<Pin>,
}

impl Transfers {
    pub(super) fn new(adopted: Vec<(Owner, Pin)>) -> Transfers {
        Transfers { map: FxHashMap::default(), adopted }
    }

    pub(super) fn get(&self, key: &TransferKey) -> Option<&Transfer> {
        self.map.get(key)
    }

    pub(super) fn insert(&mut self, key: TransferKey, transfer: Transfer) {
        self.map.insert(key, transfer);
    }

    pub(super) fn take(&mut self, key: &TransferKey) -> Option<Transfer> {
        self.map.remove(key)
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// Takes the store reservations of a worker that has unregistered or was reaped away from their keys.
    pub(super) fn quarantine_instance(&mut self, instance: u64) -> Vec<Pin> {
        let stores = self.map.iter_mut().filter(|(key, t)| {
            key.instance == instance && key.direction == Direction::Store && !t.quarantined
        });
        stores
            .flat_map(|(_, transfer)| {
                transfer.quarantined = true;
                transfer.pins.clone()
            })
            .collect()
    }

    /// Looks at every transfer. `dead(instance, client, process)` says whether its owner is certainly gone.
    pub(super) fn sweep(
        &mut self,
        write_ttl: Duration,
        mut dead: impl FnMut(u64, u64, Option<ProcessId>) -> bool,
    ) -> Sweep {
        let mut sweep = Sweep::default();
        self.map.retain(|key, transfer| {
            if dead(key.instance, transfer.client, transfer.process) {
                match key.direction {
                    Direction::Store => sweep.abort.append(&mut transfer.pins),
                    Direction::Retrieve => sweep.unpin.append(&mut transfer.pins),
                }
                return false;
            }
            if key.direction == Direction::Store
                && !transfer.quarantined
                && transfer.started.elapsed() > write_ttl
            {
                transfer.quarantined = true;
                sweep.quarantine.extend_from_slice(&transfer.pins);
            }
            true
        });
        self.adopted.retain(|(owner, pin)| {
            let process =
                (owner.pid != 0).then_some(ProcessId { pid: owner.pid, start_time: owner.start_time });
            let gone = dead(owner.instance, 0, process);
            if gone {
                sweep.unpin.push(*pin);
            }
            !gone
        });
        sweep
    }
}

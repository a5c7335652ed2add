//! Slots that workers are touching right now: prepared and not yet committed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lmcache_proto::hash::ChunkHash;
use lmcache_proto::wire::{CacheKey, Slot};
use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};

use super::handover::age;
use super::publish::Told;
use crate::l1::{Owner, Pin};
use crate::process::ProcessId;

/// Store or retrieve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum Direction {
    Store,
    Retrieve,
}

/// Names a transfer between its prepare and its commit, down to the content: two requests of one worker may store the same
/// prefix at once, and an engine that counts its requests from 0 again uses the same id for another prompt.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct TransferKey {
    pub(super) instance: u64,
    pub(super) direction: Direction,
    rank: Option<u32>,
    world_size: u32,
    start: u64,
    end: u64,
    /// Chain hash of the range's last chunk: it stands for all tokens before it.
    last: ChunkHash,
    request_id: Box<str>,
    model: Box<str>,
    salt: Box<str>,
}

impl TransferKey {
    /// `hashes` are those of the range's chunks.
    pub(super) fn new(
        key: &CacheKey<'_>,
        instance: u64,
        direction: Direction,
        hashes: &[ChunkHash],
    ) -> TransferKey {
        TransferKey {
            instance,
            direction,
            rank: key.worker_id,
            world_size: key.world_size,
            start: key.start,
            end: key.end,
            last: hashes.last().copied().unwrap_or_default(),
            request_id: key.request_id.into(),
            model: key.model_name.into(),
            salt: key.cache_salt.into(),
        }
    }

    /// The request that it belongs to.
    pub(super) fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The model of its objects.
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// The salt of its objects.
    pub(super) fn salt(&self) -> &str {
        &self.salt
    }
}

/// Who prepared a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Preparer {
    pub(super) instance: u64,
    /// Connection; 0 is one of an earlier daemon.
    pub(super) client: u64,
    pub(super) process: Option<ProcessId>,
}

/// A prepared transfer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Transfer {
    pub(super) pins: Vec<Pin>,
    pub(super) slots: Vec<Slot>,
    pub(super) chunk_indices: Vec<u64>,
    pub(super) rank: u32,
    pub(super) layout: u64,
    pub(super) object_bytes: u64,
    #[serde(with = "age")]
    pub(super) started: Instant,
    /// Connection that prepared it.
    pub(super) client: u64,
    pub(super) process: Option<ProcessId>,
    /// The worker's time is over; its bytes stay untouched until it commits or is dead.
    pub(super) quarantined: bool,
    /// For the events of its end; `None` with observability off. In another process the end is not told: those who would
    /// count it have not seen its start.
    #[serde(skip)]
    pub(super) told: Option<Arc<Told>>,
}

/// All prepared transfers, and the pins that an earlier daemon left.
#[derive(Debug)]
pub(super) struct Transfers {
    map: FxHashMap<TransferKey, Transfer>,
    adopted: Vec<(Owner, Pin)>,
    /// Transfers and adopted pins of each worker.
    by_instance: FxHashMap<u64, usize>,
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
    /// Transfers that will never be committed.
    pub(super) lost: Vec<(TransferKey, Transfer)>,
}

impl Transfers {
    pub(super) fn new(adopted: Vec<(Owner, Pin)>) -> Transfers {
        let mut by_instance = FxHashMap::default();
        for (owner, _) in &adopted {
            *by_instance.entry(owner.instance).or_default() += 1;
        }
        Transfers { map: FxHashMap::default(), adopted, by_instance }
    }

    pub(super) fn get(&self, key: &TransferKey) -> Option<&Transfer> {
        self.map.get(key)
    }

    /// Adds a transfer; gives its pins back if there is one of that key, which may still be under way: neither's must be
    /// forgotten.
    pub(super) fn insert(&mut self, key: TransferKey, transfer: Transfer) -> Result<(), Vec<Pin>> {
        let instance = key.instance;
        match self.map.entry(key) {
            std::collections::hash_map::Entry::Occupied(_) => Err(transfer.pins),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(transfer);
                *self.by_instance.entry(instance).or_default() += 1;
                Ok(())
            }
        }
    }

    pub(super) fn take(&mut self, key: &TransferKey) -> Option<Transfer> {
        let taken = self.map.remove(key)?;
        release(&mut self.by_instance, key.instance);
        Some(taken)
    }

    /// Takes all prepared transfers out, for another process.
    pub(super) fn take_all(&mut self) -> Vec<(TransferKey, Transfer)> {
        self.map.drain().collect()
    }

    /// Takes over a transfer whose pins recovery has found. `false`: they are not there, and nothing of it is believed.
    pub(super) fn restore(&mut self, key: TransferKey, transfer: Transfer) -> bool {
        let adopted = |pin: &Pin| self.adopted.iter().any(|(_, adopted)| adopted == pin);
        if !transfer.pins.iter().all(adopted) {
            return false;
        }
        let by_instance = &mut self.by_instance;
        self.adopted.retain(|(owner, adopted)| {
            let ours = transfer.pins.contains(adopted);
            if ours {
                release(by_instance, owner.instance);
            }
            !ours
        });
        // Two of one key cannot come: they were of a map.
        self.insert(key, transfer).is_ok()
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// All prepared transfers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&TransferKey, &Transfer)> {
        self.map.iter()
    }

    /// Owners of pins that an earlier daemon left, with their numbers of pins.
    pub(super) fn adopted(&self) -> Vec<(Owner, usize)> {
        let mut owners: Vec<(Owner, usize)> = Vec::new();
        for (owner, _) in &self.adopted {
            match owners.iter_mut().find(|(other, _)| other == owner) {
                Some((_, count)) => *count += 1,
                None => owners.push((*owner, 1)),
            }
        }
        owners
    }

    /// Prepared transfers of each worker.
    pub(super) fn counts(&self) -> FxHashMap<u64, usize> {
        self.by_instance.clone()
    }

    /// Whether the worker may be touching slots.
    pub(super) fn has(&self, instance: u64) -> bool {
        self.by_instance.contains_key(&instance)
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

    /// Everybody who may be touching slots.
    pub(super) fn preparers(&self) -> FxHashSet<Preparer> {
        let prepared = self.map.iter().map(|(key, transfer)| preparer(key, transfer));
        prepared.chain(self.adopted.iter().map(|(owner, _)| before_us(owner))).collect()
    }

    /// Frees what the `dead` have left, and finds what is overdue.
    pub(super) fn sweep(&mut self, write_ttl: Duration, dead: &FxHashSet<Preparer>) -> Sweep {
        let mut sweep = Sweep::default();
        let gone: Vec<TransferKey> = self
            .map
            .iter()
            .filter(|(key, transfer)| dead.contains(&preparer(key, transfer)))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            let Some(transfer) = self.take(&key) else { continue };
            match key.direction {
                Direction::Store => sweep.abort.extend_from_slice(&transfer.pins),
                Direction::Retrieve => sweep.unpin.extend_from_slice(&transfer.pins),
            }
            sweep.lost.push((key, transfer));
        }
        for (key, transfer) in &mut self.map {
            let overdue = transfer.started.elapsed() > write_ttl;
            if key.direction == Direction::Store && !transfer.quarantined && overdue {
                transfer.quarantined = true;
                sweep.quarantine.extend_from_slice(&transfer.pins);
            }
        }
        let by_instance = &mut self.by_instance;
        self.adopted.retain(|(owner, pin)| {
            let gone = dead.contains(&before_us(owner));
            if gone {
                release(by_instance, owner.instance);
                sweep.unpin.push(*pin);
            }
            !gone
        });
        sweep
    }
}

fn preparer(key: &TransferKey, transfer: &Transfer) -> Preparer {
    Preparer { instance: key.instance, client: transfer.client, process: transfer.process }
}

fn before_us(owner: &Owner) -> Preparer {
    let process = (owner.pid != 0).then_some(ProcessId { pid: owner.pid, start_time: owner.start_time });
    Preparer { instance: owner.instance, client: 0, process }
}

fn release(by_instance: &mut FxHashMap<u64, usize>, instance: u64) {
    if let Some(count) = by_instance.get_mut(&instance) {
        *count -= 1;
        if *count == 0 {
            by_instance.remove(&instance);
        }
    }
}

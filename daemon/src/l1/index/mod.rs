//! The truth about L1: which object is where, in which state, and who holds it.
//!
//! One lock around this struct (see `l1/mod.rs`); nothing here blocks. Every change goes to the shared table too, in the
//! order that the crash rule of `proto::shm` asks for. The one system call is the table's, when it makes the next stretch
//! of its records real memory: once in some thousand new records.
//!
//! * `entry`: one object;
//! * this file: finding and holding;
//! * `write`: reserving, committing, giving up;
//! * `removal`: eviction and clearing;
//! * `accounts`: bytes of each salt, and its quota;
//! * `restore`: what recovery puts back.
#![forbid(unsafe_code)]

mod accounts;
mod entry;
mod removal;
mod restore;
mod write;

use std::hash::BuildHasher;

use lmcache_proto::shm::{ObjectState, PinKind};
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::alloc::Allocator;
use super::names::Names;
use super::policy::{Policy, Subject};
use super::pool::{PinFields, Table};
use super::{ObjectId, Owner, Pin};
use crate::failpoint;
use accounts::Accounts;
pub(in crate::l1) use entry::Entry;
pub use entry::{Key, RemovalCause, Removed, ReserveError, Reserved};

/// Counters that only ever grow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Objects evicted by the policy.
    pub evicted: u64,
    /// Bytes evicted by the policy.
    pub evicted_bytes: u64,
    /// Objects replaced because they had another shape.
    pub replaced: u64,
    /// Reservations that ran out under their owner.
    pub quarantined: u64,
    /// Reservations refused for want of memory.
    pub full: u64,
    /// Objects whose bytes were not those that were committed.
    pub damaged: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Index {
    map: FxHashMap<Key, u32>,
    entries: Vec<Entry>,
    unused: Vec<u32>,
    unused_pins: Vec<u32>,
    next_pin: u32,
    pub(in crate::l1) names: Names,
    policy: Policy,
    accounts: Accounts,
    pub(in crate::l1) allocator: Allocator,
    pub(in crate::l1) totals: Totals,
    pub(in crate::l1) committed: u64,
    pub(in crate::l1) writing: u64,
    pub(in crate::l1) quarantined_now: u64,
    pub(in crate::l1) leased_now: u64,
    pub(in crate::l1) pins_now: u64,
    /// Objects that went since the engine last asked, for its events.
    removed: Vec<Removed>,
}

impl Index {
    /// `allocator`: without memory yet.
    pub(in crate::l1) fn new(names: Names, policy: Policy, allocator: Allocator) -> Index {
        Index {
            map: FxHashMap::default(),
            entries: Vec::new(),
            unused: Vec::new(),
            unused_pins: Vec::new(),
            next_pin: 0,
            names,
            policy,
            accounts: Accounts::default(),
            allocator,
            totals: Totals::default(),
            committed: 0,
            writing: 0,
            quarantined_now: 0,
            leased_now: 0,
            pins_now: 0,
            removed: Vec::new(),
        }
    }

    fn subject(&self, index: u32) -> Subject {
        let entry = &self.entries[index as usize];
        Subject {
            index,
            bytes: self.allocator.footprint(entry.length),
            salt: entry.key.salt,
            quota: self.accounts.has_quota(entry.key.salt),
            key_hash: FxBuildHasher.hash_one(entry.key),
            reused: entry.reused,
        }
    }

    pub(in crate::l1) fn entry(&self, id: ObjectId) -> Option<&Entry> {
        self.entries
            .get(id.index as usize)
            .filter(|e| e.generation == id.generation && e.state != ObjectState::Free)
    }

    /// One record, free ones included.
    pub(in crate::l1) fn record(&self, index: usize) -> Option<&Entry> {
        self.entries.get(index)
    }

    /// The object stays when its last reader has gone.
    pub(in crate::l1) fn retain(&mut self, id: ObjectId) {
        if self.entry(id).is_some() {
            self.entries[id.index as usize].temporary = false;
        }
    }

    /// The committed object of `key`, if its layout is one of `layouts`.
    pub(in crate::l1) fn find(&self, key: &Key, layouts: &[u64]) -> Option<ObjectId> {
        let index = *self.map.get(key)?;
        let entry = &self.entries[index as usize];
        let fits = entry.state == ObjectState::Committed && layouts.contains(&entry.layout);
        fits.then_some(ObjectId { index, generation: entry.generation })
    }

    pub(in crate::l1) fn lease(&mut self, id: ObjectId) {
        failpoint::hit("l1.lease");
        self.occupy(id.index);
        self.entries[id.index as usize].leases += 1;
        self.leased_now += 1;
    }

    /// Ends a lease; stale ids are ignored.
    pub(in crate::l1) fn end_lease(&mut self, id: ObjectId, table: &Table) {
        if self.entry(id).is_none_or(|entry| entry.leases == 0) {
            return;
        }
        failpoint::hit("l1.lease.end");
        self.entries[id.index as usize].leases -= 1;
        self.leased_now -= 1;
        self.let_go(id.index, table);
    }

    /// Marks the object as used and keeps it from the policy while it is held.
    fn occupy(&mut self, index: u32) {
        self.policy.remove(&self.subject(index));
        self.entries[index as usize].reused = true;
    }

    /// After a holder has gone: frees a detached object, makes a committed one evictable again.
    fn let_go(&mut self, index: u32, table: &Table) {
        let entry = &self.entries[index as usize];
        if entry.is_held() {
            return;
        }
        if entry.detached || entry.state == ObjectState::Quarantined {
            self.free(index, table);
        } else if entry.state == ObjectState::Committed && entry.temporary {
            self.detach(index, Some(RemovalCause::Temporary), table);
        } else if entry.state == ObjectState::Committed {
            let subject = self.subject(index);
            self.policy.insert(&subject);
        }
    }

    /// A pin for the daemon's own copies: nothing in the shared table, because a dead daemon copies nothing.
    pub(in crate::l1) fn pin_internal(&mut self, id: ObjectId) -> Pin {
        self.occupy(id.index);
        self.entries[id.index as usize].pins += 1;
        self.pins_now += 1;
        Pin { object: id, record: None }
    }

    /// A pin for a worker, in the shared table. `None` when the table has no record left.
    pub(in crate::l1) fn pin_shared(
        &mut self,
        id: ObjectId,
        kind: PinKind,
        owner: Owner,
        table: &Table,
    ) -> Option<Pin> {
        let record = match self.unused_pins.pop() {
            Some(record) => record,
            None if table.back_pin(self.next_pin) => {
                self.next_pin += 1;
                self.next_pin - 1
            }
            None => return None,
        };
        let entry = &self.entries[id.index as usize];
        let fields = PinFields {
            kind,
            object: id.index,
            generation: id.generation,
            owner,
            offset: entry.offset,
            length: entry.length,
        };
        table.write_pin(record, &fields);
        let pin = self.pin_internal(id);
        Some(Pin { record: Some(record), ..pin })
    }

    /// Ends a pin.
    pub(in crate::l1) fn unpin(&mut self, pin: &Pin, table: &Table) {
        if let Some(record) = pin.record {
            failpoint::hit("l1.unpin.before");
            table.clear_pin(record);
            failpoint::hit("l1.unpin.cleared");
            self.unused_pins.push(record);
        }
        if self.entry(pin.object).is_none_or(|entry| entry.pins == 0) {
            return;
        }
        self.entries[pin.object.index as usize].pins -= 1;
        self.pins_now -= 1;
        self.let_go(pin.object.index, table);
    }
}

//! The truth about L1: which object is where, in which state, and who holds it.
//!
//! One lock around this struct (see `mod.rs`); nothing here blocks or makes a system call. Every change goes to the
//! shared table too, in the order that the crash rule of `proto::shm` asks for.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use lmcache_proto::hash::ChunkHash;
use lmcache_proto::shm::{ObjectState, PinKind};
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::alloc::Allocator;
use super::names::{NameId, Names};
use super::policy::{Policy, Subject};
use super::pool::{ObjectFields, PinFields, Table};
use super::{ObjectId, Owner, Pin};

/// Name of an object inside L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Chunk hash.
    pub hash: ChunkHash,
    /// Model.
    pub model: NameId,
    /// Salt.
    pub salt: NameId,
    /// Packed rank.
    pub rank: u32,
    /// Object group.
    pub group: u32,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The chunk hash is uniform already; 8 bytes of it and the small fields are enough, equality does the rest.
        let [a, b, c, d, e, f, g, h, ..] = self.hash;
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
        state.write_u64((u64::from(self.model.0) << 32) | u64::from(self.salt.0));
        state.write_u64((u64::from(self.rank) << 32) | u64::from(self.group));
    }
}

/// One object of the index.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) state: ObjectState,
    pub(super) generation: u32,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) layout: u64,
    /// Lookups that hold the object.
    pub(super) leases: u32,
    /// Transfers that touch its bytes.
    pub(super) pins: u32,
    pub(super) reused: bool,
    /// Replaced or cleared while held: no longer found under its key, freed by the last holder.
    pub(super) detached: bool,
}

impl Entry {
    pub(super) const FREE: Entry = Entry {
        key: Key { hash: [0; 32], model: NameId::EMPTY, salt: NameId::EMPTY, rank: 0, group: 0 },
        state: ObjectState::Free,
        generation: 1,
        offset: 0,
        length: 0,
        layout: 0,
        leases: 0,
        pins: 0,
        reused: false,
        detached: false,
    };
}

/// Why nothing could be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReserveError {
    /// No memory, and nothing more to evict.
    Full,
    /// No table record, pin or name left.
    TableFull,
}

/// A reserved object.
#[derive(Clone, Copy, Debug)]
pub struct Reserved {
    /// Which key of the request.
    pub position: usize,
    /// The pin that allows writing it.
    pub pin: Pin,
    /// Where it is.
    pub offset: u64,
}

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
}

#[derive(Debug)]
pub(super) struct Index {
    map: FxHashMap<Key, u32>,
    entries: Vec<Entry>,
    unused: Vec<u32>,
    unused_pins: Vec<u32>,
    next_pin: u32,
    pub(super) names: Names,
    policy: Policy,
    pub(super) allocator: Allocator,
    pub(super) totals: Totals,
    pub(super) committed: u64,
    pub(super) writing: u64,
    pub(super) quarantined_now: u64,
    pub(super) leased_now: u64,
    pub(super) pins_now: u64,
    /// Objects that went since the engine last asked, for its event log.
    removed: Vec<(Arc<str>, ChunkHash)>,
}

impl Index {
    pub(super) fn new(names: Names, policy: Policy, align: u64) -> Index {
        Index {
            map: FxHashMap::default(),
            entries: Vec::new(),
            unused: Vec::new(),
            unused_pins: Vec::new(),
            next_pin: 0,
            names,
            policy,
            allocator: Allocator::new(align),
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
            key_hash: FxBuildHasher.hash_one(entry.key),
            reused: entry.reused,
        }
    }

    pub(super) fn entry(&self, id: ObjectId) -> Option<&Entry> {
        self.entries
            .get(id.index as usize)
            .filter(|e| e.generation == id.generation && e.state != ObjectState::Free)
    }

    /// The committed object of `key`, if its layout is `layout`.
    pub(super) fn find(&self, key: &Key, layout: u64) -> Option<ObjectId> {
        let index = *self.map.get(key)?;
        let entry = &self.entries[index as usize];
        let fits = entry.state == ObjectState::Committed && entry.layout == layout;
        fits.then_some(ObjectId { index, generation: entry.generation })
    }

    pub(super) fn lease(&mut self, id: ObjectId) {
        self.hold(id.index);
        self.entries[id.index as usize].leases += 1;
        self.leased_now += 1;
    }

    /// Ends a lease; stale ids are ignored.
    pub(super) fn end_lease(&mut self, id: ObjectId, table: &Table) {
        if self.entry(id).is_none_or(|entry| entry.leases == 0) {
            return;
        }
        self.entries[id.index as usize].leases -= 1;
        self.leased_now -= 1;
        self.let_go(id.index, table);
    }

    /// Marks the object as used and keeps it from the policy while it is held.
    fn hold(&mut self, index: u32) {
        self.policy.remove(&self.subject(index));
        self.entries[index as usize].reused = true;
    }

    /// After a holder has gone: frees a detached object, makes a committed one evictable again.
    fn let_go(&mut self, index: u32, table: &Table) {
        let entry = &self.entries[index as usize];
        if entry.leases > 0 || entry.pins > 0 {
            return;
        }
        if entry.detached || entry.state == ObjectState::Quarantined {
            self.free(index, table);
        } else if entry.state == ObjectState::Committed {
            let subject = self.subject(index);
            self.policy.insert(&subject);
        }
    }

    /// A pin for the daemon's own copies: nothing in the shared table, because a dead daemon copies nothing.
    pub(super) fn pin_internal(&mut self, id: ObjectId) -> Pin {
        self.hold(id.index);
        self.entries[id.index as usize].pins += 1;
        self.pins_now += 1;
        Pin { object: id, record: None }
    }

    /// A pin for a worker, in the shared table. `None` when the table has no record left.
    pub(super) fn pin_shared(
        &mut self,
        id: ObjectId,
        kind: PinKind,
        owner: Owner,
        table: &Table,
    ) -> Option<Pin> {
        let record = match self.unused_pins.pop() {
            Some(record) => record,
            None if u64::from(self.next_pin) < table.layout().pins => {
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
    pub(super) fn unpin(&mut self, pin: &Pin, table: &Table) {
        if let Some(record) = pin.record {
            table.clear_pin(record);
            self.unused_pins.push(record);
        }
        if self.entry(pin.object).is_none_or(|entry| entry.pins == 0) {
            return;
        }
        self.entries[pin.object.index as usize].pins -= 1;
        self.pins_now -= 1;
        self.let_go(pin.object.index, table);
    }

    /// Reserves one object for writing. `Ok(None)`: it is there already, or being written.
    pub(super) fn reserve(
        &mut self,
        key: Key,
        layout: u64,
        length: u64,
        owner: Option<Owner>,
        table: &Table,
    ) -> Result<Option<(Pin, u64)>, ReserveError> {
        if let Some(&index) = self.map.get(&key) {
            let entry = &self.entries[index as usize];
            if entry.layout == layout && entry.length == length {
                if entry.state == ObjectState::Committed && entry.leases == 0 && entry.pins == 0 {
                    // Wanted again: it must not be the next victim of this same request.
                    let subject = self.subject(index);
                    self.policy.remove(&subject);
                    self.policy.insert(&subject);
                }
                return Ok(None);
            }
            if entry.state == ObjectState::Writing {
                // Another shape is being written right now; its writer decides.
                return Ok(None);
            }
            self.totals.replaced += 1;
            self.detach(index, table);
        }
        let offset = self.allocate(length, table).ok_or(ReserveError::Full)?;
        let Some(index) = self.new_record(table) else {
            self.allocator.release(offset);
            return Err(ReserveError::TableFull);
        };
        let generation = self.entries[index as usize].generation;
        self.names.hold(key.model);
        self.names.hold(key.salt);
        self.entries[index as usize] = Entry {
            key,
            state: ObjectState::Writing,
            generation,
            offset,
            length,
            layout,
            leases: 0,
            pins: 0,
            reused: false,
            detached: false,
        };
        let fields = ObjectFields {
            chunk_hash: key.hash,
            model: key.model.0,
            salt: key.salt.0,
            kv_rank: key.rank,
            group: key.group,
            offset,
            length,
            layout,
        };
        table.write_object(index, generation, &fields, ObjectState::Writing);
        self.map.insert(key, index);
        self.writing += 1;
        let id = ObjectId { index, generation };
        let pin = match owner {
            None => Some(self.pin_internal(id)),
            Some(owner) => self.pin_shared(id, PinKind::Write, owner, table),
        };
        self.entries[index as usize].reused = false;
        match pin {
            Some(pin) => Ok(Some((pin, offset))),
            None => {
                self.map.remove(&key);
                self.free(index, table);
                Err(ReserveError::TableFull)
            }
        }
    }

    /// Makes a written object readable and ends the writer's pin. `false` if the reservation was lost meanwhile.
    pub(super) fn commit(&mut self, pin: &Pin, table: &Table) -> bool {
        let writing = self
            .entry(pin.object)
            .is_some_and(|entry| entry.state == ObjectState::Writing && !entry.detached);
        if writing {
            self.entries[pin.object.index as usize].state = ObjectState::Committed;
            table.set_object_state(pin.object.index, ObjectState::Committed);
            self.writing -= 1;
            self.committed += 1;
        }
        self.unpin(pin, table);
        writing
    }

    /// Gives up a reservation whose owner is certain not to write any more.
    pub(super) fn abort(&mut self, pin: &Pin, table: &Table) {
        if self.entry(pin.object).is_some_and(|entry| entry.state == ObjectState::Writing) {
            self.detach(pin.object.index, table);
        }
        self.unpin(pin, table);
    }

    /// Takes a reservation's key away while its owner may still write: the bytes go to nobody until the pin ends.
    pub(super) fn quarantine(&mut self, pin: &Pin, table: &Table) {
        if self.entry(pin.object).is_none_or(|entry| entry.state != ObjectState::Writing) {
            return;
        }
        let index = pin.object.index;
        if !self.entries[index as usize].detached {
            self.map.remove(&self.entries[index as usize].key);
        }
        self.entries[index as usize].state = ObjectState::Quarantined;
        table.set_object_state(index, ObjectState::Quarantined);
        self.writing -= 1;
        self.quarantined_now += 1;
        self.totals.quarantined += 1;
    }

    pub(super) fn contains(&self, key: &Key) -> bool {
        self.map.contains_key(key)
    }

    /// Appends an unused record, while the table is being read.
    pub(super) fn push_free(&mut self, generation: u32) {
        self.unused.push(self.entries.len() as u32);
        self.entries.push(Entry { generation, ..Entry::FREE });
    }

    /// Appends an object of the table; its range has been adopted.
    pub(super) fn push_recovered(&mut self, entry: Entry) {
        let index = self.entries.len() as u32;
        self.entries.push(entry);
        self.pins_now += u64::from(entry.pins);
        if entry.state == ObjectState::Committed {
            self.names.hold(entry.key.model);
            self.names.hold(entry.key.salt);
            self.map.insert(entry.key, index);
            self.committed += 1;
            if entry.pins == 0 {
                let subject = self.subject(index);
                self.policy.insert(&subject);
            }
        } else {
            self.quarantined_now += 1;
        }
    }

    /// Takes over the pin records below `used`: those in `held` are in use, the others free.
    pub(super) fn restore_pins(&mut self, used: u32, held: impl Iterator<Item = u32>) {
        let held: rustc_hash::FxHashSet<u32> = held.collect();
        self.next_pin = used;
        self.unused_pins = (0..used).filter(|record| !held.contains(record)).collect();
    }

    /// Marks an object as used now.
    pub(super) fn touch(&mut self, key: &Key) {
        if let Some(&index) = self.map.get(key)
            && self.entries[index as usize].state == ObjectState::Committed
        {
            self.entries[index as usize].reused = true;
            if self.entries[index as usize].leases == 0 && self.entries[index as usize].pins == 0 {
                let subject = self.subject(index);
                self.policy.remove(&subject);
                self.policy.insert(&subject);
            }
        }
    }

    /// Drops every object that nobody holds; with `force` also takes the held ones from their keys. Returns how many.
    pub(super) fn clear(&mut self, force: bool, table: &Table) -> u64 {
        let all: Vec<u32> = self.map.values().copied().collect();
        let mut dropped = 0;
        for index in all {
            let entry = &self.entries[index as usize];
            let held = entry.leases > 0 || entry.pins > 0;
            if entry.state == ObjectState::Committed && (force || !held) {
                self.detach(index, table);
                dropped += 1;
            }
        }
        dropped
    }

    /// Evicts until `free` bytes are free or nothing can go. Returns the bytes evicted.
    pub(super) fn evict(&mut self, mut want: u64, table: &Table) -> u64 {
        let mut freed = 0;
        while want > 0 {
            let Some(bytes) = self.evict_one(table) else { break };
            freed += bytes;
            want = want.saturating_sub(bytes);
        }
        freed
    }

    fn evict_one(&mut self, table: &Table) -> Option<u64> {
        let index = self.policy.victim()?;
        let subject = self.subject(index);
        self.policy.evicted(&subject);
        self.totals.evicted += 1;
        self.totals.evicted_bytes += subject.bytes;
        self.detach(index, table);
        Some(subject.bytes)
    }

    /// Objects that have gone since the last call.
    pub(super) fn take_removed(&mut self) -> Vec<(Arc<str>, ChunkHash)> {
        std::mem::take(&mut self.removed)
    }

    fn allocate(&mut self, length: u64, table: &Table) -> Option<u64> {
        loop {
            if let Some(offset) = self.allocator.allocate(length) {
                return Some(offset);
            }
            if self.evict_one(table).is_none() {
                self.totals.full += 1;
                return None;
            }
        }
    }

    fn new_record(&mut self, table: &Table) -> Option<u32> {
        if let Some(index) = self.unused.pop() {
            return Some(index);
        }
        if self.entries.len() as u64 >= table.layout().objects {
            return None;
        }
        self.entries.push(Entry::FREE);
        Some((self.entries.len() - 1) as u32)
    }

    /// Takes an object from its key; frees it now or when its last holder lets go.
    fn detach(&mut self, index: u32, table: &Table) {
        let entry = self.entries[index as usize];
        if entry.detached {
            return;
        }
        self.map.remove(&entry.key);
        self.policy.remove(&self.subject(index));
        self.entries[index as usize].detached = true;
        if entry.state == ObjectState::Committed {
            self.committed -= 1;
            // With the name, not its id: the id may be free, and another name's, when somebody asks.
            self.removed.push((self.names.name(entry.key.model), entry.key.hash));
            if entry.leases > 0 || entry.pins > 0 {
                // The next daemon must not find it under its key; the pins say that its bytes are still in use.
                table.set_object_state(index, ObjectState::Quarantined);
            }
        }
        if entry.leases == 0 && entry.pins == 0 {
            self.free(index, table);
        }
    }

    fn free(&mut self, index: u32, table: &Table) {
        let entry = self.entries[index as usize];
        // Free in the table first: only then may the bytes become somebody else's (crash rule).
        table.set_object_state(index, ObjectState::Free);
        self.allocator.release(entry.offset);
        match entry.state {
            ObjectState::Writing => self.writing -= 1,
            ObjectState::Quarantined => self.quarantined_now -= 1,
            ObjectState::Committed | ObjectState::Free => {}
        }
        self.names.release(entry.key.model, table);
        self.names.release(entry.key.salt, table);
        let slot = &mut self.entries[index as usize];
        slot.state = ObjectState::Free;
        slot.generation = slot.generation.wrapping_add(1).max(1);
        self.unused.push(index);
    }
}

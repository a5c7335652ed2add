//! Objects on their way in: reserved, then committed, given up, or left in quarantine.
#![forbid(unsafe_code)]

use lmcache_proto::shm::{ObjectState, PinKind};

use super::super::pool::{ObjectFields, Table};
use super::super::{ObjectId, Owner, Pin};
use super::{Entry, Index, Key, RemovalCause, ReserveError};
use crate::failpoint;

/// Objects that may be evicted to free one name or record. A bound, because the lock is held meanwhile.
const EVICT_FOR_RECORD: usize = 4096;

impl Index {
    /// Reserves one object for writing. `Ok(None)`: it is there already, or being written.
    pub(in crate::l1) fn reserve(
        &mut self,
        key: Key,
        layout: u64,
        length: u64,
        owner: Option<Owner>,
        table: &Table,
    ) -> Result<Option<(Pin, u64)>, ReserveError> {
        if let Some(&index) = self.map.get(&key) {
            let entry = &mut self.entries[index as usize];
            if entry.layout == layout && entry.length == length {
                // Stored by a worker: it stays.
                entry.temporary = false;
                if entry.state == ObjectState::Committed && !entry.is_held() {
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
            self.detach(index, Some(RemovalCause::Replaced), table);
            failpoint::hit("l1.reserve.replaced");
        }
        let offset = self.allocate(length, table).ok_or(ReserveError::Full)?;
        let Some(index) = self.new_record(table) else {
            self.allocator.release(offset, length);
            return Err(ReserveError::TableFull);
        };
        failpoint::hit("l1.reserve.before");
        let generation = self.entries[index as usize].generation;
        self.names.hold(key.model);
        self.names.hold(key.salt);
        self.accounts.add(key.salt, self.allocator.footprint(length));
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
            temporary: false,
            detached: false,
            nobodys: false,
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
        failpoint::hit("l1.reserve.done");
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
    pub(in crate::l1) fn commit(&mut self, pin: &Pin, table: &Table) -> bool {
        let writing = self
            .entry(pin.object)
            .is_some_and(|entry| entry.state == ObjectState::Writing && !entry.detached);
        if writing {
            failpoint::hit("l1.commit.before");
            self.entries[pin.object.index as usize].state = ObjectState::Committed;
            table.set_object_state(pin.object.index, ObjectState::Committed);
            failpoint::hit("l1.commit.set");
            self.writing -= 1;
            self.committed += 1;
        }
        self.unpin(pin, table);
        failpoint::hit("l1.commit.done");
        writing
    }

    /// Makes a loaded object readable with `leases` leases on it, and ends the loader's pin. A `temporary` one goes with the
    /// last of them. `None` if the reservation was lost meanwhile.
    pub(in crate::l1) fn commit_leased(
        &mut self,
        pin: &Pin,
        leases: u32,
        temporary: bool,
        table: &Table,
    ) -> Option<ObjectId> {
        let writing = self
            .entry(pin.object)
            .is_some_and(|entry| entry.state == ObjectState::Writing && !entry.detached);
        if writing {
            // Before the pin ends: it must not go in between.
            let entry = &mut self.entries[pin.object.index as usize];
            entry.temporary = temporary;
            entry.leases += leases;
            self.leased_now += u64::from(leases);
        }
        self.commit(pin, table).then_some(pin.object)
    }

    /// Gives up a reservation whose owner is certain not to write any more.
    pub(in crate::l1) fn abort(&mut self, pin: &Pin, table: &Table) {
        if self.entry(pin.object).is_some_and(|entry| entry.state == ObjectState::Writing) {
            failpoint::hit("l1.abort.before");
            self.detach(pin.object.index, None, table);
        }
        self.unpin(pin, table);
        failpoint::hit("l1.abort.done");
    }

    /// Takes a reservation's key away while its owner may still write: the bytes go to nobody until the pin ends.
    pub(in crate::l1) fn quarantine(&mut self, pin: &Pin, table: &Table) {
        if self.entry(pin.object).is_none_or(|entry| entry.state != ObjectState::Writing) {
            return;
        }
        failpoint::hit("l1.quarantine.before");
        let index = pin.object.index;
        if !self.entries[index as usize].detached {
            self.map.remove(&self.entries[index as usize].key);
        }
        self.entries[index as usize].state = ObjectState::Quarantined;
        table.set_object_state(index, ObjectState::Quarantined);
        failpoint::hit("l1.quarantine.done");
        self.writing -= 1;
        self.quarantined_now += 1;
        self.totals.quarantined += 1;
    }

    /// Whether an object of `key`, of this shape, has to be made: nothing of it is there or on its way.
    pub(in crate::l1) fn is_wanted(&self, key: &Key, layout: u64, length: u64) -> bool {
        self.map.get(key).is_none_or(|&index| {
            let entry = &self.entries[index as usize];
            entry.state != ObjectState::Writing && (entry.layout, entry.length) != (layout, length)
        })
    }

    /// Whether `bytes` more could be had, eviction included. Asked before a request evicts anything, so that one that is
    /// too large for the pool does not empty it first and fail then.
    pub(in crate::l1) fn could_hold(&self, bytes: u64) -> bool {
        bytes <= self.allocator.free() + self.policy.evictable()
    }

    /// Bytes of the pool that an object of `length` takes.
    pub(in crate::l1) fn footprint(&self, length: u64) -> u64 {
        self.allocator.footprint(length)
    }

    /// Notes a reservation refused for want of memory.
    pub(in crate::l1) fn refused_full(&mut self) {
        self.totals.full += 1;
    }

    /// The id of a name, held; evicts when all ids are taken.
    pub(in crate::l1) fn acquire_name(
        &mut self,
        name: &str,
        table: &Table,
    ) -> Option<super::super::names::NameId> {
        for _ in 0..EVICT_FOR_RECORD {
            if let Some(id) = self.names.acquire(name, table) {
                return Some(id);
            }
            self.evict_one(table)?;
        }
        None
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
        let next = u32::try_from(self.entries.len()).ok()?;
        if table.back_object(next) {
            self.entries.push(Entry::FREE);
            return Some(next);
        }
        // The table is full, or there is no memory for more of it: another object's record serves as well.
        self.evict_one(table)?;
        self.unused.pop()
    }
}

//! Objects on their way out: evicted, cleared, replaced.
#![forbid(unsafe_code)]

use lmcache_proto::shm::ObjectState;

use super::super::ObjectId;
use super::super::pool::Table;
use super::{Index, Key, RemovalCause, Removed};
use crate::failpoint;

impl Index {
    /// Marks an object as used now.
    pub(in crate::l1) fn touch(&mut self, key: &Key) {
        let Some(&index) = self.map.get(key) else { return };
        let entry = &mut self.entries[index as usize];
        if entry.state == ObjectState::Committed {
            entry.reused = true;
            if !entry.is_held() {
                let subject = self.subject(index);
                self.policy.remove(&subject);
                self.policy.insert(&subject);
            }
        }
    }

    /// Drops the objects among the records `range` that nobody holds; with `force` also takes the held ones from their
    /// keys. Returns how many.
    pub(in crate::l1) fn clear(&mut self, range: std::ops::Range<usize>, force: bool, table: &Table) -> u64 {
        let mut dropped = 0;
        for index in range.start..range.end.min(self.entries.len()) {
            let entry = &self.entries[index];
            if entry.state == ObjectState::Committed && !entry.detached && (force || !entry.is_held()) {
                self.detach(index as u32, Some(RemovalCause::Cleared), table);
                failpoint::hit("l1.clear.one");
                dropped += 1;
            }
        }
        dropped
    }

    /// Drops an object, if it is held with its last holder. `false`: not now, or it is not there.
    pub(in crate::l1) fn give_up(&mut self, id: ObjectId, table: &Table) -> bool {
        let Some(entry) = self.entry(id).filter(|e| e.state == ObjectState::Committed && !e.detached) else {
            return false;
        };
        let free = !entry.is_held();
        self.entries[id.index as usize].temporary = true;
        self.let_go(id.index, table);
        free
    }

    /// Drops the committed object of `key`, with `force` also a held one; whether it was dropped. `None`: there is none.
    pub(in crate::l1) fn remove_key(
        &mut self,
        key: &Key,
        force: bool,
        cause: RemovalCause,
        table: &Table,
    ) -> Option<bool> {
        let index = *self.map.get(key)?;
        let entry = &self.entries[index as usize];
        if entry.state != ObjectState::Committed {
            return Some(false);
        }
        let free = force || !entry.is_held();
        if free {
            self.detach(index, Some(cause), table);
        }
        Some(free)
    }

    /// Records there are, free ones included.
    pub(in crate::l1) fn records(&self) -> usize {
        self.entries.len()
    }

    /// Evicts until `want` bytes are free or nothing can go. Returns the bytes evicted.
    pub(in crate::l1) fn evict(&mut self, mut want: u64, table: &Table) -> u64 {
        let mut freed = 0;
        while want > 0 {
            let Some(bytes) = self.evict_one(table) else { break };
            freed += bytes;
            want = want.saturating_sub(bytes);
        }
        freed
    }

    pub(in crate::l1) fn evict_one(&mut self, table: &Table) -> Option<u64> {
        let index = self.policy.victim()?;
        Some(self.evict_object(index, table))
    }

    /// Evicts a victim of the policy. Returns its bytes.
    pub(super) fn evict_object(&mut self, index: u32, table: &Table) -> u64 {
        failpoint::hit("l1.evict.before");
        let subject = self.subject(index);
        self.policy.evicted(&subject);
        self.totals.evicted += 1;
        self.totals.evicted_bytes += subject.bytes;
        self.detach(index, Some(RemovalCause::Policy), table);
        failpoint::hit("l1.evict.done");
        subject.bytes
    }

    /// Objects that have gone since the last call, oldest first.
    pub(in crate::l1) fn take_removed(&mut self) -> Vec<Removed> {
        std::mem::take(&mut self.removed)
    }

    /// Takes an object from its key; frees it now or when its last holder lets go. A committed one is noted with its
    /// `cause`.
    pub(in crate::l1) fn detach(&mut self, index: u32, cause: Option<RemovalCause>, table: &Table) {
        let entry = self.entries[index as usize];
        if entry.detached {
            return;
        }
        self.map.remove(&entry.key);
        self.policy.remove(&self.subject(index));
        self.entries[index as usize].detached = true;
        if entry.state == ObjectState::Committed {
            self.committed -= 1;
            if let Some(cause) = cause {
                self.removed.push(Removed {
                    model: self.names.name(entry.key.model),
                    salt: self.names.name(entry.key.salt),
                    hash: entry.key.hash,
                    rank: entry.key.rank,
                    group: entry.key.group,
                    cause,
                });
            }
            if entry.is_held() {
                // The next daemon must not find it under its key; the pins say that its bytes are still in use.
                table.set_object_state(index, ObjectState::Quarantined);
                failpoint::hit("l1.detach.held");
            }
        }
        if !entry.is_held() {
            self.free(index, table);
        }
    }

    pub(in crate::l1) fn free(&mut self, index: u32, table: &Table) {
        let entry = self.entries[index as usize];
        // Free in the table first: only then may the bytes become somebody else's (crash rule).
        failpoint::hit("l1.free.before");
        table.set_object_state(index, ObjectState::Free);
        failpoint::hit("l1.free.set");
        self.allocator.release(entry.offset, entry.length);
        if !entry.nobodys {
            self.accounts.sub(entry.key.salt, self.allocator.footprint(entry.length));
        }
        match entry.state {
            ObjectState::Writing => self.writing -= 1,
            ObjectState::Quarantined => self.quarantined_now -= 1,
            ObjectState::Committed | ObjectState::Free => {}
        }
        self.names.release(entry.key.model, table);
        self.names.release(entry.key.salt, table);
        failpoint::hit("l1.free.done");
        let slot = &mut self.entries[index as usize];
        slot.state = ObjectState::Free;
        slot.generation = slot.generation.wrapping_add(1).max(1);
        self.unused.push(index);
    }
}

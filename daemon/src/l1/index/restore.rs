//! What recovery puts back into the index.
#![forbid(unsafe_code)]

use lmcache_proto::shm::ObjectState;

use super::{Entry, Index, Key};

impl Index {
    pub(in crate::l1) fn contains(&self, key: &Key) -> bool {
        self.map.contains_key(key)
    }

    /// Makes room for `objects` that will be taken over.
    pub(in crate::l1) fn expect(&mut self, objects: usize) {
        self.map.reserve(objects);
        self.entries.reserve(objects);
        self.allocator.expect(objects);
    }

    /// Appends an unused record, while the table is being read.
    pub(in crate::l1) fn push_free(&mut self, generation: u32) {
        self.unused.push(self.entries.len() as u32);
        self.entries.push(Entry { generation, ..Entry::FREE });
    }

    /// Appends an object of the table; its range has been adopted.
    pub(in crate::l1) fn push_recovered(&mut self, entry: Entry) {
        let index = self.entries.len() as u32;
        self.entries.push(entry);
        self.pins_now += u64::from(entry.pins);
        if matches!(entry.state, ObjectState::Committed | ObjectState::Writing) {
            self.names.hold(entry.key.model);
            self.names.hold(entry.key.salt);
            self.accounts.add(entry.key.salt, self.allocator.footprint(entry.length));
            self.map.insert(entry.key, index);
            if entry.state == ObjectState::Writing {
                self.writing += 1;
                return;
            }
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
    pub(in crate::l1) fn restore_pins(&mut self, used: u32, held: impl Iterator<Item = u32>) {
        let held: rustc_hash::FxHashSet<u32> = held.collect();
        self.next_pin = used;
        self.unused_pins = (0..used).filter(|record| !held.contains(record)).collect();
    }
}

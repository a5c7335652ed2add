//! What recovery puts back into the index.
#![forbid(unsafe_code)]

use std::collections::hash_map::Entry as Place;

use lmcache_proto::shm::ObjectState;

use super::{Entry, Index, Key};

impl Index {
    /// Makes room for `objects` that will be taken over.
    pub(in crate::l1) fn expect(&mut self, objects: usize) {
        self.map.reserve(objects);
        self.entries.reserve(objects);
        self.policy.expect(objects);
    }

    /// Takes the range `(offset, bytes)` of the next record, and with it `key`, if the record is whole (`Some`) and no other has
    /// it; without a key only `anyway`. Returns whether it has the key; `None`: nothing was taken, because the range overlaps another
    /// or there is nothing to take it for.
    pub(in crate::l1) fn adopt(
        &mut self,
        key: Option<Key>,
        (offset, bytes): (u64, u64),
        anyway: bool,
    ) -> Option<bool> {
        // One look into the map for each record: it is most of what a record costs.
        let place = key.and_then(|key| match self.map.entry(key) {
            Place::Vacant(place) => Some(place),
            Place::Occupied(_) => None,
        });
        if (place.is_none() && !anyway) || !self.allocator.adopt(offset, bytes) {
            return None;
        }
        let index = self.entries.len() as u32;
        Some(place.map(|place| place.insert(index)).is_some())
    }

    /// Appends an unused record, while the table is being read.
    pub(in crate::l1) fn push_free(&mut self, generation: u32) {
        self.unused.push(self.entries.len() as u32);
        self.entries.push(Entry { generation, ..Entry::FREE });
    }

    /// Appends an object of the table; [`Index::adopt`] has taken its range and its key.
    pub(in crate::l1) fn push_recovered(&mut self, entry: Entry) {
        let index = self.entries.len() as u32;
        self.entries.push(entry);
        self.pins_now += u64::from(entry.pins);
        if matches!(entry.state, ObjectState::Committed | ObjectState::Writing) {
            self.names.hold(entry.key.model);
            self.names.hold(entry.key.salt);
            self.accounts.add(entry.key.salt, self.allocator.footprint(entry.length));
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

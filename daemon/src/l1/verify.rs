//! Checksums of objects' bytes (`--l1-checksums`): a worker that has mapped the pool can write anywhere in it, and the
//! object table next door, which no worker maps, says what was committed.
//!
//! XXH3 with 64 bits, seeded with the object's place in its prompt, so that the bytes of another object at the wrong place are
//! found as surely as a flipped bit. It tells of accidents and of stray writes; a worker that wants to deceive may commit
//! what it likes in the first place.
//!
//! Everything here that reads bytes reads all of an object's, without a lock: for compute threads.
#![forbid(unsafe_code)]

use lmcache_proto::hash::ChunkHash;
use lmcache_proto::shm::ObjectState;
use xxhash_rust::xxh3::Xxh3;

use super::index::{Index, RemovalCause};
use super::lock::Lock;
use super::pool::SlotRef;
use super::{L1, ObjectId, Pin, Pinned};

/// The checksum of an object's bytes, as its record keeps it; never 0, which says that there is none.
pub fn payload_checksum(slot: &SlotRef<'_>, hash: &ChunkHash, rank: u32, group: u32) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *hash;
    let place = (u64::from(rank) << 32) | u64::from(group);
    let mut xxh3 = Xxh3::with_seed(u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ place.rotate_left(16));
    slot.pieces(|piece| xxh3.update(piece));
    xxh3.digest().max(1)
}

impl<K: Lock<Index>> L1<K> {
    /// Whether objects get checksums when they are committed, and are held against them when they are read.
    pub fn checksums(&self) -> bool {
        self.checksums
    }

    /// Gives reserved objects their checksums; to be called when they are complete, before [`L1::commit`]. Does nothing
    /// without `--l1-checksums`.
    pub fn seal(&self, pins: &[Pin]) {
        for pin in pins {
            self.seal_one(pin);
        }
    }

    fn seal_one(&self, pin: &Pin) {
        if !self.checksums {
            return;
        }
        let writing = |state| state == ObjectState::Writing;
        let Some(sum) = self.checksum_now(pin.object, writing) else { return };
        let index = self.index.lock();
        // Only while it is ours: a record in other hands has another object's checksum.
        if index.entry(pin.object).is_some_and(|entry| writing(entry.state)) {
            self.table.set_payload(pin.object.index, sum);
        }
    }

    /// Whether a pinned object's bytes are those that were committed, as far as is known. If not, it has left its key when
    /// this returns, and is counted. Always `true` without `--l1-checksums`.
    pub fn verify(&self, pinned: &Pinned) -> bool {
        let object = pinned.pin.object;
        let committed = if self.checksums { self.table.payload(object.index) } else { 0 };
        // The pin keeps the record from becoming another object's.
        if committed == 0
            || self.checksum_now(object, |state| state == ObjectState::Committed) == Some(committed)
        {
            return true;
        }
        let mut index = self.index.lock();
        if index.entry(object).is_some() {
            index.totals.damaged += 1;
            index.detach(object.index, Some(RemovalCause::Damaged), &self.table);
        }
        false
    }

    /// The checksum of what an object's bytes are now.
    fn checksum_now(&self, id: ObjectId, right: impl Fn(ObjectState) -> bool) -> Option<u64> {
        let (key, offset, length) = {
            let index = self.index.lock();
            let entry = index.entry(id).filter(|entry| right(entry.state))?;
            (entry.key, entry.offset, entry.length)
        };
        let slot = self.pool.slot_ref(offset, length)?;
        Some(payload_checksum(&slot, &key.hash, key.rank, key.group))
    }
}

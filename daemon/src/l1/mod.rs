//! L1: the cache's memory. It knows objects, bytes and holders; it knows nothing of requests, sockets or events.
//!
//! * [`pool`]: the shared-memory segment and the write-through object table (unsafe room);
//! * `alloc`: which pages are free; `taken`: which are somebody's;
//! * `names`: interned model names and salts;
//! * `policy`: who goes first;
//! * `index`: states, leases and pins;
//! * `open`, `recover`, `extend`: start, what an earlier daemon left, and more memory for it;
//! * `lookup`, `hold`: what the engine does with it;
//! * `lock`: the lock, which a model checker has one of its own for (`models`);
//! * `look`: what operators see and do;
//! * `quotas`: what a salt may take;
//! * `verify`: checksums of the bytes, if asked for.
//!
//! There is one lock, around the index; it is held for map operations on at most some hundred objects, or those of one
//! request, never across a copy, and no other lock is taken under it but that of the quotas, which is a leaf. A hit takes the lock, touches two list links and
//! leaves.
#![deny(unsafe_code)]

mod alloc;
mod extend;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod hold;
mod index;
mod lock;
mod look;
mod lookup;
#[cfg(test)]
mod models;
mod names;
mod open;
mod policy;
pub mod pool;
mod quotas;
mod recover;
mod taken;
#[cfg(test)]
mod tests;
mod verify;

use std::os::fd::OwnedFd;
use std::sync::Arc;

pub use hold::Cells;
use index::Index;
pub use index::{Key, RemovalCause, Removed, ReserveError, Reserved, Totals};
use lock::{Blocking, Lock};
pub use look::{Deleted, Seen, Wanted};
pub use lookup::{Hit, LeasedCell, Row, first_needed, longest_prefix};
pub use names::NameId;
pub use open::{HandedOver, L1Config, OpenError};
pub use policy::PolicyKind;
use pool::{Pool, Table};
pub use pool::{SlotMut, SlotRef};
pub use recover::Recovered;
pub use verify::payload_checksum;

use serde::{Deserialize, Serialize};

use crate::quota::Quotas;

/// Objects handled per hold of the lock where a whole cache is walked.
const SLICE: usize = 256;

/// One use of a table record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObjectId {
    /// Record index.
    pub index: u32,
    /// Use of that record.
    pub generation: u32,
}

/// Who may touch bytes of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Worker id.
    pub instance: u64,
    /// Its process, 0 if unknown.
    pub pid: u32,
    /// That process's start time, 0 if unknown.
    pub start_time: u64,
}

/// A hold on an object's bytes. Not `Drop`: it must be ended through [`L1`], by whoever knows that the bytes are no
/// longer touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct Pin {
    /// The object.
    pub object: ObjectId,
    record: Option<u32>,
}

/// A pinned object's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Pinned {
    /// The hold.
    pub pin: Pin,
    /// Byte offset into the pool.
    pub offset: u64,
    /// Payload bytes.
    pub length: u64,
}

/// A snapshot for status and metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Bytes of the pool.
    pub capacity: u64,
    /// Bytes that are real memory.
    pub frontier: u64,
    /// Bytes that objects take.
    pub used: u64,
    /// Readable objects.
    pub objects: u64,
    /// Objects being written.
    pub writing: u64,
    /// Objects in quarantine.
    pub quarantined: u64,
    /// Leases.
    pub leases: u64,
    /// Pins.
    pub pins: u64,
    /// Model names and salts in use.
    pub names: u64,
    /// Counters.
    pub totals: Totals,
}

/// The cache's memory.
#[derive(Debug)]
pub struct L1<K: Lock<Index> = Blocking<Index>> {
    pool: Pool,
    table: Table,
    quotas: Arc<Quotas>,
    /// `--l1-checksums`.
    checksums: bool,
    /// Those who wait here are told when the last hold of all has ended.
    index: K,
}

impl<K: Lock<Index>> L1<K> {
    /// Wakes whoever waits until nobody holds anything. Costs a look at two numbers while somebody does.
    fn tell_unheld(&self, index: &Index) {
        if index.leased_now == 0 && index.pins_now == 0 {
            self.index.tell();
        }
    }

    /// The pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The segments with their locks, pool and table, for the process that takes over.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn hand_over(&self) -> std::io::Result<[OwnedFd; 2]> {
        Ok([self.pool.segment().hand_over()?, self.table.segment().hand_over()?])
    }

    /// Takes part in reserving the pool's memory; call it from several threads.
    ///
    /// # Errors
    /// No memory left.
    pub fn reserve_memory(&self) -> std::io::Result<()> {
        self.pool.reserve(|old, new| {
            self.index.lock().allocator.extend(old, new);
            self.table.set_frontier(new);
        })
    }

    /// Drops objects; with `force` also those that are leased or pinned (their bytes stay until they are let go).
    /// `between` is called without the lock after every few objects, to take what has been removed.
    pub fn clear(&self, force: bool, mut between: impl FnMut()) -> u64 {
        let (mut dropped, mut at) = (0, 0);
        loop {
            {
                let mut index = self.index.lock();
                if at >= index.records() {
                    return dropped;
                }
                dropped += index.clear(at..at + SLICE, force, &self.table);
            }
            at += SLICE;
            between();
        }
    }

    /// Evicts `ratio` of the bytes in use if the pool is filled above `watermark`. Returns the bytes evicted.
    pub fn evict_above(&self, watermark: f64, ratio: f64) -> u64 {
        let used = self.index.lock().allocator.used();
        if (used as f64) < watermark * self.pool.segment().bytes() as f64 {
            return 0;
        }
        let want = (used as f64 * ratio) as u64;
        // In slices, so that a lookup never waits for a whole eviction of a large pool.
        let mut freed = 0;
        while freed < want {
            let slice = self
                .index
                .lock()
                .evict((want - freed).min(SLICE as u64 * lmcache_proto::shm::PAGE), &self.table);
            if slice == 0 {
                break;
            }
            freed += slice;
        }
        freed
    }

    /// Objects that have gone since the last call, oldest first.
    pub fn take_removed(&self) -> Vec<Removed> {
        self.index.lock().take_removed()
    }

    /// A snapshot.
    pub fn stats(&self) -> Stats {
        let index = self.index.lock();
        Stats {
            capacity: self.pool.segment().bytes(),
            frontier: self.pool.frontier(),
            used: index.allocator.used(),
            objects: index.committed,
            writing: index.writing,
            quarantined: index.quarantined_now,
            leases: index.leased_now,
            pins: index.pins_now,
            names: index.names.len() as u64,
            totals: index.totals,
        }
    }

    /// Removes the segments' names (`--discard-on-exit`).
    pub fn discard(&self) {
        self.pool.segment().unlink();
        self.table.segment().unlink();
    }
}

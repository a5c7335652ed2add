//! What the index knows of one object, and what its operations answer.
#![forbid(unsafe_code)]

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use lmcache_proto::hash::ChunkHash;
use lmcache_proto::shm::ObjectState;

use super::super::Pin;
use super::super::names::NameId;

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
pub(in crate::l1) struct Entry {
    pub(in crate::l1) key: Key,
    pub(in crate::l1) state: ObjectState,
    pub(in crate::l1) generation: u32,
    pub(in crate::l1) offset: u64,
    pub(in crate::l1) length: u64,
    pub(in crate::l1) layout: u64,
    /// Lookups that hold the object.
    pub(in crate::l1) leases: u32,
    /// Transfers that touch its bytes.
    pub(in crate::l1) pins: u32,
    pub(in crate::l1) reused: bool,
    /// Loaded for those that hold it, or given up while it was held: goes with the last of them.
    pub(in crate::l1) temporary: bool,
    /// Replaced or cleared while held: no longer found under its key, freed by the last holder.
    pub(in crate::l1) detached: bool,
    /// Of an earlier daemon's unfinished write: it has no names, and counts for no salt.
    pub(in crate::l1) nobodys: bool,
}

impl Entry {
    pub(in crate::l1) const FREE: Entry = Entry {
        key: Key { hash: [0; 32], model: NameId::EMPTY, salt: NameId::EMPTY, rank: 0, group: 0 },
        state: ObjectState::Free,
        generation: 1,
        offset: 0,
        length: 0,
        layout: 0,
        leases: 0,
        pins: 0,
        reused: false,
        temporary: false,
        detached: false,
        nobodys: false,
    };

    /// Whether a lookup or a transfer holds the object.
    pub(in crate::l1) fn is_held(&self) -> bool {
        self.leases > 0 || self.pins > 0
    }
}

/// Why nothing could be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReserveError {
    /// No memory, and nothing more to evict.
    Full,
    /// The salt is at its quota, and nothing of its own that is not wanted by the same request can be evicted.
    OverQuota,
    /// No table record, pin or name left, and evicting does not help.
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

/// Why an object has left the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RemovalCause {
    /// The eviction policy chose it.
    Policy,
    /// An operator or a client cleared the cache.
    Cleared,
    /// An object of another shape took its key.
    Replaced,
    /// It was there for some requests only, and they are over; or it lives in L2 alone from now on.
    Temporary,
    /// Its bytes are not those that were committed.
    Damaged,
}

/// An object that has left the cache. With names, not their ids: an id may be another name's by the time somebody asks.
#[derive(Clone, Debug)]
pub struct Removed {
    /// Model.
    pub model: Arc<str>,
    /// Salt.
    pub salt: Arc<str>,
    /// Chunk hash.
    pub hash: ChunkHash,
    /// Packed rank.
    pub rank: u32,
    /// Object group.
    pub group: u32,
    /// Why.
    pub cause: RemovalCause,
}

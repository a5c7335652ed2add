//! The object table: which bytes of the pool are which object, and who may touch them.

use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::fnv::Fnv;

/// Smallest unit of the pool and alignment of every object, in bytes.
pub const PAGE: u64 = 4096;

/// First bytes of a table segment.
pub const TABLE_MAGIC: [u8; 8] = *b"LMCDTBL\0";
/// Changes whenever a layout below changes.
pub const TABLE_VERSION: u32 = 3;
/// Longest interned name, in bytes.
pub const NAME_BYTES: usize = 1032;

/// First page of the table segment.
#[repr(C)]
#[derive(Debug)]
pub struct TableHeader {
    /// [`TABLE_MAGIC`].
    pub magic: [u8; 8],
    /// [`TABLE_VERSION`].
    pub version: u32,
    /// Tokens per chunk: objects of another chunk size are other objects.
    pub chunk_size: u32,
    /// Number in [`crate::hash::HashAlgorithm`] order.
    pub hash_algorithm: u32,
    /// Alignment of every object in the pool, as a power of two.
    pub align_shift: u32,
    /// Object records.
    pub objects: u64,
    /// Pins.
    pub pins: u64,
    /// Names.
    pub names: u64,
    /// Bytes of the pool segment.
    pub pool_bytes: u64,
    /// Inode of the pool segment: the table describes that one and no other.
    pub pool_inode: u64,
    /// Object records below this have been used. Grows only, and before the record is written, so that recovery reads
    /// the used part of a sparse segment and no more.
    pub objects_used: AtomicU64,
    /// The same for pins.
    pub pins_used: AtomicU64,
    /// The same for names.
    pub names_used: AtomicU64,
    /// Bytes of the pool that are real memory, from its start. Grows only, after the memory is there.
    pub frontier: AtomicU64,
}

/// State of an object record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ObjectState {
    /// The record describes nothing.
    Free = 0,
    /// A worker is filling the bytes.
    Writing = 1,
    /// The bytes are complete and belong to the key.
    Committed = 2,
    /// The reservation ran out under a worker that may still write: bytes that belong to nobody.
    Quarantined = 3,
}

impl ObjectState {
    /// The state with number `raw`.
    pub fn from_raw(raw: u32) -> Option<ObjectState> {
        [ObjectState::Free, ObjectState::Writing, ObjectState::Committed, ObjectState::Quarantined]
            .into_iter()
            .find(|state| *state as u32 == raw)
    }
}

/// One object.
///
/// Crash rule: all fields are written while `state` is `Free`; then `state` is stored with Release. A state other
/// than `Free` therefore always describes complete fields. Taking back goes the other way round: `Free` is stored
/// before the bytes are given to anybody else. The one field that comes later is `payload`, which is not known before the
/// bytes are: it is written while the state is `Writing`, before `Committed` is stored with Release.
#[repr(C)]
#[derive(Debug)]
pub struct ObjectRecord {
    /// An [`ObjectState`]. Release on every store; the partner is the Acquire load of recovery.
    pub state: AtomicU32,
    /// Distinguishes uses of the same record.
    pub generation: u32,
    /// Chunk hash.
    pub chunk_hash: [u8; 32],
    /// Name record of the model.
    pub model: u32,
    /// Name record of the salt.
    pub salt: u32,
    /// Packed rank.
    pub kv_rank: u32,
    /// Object group.
    pub group: u32,
    /// First byte in the pool; a multiple of [`PAGE`].
    pub offset: u64,
    /// Payload bytes.
    pub length: u64,
    /// [`crate::layout::ObjectLayout::fingerprint`].
    pub layout: u64,
    /// [`ObjectRecord::seal`] of the fields above but `state`.
    pub checksum: u64,
    /// XXH3 of the bytes that were committed, seeded with the object's place in its prompt (the daemon's `l1::verify` says
    /// how); 0 when nobody computed one.
    pub payload: AtomicU64,
    /// Room for what recovery may need later; 0.
    pub reserved: [u64; 4],
}

impl ObjectRecord {
    /// FNV-1a over the fields that describe the object, to tell a torn or foreign record from a real one.
    pub fn seal(&self) -> u64 {
        let mut hash = Fnv::new();
        hash.bytes(&self.chunk_hash);
        for number in [self.generation, self.model, self.salt, self.kv_rank, self.group] {
            hash.bytes(&number.to_le_bytes());
        }
        for number in [self.offset, self.length, self.layout] {
            hash.bytes(&number.to_le_bytes());
        }
        hash.finish()
    }
}

/// What a pin allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PinKind {
    /// The record is unused.
    Free = 0,
    /// The owner writes into the object.
    Write = 1,
    /// The owner reads from the object.
    Read = 2,
}

/// "This process may still touch these bytes." Carries the byte range itself, so that the next daemon honours it
/// even when it cannot use the object table.
#[repr(C)]
#[derive(Debug)]
pub struct PinRecord {
    /// A [`PinKind`]; Release on store, like [`ObjectRecord::state`].
    pub kind: AtomicU32,
    /// Object record.
    pub object: u32,
    /// Generation of the object record.
    pub generation: u32,
    /// 0.
    pub reserved: u32,
    /// Worker that owns the pin.
    pub instance: u64,
    /// Start time of the owner's process in clock ticks since boot; 0 when unknown. With `pid` it names a process
    /// for ever, while a pid alone is reused.
    pub start_time: u64,
    /// The owner's process; 0 when unknown (TCP).
    pub pid: u32,
    /// 0.
    pub reserved2: u32,
    /// First byte in the pool.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// An interned model name or salt.
#[repr(C)]
#[derive(Debug)]
pub struct NameRecord {
    /// Bytes used; Release on store, 0 when free. The empty name is implicit: it has id 0 and no record.
    pub length: AtomicU32,
    /// 0.
    pub reserved: u32,
    /// UTF-8.
    pub bytes: [u8; NAME_BYTES],
}

/// Offsets of the table's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLayout {
    /// Number of object records.
    pub objects: u64,
    /// Number of pins.
    pub pins: u64,
    /// Number of names.
    pub names: u64,
}

impl TableLayout {
    /// A table for a pool of `pool_bytes`. The segment is sparse: records that are never used cost no memory, so the
    /// counts only bound what a hostile mix of tiny objects can claim.
    pub fn for_pool(pool_bytes: u64) -> TableLayout {
        let objects = (pool_bytes / PAGE).clamp(1024, 1 << 26);
        // An object has two names at most.
        TableLayout { objects, pins: (2 * objects).min(1 << 24), names: (2 * objects).min(1 << 16) }
    }

    /// First byte of the names.
    pub fn names_at(&self) -> u64 {
        PAGE
    }

    /// First byte of the object records.
    pub fn objects_at(&self) -> u64 {
        round_up(self.names_at() + self.names * size_of::<NameRecord>() as u64)
    }

    /// First byte of the pins.
    pub fn pins_at(&self) -> u64 {
        round_up(self.objects_at() + self.objects * size_of::<ObjectRecord>() as u64)
    }

    /// Bytes of the whole segment.
    pub fn bytes(&self) -> u64 {
        round_up(self.pins_at() + self.pins * size_of::<PinRecord>() as u64)
    }
}

fn round_up(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE)
}

// The layouts are a format: a change here is a new TABLE_VERSION.
const _: () = assert!(size_of::<TableHeader>() == 96);
const _: () = assert!(size_of::<ObjectRecord>() == 128);
const _: () = assert!(size_of::<PinRecord>() == 56);
const _: () = assert!(size_of::<NameRecord>() == 1040);

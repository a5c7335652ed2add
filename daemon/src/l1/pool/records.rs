//! Contents of the table's records, without the atomics.
#![forbid(unsafe_code)]

use lmcache_proto::hash::HashAlgorithm;
use lmcache_proto::shm::PinKind;

/// What the header must say for a table to be the one we would have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableIdentity {
    /// Tokens per chunk.
    pub chunk_size: u32,
    /// Hash of the chunks.
    pub algorithm: HashAlgorithm,
    /// Bytes of the pool.
    pub pool_bytes: u64,
    /// Inode of the pool.
    pub pool_inode: u64,
    /// Alignment of every object in the pool, in bytes.
    pub align: u64,
}

/// Contents of an object record, without the atomics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectFields {
    /// Chunk hash.
    pub chunk_hash: [u8; 32],
    /// Name id of the model.
    pub model: u32,
    /// Name id of the salt.
    pub salt: u32,
    /// Packed rank.
    pub kv_rank: u32,
    /// Object group.
    pub group: u32,
    /// Byte offset into the pool.
    pub offset: u64,
    /// Payload bytes.
    pub length: u64,
    /// Layout fingerprint.
    pub layout: u64,
}

/// Why a table that was found is not the one that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What differs.
    pub field: &'static str,
    /// What the table says.
    pub found: String,
    /// What this daemon was told to use.
    pub wanted: String,
}

impl Difference {
    /// A number of bytes that is another one.
    pub(in crate::l1) fn size(field: &'static str, found: u64, wanted: u64) -> Difference {
        Difference { field, found: found.to_string(), wanted: wanted.to_string() }
    }

    /// There is no table.
    pub(in crate::l1) fn no_table() -> Difference {
        Difference { field: "table", found: "none".into(), wanted: "one of lmcached".into() }
    }
}

/// Contents of a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinFields {
    /// What the owner may do.
    pub kind: PinKind,
    /// Object record.
    pub object: u32,
    /// Its generation.
    pub generation: u32,
    /// Worker that owns the pin.
    pub owner: super::super::Owner,
    /// Byte offset into the pool.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

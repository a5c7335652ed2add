//! One entry of the roster.
//!
//! `length: u32, seal: u64, body`, little-endian; the body is `length` bytes of msgpack and the seal is FNV-1a over it. An
//! entry whose seal does not fit ends the file: it was being written when the daemon died.
#![forbid(unsafe_code)]

use lmcache_proto::fnv::Fnv;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::tenants::TenantId;

/// Bytes before the body.
const HEAD: usize = 12;
/// Longest body: a registration has at most 4 MiB.
const MAX_BODY: usize = 8 << 20;

/// How a worker's KV reaches the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// The worker copies.
    EngineDriven,
    /// The daemon copies.
    LmcacheDriven,
}

/// A file that a worker's memory was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFile {
    /// File system.
    pub device: u64,
    /// File.
    pub inode: u64,
    /// Bytes of the file.
    pub size: u64,
}

/// A registration as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The worker.
    pub instance: u64,
    /// How its KV reaches the pool.
    pub mode: Mode,
    /// Its process, pid and start time, where it was known.
    pub process: Option<(u32, u64)>,
    /// The files that its memory was, in the order of its tensors' segments.
    pub memory: Vec<MemoryFile>,
    /// Whose worker it is, where workers are tenants'.
    pub owner: Option<TenantId>,
    /// The frames of its request after the operation.
    pub payload: Vec<ByteBuf>,
}

/// What an entry says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Record<'a> {
    Keep(std::borrow::Cow<'a, Kept>),
    Forget(u64, Mode),
}

impl Record<'_> {
    pub(super) fn encode(&self) -> Vec<u8> {
        // Plain data into memory: there is nothing in it that msgpack cannot say.
        let body = rmp_serde::to_vec(self).unwrap_or_default();
        let mut out = Vec::with_capacity(HEAD + body.len());
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&seal(&body).to_le_bytes());
        out.extend_from_slice(&body);
        out
    }

    /// The entry at the start of `bytes` and how many bytes it takes; `None` where no whole entry is.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Record<'static>, usize)> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (expected, rest) = rest.split_first_chunk::<8>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let body = rest.get(..length).filter(|body| (1..=MAX_BODY).contains(&body.len()))?;
        if seal(body) != u64::from_le_bytes(*expected) {
            return None;
        }
        Some((rmp_serde::from_slice(body).ok()?, HEAD + length))
    }
}

/// An entry of any body under a seal that fits.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_record(body: &[u8]) {
    let entry = [&(body.len() as u32).to_le_bytes()[..], &seal(body).to_le_bytes(), body].concat();
    if let Some((record, bytes)) = Record::decode(&entry) {
        assert_eq!(bytes, entry.len());
        let again = record.encode();
        let (back, _) = Record::decode(&again).expect("own bytes decode");
        assert_eq!(back.encode(), again);
    }
    let _ = super::log::parse(body, super::PoolFile { inode: 1, bytes: 1 });
}

fn seal(body: &[u8]) -> u64 {
    let mut hash = Fnv::new();
    hash.bytes(body);
    hash.finish()
}

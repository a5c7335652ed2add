//! What C sees: plain structs, and numbers instead of Rust's enums where C fills them in.

use std::ffi::c_char;

use lmcache_client::{Kind, Prompt, Record, Registration, TransferDirection};

use crate::status::{Failure, text};

/// A worker, and what its objects look like.
#[repr(C)]
pub struct CRegistration {
    /// Random, new at every start of the engine.
    pub instance_id: u64,
    /// Model.
    pub model_name: *const c_char,
    /// Ranks that share the model's KV, 1 to 255.
    pub world_size: u32,
    /// This worker's rank.
    pub rank: u32,
    /// Tokens of an engine block.
    pub block_size: u64,
    /// Layers of an object.
    pub num_layers: u64,
    /// Elements per token, layer and plane.
    pub hidden_dim: u64,
    /// torch's name of the element type, without "torch.".
    pub dtype: *const c_char,
    /// Not 0: K and V are one plane.
    pub single_plane: u8,
    /// Slots of an object; 0: one per token of a chunk.
    pub slots: u64,
}

impl CRegistration {
    /// # Safety
    /// The texts are strings, or null.
    pub(crate) unsafe fn to_rust(&self) -> Result<Registration, Failure> {
        // SAFETY: this function's contract.
        let (model, dtype) = unsafe { (text(self.model_name, "model_name")?, text(self.dtype, "dtype")?) };
        let mut registration = Registration::new(self.instance_id, model)
            .rank(self.rank, self.world_size)
            .geometry(self.num_layers, self.hidden_dim, dtype);
        registration.block_size = self.block_size;
        registration.single_plane = self.single_plane != 0;
        registration.slots = (self.slots != 0).then_some(self.slots);
        Ok(registration)
    }
}

/// A request's prompt.
#[repr(C)]
pub struct CPrompt {
    /// The engine's id of the request.
    pub request_id: *const c_char,
    /// All tokens.
    pub tokens: *const u32,
    /// How many.
    pub token_count: usize,
    /// Isolation domain; null or "" is the shared one.
    pub cache_salt: *const c_char,
    /// Workers that will retrieve each object that a lookup finds; 0 counts as 1.
    pub readers: u32,
}

impl CPrompt {
    /// # Safety
    /// The texts are strings, or null; `tokens` points to `token_count` tokens that live and are not written for `'a`.
    pub(crate) unsafe fn to_rust<'a>(&self) -> Result<Prompt<'a>, Failure> {
        // SAFETY: this function's contract.
        let request_id = unsafe { text(self.request_id, "request_id") }?;
        let salt = if self.cache_salt.is_null() {
            ""
        } else {
            // SAFETY: as above.
            unsafe { text(self.cache_salt, "cache_salt") }?
        };
        let tokens = match self.token_count {
            0 => &[],
            _ if self.tokens.is_null() => return Err(Failure::Null("tokens")),
            count if count > isize::MAX as usize / size_of::<u32>() => {
                return Err(Failure::Enum("token_count"));
            }
            // SAFETY: as above; not null, and no longer than an object can be.
            count => unsafe { std::slice::from_raw_parts(self.tokens, count) },
        };
        Ok(Prompt::new(request_id, tokens).salt(salt).readers(self.readers.max(1)))
    }
}

/// What a record says.
#[repr(C)]
pub enum RecordKind {
    /// The worker asked for a store.
    StoreSubmitted = 1,
    /// It began to copy.
    StoreStart = 2,
    /// It has copied.
    StoreEnd = 3,
    /// The worker asked for a retrieve.
    RetrieveSubmitted = 4,
    /// It began to copy.
    RetrieveStart = 5,
    /// It has copied.
    RetrieveEnd = 6,
}

/// Which way the bytes go.
#[repr(C)]
pub enum Direction {
    /// From the worker into the pool.
    Store = 1,
    /// From the pool into the worker.
    Retrieve = 2,
}

impl Direction {
    pub(crate) fn from_number(number: u32) -> Option<TransferDirection> {
        match number {
            1 => Some(TransferDirection::Store),
            2 => Some(TransferDirection::Retrieve),
            _ => None,
        }
    }
}

/// A record of the worker's own.
#[repr(C)]
pub struct CRecord {
    /// A lmcache_kind.
    pub kind: u32,
    /// Not 0: all of it arrived. Of an end.
    pub success: u8,
    /// Objects moved. Of an end.
    pub count: u32,
    /// Of lmcache_transfer_id.
    pub transfer: u64,
    /// Of lmcache_monotonic_ns.
    pub nanos: u64,
    /// Bytes moved. Of an end.
    pub bytes: u64,
    /// Tokens moved. Of an end.
    pub tokens: u64,
}

impl CRecord {
    pub(crate) fn to_rust(&self) -> Option<Record> {
        Some(Record {
            kind: Kind::from_raw(u8::try_from(self.kind).ok()?)?,
            transfer: self.transfer,
            nanos: self.nanos,
            bytes: self.bytes,
            tokens: self.tokens,
            count: self.count,
            success: self.success != 0,
            request: 0,
        })
    }
}

/// What became of a record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publication {
    /// It is in the lane.
    Queued = 0,
    /// The lane is full; the daemon counts it.
    Full = 1,
    /// No lane: not registered, or the daemon offers none.
    NoLane = 2,
    /// The daemon has taken the lane away; the next call gets another.
    Stale = 3,
    /// Another thread was in the middle of a record.
    Busy = 4,
    /// No record.
    Invalid = 5,
}

impl From<lmcache_client::Publication> for Publication {
    fn from(publication: lmcache_client::Publication) -> Publication {
        match publication {
            lmcache_client::Publication::Queued => Publication::Queued,
            lmcache_client::Publication::Full => Publication::Full,
            lmcache_client::Publication::NoLane => Publication::NoLane,
            lmcache_client::Publication::Stale => Publication::Stale,
            lmcache_client::Publication::Busy => Publication::Busy,
        }
    }
}

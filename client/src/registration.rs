//! What a worker says about itself and about a request.

use std::ops::Range;

use lmcache_proto::layout::{Dtype, ObjectLayout, Region};
use lmcache_proto::wire::{CacheKey, KeyBuilder, RegisterEngineDrivenPayload};

use crate::error::ClientError;

/// A worker, and what its objects look like.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Registration {
    /// The worker's id: random, new at every start of the engine.
    pub instance_id: u64,
    /// Model.
    pub model_name: String,
    /// Ranks that share the model's KV, 1 to 255.
    pub world_size: u32,
    /// This worker's rank.
    pub rank: u32,
    /// Tokens of an engine block; for the daemon's status page.
    pub block_size: u64,
    /// Layers of an object.
    pub num_layers: u64,
    /// Elements per token, layer and plane.
    pub hidden_dim: u64,
    /// torch's name of the element type, without `torch.`.
    pub dtype: String,
    /// K and V are one plane (MLA, or fused).
    pub single_plane: bool,
    /// Slots of an object; `None`: one per token of a chunk.
    pub slots: Option<u64>,
}

impl Registration {
    /// Rank 0 of 1, with two planes. [`Registration::geometry`] says the rest.
    pub fn new(instance_id: u64, model_name: &str) -> Registration {
        Registration {
            instance_id,
            model_name: model_name.to_owned(),
            world_size: 1,
            rank: 0,
            block_size: 16,
            num_layers: 1,
            hidden_dim: 1,
            dtype: "bfloat16".to_owned(),
            single_plane: false,
            slots: None,
        }
    }

    /// Layers, elements per token and layer, and their type.
    #[must_use]
    pub fn geometry(mut self, num_layers: u64, hidden_dim: u64, dtype: &str) -> Registration {
        (self.num_layers, self.hidden_dim, self.dtype) = (num_layers, hidden_dim, dtype.to_owned());
        self
    }

    /// Rank and number of ranks.
    #[must_use]
    pub fn rank(mut self, rank: u32, world_size: u32) -> Registration {
        (self.rank, self.world_size) = (rank, world_size);
        self
    }

    /// K and V in one plane.
    #[must_use]
    pub fn single_plane(mut self) -> Registration {
        self.single_plane = true;
        self
    }

    pub(crate) fn payload(&self) -> RegisterEngineDrivenPayload {
        RegisterEngineDrivenPayload {
            instance_id: self.instance_id,
            model_name: self.model_name.clone(),
            world_size: self.world_size,
            block_size: self.block_size,
            num_layers: self.num_layers,
            hidden_dim_size: self.hidden_dim,
            dtype_str: self.dtype.clone(),
            use_mla: self.single_plane,
            num_physical_slots: self.slots,
        }
    }

    /// Bytes of one object; `None` if there is no such object.
    pub(crate) fn object_bytes(&self, chunk_size: u64) -> Option<u64> {
        let region = Region {
            planes: if self.single_plane { 1 } else { 2 },
            layers: self.num_layers,
            slots: self.slots.unwrap_or(chunk_size),
            width: self.hidden_dim,
            dtype: Dtype::from_name(&self.dtype)?,
        };
        ObjectLayout::new(vec![region]).map(|layout| layout.bytes())
    }
}

/// A request's prompt. The protocol sends the whole prompt with every operation that concerns a part of it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Prompt<'a> {
    /// The engine's id of the request.
    pub request_id: &'a str,
    /// All tokens.
    pub tokens: &'a [u32],
    /// Isolation domain; empty is the shared one.
    pub cache_salt: &'a str,
    /// How many workers will retrieve each object that a lookup finds.
    pub readers: u32,
}

impl<'a> Prompt<'a> {
    /// A prompt in the shared domain that one worker will retrieve.
    pub fn new(request_id: &'a str, tokens: &'a [u32]) -> Prompt<'a> {
        Prompt { request_id, tokens, cache_salt: "", readers: 1 }
    }

    /// Sets the isolation domain.
    #[must_use]
    pub fn salt(mut self, cache_salt: &'a str) -> Prompt<'a> {
        self.cache_salt = cache_salt;
        self
    }

    /// Sets the number of readers.
    #[must_use]
    pub fn readers(mut self, readers: u32) -> Prompt<'a> {
        self.readers = readers;
        self
    }

    /// The key frame of a range, of one rank or of all.
    pub(crate) fn key(
        &self,
        worker: &Registration,
        rank: Option<u32>,
        range: Range<u64>,
    ) -> Result<Vec<u8>, ClientError> {
        let frame = KeyBuilder::new(&worker.model_name, worker.world_size, self.request_id, self.tokens)
            .salt(self.cache_salt)
            .readers(self.readers)
            .frame(rank, range.start, range.end);
        // What the daemon would refuse in silence is refused here.
        CacheKey::decode(&frame).map_err(ClientError::Request)?;
        Ok(frame)
    }

    /// Chunks of a range that must lie on chunk borders.
    pub(crate) fn chunks(&self, range: &Range<u64>, chunk: u64) -> Result<u64, ClientError> {
        let tokens = self.tokens.len() as u64;
        let whole = chunk > 0
            && range.start < range.end
            && range.end <= tokens
            && range.start.is_multiple_of(chunk)
            && range.end.is_multiple_of(chunk);
        if !whole {
            return Err(ClientError::Range { start: range.start, end: range.end, tokens, chunk });
        }
        Ok((range.end - range.start) / chunk)
    }
}

//! A prompt that has been hashed, remembered so that the next operation on it only compares.

use lmcache_proto::hash::{Chain, ChunkHash, TokenHasher};
use lmcache_proto::wire::{DecodeError, Tokens};
use serde::{Deserialize, Serialize};

/// The tokens of a prompt as they came, and the chain over them.
///
/// The client sends the whole prompt with every operation of a request; comparing bytes is an order of magnitude cheaper
/// than hashing tokens.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Prompt {
    #[serde(with = "serde_bytes")]
    tokens: Vec<u8>,
    chain: Chain,
}

impl Prompt {
    /// The chain over the first `chunks` chunks of `tokens`; what is hashed already is only compared.
    pub(super) fn chain(
        &mut self,
        hasher: &TokenHasher,
        tokens: &Tokens<'_>,
        chunks: usize,
    ) -> Result<Chain, DecodeError> {
        let bytes = tokens.bytes();
        if !bytes.starts_with(&self.tokens) && !self.tokens.starts_with(bytes) {
            // Another prompt under the same id (a benchmark, or an engine that counts from 0 again).
            self.forget();
        }
        if bytes.len() > self.tokens.len() {
            self.tokens.extend_from_slice(&bytes[self.tokens.len()..]);
        }
        hasher.extend(&mut self.chain, tokens, chunks)?;
        let have = chunks.min(tokens.len() / hasher.chunk_size()).min(self.chain.hashes.len());
        Ok(Chain { hashes: self.chain.hashes[..have].to_vec(), ends: self.chain.ends[..have].to_vec() })
    }

    /// Hashes known so far.
    pub(super) fn hashes(&self) -> &[ChunkHash] {
        &self.chain.hashes
    }

    /// Bytes remembered.
    pub(super) fn bytes(&self) -> usize {
        self.tokens.capacity() + self.chain.hashes.capacity() * (size_of::<ChunkHash>() + size_of::<u32>())
    }

    /// Gives the memory back.
    pub(super) fn forget(&mut self) {
        *self = Prompt::default();
    }
}

//! Chunk hashes: each chunk's hash feeds the next, so a hash names the whole prefix that ends with its chunk.
//!
//! Formula (LMCache 0.5.6, checked against `tests/vectors/token_hashes.json`):
//! `h(prefix, tokens) = H(prefix ‖ tokens as u32 big-endian)`, `h₋₁ = NONE_HASH = h(0 as i64 big-endian, [0])`.
//! A trailing part of a chunk has no hash.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::wire::{DecodeError, Tokens};

/// Hash of one chunk and of everything before it.
pub type ChunkHash = [u8; 32];

/// A chunk hash in lower-case hex.
pub fn hex(hash: &ChunkHash) -> String {
    hash.iter().fold(String::with_capacity(64), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to a String cannot fail");
        hex
    })
}

/// Reads what [`hex`] wrote, in either case. `None`: that is no hash.
pub fn from_hex(hex: &str) -> Option<ChunkHash> {
    let mut hash = ChunkHash::default();
    let hex = hex.as_bytes();
    if hex.len() != 2 * hash.len() {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(hex.chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(hash)
}

/// Which function chains the chunks. Both sides of a shared store must use the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// blake3 over the packed tokens: the peer's default.
    Blake3,
    /// SHA-256 over canonical CBOR of `(prefix, tokens, null)`, vLLM's `sha256_cbor`.
    Sha256Cbor,
}

impl HashAlgorithm {
    /// The flag's spelling.
    pub fn name(self) -> &'static str {
        match self {
            HashAlgorithm::Blake3 => "blake3",
            HashAlgorithm::Sha256Cbor => "sha256_cbor",
        }
    }
}

/// Chains chunk hashes over token lists.
#[derive(Clone, Debug)]
pub struct TokenHasher {
    algorithm: HashAlgorithm,
    chunk_size: usize,
    none_hash: ChunkHash,
}

/// Where a chain stands: the chunks that are hashed, and where their tokens are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Hash of every chunk so far.
    pub hashes: Vec<ChunkHash>,
    /// Byte position in the token list after each of these chunks.
    pub ends: Vec<u32>,
}

impl Chain {
    /// Byte position in the token list after the last hashed chunk.
    pub fn position(&self) -> usize {
        self.ends.last().map_or(0, |end| *end as usize)
    }
}

impl TokenHasher {
    /// A hasher of chunks of `chunk_size` tokens.
    ///
    /// For `sha256_cbor`, vLLM's root hash is `sha256_cbor(PYTHONHASHSEED)`, or random without that variable; `seed`
    /// carries the variable so that daemon and engine agree. Without it the peer's own fallback is used.
    pub fn new(algorithm: HashAlgorithm, chunk_size: usize, seed: Option<&str>) -> TokenHasher {
        assert!(chunk_size > 0, "the configuration refuses a chunk size of 0");
        let none_hash = match (algorithm, seed) {
            (HashAlgorithm::Blake3, _) => {
                let mut hasher = blake3::Hasher::new();
                hasher.update(&0i64.to_be_bytes()).update(&0u32.to_be_bytes());
                *hasher.finalize().as_bytes()
            }
            (HashAlgorithm::Sha256Cbor, Some(seed)) => {
                let mut cbor = Vec::new();
                cbor_head(&mut cbor, 3, seed.len() as u64);
                cbor.extend_from_slice(seed.as_bytes());
                Sha256::digest(&cbor).into()
            }
            // (0, (0,), null)
            (HashAlgorithm::Sha256Cbor, None) => Sha256::digest([0x83, 0x00, 0x81, 0x00, 0xf6]).into(),
        };
        TokenHasher { algorithm, chunk_size, none_hash }
    }

    /// Tokens per chunk.
    pub fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    /// The prefix of the first chunk.
    pub fn none_hash(&self) -> &ChunkHash {
        &self.none_hash
    }

    /// Extends `chain` over `tokens` until it has `chunks` hashes or the tokens end.
    ///
    /// `chain` must have been built over the same tokens up to its position (the caller compares the bytes).
    ///
    /// # Errors
    /// A token that does not fit in 32 bits. What was hashed before it stays in the chain.
    pub fn extend(&self, chain: &mut Chain, tokens: &Tokens<'_>, chunks: usize) -> Result<(), DecodeError> {
        let chunks = chunks.min(tokens.len() / self.chunk_size);
        let mut iter = tokens.iter_from(chain.position());
        let mut scratch = vec![0u8; self.chunk_size * 4];
        while chain.hashes.len() < chunks {
            for slot in scratch.chunks_exact_mut(4) {
                slot.copy_from_slice(&iter.token()?.to_be_bytes());
            }
            let prefix = chain.hashes.last().unwrap_or(&self.none_hash);
            let hash = self.chunk_hash(prefix, &scratch);
            let end = u32::try_from(iter.position())
                .map_err(|_| DecodeError::Range { what: "length of the prompt" })?;
            chain.hashes.push(hash);
            chain.ends.push(end);
        }
        Ok(())
    }

    /// Hash of one chunk; `packed` are its tokens as u32 big-endian.
    fn chunk_hash(&self, prefix: &ChunkHash, packed: &[u8]) -> ChunkHash {
        match self.algorithm {
            HashAlgorithm::Blake3 => {
                let mut hasher = blake3::Hasher::new();
                hasher.update(prefix).update(packed);
                *hasher.finalize().as_bytes()
            }
            HashAlgorithm::Sha256Cbor => {
                let mut cbor = Vec::with_capacity(packed.len() + packed.len() / 4 + 48);
                cbor.push(0x83);
                cbor_head(&mut cbor, 2, prefix.len() as u64);
                cbor.extend_from_slice(prefix);
                cbor_head(&mut cbor, 4, (packed.len() / 4) as u64);
                for token in packed.chunks_exact(4) {
                    let token = u32::from_be_bytes([token[0], token[1], token[2], token[3]]);
                    cbor_head(&mut cbor, 0, u64::from(token));
                }
                cbor.push(0xf6);
                Sha256::digest(&cbor).into()
            }
        }
    }
}

/// Head of a CBOR item in its canonical (shortest) form; RFC 8949 section 3.
fn cbor_head(out: &mut Vec<u8>, major: u8, value: u64) {
    let major = major << 5;
    match value {
        0..=23 => out.push(major | value as u8),
        24..=0xff => out.extend_from_slice(&[major | 24, value as u8]),
        0x100..=0xffff => {
            out.push(major | 25);
            out.extend_from_slice(&(value as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(major | 26);
            out.extend_from_slice(&(value as u32).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&value.to_be_bytes());
        }
    }
}

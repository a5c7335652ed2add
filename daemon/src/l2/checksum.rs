//! The checksum that this daemon keeps beside every object it stores.
//!
//! XXH3, 64 bits: as fast as memory (about 12 GB/s a core with nothing but SSE2; hardware CRC-32C was no faster in the
//! comparison that `docs/l2.md` shows) and twice the bits. It is no defence against somebody who can write to the store:
//! that is what `serde: aesgcm` is for.
//!
//! The object's key seeds it. So a reply that belongs to another request, a file under the wrong name or a block in the
//! wrong slot is found as surely as a flipped bit.
#![forbid(unsafe_code)]

use std::fmt;

use lmcache_proto::object_key::ObjectKey;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::memory::{SourceBuf, TargetBuf};

/// Checksum of one object under one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum(pub u64);

/// The checksum of bytes that come piece by piece.
pub struct Hashing(Xxh3);

impl Hashing {
    /// Of the object under `key`.
    pub fn of(key: &ObjectKey) -> Hashing {
        Hashing(Checksum::start(key))
    }

    /// The next bytes.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// Of all of them.
    pub fn finish(self) -> Checksum {
        Checksum(self.0.digest())
    }
}

impl Checksum {
    /// Of an object about to be stored.
    pub fn of_source(key: &ObjectKey, source: &SourceBuf) -> Checksum {
        let mut hash = Checksum::start(key);
        source.pieces(|piece| hash.update(piece));
        Checksum(hash.digest())
    }

    /// Of an object that has been loaded.
    pub fn of_target(key: &ObjectKey, target: &TargetBuf) -> Checksum {
        let mut hash = Checksum::start(key);
        target.pieces(|piece| hash.update(piece));
        Checksum(hash.digest())
    }

    /// Of bytes that are private.
    pub fn of_bytes(key: &ObjectKey, bytes: &[u8]) -> Checksum {
        let mut hash = Checksum::start(key);
        hash.update(bytes);
        Checksum(hash.digest())
    }

    fn start(key: &ObjectKey) -> Xxh3 {
        Xxh3::with_seed(xxh3_64(key.native_key().as_bytes()))
    }

    /// Reads what `Display` wrote. `None`: not ours, or of an algorithm to come; then there is nothing to verify with.
    pub fn parse(text: &[u8]) -> Option<Checksum> {
        let hex = std::str::from_utf8(text).ok()?.strip_prefix("xxh3:")?;
        // `from_str_radix` would take a sign.
        if hex.len() != 16 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        u64::from_str_radix(hex, 16).ok().map(Checksum)
    }
}

/// `xxh3:` and 16 hex digits: the form of every side-car.
impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "xxh3:{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(salt: &str) -> ObjectKey {
        ObjectKey {
            chunk_hash: [3; 32],
            model_name: "m".into(),
            kv_rank: 1,
            object_group_id: 0,
            cache_salt: salt.into(),
        }
    }

    #[test]
    fn it_depends_on_bytes_and_key_and_survives_its_text() {
        let bytes: Vec<u8> = (0..100_001u32).map(|i| (i * 7 % 251) as u8).collect();
        let source = SourceBuf::copy_of(&bytes);
        let sum = Checksum::of_source(&key("a"), &source);
        assert_eq!(Checksum::parse(sum.to_string().as_bytes()), Some(sum));
        assert_ne!(sum, Checksum::of_source(&key("b"), &source));
        let mut target = TargetBuf::with_len(bytes.len());
        target.write_at(0, &bytes);
        assert_eq!(sum, Checksum::of_target(&key("a"), &target));
        let mut pieces = Hashing::of(&key("a"));
        bytes.chunks(777).for_each(|piece| pieces.update(piece));
        assert_eq!(sum, pieces.finish());
        target.write_at(77_777, &[bytes[77_777] ^ 1]);
        assert_ne!(sum, Checksum::of_target(&key("a"), &target));
    }

    #[test]
    fn foreign_text_is_no_checksum() {
        for text in ["", "xxh3:", "xxh3:+123456789abcdef", "xxh3:0123456789abcdef0", "crc32c:00000000"] {
            assert_eq!(Checksum::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Checksum::parse(&[0xff; 21]), None);
    }
}

//! Names of stored objects, and how each store spells them.
//!
//! Source of the spellings: LMCache 0.5.6, checked against `tests/vectors/object_keys.json`.
#![forbid(unsafe_code)]

use std::fmt::Write;

use crate::hash::ChunkHash;
use crate::wire::{validate_model, validate_salt};

/// Packs a rank: `world << 24 | rank << 16 | local world << 8 | local rank`. The peer always sends
/// local = global.
pub fn kv_rank(world_size: u32, rank: u32) -> u32 {
    debug_assert!(world_size <= 255 && rank < world_size, "validated when the key was decoded");
    (world_size << 24) | (rank << 16) | (world_size << 8) | rank
}

/// An object's full name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectKey {
    /// Hash of the chunk and everything before it.
    pub chunk_hash: ChunkHash,
    /// Model the KV belongs to.
    pub model_name: String,
    /// See [`kv_rank`].
    pub kv_rank: u32,
    /// Which object group of the model.
    pub object_group_id: u32,
    /// Isolation domain; empty is the shared one.
    pub cache_salt: String,
}

impl ObjectKey {
    /// Whether a request could have named this object. Names that come from elsewhere (a listing, an operator, a
    /// recording) are held to the wire's rules, so that a salt never becomes a path.
    pub fn is_valid(&self) -> bool {
        !self.model_name.is_empty()
            && validate_model(&self.model_name).is_ok()
            && validate_salt(&self.cache_salt).is_ok()
    }

    /// File name in an `fs` store.
    pub fn fs_filename(&self) -> String {
        let mut name = format!(
            "{}@0x{:08x}@{:x}@{}",
            self.model_name.replace('/', "-SEP-"),
            self.kv_rank,
            self.object_group_id,
            self.hash_hex()
        );
        self.push_salt(&mut name);
        name.push_str(".data");
        name
    }

    /// Key in Redis, Valkey and S3 (before URL quoting).
    pub fn native_key(&self) -> String {
        let mut key = format!(
            "{}@{:08x}@{:x}@{}",
            self.model_name,
            self.kv_rank,
            self.object_group_id,
            self.hash_hex()
        );
        self.push_salt(&mut key);
        key
    }

    /// Path of the object in an S3 bucket: `/` and the native key, percent-encoded but for `/`.
    pub fn s3_path(&self) -> String {
        let mut path = String::from("/");
        for byte in self.native_key().bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' | b'/' => {
                    path.push(byte as char)
                }
                _ => write!(path, "%{byte:02X}").expect("writing to a String cannot fail"),
            }
        }
        path
    }

    /// The key that [`Self::fs_filename`] spells like this. `None` for any other file: what is returned is valid and
    /// always spells the very same name, so deleting the key deletes that file.
    pub fn from_fs_filename(name: &str) -> Option<ObjectKey> {
        let key = ObjectKey::from_fields(name.strip_suffix(".data")?, |rank| rank.strip_prefix("0x"))?;
        let key = ObjectKey { model_name: key.model_name.replace("-SEP-", "/"), ..key };
        (key.fs_filename() == name).then_some(key)
    }

    /// The key that [`Self::native_key`] spells like this; `None` for any other text.
    pub fn from_native_key(text: &str) -> Option<ObjectKey> {
        let key = ObjectKey::from_fields(text, |rank| Some(rank))?;
        (key.native_key() == text).then_some(key)
    }

    fn from_fields(text: &str, rank_digits: impl Fn(&str) -> Option<&str>) -> Option<ObjectKey> {
        let mut fields = text.split('@');
        let model_name = fields.next().filter(|name| !name.is_empty())?.to_owned();
        let kv_rank = u32::from_str_radix(rank_digits(fields.next()?)?, 16).ok()?;
        let object_group_id = u32::from_str_radix(fields.next()?, 16).ok()?;
        let chunk_hash = crate::hash::from_hex(fields.next()?)?;
        let cache_salt = fields.next().unwrap_or_default().to_owned();
        let key = ObjectKey { chunk_hash, model_name, kv_rank, object_group_id, cache_salt };
        (fields.next().is_none() && key.is_valid()).then_some(key)
    }

    /// The chunk hash in lower-case hex.
    pub fn hash_hex(&self) -> String {
        crate::hash::hex(&self.chunk_hash)
    }

    fn push_salt(&self, name: &mut String) {
        if !self.cache_salt.is_empty() {
            name.push('@');
            name.push_str(&self.cache_salt);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_request_can_have_are_nobodys() {
        let key = |model: &str, salt: &str| ObjectKey {
            chunk_hash: [7; 32],
            model_name: model.into(),
            kv_rank: 0x0100_0100,
            object_group_id: 3,
            cache_salt: salt.into(),
        };
        let good = key("org/model", "tenant");
        assert_eq!(ObjectKey::from_native_key(&good.native_key()), Some(good.clone()));
        assert_eq!(ObjectKey::from_fs_filename(&good.fs_filename()), Some(good));
        for bad in [
            key("m", "../../etc/x"),
            key("m", "a\\b"),
            key("m", "a\0b"),
            key("m\0", ""),
            key("", "a"),
            key("m", &"s".repeat(129)),
        ] {
            assert!(!bad.is_valid());
            assert_eq!(ObjectKey::from_native_key(&bad.native_key()), None, "{bad:?}");
            assert_eq!(ObjectKey::from_fs_filename(&bad.fs_filename()), None, "{bad:?}");
        }
    }
}

//! `serde: aesgcm`: the store holds ciphertext, one key for each cache salt, in the peer's format.
//!
//! A value is `0x01 | 12 bytes IV | ciphertext | 16 bytes tag`. The key is HKDF-SHA256 of the master key file, without
//! salt, with the info `lmcache-l2-aesgcm-v1` and the cache salt behind it. L1 holds plaintext; names, sizes and times
//! are visible in the store.
#![forbid(unsafe_code)]

#[cfg(feature = "fuzzing")]
pub(super) mod fuzzing;

use std::fmt;
use std::sync::Arc;

use aes_gcm::aead::KeyInit;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes128Gcm, Aes256Gcm, Nonce, Tag};
use hkdf::Hkdf;
use lmcache_proto::object_key::ObjectKey;
use sha2::Sha256;

use super::adapter::{BoxFuture, L2Adapter, ListPage, LoadOutcome, Presence, Stored, Usage};
use super::error::{LoadError, StoreError, Trouble};
use super::memory::{SourceBuf, TargetBuf};
use super::settings::{self, Settings, SettingsError};

const VERSION: u8 = 1;
const IV: usize = 12;
const TAG: usize = 16;
/// Bytes that a value has more than its object.
pub const OVERHEAD: usize = 1 + IV + TAG;

/// Where the keys of the salts come from.
#[derive(Clone)]
pub struct Keys {
    master: Arc<[u8]>,
    bits: u64,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("bits", &self.bits).finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads the `serde` object of an adapter, and the key file.
    pub fn read(mut settings: Settings) -> Result<Keys, SettingsError> {
        let kind = settings.required("type")?;
        if kind != "aesgcm" {
            return Err(SettingsError(
                "the only \"serde\".\"type\" served is \"aesgcm\": leave serde out to store bytes as they are; values \
                 written with fp8, turboquant or another serde would be read as raw bytes, so give this daemon a store \
                 or a key_prefix of its own"
                    .into(),
            ));
        }
        if settings.text("key_provider")?.is_some_and(|provider| provider != "hkdf") {
            return Err(SettingsError("\"serde\".\"key_provider\" must be \"hkdf\"".into()));
        }
        let bits = settings.count("aes_bits", 128..=256)?.unwrap_or(128);
        if bits != 128 && bits != 256 {
            return Err(SettingsError("\"serde\".\"aes_bits\" must be 128 or 256".into()));
        }
        // The peer's thread count; here the runtime's blocking threads do it.
        settings.ignore(&["max_workers"]);
        let path = settings.required("master_key_path")?;
        let master = settings::read_file(&path).map_err(|error| {
            SettingsError(format!("the file of \"serde\".\"master_key_path\" cannot be read: {error}"))
        })?;
        if master.is_empty() {
            return Err(SettingsError("the file of \"serde\".\"master_key_path\" is empty".into()));
        }
        match settings.left().first() {
            Some(key) => Err(SettingsError(format!("\"serde\" has no key {key:?}"))),
            None => Ok(Keys { master: master.into(), bits }),
        }
    }

    fn cipher(&self, salt: &str) -> Cipher {
        let derive = |key: &mut [u8]| {
            let info = [b"lmcache-l2-aesgcm-v1", salt.as_bytes()].concat();
            Hkdf::<Sha256>::new(None, &self.master)
                .expand(&info, key)
                .expect("32 bytes are far below what HKDF gives");
        };
        if self.bits == 128 {
            let mut key = [0; 16];
            derive(&mut key);
            Cipher::Bits128(Aes128Gcm::new(&key.into()))
        } else {
            let mut key = [0; 32];
            derive(&mut key);
            Cipher::Bits256(Aes256Gcm::new(&key.into()))
        }
    }

    fn seal(&self, key: &ObjectKey, source: &SourceBuf) -> Vec<u8> {
        let mut iv = [0; IV];
        getrandom::fill(&mut iv).expect("the kernel gives random bytes");
        let mut frame = Vec::with_capacity(source.len() + OVERHEAD);
        frame.push(VERSION);
        frame.extend_from_slice(&iv);
        source.append_to(&mut frame);
        let tag = self.cipher(&key.cache_salt).encrypt(&iv, &mut frame[1 + IV..]);
        frame.extend_from_slice(&tag);
        frame
    }

    /// Decrypts in place; the plaintext's range.
    fn open<'a>(&self, key: &ObjectKey, frame: &'a mut [u8]) -> Result<&'a [u8], LoadError> {
        if frame.first() != Some(&VERSION) || frame.len() < OVERHEAD {
            return Err(LoadError::Damaged("not an aesgcm value of version 1".into()));
        }
        let (head, rest) = frame.split_at_mut(1 + IV);
        let (text, tag) = rest.split_at_mut(rest.len() - TAG);
        self.cipher(&key.cache_salt)
            .decrypt(&head[1..], text, tag)
            .map_err(|_| LoadError::Damaged("aesgcm tag: changed bytes or another master key".into()))?;
        Ok(text)
    }
}

enum Cipher {
    Bits128(Aes128Gcm),
    Bits256(Aes256Gcm),
}

const LENGTHS: &str = "lengths are those of the format, below the limit of GCM";

impl Cipher {
    fn encrypt(&self, iv: &[u8], text: &mut [u8]) -> [u8; TAG] {
        let iv = Nonce::try_from(iv).expect(LENGTHS);
        let text = InOutBuf::from(text);
        match self {
            Cipher::Bits128(cipher) => cipher.encrypt_inout_detached(&iv, &[], text),
            Cipher::Bits256(cipher) => cipher.encrypt_inout_detached(&iv, &[], text),
        }
        .expect(LENGTHS)
        .into()
    }

    fn decrypt(&self, iv: &[u8], text: &mut [u8], tag: &[u8]) -> Result<(), aes_gcm::Error> {
        let iv = Nonce::try_from(iv).expect(LENGTHS);
        let tag = Tag::try_from(tag).expect(LENGTHS);
        let text = InOutBuf::from(text);
        match self {
            Cipher::Bits128(cipher) => cipher.decrypt_inout_detached(&iv, &[], text, &tag),
            Cipher::Bits256(cipher) => cipher.decrypt_inout_detached(&iv, &[], text, &tag),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct AesGcm {
    inner: Arc<dyn L2Adapter>,
    keys: Keys,
}

impl AesGcm {
    /// Around `inner`.
    pub fn new(inner: Arc<dyn L2Adapter>, keys: Keys) -> AesGcm {
        AesGcm { inner, keys }
    }
}

/// Runs `work` where it delays no request.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("neither panics nor is it cancelled")
}

impl L2Adapter for AesGcm {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn lookup<'a>(&'a self, keys: &'a [ObjectKey]) -> BoxFuture<'a, Result<Vec<Presence>, Trouble>> {
        Box::pin(async move {
            let mut found = self.inner.lookup(keys).await?;
            for presence in &mut found {
                if let Presence::Present { bytes: Some(bytes) } = presence {
                    // A value that is too short for any object is found out when it is loaded.
                    *bytes = bytes.saturating_sub(OVERHEAD as u64);
                }
            }
            Ok(found)
        })
    }

    fn load<'a>(&'a self, key: &'a ObjectKey, mut target: TargetBuf) -> BoxFuture<'a, LoadOutcome> {
        Box::pin(async move {
            let outcome = self.inner.load(key, TargetBuf::with_len(target.len() + OVERHEAD)).await;
            let frame = match outcome {
                LoadOutcome { result: Ok(()), target: Some(frame) } => frame,
                LoadOutcome { result, .. } => {
                    let error = match result {
                        Err(LoadError::WrongSize { expected, found }) => LoadError::WrongSize {
                            expected: expected.saturating_sub(OVERHEAD as u64),
                            found: found.saturating_sub(OVERHEAD as u64),
                        },
                        Err(error) => error,
                        Ok(()) => Trouble::Unexpected("loaded without a buffer".into()).into(),
                    };
                    return LoadOutcome::failed(error, target);
                }
            };
            let (keys, key) = (self.keys.clone(), key.clone());
            aside(move || {
                let mut frame = frame.to_vec();
                match keys.open(&key, &mut frame) {
                    Ok(text) => {
                        target.write_at(0, text);
                        LoadOutcome::loaded(target)
                    }
                    Err(error) => LoadOutcome::failed(error, target),
                }
            })
            .await
        })
    }

    fn store<'a>(
        &'a self,
        key: &'a ObjectKey,
        source: SourceBuf,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        Box::pin(async move {
            let (keys, owned) = (self.keys.clone(), key.clone());
            let frame = aside(move || keys.seal(&owned, &source)).await;
            self.inner.store(key, SourceBuf::from_vec(frame)).await
        })
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<bool, Trouble>> {
        self.inner.delete(key)
    }

    fn list<'a>(&'a self, from: Option<&'a str>, limit: usize) -> BoxFuture<'a, Result<ListPage, Trouble>> {
        self.inner.list(from, limit)
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn bytes_of_salt(&self, salt: &str) -> u64 {
        self.inner.bytes_of_salt(salt)
    }

    fn quotas_changed(&self) {
        self.inner.quotas_changed();
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), Trouble>> {
        self.inner.ping()
    }

    fn describe(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut describe = self.inner.describe();
        describe.insert("serde".into(), format!("aesgcm-{}", self.keys.bits).into());
        describe
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

#[cfg(test)]
mod tests {
    use super::super::mock::Mock;
    use super::*;

    fn keys(bits: u64) -> Keys {
        Keys { master: b"a master key of the tests"[..].into(), bits }
    }

    fn key(salt: &str) -> ObjectKey {
        ObjectKey {
            chunk_hash: [1; 32],
            model_name: "m".into(),
            kv_rank: 1,
            object_group_id: 0,
            cache_salt: salt.into(),
        }
    }

    /// Made by the peer's own classes: IV 0..12, plaintext 0..64.
    const FRAMES: &[(u64, &str, &str)] = &[
        (
            128,
            "",
            "01000102030405060708090a0b5779eb16b0cde9e7ed444a8469178b813b0d3a031248d0af5f610f25b36ffae34e56f6663c8ac735\
             daa21bf84efe5431de9aacad7642daad2b3be37fca1b1151192f65e6cd5d39b2a0e4e9a0439bbbee",
        ),
        (
            128,
            "tenant-1",
            "01000102030405060708090a0b414831b2aaca46fb8b57c2641f55971aa809f841e662c4105573da22fd8798203b32d4229cba8496\
             79e2fe06f0db565ac3cdf6d07dfe30d231cb2be5580b4354fee75d7d025fcde2fb408f4310fc03d4",
        ),
        (
            256,
            "",
            "01000102030405060708090a0b43a0fdc1cfdf92e0a24ef1bab72e82cffac57f212f0b5416ec29af4f0deebad9731b0863fb347a5e\
             b7eb6ce6645a70b382ce7f59b30f2c050fa2b1df57b676a82c886034f98a84349bb4521d9b4ffb8e",
        ),
        (
            256,
            "tenant-1",
            "01000102030405060708090a0b003e10f690cfd69919127d7b9153e8b35960cd0f4a53ee1c0b6c58f9471b29a071917d4c0a5a670b\
             cfbe3f83931e198db721cbabf90c11ddee29f249dffebc23c798932d1a7d07b18ecbd57d8250a3f1",
        ),
    ];

    fn unhex(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect()
    }

    #[tokio::test]
    async fn values_of_the_peer_are_read() {
        let plain: Vec<u8> = (0..64).collect();
        for (bits, salt, frame) in FRAMES {
            let mock = Arc::new(Mock::default());
            mock.plant(&key(salt), &unhex(frame));
            let outcome = AesGcm::new(mock, keys(*bits)).load(&key(salt), TargetBuf::with_len(64)).await;
            assert_eq!(outcome.result, Ok(()), "{bits} {salt}");
            assert_eq!(outcome.target.expect("loaded").to_vec(), plain);
        }
    }

    #[tokio::test]
    async fn the_store_holds_ciphertext_of_the_peers_size() {
        let mock = Arc::new(Mock::default());
        let sealed = AesGcm::new(mock.clone(), keys(128));
        for len in [0, 1, 5000] {
            let bytes = vec![0x5a; len];
            let stored = sealed.store(&key("a"), SourceBuf::copy_of(&bytes)).await.expect("stores");
            assert_eq!(stored.bytes, (len + OVERHEAD) as u64);
            let raw = mock
                .load(&key("a"), TargetBuf::with_len(len + OVERHEAD))
                .await
                .target
                .expect("there")
                .to_vec();
            assert!(len < 16 || !raw.windows(16).any(|window| window == [0x5a; 16]));
            let found = sealed.lookup(&[key("a")]).await.expect("answers");
            assert_eq!(found, [Presence::Present { bytes: Some(len as u64) }]);
            let outcome = sealed.load(&key("a"), TargetBuf::with_len(len)).await;
            assert_eq!(outcome.target.expect("loaded").to_vec(), bytes);
        }
    }

    #[test]
    fn a_value_shorter_than_its_own_parts_is_damage() {
        let whole = keys(128).seal(&key("a"), &SourceBuf::copy_of(&[]));
        assert_eq!(whole.len(), OVERHEAD);
        for len in 0..OVERHEAD {
            let mut short = whole[..len].to_vec();
            assert!(
                matches!(keys(128).open(&key("a"), &mut short), Err(LoadError::Damaged(_))),
                "{len} bytes"
            );
        }
        assert_eq!(keys(128).open(&key("a"), &mut whole.clone()), Ok(&[][..]));
    }

    #[tokio::test]
    async fn another_key_salt_or_byte_is_damage() {
        let mock = Arc::new(Mock::default());
        let sealed = AesGcm::new(mock.clone(), keys(128));
        let raw = keys(128).seal(&key("a"), &SourceBuf::copy_of(&[7; 100]));
        let mut changed = raw.clone();
        changed[50] ^= 1;
        let mut version = raw.clone();
        version[0] = 2;
        for (salt, frame) in [("b", &raw), ("a", &changed), ("a", &version)] {
            mock.plant(&key(salt), frame);
            let outcome = sealed.load(&key(salt), TargetBuf::with_len(100)).await;
            assert!(matches!(outcome.result, Err(LoadError::Damaged(_))), "{:?}", outcome.result);
        }
        mock.plant(&key("a"), &raw);
        let outcome = AesGcm::new(mock, keys(256)).load(&key("a"), TargetBuf::with_len(100)).await;
        assert!(matches!(outcome.result, Err(LoadError::Damaged(_))));
    }
}

//! The L2 suite on stores that need no server.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipc_tests::l2_suite::{self, Change, Store};
use lmcache_proto::object_key::ObjectKey;
use lmcached::l2::adapter::L2Adapter;
use lmcached::l2::breaker::BreakerConfig;
use lmcached::l2::error::StoreError;
use lmcached::l2::memory::SourceBuf;
use lmcached::l2::mock::Mock;
use lmcached::l2::registry;
use lmcached::l2::tier::{Limits, Tier};
use serde_json::{Value, json};

struct Memory(Arc<Mock>);

impl Store for Memory {
    fn open(&self) -> Arc<Tier> {
        let request_timeout = Duration::from_secs(5);
        let breaker = BreakerConfig::read(None, request_timeout).expect("the defaults");
        Tier::new("mock#1".into(), self.0.clone(), Limits { request_timeout, transfers: 64, breaker })
    }

    async fn plant(&self, key: &ObjectKey, value: &[u8]) -> bool {
        self.0.plant(key, value);
        true
    }

    async fn change(&self, key: &ObjectKey, change: Change) {
        self.0.damage(key, |value| change.apply(value));
    }
}

struct Fs {
    dir: tempfile::TempDir,
    json: Value,
}

impl Fs {
    fn new(extra: Value) -> Fs {
        let dir = tempfile::tempdir().expect("a directory");
        let mut json = json!({"type": "fs", "base_path": dir.path().join("deep/er")});
        json.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        Fs { dir, json }
    }

    fn path(&self, key: &ObjectKey) -> PathBuf {
        self.dir.path().join("deep/er").join(key.fs_filename())
    }
}

impl Store for Fs {
    fn open(&self) -> Arc<Tier> {
        l2_suite::open(&self.json)
    }

    async fn plant(&self, key: &ObjectKey, value: &[u8]) -> bool {
        std::fs::write(self.path(key), value).expect("writes");
        true
    }

    async fn change(&self, key: &ObjectKey, change: Change) {
        change_file(&self.path(key), change);
    }
}

/// In place, so that the extended attribute stays.
fn change_file(path: &Path, change: Change) {
    let mut value = std::fs::read(path).expect("reads");
    change.apply(&mut value);
    std::fs::write(path, value).expect("writes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mock() {
    l2_suite::run(&Memory(Arc::default())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mock_from_its_json() {
    let tier = l2_suite::open(&json!({"type": "mock", "max_size_gb": 1, "mock_bandwidth_gb": 20}));
    let key = l2_suite::key("mock", 1, "");
    l2_suite::put(&tier, &key, b"value").await;
    assert_eq!(l2_suite::get(&tier, &key, 5).await.expect("loads"), b"value");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fs_with_threads() {
    l2_suite::run(&Fs::new(json!({"io_engine": "posix"}))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_inject_without_faults_is_its_inner_store() {
    let fs = Fs::new(json!({}));
    let wrapped = json!({"type": "fault_inject", "inner": fs.json.clone()});
    l2_suite::run(&Fs { json: wrapped, ..fs }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fs_with_what_the_kernel_has() {
    l2_suite::run(&Fs::new(json!({"relative_tmp_dir": "tmp", "read_ahead_size": 4096, "fsync": true}))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fs_with_direct_io() {
    l2_suite::run(&Fs::new(json!({"use_odirect": true, "io_engine": "posix"}))).await;
    l2_suite::run(&Fs::new(json!({"use_odirect": true}))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fs_with_a_limit() {
    let limit = json!({"max_capacity_gb": 1, "eviction": {"eviction_policy": "LRU"}});
    l2_suite::run(&Fs::new(limit)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fs_native() {
    l2_suite::run(&Fs::new(json!({"type": "fs_native", "num_workers": 4, "max_capacity_gb": 0}))).await;
}

struct RawBlock {
    path: PathBuf,
    json: Value,
    _dir: tempfile::TempDir,
}

impl RawBlock {
    const SLOT: u64 = 512 << 10;

    fn new(extra: &Value) -> RawBlock {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("device");
        let mut json = json!({"type": "raw_block", "device_path": path, "slot_bytes": RawBlock::SLOT,
                              "capacity_bytes": 400 << 20, "num_store_workers": 2, "header_bytes": 4096});
        json.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        RawBlock { path, json, _dir: dir }
    }

    /// Where a key's bytes are, from the format as `layout.rs` has it.
    fn place(&self, key: &ObjectKey) -> u64 {
        let file = std::fs::File::open(&self.path).expect("opens");
        let mut superblock = [0; 4096];
        file.read_exact_at(&mut superblock, 0).expect("reads");
        let slots = u64::from(u32::from_le_bytes(superblock[16..20].try_into().expect("four")));
        let name = key.native_key();
        for slot in 0..slots {
            let mut record = [0; 512];
            file.read_exact_at(&mut record, 4096 + slot * 512).expect("reads");
            if &record[..8] == b"LMCDSLOT" && record[34..].starts_with(name.as_bytes()) {
                return 4096 + (slots * 512).next_multiple_of(4096) + slot * RawBlock::SLOT;
            }
        }
        panic!("{name} is not in the index");
    }
}

impl Store for RawBlock {
    fn open(&self) -> Arc<Tier> {
        l2_suite::open(&self.json)
    }

    async fn plant(&self, _: &ObjectKey, _: &[u8]) -> bool {
        false
    }

    /// A slot has no end of its own: every change is one of its first byte.
    async fn change(&self, key: &ObjectKey, _: Change) {
        let file = std::fs::File::options().read(true).write(true).open(&self.path).expect("opens");
        let (place, mut byte) = (self.place(key), [0]);
        file.read_exact_at(&mut byte, place).expect("reads");
        file.write_all_at(&[byte[0] ^ 1], place).expect("writes");
    }

    fn takes(&self, _: usize) -> u64 {
        RawBlock::SLOT
    }

    fn largest(&self) -> usize {
        RawBlock::SLOT as usize
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_block_with_direct_io() {
    l2_suite::run(&RawBlock::new(&json!({}))).await;
    l2_suite::run(&RawBlock::new(&json!({"io_engine": "posix"}))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_block_buffered_and_synced() {
    l2_suite::run(&RawBlock::new(&json!({"use_odirect": false, "fsync": true}))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_block_is_not_taken_from_others() {
    let store = RawBlock::new(&json!({}));
    let tier = store.open();
    let refused = |json: &Value| {
        let parsed =
            lmcached::config::parse(["lmcached".into(), "--l2-adapter".into(), json.to_string().into()]);
        let adapter = parsed.expect("well-formed").config.l2.adapters.remove(0);
        registry::plan(1, &adapter).expect("well-formed").open().expect_err("refused").to_string()
    };
    assert!(refused(&store.json).contains("another process"));
    tier.close().await;
    let mut other = store.json.clone();
    other["slot_bytes"] = (1 << 20).into();
    assert!(refused(&other).contains("524288"), "{}", refused(&other));
    std::fs::write(&store.path, [b"LMCIDX01".as_slice(), &[0; 100_000]].concat()).expect("writes");
    let line = refused(&store.json);
    assert!(line.contains("LMCache") && line.contains("format"), "{line}");
    other["format"] = true.into();
    l2_suite::open(&other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_device_refuses_or_evicts() {
    let small = json!({"capacity_bytes": 5 << 20});
    let tier = RawBlock::new(&small);
    let tier = (tier.open(), tier);
    let store =
        async |tier: &Tier, n| tier.store(&l2_suite::key("full", n, ""), SourceBuf::copy_of(b"x")).await;
    for n in 0..9 {
        store(&tier.0, n).await.expect("fits");
    }
    assert!(matches!(store(&tier.0, 9).await, Err(StoreError::Full(_))));
    assert_eq!(tier.0.delete(&l2_suite::key("full", 3, "")).await, Ok(true));
    store(&tier.0, 9).await.expect("fits again");
    let evicting = RawBlock::new(&json!({"capacity_bytes": 5 << 20, "eviction": {"eviction_policy": "LRU"}}));
    let tier = evicting.open();
    ipc_tests::eventually("counted", async || tier.usage().counted.then_some(())).await;
    for n in 0..40 {
        ipc_tests::eventually("it fits in the end", async || store(&tier, n).await.ok()).await;
    }
    assert!(l2_suite::get(&tier, &l2_suite::key("full", 39, ""), 1).await.is_ok());
    assert!(l2_suite::get(&tier, &l2_suite::key("full", 0, ""), 1).await.is_err());
}

/// Ciphertext at rest, through the whole stack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fs_with_aesgcm() {
    let dir = tempfile::tempdir().expect("a directory");
    let master = dir.path().join("master");
    std::fs::write(&master, "a master key of the tests").expect("writes");
    let serde = json!({"serde": {"type": "aesgcm", "master_key_path": master, "aes_bits": 256}});
    let store = Fs::new(serde);
    let tier = store.open();
    let (key, value) = (l2_suite::key("secret", 1, "tenant"), vec![0x55; 10_000]);
    l2_suite::put(&tier, &key, &value).await;
    let raw = std::fs::read(store.path(&key)).expect("reads");
    assert_eq!((raw.len(), raw[0]), (10_029, 1));
    assert!(!raw.windows(16).any(|window| window == [0x55; 16]));
    assert!(l2_suite::get(&store.open(), &key, 10_000).await.expect("loads") == value);
    // Somebody who can write to the store can replace the checksum too, but not the tag.
    std::fs::write(store.dir.path().join("copy"), [&raw[..5000], &[raw[5000] ^ 1], &raw[5001..]].concat())
        .expect("writes");
    std::fs::rename(store.dir.path().join("copy"), store.path(&key)).expect("renames");
    let error = l2_suite::get(&tier, &key, 10_000).await.expect_err("changed");
    assert!(error.to_string().contains("tag"), "{error}");
    assert!(!store.path(&key).exists(), "deleted");
}

//! The L2 suite on stores that need no server.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipc_tests::l2_suite::{self, Change, Store};
use lmcache_proto::object_key::ObjectKey;
use lmcached::l2::breaker::BreakerConfig;
use lmcached::l2::mock::Mock;
use lmcached::l2::tier::Tier;
use serde_json::{Value, json};

struct Memory(Arc<Mock>);

impl Store for Memory {
    fn open(&self) -> Arc<Tier> {
        let timeout = Duration::from_secs(5);
        let breaker = BreakerConfig::read(None, timeout).expect("the defaults");
        Tier::new("mock#1".into(), self.0.clone(), timeout, breaker)
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

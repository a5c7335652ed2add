//! What every L2 adapter must do: one suite, run on each of them.
//!
//! An adapter's test makes a [`Store`], which knows how to open a tier on the same data again and how to get at a stored
//! value behind the tier's back, and hands it to [`run`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lmcache_proto::object_key::{ObjectKey, kv_rank};
use lmcached::l2::adapter::{L2Adapter, Load, Presence};
use lmcached::l2::error::LoadError;
use lmcached::l2::memory::{SourceBuf, TargetBuf};
use lmcached::l2::registry;
use lmcached::l2::tier::Tier;

/// A change of a stored value.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// Flips one bit in the middle.
    Flip,
    /// Cuts off the last byte.
    Truncate,
    /// Appends a byte.
    Extend,
}

impl Change {
    /// Applies it.
    pub fn apply(self, value: &mut Vec<u8>) {
        match self {
            Change::Flip => {
                let middle = value.len() / 2;
                value[middle] ^= 0x10;
            }
            Change::Truncate => drop(value.pop()),
            Change::Extend => value.push(0x5a),
        }
    }
}

/// A store under test.
pub trait Store: Sync {
    /// A tier on it, as after a restart of the daemon: every call opens the same data.
    fn open(&self) -> Arc<Tier>;

    /// Writes a value as an LMCache server would, without a checksum. `false`: this store is not shared with any.
    fn plant(&self, key: &ObjectKey, value: &[u8]) -> impl Future<Output = bool> + Send;

    /// Changes a stored value and leaves its checksum.
    fn change(&self, key: &ObjectKey, change: Change) -> impl Future<Output = ()> + Send;

    /// Bytes that an object takes in the store.
    fn takes(&self, len: usize) -> u64 {
        len as u64
    }

    /// Bytes of the largest object of the suite.
    fn largest(&self) -> usize {
        8 << 20
    }
}

/// A tier as the command line makes it.
///
/// # Panics
/// The configuration is refused.
pub fn open(json: &serde_json::Value) -> Arc<Tier> {
    let args = ["lmcached".into(), "--l2-adapter".into(), json.to_string().into()];
    let parsed = lmcached::config::parse(args).unwrap_or_else(|error| panic!("{json}: {error:?}"));
    let plan =
        registry::plan(1, &parsed.config.l2.adapters[0]).unwrap_or_else(|error| panic!("{json}: {error}"));
    assert!(plan.unknown.is_empty(), "{:?}", plan.unknown);
    plan.open().unwrap_or_else(|error| panic!("{json}: {error}"))
}

/// A key of one check.
pub fn key(check: &str, n: u32, salt: &str) -> ObjectKey {
    let mut chunk_hash = [0xa5; 32];
    chunk_hash[..4].copy_from_slice(&n.to_be_bytes());
    ObjectKey {
        chunk_hash,
        model_name: format!("org/{check}-3.1"),
        kv_rank: kv_rank(8, 5),
        object_group_id: 17,
        cache_salt: salt.into(),
    }
}

/// Bytes that differ with `seed` from the first to the last.
pub fn bytes(len: usize, seed: u32) -> Vec<u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Stores, and says why not.
pub async fn put(tier: &Tier, key: &ObjectKey, value: &[u8]) {
    let stored = tier.store(key, SourceBuf::copy_of(value)).await;
    stored.unwrap_or_else(|error| panic!("storing {}: {error}", key.native_key()));
}

/// Loads an object of `len` bytes.
pub async fn get(tier: &Tier, key: &ObjectKey, len: usize) -> Result<Vec<u8>, LoadError> {
    let outcome = tier.load(key, TargetBuf::with_len(len)).await;
    outcome.result.map(|()| outcome.target.expect("comes back with Ok").to_vec())
}

async fn present(tier: &Tier, key: &ObjectKey) -> bool {
    tier.lookup(std::slice::from_ref(key)).await.expect("answers")[0].is_present()
}

/// Every object of the tier, page by page. Redis may list one twice while it resizes its table.
pub async fn list_all(tier: &Tier, limit: usize) -> Vec<(ObjectKey, u64)> {
    let mut found = Vec::new();
    let mut names = BTreeSet::new();
    let mut from = None;
    for _ in 0..100_000 {
        let page = tier.list(from.as_deref(), limit).await.expect("lists");
        let fresh = page.objects.into_iter().filter(|object| names.insert(object.key.native_key()));
        found.extend(fresh.map(|object| (object.key, object.bytes)));
        match page.next {
            Some(next) => from = Some(next),
            None => return found,
        }
    }
    panic!("the listing never ends");
}

/// Runs every check.
pub async fn run(store: &impl Store) {
    let tier = store.open();
    let tier = &tier;
    eprintln!("store: {}", tier.kind());
    round_trips(tier, store.largest()).await;
    missing(tier).await;
    overwrites(tier).await;
    salts_and_names(tier).await;
    many_keys(tier).await;
    concurrent(tier).await;
    lists_and_deletes(tier, store).await;
    wrong_size(tier, store).await;
    damaged(tier, store).await;
    peers_values(tier, store).await;
    given_up(tier, store.largest()).await;
    tier.ping().await.expect("answers");
    let status = tier.status();
    assert_eq!(status["is_healthy"], true, "{status}");
    restart(tier, store).await;
}

async fn round_trips(tier: &Tier, largest: usize) {
    eprintln!("  round trips");
    for (n, len) in [0, 1, 100, 4095, 4096, 4097, 1 << 20, (1 << 20) + 3, largest].into_iter().enumerate() {
        if len > largest {
            continue;
        }
        let (key, value) = (key("round-trip", n as u32, ""), bytes(len, n as u32));
        put(tier, &key, &value).await;
        let found = tier.lookup(std::slice::from_ref(&key)).await.expect("answers")[0];
        match found {
            Presence::Present { bytes } => assert!(bytes.is_none_or(|b| b == len as u64), "{len}: {found:?}"),
            Presence::Absent => panic!("{len} bytes are not found"),
        }
        assert!(get(tier, &key, len).await.expect("loads") == value, "{len} bytes");
        assert_eq!(tier.delete(&key).await, Ok(true));
        assert!(!present(tier, &key).await);
    }
}

async fn missing(tier: &Tier) {
    eprintln!("  missing");
    let key = key("missing", 1, "");
    assert!(!present(tier, &key).await);
    let outcome = tier.load(&key, TargetBuf::with_len(100)).await;
    assert_eq!(outcome.result, Err(LoadError::NotFound));
    assert!(outcome.target.is_some(), "the memory comes back");
    assert_eq!(tier.delete(&key).await, Ok(false));
    assert_eq!(tier.lookup(&[]).await, Ok(vec![]));
}

async fn overwrites(tier: &Tier) {
    eprintln!("  overwrites");
    let key = key("overwrite", 1, "");
    for (n, len) in [5000, 5000, 5000, 70_000, 100].into_iter().enumerate() {
        let value = bytes(len, n as u32);
        put(tier, &key, &value).await;
        assert!(get(tier, &key, len).await.expect("loads") == value, "store {n}");
        // The same again changes nothing.
        put(tier, &key, &value).await;
        assert!(get(tier, &key, len).await.expect("loads") == value, "store {n} again");
    }
    assert_eq!(tier.delete(&key).await, Ok(true));
    assert_eq!(get(tier, &key, 100).await, Err(LoadError::NotFound));
}

async fn salts_and_names(tier: &Tier) {
    eprintln!("  salts and names");
    let mut keys: Vec<ObjectKey> =
        ["", "alice", "user-abc_123.xyz:42", "ünï cödé + 100% #?&=~", "{braces}", &"s".repeat(60)]
            .map(|salt| key("salt", 1, salt))
            .to_vec();
    let named = |name: &str| ObjectKey { model_name: name.into(), ..key("", 1, "") };
    keys.extend(["plain", "a/b/c", "with space", "pl+us%20", "{tag}x", "ünï"].map(named));
    keys.push(ObjectKey { kv_rank: kv_rank(8, 6), ..key("salt", 1, "") });
    keys.push(ObjectKey { object_group_id: 0, ..key("salt", 1, "") });
    for (n, key) in keys.iter().enumerate() {
        put(tier, key, &bytes(1000, n as u32)).await;
    }
    for (n, key) in keys.iter().enumerate() {
        assert!(get(tier, key, 1000).await.expect("loads") == bytes(1000, n as u32), "{}", key.native_key());
    }
    let listed: BTreeSet<String> = list_all(tier, 3).await.iter().map(|(key, _)| key.native_key()).collect();
    for key in &keys {
        assert!(listed.contains(&key.native_key()), "{} is not listed", key.native_key());
    }
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(tier.delete(key).await, Ok(true), "{}", key.native_key());
        for other in &keys[n + 1..] {
            assert!(present(tier, other).await, "{} went with another", other.native_key());
        }
    }
}

async fn many_keys(tier: &Tier) {
    eprintln!("  many keys");
    let keys: Vec<ObjectKey> = (0..600).map(|n| key("many", n, "")).collect();
    let stores =
        keys.iter().step_by(2).map(|k| (k.clone(), SourceBuf::copy_of(k.native_key().as_bytes()))).collect();
    let mut stores = tier.store_many(stores);
    while let Some((n, result)) = stores.next().await {
        result.unwrap_or_else(|error| panic!("store {n}: {error}"));
    }
    let found = tier.lookup(&keys).await.expect("answers");
    for (n, presence) in found.iter().enumerate() {
        assert_eq!(presence.is_present(), n % 2 == 0, "key {n}");
    }
    let loads = keys.iter().map(|key| {
        let target = TargetBuf::with_len(key.native_key().len());
        Load { key: key.clone(), target }
    });
    let mut loads = tier.load_many(loads.collect());
    let mut seen = 0;
    while let Some((n, outcome)) = loads.next().await {
        seen += 1;
        if n % 2 == 0 {
            assert_eq!(outcome.result, Ok(()), "key {n}");
            assert_eq!(outcome.target.expect("loaded").to_vec(), keys[n].native_key().as_bytes());
        } else {
            assert_eq!(outcome.result, Err(LoadError::NotFound), "key {n}");
        }
    }
    assert_eq!(seen, keys.len());
}

async fn lists_and_deletes(tier: &Tier, store: &impl Store) {
    eprintln!("  lists and deletes");
    let expected: BTreeSet<(String, u64)> = (0..600)
        .step_by(2)
        .map(|n| key("many", n, "").native_key())
        .map(|name| (name.clone(), store.takes(name.len())))
        .collect();
    let many = |found: Vec<(ObjectKey, u64)>| -> BTreeSet<(String, u64)> {
        found
            .into_iter()
            .filter(|(key, _)| key.model_name.contains("many"))
            .map(|(key, bytes)| (key.native_key(), bytes))
            .collect()
    };
    assert_eq!(many(list_all(tier, 37).await), expected);
    assert_eq!(many(list_all(tier, 100_000).await), expected);
    for n in (0..600).step_by(2) {
        assert_eq!(tier.delete(&key("many", n, "")).await, Ok(true));
    }
    assert_eq!(many(list_all(tier, 37).await), BTreeSet::new());
}

async fn concurrent(tier: &Arc<Tier>) {
    eprintln!("  concurrent");
    // Two values under one key from many tasks: a load finds one of them whole, or nothing, never a mixture.
    const LEN: usize = 300_000;
    let values = [bytes(LEN, 1), bytes(LEN, 2)];
    let tasks: Vec<_> = (0..16u32)
        .map(|task| {
            let (tier, values) = (tier.clone(), values.clone());
            tokio::spawn(async move {
                for round in 0..4u32 {
                    let key = key("concurrent", (task + round) % 4, "");
                    let mine = &values[(task as usize + round as usize) % 2];
                    match task % 4 {
                        0 | 1 => put(&tier, &key, mine).await,
                        2 => match get(&tier, &key, LEN).await {
                            Ok(found) => assert!(values.contains(&found), "a mixture of two values"),
                            Err(LoadError::NotFound) => {}
                            Err(error) => panic!("{error}"),
                        },
                        _ => drop(present(&tier, &key).await),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    for n in 0..4 {
        let found = get(tier, &key("concurrent", n, ""), LEN).await.expect("stored");
        assert!(values.contains(&found), "a mixture of two values");
    }
}

async fn wrong_size(tier: &Tier, store: &impl Store) {
    eprintln!("  wrong size");
    let key = key("wrong-size", 1, "");
    for asked in [4096, 4095, 1, 10_000] {
        put(tier, &key, &bytes(5000, 1)).await;
        let error = get(tier, &key, asked).await.expect_err("another size");
        let LoadError::WrongSize { expected, .. } = error else { panic!("{error}") };
        assert_eq!(expected, asked as u64);
        assert_eq!(get(tier, &key, 5000).await, Err(LoadError::NotFound), "the bad value is deleted");
    }
    for change in [Change::Truncate, Change::Extend] {
        put(tier, &key, &bytes(5000, 1)).await;
        store.change(&key, change).await;
        let error = get(tier, &key, 5000).await.expect_err("changed");
        assert!(error.condemns_value(), "{change:?}: {error}");
        assert!(!present(tier, &key).await, "the bad value is deleted");
    }
}

async fn damaged(tier: &Tier, store: &impl Store) {
    eprintln!("  damaged");
    let key = key("damaged", 1, "a");
    for len in [1, 4096, 100_000] {
        put(tier, &key, &bytes(len, 1)).await;
        store.change(&key, Change::Flip).await;
        let error = get(tier, &key, len).await.expect_err("changed");
        assert!(matches!(error, LoadError::Damaged(_)), "{error}");
        assert!(!present(tier, &key).await, "the bad value is deleted");
        put(tier, &key, &bytes(len, 2)).await;
        assert!(get(tier, &key, len).await.expect("loads") == bytes(len, 2));
    }
}

async fn peers_values(tier: &Tier, store: &impl Store) {
    eprintln!("  values of the peer");
    let key = key("peer", 1, "tenant-1");
    let value = bytes(8192, 9);
    if !store.plant(&key, &value).await {
        return;
    }
    assert!(present(tier, &key).await);
    assert!(get(tier, &key, 8192).await.expect("loads") == value);
    // Storing the same object again must not break it, and deleting it works.
    put(tier, &key, &value).await;
    assert!(get(tier, &key, 8192).await.expect("loads") == value);
    assert_eq!(tier.delete(&key).await, Ok(true));
    assert!(!present(tier, &key).await);
}

/// Loads whose callers have gone: their memory is let go in the end, and not before it is out of use.
#[allow(unsafe_code)] // Memory with a guard that the test can watch.
async fn given_up(tier: &Tier, largest: usize) {
    eprintln!("  given up");
    let key = key("given-up", 1, "");
    let value = bytes(largest, 3);
    put(tier, &key, &value).await;
    let guard = Arc::new(());
    for wait in [0, 50, 200, 1000, 5000] {
        let mut memory = vec![0u8; largest];
        // SAFETY: `memory` stays until the guard is free, which is awaited below.
        let target = unsafe { TargetBuf::new(memory.as_mut_ptr(), largest, guard.clone()) };
        let load = tokio::time::timeout(Duration::from_micros(wait), tier.load(&key, target));
        let finished = load.await.is_ok();
        crate::eventually("the memory is out of use", async || {
            (Arc::strong_count(&guard) == 1).then_some(())
        })
        .await;
        let after = memory.clone();
        if finished {
            assert!(after == value);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(memory == after, "written after it was let go");
    }
    assert!(get(tier, &key, largest).await.expect("loads") == value);
}

async fn restart(tier: &Tier, store: &impl Store) {
    eprintln!("  restart");
    let values: Vec<(ObjectKey, Vec<u8>)> =
        (0..20).map(|n| (key("restart", n, "s"), bytes(3000 + n as usize, n))).collect();
    for (key, value) in &values {
        put(tier, key, value).await;
    }
    tier.delete(&values[7].0).await.expect("deletes");
    tier.close().await;
    let again = store.open();
    for (n, (key, value)) in values.iter().enumerate() {
        let found = get(&again, key, value.len()).await;
        if n == 7 {
            assert_eq!(found, Err(LoadError::NotFound));
        } else {
            assert!(found.expect("survives") == *value);
        }
    }
    let listed = list_all(&again, 1000).await;
    assert_eq!(listed.iter().filter(|(key, _)| key.model_name.contains("restart")).count(), 19);
    if again.usage().capacity.is_some() || ["fs", "fs_native"].contains(&again.kind()) {
        let usage = crate::eventually("what is there has been counted", async || {
            Some(again.usage()).filter(|usage| usage.counted)
        })
        .await;
        assert_eq!(usage.objects, listed.len() as u64);
        assert_eq!(usage.bytes, listed.iter().map(|(_, bytes)| bytes).sum::<u64>());
    }
}

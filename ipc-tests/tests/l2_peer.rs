//! Stores shared with the real LMCache: what its adapters write is read here, and the reverse.
//!
//! `LMCACHED_PEER_PYTHON` names a Python that has `lmcache` (the conformance run makes one). Without it the tests say so and
//! return; the gate sets it.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use ipc_tests::l2_suite::{self, bytes, get, list_all, put};
use ipc_tests::servers::{Flavor, RedisServer, S3Server};
use lmcache_proto::object_key::ObjectKey;
use lmcached::l2::adapter::L2Adapter;
use lmcached::l2::tier::Tier;
use serde_json::{Value, json};

/// Objects, each with its length and its seed.
fn objects(length: usize) -> Vec<(ObjectKey, usize, u32)> {
    let models = ["meta-llama/Llama-3.1-8B", "plain", "a/b/c", "with space+100%"];
    let salts = ["", "tenant-1", "user-abc_123.xyz:42"];
    let mut objects = Vec::new();
    for (m, model) in models.iter().enumerate() {
        for (s, salt) in salts.iter().enumerate() {
            let n = (m * salts.len() + s) as u32;
            let key = ObjectKey { model_name: (*model).into(), ..l2_suite::key("", n, salt) };
            objects.push((key, length, n));
        }
    }
    objects
}

/// Runs the peer; its lines.
fn peer(
    python: &str,
    mode: &str,
    json: &Value,
    objects: &[(ObjectKey, usize, u32)],
    model_prefix: &str,
) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/l2_stores.py");
    let specs: Vec<Value> = objects
        .iter()
        .map(|(key, length, seed)| {
            json!({"model": format!("{model_prefix}{}", key.model_name), "rank": key.kv_rank, "group": key.object_group_id,
                   "hash": key.hash_hex(), "salt": key.cache_salt, "length": length, "seed": seed})
        })
        .collect();
    let output = Command::new(python)
        .arg("-B")
        .arg(script)
        .args([mode, &json.to_string(), &Value::from(specs).to_string()])
        .env("LMCACHE_LOG_LEVEL", "WARNING")
        .output()
        .expect("Python runs");
    // The peer logs to the same place.
    let words = ["stored", "failed", "same", "different", "missing"];
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<String> = text.lines().filter(|line| words.contains(line)).map(str::to_owned).collect();
    assert!(
        output.status.success() && lines.len() == objects.len(),
        "{lines:?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    lines
}

fn python() -> Option<String> {
    let python = std::env::var("LMCACHED_PEER_PYTHON").ok();
    if python.is_none() {
        eprintln!("SKIPPED: LMCACHED_PEER_PYTHON names no Python with lmcache");
    }
    python
}

/// The peer writes a store and this daemon reads it; then this daemon writes, and the peer reads.
async fn shared(ours: &Value, theirs: &Value, length: usize, model_prefix: &str) {
    let Some(python) = python() else { return };
    let all = objects(length);
    let (first, second) = all.split_at(all.len() / 2);
    let tier: Arc<Tier> = l2_suite::open(ours);
    let stored = peer(&python, "write", theirs, first, model_prefix);
    assert!(stored.iter().all(|line| line == "stored"), "{stored:?}");
    for (key, length, seed) in first {
        let found =
            get(&tier, key, *length).await.unwrap_or_else(|error| panic!("{}: {error}", key.native_key()));
        assert!(found == bytes(*length, *seed), "{}", key.native_key());
    }
    for (key, length, seed) in second {
        put(&tier, key, &bytes(*length, *seed)).await;
    }
    let read = peer(&python, "read", theirs, &all, model_prefix);
    assert!(read.iter().all(|line| line == "same"), "{read:?}");
    // Both kinds are listed alike, and what one deletes is gone for the other.
    assert_eq!(list_all(&tier, 5).await.len(), all.len());
    for (key, _, _) in first {
        assert_eq!(tier.delete(key).await, Ok(true));
    }
    let read = peer(&python, "read", theirs, &all, model_prefix);
    let missing = read.iter().filter(|line| *line == "missing").count();
    assert_eq!(missing, first.len(), "{read:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fs_is_shared() {
    for (ours, theirs) in [("fs", "fs"), ("fs", "fs_native"), ("fs_native", "fs")] {
        let dir = tempfile::tempdir().expect("a directory");
        let json = |kind: &str| json!({"type": kind, "base_path": dir.path()});
        shared(&json(ours), &json(theirs), 70_001, "").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resp_is_shared() {
    let Some(server) = RedisServer::start(Flavor::Redis, &[]).await else { return };
    let json = json!({"type": "resp", "host": "127.0.0.1", "port": server.port()});
    shared(&json, &json, 70_001, "").await;
}

/// The peer addresses buckets by host name only, and `<bucket>.localhost` resolves on few machines. With a bare address the
/// server takes the first part of the path for the bucket, which is then the first part of the model's name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_is_shared() {
    let Some(server) = S3Server::start().await else { return };
    let json = json!({"type": "s3", "s3_endpoint": format!("127.0.0.1:{}", server.port()), "s3_region": "us-east-1",
                      "disable_tls": true, "aws_access_key_id": "id", "aws_secret_access_key": "secret"});
    let mut theirs = json.clone();
    theirs["s3_prefer_http2"] = false.into();
    let mut ours = json;
    ours["s3_bucket"] = "kv-cache".into();
    shared(&ours, &theirs, 70_001, "kv-cache/").await;
}

//! The L2 suite on an S3 server, both ways to address a bucket, and what happens when the server goes away.

use std::sync::Arc;
use std::time::Duration;

use ipc_tests::eventually;
use ipc_tests::l2_suite::{self, Change, Store, bytes, get, key, list_all, put};
use ipc_tests::servers::S3Server;
use lmcache_proto::object_key::ObjectKey;
use lmcached::l2::adapter::L2Adapter;
use lmcached::l2::error::{LoadError, StoreError, Trouble};
use lmcached::l2::memory::SourceBuf;
use lmcached::l2::tier::Tier;
use serde_json::{Value, json};

struct S3<'a> {
    server: &'a S3Server,
    json: Value,
}

impl Store for S3<'_> {
    fn open(&self) -> Arc<Tier> {
        l2_suite::open(&self.json)
    }

    async fn plant(&self, key: &ObjectKey, value: &[u8]) -> bool {
        let path = key.s3_path();
        assert_eq!(self.server.request("PUT", &path[1..], &[], value).await.0, 200);
        true
    }

    async fn change(&self, key: &ObjectKey, change: Change) {
        let path = key.s3_path();
        let (status, head, mut value) = self.server.exchange("GET", &path[1..], &[], b"").await;
        assert_eq!(status, 200);
        let sum = head
            .lines()
            .find_map(|line| {
                line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("x-amz-meta-lmcached-sum"))
            })
            .map(|(_, sum)| sum.to_owned());
        change.apply(&mut value);
        let header = format!("x-amz-meta-lmcached-sum: {}", sum.expect("a checksum"));
        assert_eq!(self.server.request("PUT", &path[1..], &[&header], &value).await.0, 200);
    }
}

fn common() -> Value {
    // A lookup of hundreds of keys is as many requests, and the server is a small one.
    json!({"type": "s3", "s3_region": "us-east-1", "disable_tls": true, "request_timeout": 60,
           "aws_access_key_id": "id", "aws_secret_access_key": "secret"})
}

fn with(mut json: Value, extra: &Value) -> Value {
    json.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    json
}

fn path_style(server: &S3Server) -> Value {
    with(common(), &json!({"s3_endpoint": format!("127.0.0.1:{}", server.port()), "s3_bucket": "kv-cache"}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn path_style_addresses() {
    let Some(server) = S3Server::start().await else { return };
    l2_suite::run(&S3 { server: &server, json: path_style(&server) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn virtual_hosted_addresses_as_the_peer_has_them() {
    let Some(server) = S3Server::start().await else { return };
    let extra = json!({
        "s3_endpoint": format!("s3://kv-cache.localhost:{}", server.port()), "s3_num_io_threads": 8,
        "max_capacity_gb": 1, "eviction": {"eviction_policy": "LRU"},
    });
    l2_suite::run(&S3 { server: &server, json: with(common(), &extra) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_from_a_local_path() {
    let Some(server) = S3Server::start().await else { return };
    let store = S3 { server: &server, json: path_style(&server) };
    let tier = store.open();
    let local = ObjectKey { model_name: "/models/llama".into(), ..key("", 1, "") };
    let other = ObjectKey { model_name: "models/llama".into(), ..key("", 1, "") };
    put(&tier, &local, &bytes(100, 1)).await;
    put(&tier, &other, &bytes(100, 2)).await;
    assert!(get(&tier, &local, 100).await.expect("loads") == bytes(100, 1));
    // Under the peer's name: a slash for the path, one for the key.
    let (status, found) = server.request("GET", &local.s3_path()[1..], &[], b"").await;
    assert!(status == 200 && found == bytes(100, 1), "{status}");
    let mut listed: Vec<ObjectKey> = list_all(&tier, 1).await.into_iter().map(|(key, _)| key).collect();
    listed.sort_by_key(|key| key.model_name.clone());
    assert_eq!(listed, [local.clone(), other.clone()]);
    assert_eq!(tier.delete(&local).await, Ok(true));
    assert!(get(&tier, &other, 100).await.expect("loads") == bytes(100, 2));
    let odd = ObjectKey { model_name: "a//b".into(), ..key("", 1, "") };
    let refused = tier.store(&odd, SourceBuf::copy_of(b"x")).await;
    assert!(matches!(refused, Err(StoreError::BadKey(_))), "{refused:?}");
    assert_eq!(get(&tier, &odd, 1).await, Err(LoadError::NotFound));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_missing_is_said() {
    let Some(server) = S3Server::start().await else { return };
    let tier = l2_suite::open(&with(path_style(&server), &json!({"s3_bucket": "nobody"})));
    let error = tier.ping().await.expect_err("no bucket");
    assert!(error.to_string().contains("bucket"), "{error}");
    let error = tier.store(&key("x", 1, ""), SourceBuf::copy_of(b"x")).await.expect_err("no bucket");
    assert!(error.to_string().contains("bucket"), "{error}");
}

/// The server forgets everything when it ends: misses, then stores again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_restarted_under_load() {
    const LEN: usize = 1 << 20;
    let Some(mut server) = S3Server::start().await else { return };
    let extra =
        json!({"request_timeout": 2, "breaker": {"first_probe_seconds": 0.1, "max_probe_seconds": 0.5}});
    let tier = l2_suite::open(&with(path_style(&server), &extra));
    for n in 0..4 {
        put(&tier, &key("killed", n, ""), &bytes(LEN, n)).await;
    }
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let loaders: Vec<_> = (0..4u32)
        .map(|n| {
            let (tier, stop) = (tier.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut good, mut bad, key) = (0u32, 0u32, key("killed", n, ""));
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let load = get(&tier, &key, LEN);
                    match tokio::time::timeout(Duration::from_secs(60), load).await.expect("a stuck load") {
                        Ok(found) => {
                            assert!(found == bytes(LEN, n), "wrong bytes");
                            good += 1;
                        }
                        Err(LoadError::Store(_) | LoadError::NotFound) => {
                            bad += 1;
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                (good, bad)
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.process.kill();
    eventually("the breaker opens", async || (tier.breaker().status().opened > 0).then_some(())).await;
    server.process.start_again().await;
    server.make_bucket().await;
    for n in 0..4 {
        let (key, value) = (key("killed", n, ""), bytes(LEN, n));
        eventually("a store succeeds", async || {
            tier.store(&key, SourceBuf::copy_of(&value)).await.ok().map(drop)
        })
        .await;
        assert!(get(&tier, &key, LEN).await.expect("loads") == value);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for loader in loaders {
        let (good, bad) = loader.await.expect("no panic");
        assert!(good > 0 && bad > 0, "{good} {bad}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_runs_into_the_deadline() {
    let Some(server) = S3Server::start().await else { return };
    let extra =
        json!({"request_timeout": 1, "breaker": {"first_probe_seconds": 0.1, "max_probe_seconds": 0.5}});
    let tier = l2_suite::open(&with(path_style(&server), &extra));
    let key = key("frozen", 1, "");
    put(&tier, &key, b"value").await;
    server.process.freeze();
    let error = get(&tier, &key, 5).await.expect_err("no answer");
    assert!(matches!(error, LoadError::Store(Trouble::Timeout(_) | Trouble::Unavailable(_))), "{error:?}");
    server.process.thaw();
    eventually("the tier is back", async || get(&tier, &key, 5).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()])
        .expect("makes one");
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("cert.pem"), made.cert.pem()).expect("writes");
    std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).expect("writes");
    let Some(server) = S3Server::start_tls(&path("cert.pem"), &path("key.pem")).await else { return };
    let json = json!({"type": "s3", "s3_endpoint": format!("https://localhost:{}", server.port()), "s3_bucket": "kv-cache",
                      "s3_region": "us-east-1", "aws_access_key_id": "id", "aws_secret_access_key": "secret"});
    let tier = l2_suite::open(&with(json.clone(), &json!({"tls_ca_path": path("cert.pem")})));
    let key = key("tls", 1, "");
    put(&tier, &key, &bytes(3 << 20, 1)).await;
    assert!(get(&tier, &key, 3 << 20).await.expect("loads") == bytes(3 << 20, 1));
    let error = get(&l2_suite::open(&json), &key, 3 << 20).await.expect_err("not trusted");
    assert!(matches!(error, LoadError::Store(Trouble::Unavailable(_))), "{error:?}");
}

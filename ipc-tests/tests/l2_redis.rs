//! The L2 suite on real Redis and Valkey servers, and what happens when they go away.

use std::sync::Arc;
use std::time::Duration;

use ipc_tests::eventually;
use ipc_tests::l2_suite::{self, Change, Store, bytes, get, key, put};
use ipc_tests::servers::{Cluster, Flavor, RedisServer, Reply, command};
use lmcache_proto::object_key::ObjectKey;
use lmcached::l2::adapter::L2Adapter;
use lmcached::l2::error::{LoadError, StoreError, Trouble};
use lmcached::l2::memory::{SourceBuf, TargetBuf};
use lmcached::l2::tier::Tier;
use serde_json::{Value, json};

enum Where<'a> {
    Single(&'a RedisServer),
    Cluster(&'a Cluster),
}

struct Redis<'a> {
    servers: Where<'a>,
    json: Value,
    prefix: &'static str,
}

impl Redis<'_> {
    fn name(&self, key: &ObjectKey) -> Vec<u8> {
        format!("{}{}", self.prefix, key.native_key()).into_bytes()
    }

    async fn port(&self, name: &[u8]) -> u16 {
        match self.servers {
            Where::Single(server) => server.port(),
            Where::Cluster(cluster) => cluster.owner(name).await,
        }
    }

    async fn set(&self, name: &[u8], value: &[u8]) {
        let port = self.port(name).await;
        assert_eq!(command(port, &[b"SET", name, value]).await, Reply::Status("OK".into()));
    }
}

impl Store for Redis<'_> {
    fn open(&self) -> Arc<Tier> {
        l2_suite::open(&self.json)
    }

    async fn plant(&self, key: &ObjectKey, value: &[u8]) -> bool {
        self.set(&self.name(key), value).await;
        true
    }

    async fn change(&self, key: &ObjectKey, change: Change) {
        let name = self.name(key);
        let Reply::Bulk(Some(mut value)) = command(self.port(&name).await, &[b"GET", &name]).await else {
            panic!("{} is not there", key.native_key());
        };
        change.apply(&mut value);
        self.set(&name, &value).await;
    }
}

fn resp(server: &RedisServer) -> Value {
    json!({"type": "resp", "host": "127.0.0.1", "port": server.port()})
}

fn valkey(nodes: &[&RedisServer], extra: &Value) -> Value {
    let nodes: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    let mut json = json!({"type": "valkey", "startup_nodes": nodes.join(",")});
    json.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    json
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_through_resp() {
    let Some(server) = RedisServer::start(Flavor::Redis, &[]).await else { return };
    l2_suite::run(&Redis { json: resp(&server), servers: Where::Single(&server), prefix: "" }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn valkey_with_a_prefix_and_a_limit() {
    let Some(server) = RedisServer::start(Flavor::Valkey, &[]).await else { return };
    // Another deployment's keys in the same database are none of ours.
    command(server.port(), &[b"SET", b"other@m@01000100@0@00", b"x"]).await;
    let extra = json!({
        "key_prefix": "a[1]*", "ttl_seconds": 3600, "num_workers": 3, "max_capacity_gb": 1,
        "eviction": {"eviction_policy": "LRU"},
    });
    let json = valkey(&[&server], &extra);
    l2_suite::run(&Redis { json, servers: Where::Single(&server), prefix: "a[1]*@" }).await;
    let left = format!("a[1]*@{}", key("restart", 1, "s").native_key());
    for name in [left.clone(), format!("lmcached@sum@{{{left}}}")] {
        let Reply::Int(seconds) = command(server.port(), &[b"TTL", name.as_bytes()]).await else {
            panic!("no TTL")
        };
        assert!((1..=3600).contains(&seconds), "{name}: {seconds}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_cluster() {
    let Some(cluster) = Cluster::start(Flavor::Redis).await else { return };
    let json = valkey(&[&cluster.nodes[1]], &json!({"cluster_mode": true, "num_workers": 2}));
    l2_suite::run(&Redis { json, servers: Where::Cluster(&cluster), prefix: "" }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn valkey_cluster() {
    let Some(cluster) = Cluster::start(Flavor::Valkey).await else { return };
    let nodes: Vec<&RedisServer> = cluster.nodes.iter().collect();
    let json = valkey(&nodes, &json!({"cluster_mode": true, "key_prefix": "p"}));
    l2_suite::run(&Redis { json, servers: Where::Cluster(&cluster), prefix: "p@" }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_passwords() {
    let user = ["--user", "kv", "on", ">secret", "~*", "+@all", "--requirepass", "other"];
    let Some(server) = RedisServer::start(Flavor::Redis, &user).await else { return };
    let good = l2_suite::open(&valkey(&[&server], &json!({"username": "kv", "password": "secret"})));
    let key = key("auth", 1, "");
    put(&good, &key, b"value").await;
    assert_eq!(get(&good, &key, 5).await.expect("loads"), b"value");
    let default = l2_suite::open(&valkey(&[&server], &json!({"password": "other"})));
    assert_eq!(get(&default, &key, 5).await.expect("loads"), b"value");
    for wrong in [json!({}), json!({"password": "hunter2"}), json!({"username": "kv", "password": "hunter2"})]
    {
        let tier = l2_suite::open(&valkey(&[&server], &wrong));
        let error = get(&tier, &key, 5).await.expect_err("no access");
        assert!(matches!(error, LoadError::Store(Trouble::Denied(_))), "{wrong}: {error:?}");
        assert!(!tier.status().to_string().contains("hunter2"), "{}", tier.status());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_refuses_and_is_still_read() {
    let Some(server) = RedisServer::start(Flavor::Redis, &["--maxmemory", "20mb"]).await else { return };
    let tier = l2_suite::open(&resp(&server));
    let mut refused = None;
    for n in 0..40 {
        if let Err(error) = tier.store(&key("full", n, ""), SourceBuf::copy_of(&bytes(1 << 20, n))).await {
            refused = Some(error);
            break;
        }
    }
    assert!(matches!(refused, Some(StoreError::Full(_))), "{refused:?}");
    assert!(get(&tier, &key("full", 0, ""), 1 << 20).await.expect("loads") == bytes(1 << 20, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_a_peer_has_overwritten_is_a_miss_once() {
    let Some(server) = RedisServer::start(Flavor::Redis, &[]).await else { return };
    let json = resp(&server);
    let store = Redis { json: json.clone(), servers: Where::Single(&server), prefix: "" };
    let tier = store.open();
    let key = key("overwritten", 1, "");
    put(&tier, &key, &bytes(1000, 1)).await;
    store.plant(&key, &bytes(1000, 2)).await;
    assert!(matches!(get(&tier, &key, 1000).await, Err(LoadError::Damaged(_))));
    store.plant(&key, &bytes(1000, 2)).await;
    assert!(get(&tier, &key, 1000).await.expect("loads") == bytes(1000, 2), "its checksum went with it");
}

/// Loads without an end while the server is killed and started again: every load ends, with the right bytes or without
/// any, and in the end they are there again.
async fn survives_kills(tier: Arc<Tier>, mut kill_and_restart: impl AsyncFnMut()) {
    const OBJECTS: u32 = 12;
    const LEN: usize = 2 << 20;
    for n in 0..OBJECTS {
        put(&tier, &key("killed", n, ""), &bytes(LEN, n)).await;
    }
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let loaders: Vec<_> = (0..6u32)
        .map(|loader| {
            let (tier, stop) = (tier.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut good, mut bad) = (0u32, 0u32);
                let mut n = loader;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    n = (n + 5) % OBJECTS;
                    // Far beyond the deadline of the tier: a load that is not back by then is stuck.
                    let key = key("killed", n, "");
                    let load = get(&tier, &key, LEN);
                    match tokio::time::timeout(Duration::from_secs(60), load).await.expect("a stuck load") {
                        Ok(found) => {
                            assert!(found == bytes(LEN, n), "wrong bytes");
                            good += 1;
                        }
                        Err(LoadError::Store(_) | LoadError::NotFound) => {
                            bad += 1;
                            tokio::time::sleep(Duration::from_millis(2)).await;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                (good, bad)
            })
        })
        .collect();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        kill_and_restart().await;
        eventually("objects are loaded again", async || {
            let mut all = true;
            for n in 0..OBJECTS {
                all &= get(&tier, &key("killed", n, ""), LEN).await.is_ok();
            }
            all.then_some(())
        })
        .await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut sum = (0, 0);
    for loader in loaders {
        let (good, bad) = loader.await.expect("no panic");
        sum = (sum.0 + good, sum.1 + bad);
    }
    eprintln!("{} loads with the right bytes, {} without", sum.0, sum.1);
    assert!(sum.0 > 0 && sum.1 > 0, "{sum:?}");
    // A store works again too.
    let again = key("killed", 100, "");
    eventually("a store succeeds", async || {
        tier.store(&again, SourceBuf::copy_of(b"again")).await.ok().map(drop)
    })
    .await;
}

fn impatient() -> Value {
    json!({"request_timeout": 1, "connection_timeout": 1, "num_workers": 4,
           "breaker": {"first_probe_seconds": 0.1, "max_probe_seconds": 0.5}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_killed_and_restarted_under_load() {
    let Some(mut server) = RedisServer::start(Flavor::Redis, &[]).await else { return };
    let tier = l2_suite::open(&valkey(&[&server], &impatient()));
    survives_kills(tier, async || {
        server.process.kill();
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.process.start_again().await;
        server.loaded().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn valkey_killed_and_restarted_under_load() {
    let Some(mut server) = RedisServer::start(Flavor::Valkey, &[]).await else { return };
    let tier = l2_suite::open(&valkey(&[&server], &impatient()));
    survives_kills(tier, async || {
        server.process.kill();
        server.process.start_again().await;
        server.loaded().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_nodes_killed_and_restarted_under_load() {
    let Some(mut cluster) = Cluster::start(Flavor::Redis).await else { return };
    let mut json = valkey(&[&cluster.nodes[0], &cluster.nodes[1]], &impatient());
    json["cluster_mode"] = true.into();
    let tier = l2_suite::open(&json);
    let mut victim = 0;
    survives_kills(tier, async || {
        cluster.nodes[victim].process.kill();
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.nodes[victim].process.start_again().await;
        cluster.up().await;
        victim += 1;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_opens_the_breaker_and_comes_back() {
    let Some(server) = RedisServer::start(Flavor::Redis, &[]).await else { return };
    let tier = l2_suite::open(&valkey(&[&server], &impatient()));
    let key = key("frozen", 1, "");
    put(&tier, &key, &bytes(100_000, 1)).await;
    server.process.freeze();
    let guard = Arc::new(());
    for _ in 0..5 {
        let outcome = tier.load(&key, guarded(100_000, &guard)).await;
        assert!(matches!(outcome.result, Err(LoadError::Store(_))), "{:?}", outcome.result);
    }
    assert_eq!(tier.status()["breaker"]["position"], "open");
    assert_eq!(Arc::strong_count(&guard), 1, "no load holds its memory for a server that hangs");
    let before = tier.breaker().status().refused;
    assert!(tier.lookup(std::slice::from_ref(&key)).await.is_err());
    assert_eq!(tier.breaker().status().refused, before + 1, "not asked");
    server.process.thaw();
    eventually("the tier is back", async || (tier.status()["is_healthy"] == true).then_some(())).await;
    assert!(get(&tier, &key, 100_000).await.expect("loads") == bytes(100_000, 1));
}

#[allow(unsafe_code)] // Memory with a guard that the test can watch.
fn guarded(len: usize, guard: &Arc<()>) -> TargetBuf {
    let mut memory = vec![0u8; len];
    let start = memory.as_mut_ptr();
    // SAFETY: the vector is in the guard, so it lives as long; its heap memory does not move.
    unsafe { TargetBuf::new(start, len, (guard.clone(), memory)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_down_at_the_start_is_found_later() {
    let Some(mut server) = RedisServer::start(Flavor::Redis, &[]).await else { return };
    server.process.kill();
    let tier = l2_suite::open(&valkey(&[&server], &impatient()));
    let key = key("late", 1, "");
    assert!(matches!(get(&tier, &key, 1).await, Err(LoadError::Store(Trouble::Unavailable(_)))));
    server.process.start_again().await;
    eventually("a store succeeds", async || tier.store(&key, SourceBuf::copy_of(b"v")).await.ok().map(drop))
        .await;
    assert_eq!(get(&tier, &key, 1).await.expect("loads"), b"v");
}

/// A certificate for 127.0.0.1 and its key, in files.
fn certificate(dir: &std::path::Path) -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()])
        .expect("makes one");
    let path = |name: &str| dir.join(name).display().to_string();
    std::fs::write(path("cert.pem"), made.cert.pem()).expect("writes");
    std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).expect("writes");
    (path("cert.pem"), path("key.pem"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls() {
    let dir = tempfile::tempdir().expect("a directory");
    let (cert, private) = certificate(dir.path());
    let port = ipc_tests::daemon::free_port().to_string();
    let args = [
        "--tls-port",
        &port,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &private,
        "--tls-auth-clients",
        "no",
    ];
    let Some(server) = RedisServer::start(Flavor::Redis, &args).await else { return };
    let encrypted = |extra: &Value| {
        let mut json = valkey(&[&server], extra);
        json["startup_nodes"] = format!("localhost:{port}").into();
        json["tls_enable"] = true.into();
        l2_suite::open(&json)
    };
    let tier = encrypted(&json!({"tls_ca_path": cert}));
    let key = key("tls", 1, "");
    put(&tier, &key, &bytes(3 << 20, 1)).await;
    assert!(get(&tier, &key, 3 << 20).await.expect("loads") == bytes(3 << 20, 1));
    // A certificate that nobody vouches for is refused.
    let stranger = encrypted(&json!({}));
    let error = get(&stranger, &key, 3 << 20).await.expect_err("not trusted");
    assert!(matches!(error, LoadError::Store(_)), "{error:?}");
}

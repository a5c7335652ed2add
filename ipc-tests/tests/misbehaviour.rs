//! Workers that misbehave: what they do to the others is nothing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use ipc_tests::daemon::Daemon;
use ipc_tests::kv_cache::{KvCache, Shape};
use ipc_tests::pool::Pool;
use ipc_tests::worker::{Model, commit_retrieve, key, lookup, prepare_retrieve, prompt, store};
use lmcache_client::Connection;
use lmcache_proto::wire::{Request, Response};
use lmcached::events::Bus;
use lmcached::l1::{L1, L1Config};
use lmcached::l2::control::{self, Batch};

const SHAPE: Shape = Shape { layers: 2, blocks: 64, block: 16, heads: 2, head: 32 };

fn ids(from: u64, count: u64) -> Vec<Vec<u64>> {
    vec![(from..from + count).collect()]
}

async fn server_driven_store(client: &mut Connection, frame: &[u8], blocks: Vec<Vec<u64>>) -> bool {
    let request = Request::Store { key: key(frame), instance_id: 7, block_ids: blocks, event: b"ev" };
    matches!(client.call(&request).await.expect("store"), Response::Transfer(_, true))
}

async fn server_driven_retrieve(client: &mut Connection, frame: &[u8], blocks: Vec<Vec<u64>>) -> bool {
    let request = Request::Retrieve {
        key: key(frame),
        instance_id: 7,
        block_ids: blocks,
        event: b"ev",
        skip_first_n_tokens: 0,
    };
    matches!(client.call(&request).await.expect("retrieve"), Response::Transfer(_, true))
}

#[tokio::test]
async fn a_scribbled_object_is_a_miss_where_checksums_are_on() {
    let daemon = Daemon::start(&["--l1-checksums"]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(1, 4);
    assert_eq!(store(&mut client, &pool, &model, "a", &tokens, 7, 100).await, 4);
    // Found and read as ever.
    assert_eq!(lookup(&mut client, &model, "b", &tokens, 1).await, 4);
    let frame = model.key("b", &tokens).frame(Some(0), 0, 1024);
    let slots = prepare_retrieve(&mut client, &frame, 7).await.expect("slots");
    assert!((0..4).all(|chunk| pool.holds(&slots[chunk], 100 + chunk as u64)));
    assert!(commit_retrieve(&mut client, &frame, 7).await);
    // Another worker, which has mapped the pool as all have, writes over the third chunk.
    let scribbled = File::options().write(true).open(daemon.pool_path()).expect("pool");
    scribbled.write_all_at(b"!", slots[2].offset + slots[2].length / 2).expect("write");
    assert_eq!(lookup(&mut client, &model, "c", &tokens, 1).await, 4, "a lookup reads no bytes");
    let frame = model.key("c", &tokens).frame(Some(0), 0, 1024);
    assert_eq!(prepare_retrieve(&mut client, &frame, 7).await, None, "nobody is told where it is");
    assert_eq!(daemon.metric("lmcached_l1_damaged_objects_total", &[]).await, 1.0);
    let refused = ["operation=\"prepare_retrieve\"", "outcome=\"damaged\""];
    assert_eq!(daemon.metric("lmcached_requests_total", &refused).await, 1.0);
    daemon
        .metric_becomes(
            "lmcache_mp_l1_read_failure_total",
            &["reason=\"damaged\"", "during=\"l1_retrieve\""],
            1.0,
        )
        .await;
    daemon.says("an object's bytes in the pool are not those that were committed").await;
    client.call(&Request::EndSession { request_id: "c" }).await.expect("end");
    // What is before it is served, and what is stored again is whole again.
    assert_eq!(lookup(&mut client, &model, "d", &tokens, 1).await, 2);
    client.call(&Request::EndSession { request_id: "d" }).await.expect("end");
    assert_eq!(store(&mut client, &pool, &model, "e", &tokens, 7, 100).await, 1);
    let frame = model.key("e", &tokens).frame(Some(0), 0, 1024);
    let slots = prepare_retrieve(&mut client, &frame, 7).await.expect("slots");
    assert!((0..4).all(|chunk| pool.holds(&slots[chunk], 100 + chunk as u64)));
    assert!(commit_retrieve(&mut client, &frame, 7).await);
    for gauge in ["lmcached_l1_leases", "lmcached_l1_pins"] {
        assert_eq!(daemon.metric(gauge, &[]).await, 0.0, "{gauge}");
    }
}

#[tokio::test]
async fn a_scribbled_object_is_not_copied_by_the_daemon_and_survives_no_restart() {
    let mut daemon = Daemon::start(&["--l1-checksums"]).await;
    let kv = KvCache::new("scribble", SHAPE);
    kv.fill();
    let model = Model {
        name: "m".into(),
        world_size: 1,
        layers: SHAPE.layers as u64,
        width: SHAPE.heads * SHAPE.head,
    };
    let tokens = prompt(2, 2);
    let frame = |request: &str| model.key(request, &tokens).frame(Some(0), 0, 512);
    {
        let mut client = daemon.connect().await;
        let payload = Box::new(kv.registration(7, "m"));
        client.call(&Request::RegisterKvCache(payload)).await.expect("register");
        assert!(server_driven_store(&mut client, &frame("a"), ids(1, 32)).await);
        assert!(server_driven_retrieve(&mut client, &frame("b"), ids(1, 32)).await);
    }
    // Between two daemons: the second has its checksums from the first.
    daemon.crash_and_restart().await;
    let mut client = daemon.connect().await;
    let payload = Box::new(kv.registration(7, "m"));
    client.call(&Request::RegisterKvCache(payload)).await.expect("register");
    assert!(server_driven_retrieve(&mut client, &frame("c"), ids(1, 32)).await);
    // Where the second chunk is, as a worker of the other mode is told.
    client.call(&model.registration(8)).await.expect("register");
    let slots = prepare_retrieve(&mut client, &frame("other"), 8).await.expect("slots");
    assert!(commit_retrieve(&mut client, &frame("other"), 8).await);
    let pool = File::options().write(true).open(daemon.pool_path()).expect("pool");
    pool.write_all_at(b"scribble", slots[1].offset).expect("write");
    assert_eq!(lookup(&mut client, &model, "d", &tokens, 1).await, 2);
    assert!(!server_driven_retrieve(&mut client, &frame("d"), ids(1, 32)).await);
    assert_eq!(daemon.metric("lmcached_l1_damaged_objects_total", &[]).await, 1.0);
    client.call(&Request::EndSession { request_id: "d" }).await.expect("end");
    assert_eq!(lookup(&mut client, &model, "e", &tokens, 1).await, 1);
    client.call(&Request::EndSession { request_id: "e" }).await.expect("end");
    for gauge in ["lmcached_l1_leases", "lmcached_l1_pins"] {
        assert_eq!(daemon.metric(gauge, &[]).await, 0.0, "{gauge}");
    }
}

/// The storage layer alone: in the daemon nobody can tell when a tier takes an object.
#[tokio::test]
async fn a_scribbled_object_does_not_go_to_a_tier() {
    let dir = tempfile::tempdir().expect("a directory");
    let name = format!("lmcache_l1_pool_tier{}", std::process::id());
    let tier = format!(r#"--l2-adapter={{"type":"fs","base_path":"{}"}}"#, dir.path().display());
    let args = ["lmcached", "--l1-size-gb=1", &tier].map(std::ffi::OsString::from);
    let config = lmcached::config::parse(args).expect("a command line").config;
    let (l1, _) =
        L1::open(&L1Config { fresh: true, checksums: true, ..L1Config::new(name.clone(), 1 << 20) })
            .expect("memory for a small pool");
    let l1 = Arc::new(l1);
    l1.reserve_memory().expect("memory for a small pool");
    let l2 = control::open(&config.l2, &l1, &Bus::disabled(), &Arc::default()).expect("a directory");
    let cells: Vec<_> = (0..4).map(|number| ([number; 32], 0, 0)).collect();
    let reserved = l1.reserve("m", "", cells.iter().copied(), 7, 8192, None).expect("room");
    let pins: Vec<_> = reserved.iter().map(|object| object.pin).collect();
    l1.seal(&pins);
    assert_eq!(l1.commit(&pins), [true; 4]);
    let pool = File::options().write(true).open(format!("/dev/shm/{name}")).expect("pool");
    pool.write_all_at(b"scribble", reserved[1].offset + 4096).expect("write");
    l2.stores.submit(Batch { model: "m".into(), salt: "".into(), cells, layout: 7, object_bytes: 8192 });
    assert_eq!(l2.stores.flush(Duration::from_secs(60)).await, 0);
    let files = std::fs::read_dir(dir.path()).expect("the tier").flatten();
    let stored = files.filter(|file| file.file_name().to_string_lossy().ends_with(".data")).count();
    assert_eq!((stored, l1.stats().totals.damaged), (3, 1));
    // The task that stored lets go of them after it has told that it is done.
    ipc_tests::eventually("nothing is held", async || (l1.stats().pins == 0).then_some(())).await;
    l1.discard();
    ipc_tests::pool::remove(name.trim_start_matches("lmcache_l1_pool_"));
}

#[tokio::test]
async fn what_came_from_a_tier_has_a_checksum_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let tier = format!(r#"--l2-adapter={{"type":"fs","base_path":"{}"}}"#, dir.path().display());
    let daemon = Daemon::start(&["--l1-checksums", "--l2-prefetch-policy=retain", &tier]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(3, 2);
    store(&mut client, &pool, &model, "a", &tokens, 7, 100).await;
    client.call(&Request::EndSession { request_id: "a" }).await.expect("end");
    daemon.metric_becomes("lmcache_mp_l2_store_succeeded_keys_total", &[], 2.0).await;
    daemon.clear().await;
    assert_eq!(lookup(&mut client, &model, "b", &tokens, 1).await, 2, "from the tier");
    let frame = model.key("b", &tokens).frame(Some(0), 0, 512);
    let slots = prepare_retrieve(&mut client, &frame, 7).await.expect("slots");
    assert!(pool.holds(&slots[1], 101));
    assert!(commit_retrieve(&mut client, &frame, 7).await);
    let scribbled = File::options().write(true).open(daemon.pool_path()).expect("pool");
    scribbled.write_all_at(b"!", slots[1].offset).expect("write");
    assert_eq!(prepare_retrieve(&mut client, &frame, 7).await, None);
    assert_eq!(daemon.metric("lmcached_l1_damaged_objects_total", &[]).await, 1.0);
}

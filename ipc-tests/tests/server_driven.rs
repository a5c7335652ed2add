//! Transfers that the daemon drives, for a worker whose KV cache is in CPU shared memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use ipc_tests::daemon::Daemon;
use ipc_tests::http;
use ipc_tests::kv_cache::{KvCache, Shape};
use ipc_tests::worker::{Model, key, lookup, prompt};
use lmcache_client::Connection;
use lmcache_proto::wire::{DeviceDescriptor, RegisterKvCache, Request, Response};

const SHAPE: Shape = Shape::SMALL;

fn cache(tag: &str) -> KvCache {
    KvCache::new(tag, SHAPE)
}

async fn register(client: &mut Connection, payload: RegisterKvCache) {
    let ack = client.call(&Request::RegisterKvCache(Box::new(payload))).await.expect("register");
    assert_eq!(ack, Response::Nothing);
}

fn model() -> Model {
    SHAPE.model("m")
}

fn ids(from: u64, count: u64) -> Vec<Vec<u64>> {
    vec![(from..from + count).collect()]
}

async fn store(client: &mut Connection, frame: &[u8], instance: u64, blocks: Vec<Vec<u64>>) -> bool {
    let request = Request::Store { key: key(frame), instance_id: instance, block_ids: blocks, event: b"ev" };
    match client.call(&request).await.expect("store") {
        Response::Transfer(event, ok) => {
            assert_eq!(event.is_empty(), !ok, "an event means that work was submitted");
            ok
        }
        other => panic!("store answered {other:?}"),
    }
}

async fn retrieve(
    client: &mut Connection,
    frame: &[u8],
    instance: u64,
    blocks: Vec<Vec<u64>>,
    skip: u64,
) -> bool {
    let request = Request::Retrieve {
        key: key(frame),
        instance_id: instance,
        block_ids: blocks,
        event: b"ev",
        skip_first_n_tokens: skip,
    };
    matches!(client.call(&request).await.expect("retrieve"), Response::Transfer(_, true))
}

#[tokio::test]
async fn blocks_come_back_where_they_are_asked_for() {
    let daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let kv = cache("roundtrip");
    kv.fill();
    register(&mut client, kv.registration(7, "m")).await;
    let tokens = prompt(1, 2);
    let frame = model().key("a", &tokens).frame(Some(0), 0, 512);
    let originals: Vec<Vec<u8>> = (1..33).map(|block| kv.block(block)).collect();
    assert!(store(&mut client, &frame, 7, ids(1, 32)).await);
    assert_eq!(lookup(&mut client, &model(), "b", &tokens, 1).await, 2);
    kv.wipe();
    // Into other blocks, and without the first 40 tokens: 2 whole blocks of 16 are left alone.
    let frame = model().key("b", &tokens).frame(Some(0), 0, 512);
    assert!(retrieve(&mut client, &frame, 7, ids(30, 32), 40).await);
    for (position, original) in originals.iter().enumerate() {
        let now = kv.block(30 + position as u64);
        if position < 2 {
            assert!(now.iter().all(|byte| *byte == 0), "block {position} was to be skipped");
        } else {
            assert_eq!(&now, original, "block {position}");
        }
    }
    assert!(kv.block(29).iter().all(|byte| *byte == 0) && kv.block(62).iter().all(|byte| *byte == 0));
    assert_eq!(daemon.metric("lmcached_l1_leases", &[]).await, 0.0);
    assert_eq!(daemon.metric("lmcached_l1_pins", &[]).await, 0.0);
}

#[tokio::test]
async fn one_mode_serves_what_the_other_stored() {
    let daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let kv = cache("cross");
    kv.fill();
    register(&mut client, kv.registration(7, "m")).await;
    // The same model's objects as an engine-driven worker sees them.
    client.call(&model().registration(8)).await.expect("register");
    let tokens = prompt(2, 1);
    let frame = model().key("a", &tokens).frame(Some(0), 0, 256);
    assert!(store(&mut client, &frame, 7, ids(1, 16)).await);
    let slots =
        ipc_tests::worker::prepare_retrieve(&mut client, &frame, 8).await.expect("served to the other mode");
    // [planes, layers, slots, width]: slot 0 of plane 1, layer 1 is the first token of block 1 there.
    let pool = File::open(daemon.pool_path()).expect("pool");
    let width = (SHAPE.heads * SHAPE.head * 2) as usize;
    let mut from_pool = vec![0; width];
    pool.read_exact_at(&mut from_pool, slots[0].offset + ((SHAPE.layers as u64 + 1) * 256) * width as u64)
        .expect("read");
    let block = kv.block(1);
    let block_bytes = block.len() / (2 * SHAPE.layers);
    assert_eq!(from_pool, block[3 * block_bytes..3 * block_bytes + width]);
}

#[tokio::test]
async fn null_blocks_are_not_stored() {
    let daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let kv = cache("null");
    kv.fill();
    register(&mut client, kv.registration(7, "m")).await;
    let tokens = prompt(3, 2);
    let frame = model().key("a", &tokens).frame(Some(0), 0, 512);
    let blocks = vec![[vec![5; 16], vec![0; 16]].concat()];
    assert!(store(&mut client, &frame, 7, blocks).await);
    assert_eq!(lookup(&mut client, &model(), "b", &tokens, 1).await, 1, "the null chunk is not there");
}

#[tokio::test]
async fn bad_transfers_are_refused_and_change_nothing() {
    let daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let kv = cache("bad");
    kv.fill();
    register(&mut client, kv.registration(7, "m")).await;
    let tokens = prompt(4, 2);
    let frame = model().key("a", &tokens).frame(Some(0), 0, 512);
    assert!(!store(&mut client, &frame, 404, ids(1, 32)).await, "unknown worker");
    assert!(!store(&mut client, &frame, 7, ids(1, 31)).await, "too few blocks");
    assert!(!store(&mut client, &frame, 7, ids(40, 32)).await, "blocks that do not exist");
    assert!(!store(&mut client, &frame, 7, vec![vec![1; 32], vec![1; 32]]).await, "a list too many");
    assert!(!retrieve(&mut client, &frame, 7, ids(1, 32), 0).await, "nothing is cached");
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 0.0);
    assert_eq!(daemon.metric("lmcached_l1_writing_objects", &[]).await, 0.0);
    assert_eq!(daemon.metric("lmcached_l1_pins", &[]).await, 0.0);
}

#[tokio::test]
async fn a_worker_cannot_name_others_memory() {
    let daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let pool_name = format!("/{}", daemon.pool_path().file_name().expect("name").to_string_lossy());
    for name in [
        pool_name.as_str(),
        "/../etc/passwd",
        "/lmcache_kv_../../etc/passwd",
        "/lmcache_kv_nowhere",
        "",
        "relative",
    ] {
        let kv = cache("foreign");
        let mut payload = kv.registration(9, "m");
        payload.kv_cache[0] = kv.descriptor(name, SHAPE.layer_bytes());
        register(&mut client, payload).await;
    }
    // A segment smaller than announced, and shapes that overflow.
    let kv = cache("small");
    let mut payload = kv.registration(9, "m");
    payload.kv_cache[0] = kv.descriptor(kv.name(0), 1 << 40);
    register(&mut client, payload).await;
    let mut payload = kv.registration(9, "m");
    if let DeviceDescriptor::CpuShm { metadata, .. } = &mut payload.kv_cache[0] {
        metadata.shape = vec![2, u64::MAX, u64::MAX, 2, 2];
        metadata.stride = vec![u64::MAX, 1, 1, 1, 1];
    }
    register(&mut client, payload).await;
    assert_eq!(daemon.metric("lmcached_requests_total", &["\"register_kv_cache\"", "\"layout\""]).await, 8.0);
    let frame = model().key("a", &prompt(5, 1)).frame(Some(0), 0, 256);
    assert!(!store(&mut client, &frame, 9, ids(1, 16)).await);
}

#[tokio::test]
async fn a_worker_that_shrinks_its_memory_harms_only_itself() {
    let mut daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let (good, bad) = (cache("good"), cache("shrunk"));
    good.fill();
    bad.fill();
    register(&mut client, good.registration(7, "m")).await;
    register(&mut client, bad.registration(8, "other")).await;
    bad.file(1).set_len(4096).expect("shrink");
    let tokens = prompt(6, 2);
    let frame = Model { name: "other".into(), ..model() }.key("a", &tokens).frame(Some(0), 0, 512);
    assert!(!store(&mut client, &frame, 8, ids(1, 32)).await, "half of it is gone");
    assert!(daemon.alive());
    let frame = model().key("b", &tokens).frame(Some(0), 0, 512);
    assert!(store(&mut client, &frame, 7, ids(1, 32)).await);
    assert_eq!(lookup(&mut client, &model(), "c", &tokens, 1).await, 2);
    assert_eq!(daemon.metric("lmcached_requests_total", &["\"store\"", "copy_failed"]).await, 1.0);
}

#[tokio::test]
async fn checksums_are_answered_in_the_peers_shape() {
    let daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let kv = cache("sums");
    kv.fill();
    register(&mut client, kv.registration(7, "m")).await;
    let body = r#"{"block_ids": [1, 2, 3], "chunk_size": 2, "instance_id": 7}"#;
    let (status, text) = http::post(daemon.http_port(), "/cache/checksums", body).await.expect("answer");
    assert_eq!(status, 200, "{text}");
    let answer: serde_json::Value = serde_json::from_str(&text).expect("json");
    assert_eq!(answer["num_chunks"], 2);
    assert_eq!(answer["chunk_checksums"][0].as_str().map(str::len), Some(32));
    for (body, expected) in [
        (r#"{"block_ids": [], "chunk_size": 2, "instance_id": 7}"#, 400),
        (r#"{"block_ids": [1], "chunk_size": 0, "instance_id": 7}"#, 400),
        (r#"{"block_ids": [1], "chunk_size": 1, "instance_id": 404}"#, 404),
        (r#"{"block_ids": [64], "chunk_size": 1, "instance_id": 7}"#, 400),
        ("not json", 400),
    ] {
        let (status, text) = http::post(daemon.http_port(), "/cache/checksums", body).await.expect("answer");
        assert_eq!(status, expected, "{body}: {text}");
    }
}

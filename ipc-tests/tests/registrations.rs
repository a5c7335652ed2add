//! Workers that outlive the daemon: their registrations do, too.

use ipc_tests::daemon::Daemon;
use ipc_tests::kv_cache::{KvCache, Shape};
use ipc_tests::pool::Pool;
use ipc_tests::worker::{Model, commit_retrieve, key, lookup, prepare_retrieve, prompt, store};
use lmcache_client::Connection;
use lmcache_proto::wire::{Request, Response};

const SHAPE: Shape = Shape::SMALL;

fn driven_model() -> Model {
    SHAPE.model("driven")
}

async fn ping(client: &mut Connection, instance: u64) -> bool {
    client.call(&Request::Ping { instance_id: Some(instance) }).await.expect("ping") == Response::Flag(true)
}

fn blocks(from: u64) -> Vec<Vec<u64>> {
    vec![(from..from + 32).collect()]
}

async fn store_blocks(client: &mut Connection, frame: &[u8], instance: u64) -> bool {
    let request =
        Request::Store { key: key(frame), instance_id: instance, block_ids: blocks(1), event: b"ev" };
    matches!(client.call(&request).await.expect("store"), Response::Transfer(_, true))
}

async fn retrieve_blocks(client: &mut Connection, frame: &[u8], instance: u64) -> bool {
    let request = Request::Retrieve {
        key: key(frame),
        instance_id: instance,
        block_ids: blocks(30),
        event: b"ev",
        skip_first_n_tokens: 0,
    };
    matches!(client.call(&request).await.expect("retrieve"), Response::Transfer(_, true))
}

#[tokio::test]
async fn workers_are_known_after_a_kill_before_they_register() {
    let mut daemon = Daemon::start(&[]).await;
    let (model, driven) = (Model::small("m"), driven_model());
    let pool = Pool::open(&daemon.pool_path());
    let kv = KvCache::new("goes-on", SHAPE);
    kv.fill();
    let originals: Vec<Vec<u8>> = (1..33).map(|block| kv.block(block)).collect();
    let frame = driven.key("a", &prompt(2, 2)).frame(Some(0), 0, 512);
    {
        let mut client = daemon.connect().await;
        client.call(&model.registration(7)).await.expect("register");
        store(&mut client, &pool, &model, "r", &prompt(1, 4), 7, 40).await;
        let payload = Box::new(kv.registration(8, "driven"));
        client.call(&Request::RegisterKvCache(payload)).await.expect("register");
        assert!(store_blocks(&mut client, &frame, 8).await);
    }
    daemon.crash_and_restart().await;
    kv.wipe();
    let mut client = daemon.connect().await;
    // The scheduler's lookup comes before anything that names a worker.
    assert_eq!(lookup(&mut client, &model, "again", &prompt(1, 4), 1).await, 4);
    assert_eq!(lookup(&mut client, &driven, "again driven", &prompt(2, 2), 1).await, 2);
    assert!(ping(&mut client, 7).await, "it copies by itself: never told to register again");
    let again = model.key("again", &prompt(1, 4)).frame(Some(0), 0, 1024);
    let slots = prepare_retrieve(&mut client, &again, 7).await.expect("slots");
    assert!(slots.iter().enumerate().all(|(chunk, slot)| pool.holds(slot, 40 + chunk as u64)));
    assert!(commit_retrieve(&mut client, &again, 7).await);
    let again = driven.key("again driven", &prompt(2, 2)).frame(Some(0), 0, 512);
    // Whether this one still waits for what it asks for cannot be told: it never pinged (`kept_connections` has one that did).
    assert!(!retrieve_blocks(&mut client, &again, 8).await);
    // A load that was under way at the kill would wait for ever: the worker is told, once, and not served until it registers.
    assert!(!ping(&mut client, 8).await);
    assert!(!retrieve_blocks(&mut client, &again, 8).await);
    assert!(ping(&mut client, 8).await, "an edge, on which it registers");
    let payload = Box::new(kv.registration(8, "driven"));
    client.call(&Request::RegisterKvCache(payload)).await.expect("register");
    assert!(ping(&mut client, 8).await && ping(&mut client, 8).await);
    assert!(retrieve_blocks(&mut client, &again, 8).await);
    for (position, original) in originals.iter().enumerate() {
        assert_eq!(&kv.block(30 + position as u64), original, "block {position}");
    }
    // And stores, into the pool that it has mapped since before the kill.
    store(&mut client, &pool, &model, "new", &prompt(3, 2), 7, 80).await;
    assert_eq!(lookup(&mut client, &model, "new again", &prompt(3, 2), 1).await, 2);
}

#[tokio::test]
async fn memory_that_is_another_by_now_is_not_opened() {
    let mut daemon = Daemon::start(&[]).await;
    let driven = driven_model();
    let frame = driven.key("a", &prompt(2, 2)).frame(Some(0), 0, 512);
    let kv = KvCache::new("another", SHAPE);
    kv.fill();
    {
        let mut client = daemon.connect().await;
        let payload = Box::new(kv.registration(8, "driven"));
        client.call(&Request::RegisterKvCache(payload)).await.expect("register");
        assert!(store_blocks(&mut client, &frame, 8).await);
    }
    drop(kv);
    // Somebody else's memory of the same size under the old names.
    let other = KvCache::new("another", SHAPE);
    daemon.crash_and_restart().await;
    let mut client = daemon.connect().await;
    let again = driven.key("b", &prompt(2, 2)).frame(Some(0), 0, 512);
    assert!(!retrieve_blocks(&mut client, &again, 8).await);
    assert!(
        (0..64).all(|block| other.block(block).iter().all(|byte| *byte == 0)),
        "nothing was written there"
    );
    assert!(!ping(&mut client, 8).await, "and it has to register");
    let payload = Box::new(other.registration(8, "driven"));
    client.call(&Request::RegisterKvCache(payload)).await.expect("register");
    assert!(ping(&mut client, 8).await);
    assert!(retrieve_blocks(&mut client, &again, 8).await);
}

#[tokio::test]
async fn who_has_left_or_died_is_not_expected() {
    let mut daemon = Daemon::start(&[]).await;
    let model = Model::small("m");
    {
        let mut client = daemon.connect().await;
        client.call(&model.registration(7)).await.expect("register");
        client.call(&model.registration(8)).await.expect("register");
        client.call(&Request::UnregisterEngineDriven { instance_id: 7 }).await.expect("unregister");
    }
    daemon.crash_and_restart().await;
    let mut client = daemon.connect().await;
    assert!(!ping(&mut client, 7).await);
    assert!(ping(&mut client, 8).await);
    // A pool of its own is another pool: who had mapped the old one must map the new one.
    drop(client);
    daemon.restart_with(&["--fresh"]).await;
    let mut client = daemon.connect().await;
    assert!(!ping(&mut client, 8).await);
}

//! The walk of a request through the real daemon, in the engine-driven mode.

use ipc_tests::daemon::Daemon;
use ipc_tests::pool::Pool;
use ipc_tests::worker::{
    Model, commit_retrieve, commit_store, lookup, prepare_retrieve, prepare_store, prompt, store,
};
use lmcache_proto::wire::{Request, Response};

#[tokio::test]
async fn what_is_stored_is_found_and_retrieved() {
    let daemon = Daemon::start(&[]).await;
    let (mut scheduler, mut worker) = (daemon.connect().await, daemon.connect().await);
    let model = Model::small("m");
    let tokens = prompt(1, 4);
    assert_eq!(lookup(&mut scheduler, &model, "cold", &tokens, 1).await, 0, "no worker, no hit");
    let registered = worker.call(&model.registration(7)).await.expect("register");
    let Response::Registered(registered) = registered else { panic!("{registered:?}") };
    assert!(daemon.pool_path().ends_with(&registered.shm_name));
    let pool = Pool::open(&daemon.pool_path());
    assert_eq!(lookup(&mut scheduler, &model, "cold", &tokens, 1).await, 0);
    assert_eq!(store(&mut worker, &pool, &model, "cold", &tokens, 7, 100).await, 4);
    scheduler.call(&Request::EndSession { request_id: "cold" }).await.expect("end");
    // A second store of the same prompt finds everything cached.
    assert_eq!(store(&mut worker, &pool, &model, "again", &tokens, 7, 999).await, 0);

    assert_eq!(lookup(&mut scheduler, &model, "warm", &tokens, 1).await, 4);
    assert_eq!(daemon.metric("lmcached_l1_leases", &[]).await, 4.0);
    let frame = model.key("warm", &tokens).frame(Some(0), 0, 1024);
    let slots = prepare_retrieve(&mut worker, &frame, 7).await.expect("slots");
    assert_eq!(slots.len(), 4);
    assert_eq!(slots[0].shape, [2, 2, 256, 128]);
    for (chunk, slot) in slots.iter().enumerate() {
        assert!(pool.holds(slot, 100 + chunk as u64), "chunk {chunk}");
    }
    assert!(commit_retrieve(&mut worker, &frame, 7).await);
    assert_eq!(daemon.metric("lmcached_l1_leases", &[]).await, 0.0, "the reader's lease has ended");
    assert!(!commit_retrieve(&mut worker, &frame, 7).await, "nothing is pending any more");
    scheduler.call(&Request::EndSession { request_id: "warm" }).await.expect("end");
    assert_eq!(daemon.metric("lmcached_l1_pins", &[]).await, 0.0);
}

#[tokio::test]
async fn a_prefix_is_found_and_a_hole_ends_it() {
    let daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(2, 6);
    store(&mut client, &pool, &model, "a", &tokens[..512], 7, 0).await;
    assert_eq!(lookup(&mut client, &model, "b", &tokens, 1).await, 2);
    // Chunks 4 and 5 are there, 2 and 3 are not.
    let frame = model.key("c", &tokens).frame(Some(0), 1024, 1536);
    let context = prepare_store(&mut client, &frame, 7).await.expect("slots");
    assert_eq!(context.chunk_indices, [0, 1], "indices count from the range's start");
    assert!(commit_store(&mut client, &frame, 7).await);
    assert_eq!(lookup(&mut client, &model, "d", &tokens, 1).await, 2);
    // Another salt, another model, another prompt: misses.
    let salted = model.key("e", &tokens).salt("tenant").frame(None, 0, 1536);
    client.call(&Request::Lookup { key: ipc_tests::worker::key(&salted), tp_size: 1 }).await.expect("lookup");
    let status = client.call(&Request::QueryPrefetchStatus { request_id: "e" }).await.expect("status");
    assert_eq!(status, Response::Count(0));
}

#[tokio::test]
async fn two_ranks_may_retrieve_what_one_reader_declared() {
    let daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    client.call(&model.registration(8)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(3, 2);
    store(&mut client, &pool, &model, "a", &tokens, 7, 5).await;
    assert_eq!(lookup(&mut client, &model, "b", &tokens, 1).await, 2);
    let frame = model.key("b", &tokens).frame(Some(0), 0, 512);
    for instance in [7, 8, 7] {
        let slots = prepare_retrieve(&mut client, &frame, instance).await.expect("resident is enough");
        assert!(pool.holds(&slots[1], 6));
        assert!(commit_retrieve(&mut client, &frame, instance).await);
    }
}

#[tokio::test]
async fn a_reconfigured_model_misses_and_replaces() {
    let daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let old = Model::small("m");
    client.call(&old.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(4, 2);
    store(&mut client, &pool, &old, "a", &tokens, 7, 5).await;
    let new = Model { layers: 3, ..old.clone() };
    client.call(&new.registration(7)).await.expect("register again");
    assert_eq!(lookup(&mut client, &new, "b", &tokens, 1).await, 0, "other shape, other object");
    assert_eq!(store(&mut client, &pool, &new, "b", &tokens, 7, 50).await, 2);
    assert_eq!(lookup(&mut client, &new, "c", &tokens, 1).await, 2);
    assert_eq!(daemon.metric("lmcached_l1_replaced_objects_total", &[]).await, 2.0);
}

#[tokio::test]
async fn a_full_pool_evicts_and_never_what_is_held() {
    let daemon = Daemon::start(&["--l1-size-gb=0.004"]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let held = prompt(5, 4);
    store(&mut client, &pool, &model, "held", &held, 7, 500).await;
    assert_eq!(lookup(&mut client, &model, "held", &held, 1).await, 4);
    // About 16 objects fit; push 40 more through.
    for seed in 10..20 {
        store(&mut client, &pool, &model, &format!("r{seed}"), &prompt(seed, 4), 7, 0).await;
    }
    assert!(daemon.metric("lmcache_mp_l1_evicted_keys_total", &[]).await >= 24.0);
    let frame = model.key("held", &held).frame(Some(0), 0, 1024);
    let slots = prepare_retrieve(&mut client, &frame, 7).await.expect("leased objects stay");
    for (chunk, slot) in slots.iter().enumerate() {
        assert!(pool.holds(slot, 500 + chunk as u64));
    }
    // More than fits at once: refused as a whole, and not with "empty slots", which would mean "cached".
    let frame = model.key("huge", &prompt(99, 40)).frame(Some(0), 0, 40 * 256);
    assert_eq!(prepare_store(&mut client, &frame, 7).await, None);
    assert_eq!(daemon.metric("lmcached_requests_total", &["prepare_store", "pool_full"]).await, 1.0);
}

#[tokio::test]
async fn refusals_are_answers() {
    let daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    let tokens = prompt(6, 1);
    let frame = model.key("r", &tokens).frame(Some(0), 0, 256);
    assert_eq!(prepare_store(&mut client, &frame, 404).await, None);
    assert_eq!(prepare_retrieve(&mut client, &frame, 404).await, None);
    assert!(!commit_store(&mut client, &frame, 404).await);
    assert!(!commit_retrieve(&mut client, &frame, 404).await);
    let unknown = client.call(&Request::QueryPrefetchStatus { request_id: "nobody" }).await.expect("status");
    assert_eq!(unknown, Response::Count(0));
    // Pings of an unknown worker alternate, so that it sees an edge and registers; of a known one never.
    let ping = Request::Ping { instance_id: Some(7) };
    for expected in [false, true, false] {
        assert_eq!(client.call(&ping).await.expect("ping"), Response::Flag(expected));
    }
    client.call(&model.registration(7)).await.expect("register");
    for _ in 0..3 {
        assert_eq!(client.call(&ping).await.expect("ping"), Response::Flag(true));
    }
    assert_eq!(client.call(&Request::Ping { instance_id: None }).await.expect("ping"), Response::Flag(true));
    // Inline data would have to be unpickled.
    let request =
        Request::CommitStore { key: ipc_tests::worker::key(&frame), instance_id: 7, data: b"\x80\x04." };
    assert_eq!(client.call(&request).await.expect("commit"), Response::Flag(false));
}

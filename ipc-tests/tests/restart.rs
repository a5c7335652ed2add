//! What is there after the daemon was killed.

use std::ops::Range;

use ipc_tests::daemon::Daemon;
use ipc_tests::pool::Pool;
use ipc_tests::worker::{
    Model, commit_retrieve, key, lookup, prepare_retrieve, prepare_store, prompt, store,
};
use lmcache_client::Connection;
use lmcache_proto::wire::{Request, Response};

/// Worker 7 stores prompts of four chunks, each chunk with bytes of its own.
async fn fill(client: &mut Connection, pool: &Pool, model: &Model, seeds: Range<u32>) {
    for seed in seeds {
        store(client, pool, model, &format!("r{seed}"), &prompt(seed, 4), 7, u64::from(seed) << 8).await;
    }
}

/// Worker 7 finds and reads what [`fill`] has stored.
async fn are_served(client: &mut Connection, pool: &Pool, model: &Model, seeds: Range<u32>) {
    for seed in seeds {
        let (tokens, request) = (prompt(seed, 4), format!("again{seed}"));
        assert_eq!(lookup(client, model, &request, &tokens, 1).await, 4);
        let frame = model.key(&request, &tokens).frame(Some(0), 0, 1024);
        let slots = prepare_retrieve(client, &frame, 7).await.expect("slots");
        for (chunk, slot) in slots.iter().enumerate() {
            assert!(pool.holds(slot, (u64::from(seed) << 8) + chunk as u64), "prompt {seed}, chunk {chunk}");
        }
        assert!(commit_retrieve(client, &frame, 7).await);
    }
}

#[tokio::test]
async fn committed_objects_are_hits_again_and_unfinished_ones_are_not() {
    let mut daemon = Daemon::start(&[]).await;
    let model = Model::small("m");
    let pool = Pool::open(&daemon.pool_path());
    {
        let mut client = daemon.connect().await;
        client.call(&model.registration(7)).await.expect("register");
        fill(&mut client, &pool, &model, 0..10).await;
        let unfinished = model.key("half", &prompt(50, 2)).frame(Some(0), 0, 512);
        assert_eq!(prepare_store(&mut client, &unfinished, 7).await.map(|c| c.slots.len()), Some(2));
    }
    daemon.crash_and_restart().await;
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 40.0);
    assert_eq!(
        daemon.metric("lmcached_l1_quarantined_objects", &[]).await,
        2.0,
        "its writer may still write"
    );
    let mut client = daemon.connect().await;
    assert_eq!(
        client.call(&Request::Ping { instance_id: Some(7) }).await.expect("ping"),
        Response::Flag(true),
        "a worker that the earlier daemon knew need not register again"
    );
    are_served(&mut client, &pool, &model, 0..10).await;
    assert_eq!(lookup(&mut client, &model, "half again", &prompt(50, 2), 1).await, 0);
    // The pool still takes new objects, evicts old ones, and restarts again.
    for seed in 100..180 {
        store(&mut client, &pool, &model, &format!("r{seed}"), &prompt(seed, 4), 7, 0).await;
    }
    assert!(daemon.metric("lmcache_mp_l1_evicted_keys_total", &[]).await > 0.0);
    daemon.crash_and_restart().await;
    assert!(daemon.metric("lmcached_l1_objects", &[]).await > 100.0);
}

#[tokio::test]
async fn a_pool_made_for_other_chunks_is_not_believed() {
    let mut daemon = Daemon::start(&[]).await;
    let model = Model::small("m");
    let pool = Pool::open(&daemon.pool_path());
    let mut client = daemon.connect().await;
    client.call(&model.registration(7)).await.expect("register");
    store(&mut client, &pool, &model, "r", &prompt(1, 4), 7, 0).await;
    daemon.restart_with(&["--chunk-size=128"]).await;
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 0.0);
    // Salts and models of before are gone with it, and nothing of the old table is found when the old size comes back.
    daemon.restart_with(&["--chunk-size=256"]).await;
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 0.0);
}

#[tokio::test]
async fn a_larger_size_extends_the_pool_and_keeps_what_is_in_it() {
    let mut daemon = Daemon::start(&[]).await;
    let model = Model::small("m");
    let pool = Pool::open(&daemon.pool_path());
    let mut client = daemon.connect().await;
    client.call(&model.registration(7)).await.expect("register");
    // 192 objects of 256 KiB: three quarters of the pool, and then as much of a pool four times as large.
    fill(&mut client, &pool, &model, 0..48).await;
    drop(client);
    daemon.restart_with(&["--l1-size-gb=0.25", "--require-warm"]).await;
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 192.0);
    let mut client = daemon.connect().await;
    let ping = Request::Ping { instance_id: Some(7) };
    assert_eq!(
        client.call(&ping).await.expect("ping"),
        Response::Flag(false),
        "the worker has mapped a quarter of it"
    );
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    fill(&mut client, &pool, &model, 48..192).await;
    assert_eq!(daemon.metric("lmcache_mp_l1_evicted_keys_total", &[]).await, 0.0);
    are_served(&mut client, &pool, &model, 0..192).await;
    // And what the larger one holds survives as well, its workers known.
    daemon.crash_and_restart().await;
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 768.0);
    let mut client = daemon.connect().await;
    assert_eq!(client.call(&ping).await.expect("ping"), Response::Flag(true));
}

#[tokio::test]
async fn fresh_means_fresh() {
    let mut daemon = Daemon::start(&[]).await;
    let model = Model::small("m");
    let pool = Pool::open(&daemon.pool_path());
    let mut client = daemon.connect().await;
    client.call(&model.registration(7)).await.expect("register");
    let salted = model.key("r", &prompt(1, 4)).salt("tenant").frame(Some(0), 0, 1024);
    let context = prepare_store(&mut client, &salted, 7).await.expect("slots");
    context.slots.iter().for_each(|slot| pool.fill(slot, 1));
    let commit = Request::CommitStore { key: key(&salted), instance_id: 7, data: b"" };
    assert_eq!(client.call(&commit).await.expect("commit"), Response::Flag(true));
    daemon.crash_and_restart().await;
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 4.0);
    daemon.restart_with(&["--fresh"]).await;
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 0.0);
}

#[tokio::test]
async fn a_pool_that_cannot_be_taken_over_is_named_and_kept_if_that_is_asked_for() {
    let mut daemon = Daemon::start(&[]).await;
    let model = Model::small("m");
    let pool = Pool::open(&daemon.pool_path());
    let mut client = daemon.connect().await;
    client.call(&model.registration(7)).await.expect("register");
    store(&mut client, &pool, &model, "r", &prompt(1, 4), 7, 0).await;
    drop(client);
    daemon.kill();
    for (flags, field) in [
        (["--require-warm", "--chunk-size=128"], "another chunk size (256, here 128)"),
        (["--require-warm", "--hash-algorithm=sha256_cbor"], "another hash algorithm"),
        (["--require-warm", "--l1-size-gb=0.03125"], "another pool size in bytes (67108864, here 33554432)"),
    ] {
        daemon.relaunch(&[], &flags);
        assert_eq!(daemon.ends().await, Some(1), "{flags:?}");
        daemon.says(field).await;
    }
    // Nothing of it has been touched.
    daemon.relaunch(&[], &["--require-warm"]);
    assert_eq!(daemon.comes_up().await, None);
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 4.0);
    // Without the flag it is given up, and the log says why.
    daemon.restart_with(&["--chunk-size=128"]).await;
    daemon.says("cannot be taken over").await;
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 0.0);
}

#[tokio::test]
async fn bytes_that_changed_while_no_daemon_looked_are_not_served() {
    let mut daemon = Daemon::start(&["--l1-checksums", "--verify-payload"]).await;
    let model = Model::small("m");
    let pool = Pool::open(&daemon.pool_path());
    let mut client = daemon.connect().await;
    client.call(&model.registration(7)).await.expect("register");
    store(&mut client, &pool, &model, "r", &prompt(1, 4), 7, 0).await;
    let frame = model.key("where", &prompt(1, 4)).frame(Some(0), 0, 1024);
    let slots = prepare_retrieve(&mut client, &frame, 7).await.expect("slots");
    assert!(commit_retrieve(&mut client, &frame, 7).await);
    drop(client);
    pool.fill(&slots[2], 999);
    daemon.crash_and_restart().await;
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 3.0);
    assert_eq!(daemon.metric("lmcached_l1_damaged_objects_total", &[]).await, 1.0);
    let mut client = daemon.connect().await;
    assert_eq!(lookup(&mut client, &model, "again", &prompt(1, 4), 1).await, 2, "up to the damaged chunk");
}

//! What users of LMCache have reported of their servers, where no other test happens to do the same. `docs/TESTING.md` has the
//! whole list, with the test that holds each.

use std::time::Duration;

use ipc_tests::daemon::Daemon;
use ipc_tests::eventually;
use ipc_tests::fs_tier;
use ipc_tests::pool::Pool;
use ipc_tests::worker::{
    Model, await_lookup, commit_retrieve, commit_store, key, lookup, ping, prepare_retrieve, prepare_store,
    prompt, store,
};
use lmcache_client::Connection;
use lmcache_proto::wire::Request;

/// The shortest silence that a daemon may be told to take for death.
const REAPING: [&str; 2] = ["--worker-reap-timeout-seconds=30", "--worker-registration-grace-seconds=30"];

/// A lookup with a salt; the chunks found.
async fn lookup_salted(
    client: &mut Connection,
    model: &Model,
    request: &str,
    salt: &str,
    tokens: &[u32],
) -> u64 {
    let frame = model.key(request, tokens).salt(salt).frame(None, 0, tokens.len() as u64);
    client.call(&Request::Lookup { key: key(&frame), tp_size: 1 }).await.expect("lookup");
    await_lookup(client, request).await
}

/// Stores a prompt under a salt, chunks filled with `seed`, `seed + 1`, …
async fn store_salted(
    client: &mut Connection,
    pool: &Pool,
    model: &Model,
    salt: &str,
    tokens: &[u32],
    seed: u64,
) {
    let frame = model.key(salt, tokens).salt(salt).frame(Some(0), 0, tokens.len() as u64);
    let context = prepare_store(client, &frame, 7).await.expect("slots");
    assert_eq!(context.slots.len(), tokens.len() / 256, "another salt's chunks are not ours");
    for (slot, chunk) in context.slots.iter().zip(&context.chunk_indices) {
        pool.fill(slot, seed + chunk);
    }
    assert!(commit_store(client, &frame, 7).await);
}

/// #4715: a worker that lives and has nothing to do is reaped, and from then on each of its retrieves hangs. Here it has its
/// answer at once, learns from its ping that it must register, and finds what it had.
#[tokio::test]
async fn an_idle_worker_that_was_reaped_is_answered_and_comes_back() {
    let daemon = Daemon::start(&REAPING).await;
    let (mut scheduler, mut worker) = (daemon.connect().await, daemon.connect().await);
    let model = Model::small("m");
    worker.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(1, 2);
    store(&mut worker, &pool, &model, "a", &tokens, 7, 100).await;
    daemon.metric_becomes("lmcached_workers_reaped_total", &[], 1.0).await;
    daemon.says("worker reaped").await;
    let frame = model.key("b", &tokens).frame(Some(0), 0, 512);
    let answered = tokio::time::timeout(Duration::from_secs(30), prepare_retrieve(&mut worker, &frame, 7));
    assert_eq!(answered.await.expect("an answer, and no hang"), None);
    assert!(!ping(&mut worker, 7).await, "it is told to register");
    worker.call(&model.registration(7)).await.expect("register again");
    assert!(ping(&mut worker, 7).await);
    assert_eq!(lookup(&mut scheduler, &model, "c", &tokens, 1).await, 2);
    let frame = model.key("c", &tokens).frame(Some(0), 0, 512);
    let slots = prepare_retrieve(&mut worker, &frame, 7).await.expect("slots");
    assert!(pool.holds(&slots[0], 100) && pool.holds(&slots[1], 101));
    assert!(commit_retrieve(&mut worker, &frame, 7).await);
}

/// #4038: with MLA only one rank stores, and the others were deregistered without a word. Who pings is known, whatever else
/// it does or does not. #4963: a scheduler that never pings is served all the same.
#[tokio::test]
async fn a_rank_that_only_pings_and_a_scheduler_that_never_does_are_served() {
    let daemon = Daemon::start(&REAPING).await;
    let (mut scheduler, mut writer) = (daemon.connect().await, daemon.connect().await);
    let mut reader = daemon.connect().await;
    let model = Model::small("m");
    writer.call(&model.registration(7)).await.expect("register");
    reader.call(&model.registration(8)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(2, 2);
    store(&mut writer, &pool, &model, "a", &tokens, 7, 100).await;
    assert!(ping(&mut reader, 8).await);
    // The writer falls silent; that it is reaped says that the time is over.
    eventually("the silent one is reaped", async || {
        assert!(ping(&mut reader, 8).await, "it is known as long as it pings");
        tokio::time::sleep(Duration::from_millis(500)).await;
        (daemon.metric("lmcached_workers_reaped_total", &[]).await == 1.0).then_some(())
    })
    .await;
    assert!(ping(&mut reader, 8).await);
    assert_eq!(lookup(&mut scheduler, &model, "b", &tokens, 1).await, 2);
    let frame = model.key("b", &tokens).frame(Some(0), 0, 512);
    let slots = prepare_retrieve(&mut reader, &frame, 8).await.expect("slots");
    assert!(pool.holds(&slots[0], 100));
    assert!(commit_retrieve(&mut reader, &frame, 8).await);
}

/// #3770: what a lookup with a salt had locked was looked for without it, and stayed locked.
#[tokio::test]
async fn locks_of_a_lookup_with_a_salt_are_freed() {
    let daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(3, 4);
    store_salted(&mut client, &pool, &model, "tenant", &tokens, 100).await;
    assert_eq!(lookup_salted(&mut client, &model, "r", "tenant", &tokens).await, 4);
    assert_eq!(daemon.metric("lmcached_l1_leases", &[]).await, 4.0);
    // The engine takes the first half only and frees the rest, then all.
    for (begin, left) in [(512, 2.0), (0, 0.0)] {
        let frame = model.key("r", &tokens).salt("tenant").frame(None, begin, 1024);
        client.call(&Request::FreeLookupLocks { key: key(&frame), tp_size: 1 }).await.expect("free");
        daemon.metric_becomes("lmcached_l1_leases", &[], left).await;
    }
}

/// PR #4852, vllm#35931: a request that was looked up and never retrieved (aborted, or all of it in the engine's own cache) held
/// its chunks until the server ended.
#[tokio::test]
async fn locks_of_a_request_that_never_retrieves_end_with_it() {
    let daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(8, 4);
    store(&mut client, &pool, &model, "a", &tokens, 7, 100).await;
    for (request, readers) in [("one", 1), ("many", 8)] {
        assert_eq!(lookup(&mut client, &model, request, &tokens, readers).await, 4);
        assert_eq!(daemon.metric("lmcached_l1_leases", &[]).await, 4.0);
        client.call(&Request::EndSession { request_id: request }).await.expect("end");
        daemon.metric_becomes("lmcached_l1_leases", &[], 0.0).await;
    }
    daemon.clear().await;
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 0.0, "nothing holds them");
}

/// #4691: a retrieve that waited in the engine's queue found its lease run out and its objects evicted. A lease lasts as long
/// as its request; only who has gone away has a time after which it ends.
#[tokio::test]
async fn a_lease_does_not_run_out_while_its_request_waits() {
    let daemon = Daemon::start(&["--l1-size-gb=0.004", "--lease-grace-seconds=1"]).await;
    let (mut waiting, mut gone) = (daemon.connect().await, daemon.connect().await);
    let model = Model::small("m");
    waiting.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let (ours, theirs) = (prompt(4, 3), prompt(5, 3));
    store(&mut waiting, &pool, &model, "a", &ours, 7, 100).await;
    store(&mut waiting, &pool, &model, "b", &theirs, 7, 200).await;
    assert_eq!(lookup(&mut waiting, &model, "ours", &ours, 1).await, 3);
    assert_eq!(lookup(&mut gone, &model, "theirs", &theirs, 1).await, 3);
    // The one that is gone tells the time.
    drop(gone);
    daemon.metric_becomes("lmcached_l1_leases", &[], 3.0).await;
    for seed in 50..60 {
        store(&mut waiting, &pool, &model, &format!("r{seed}"), &prompt(seed, 4), 7, 0).await;
    }
    let frame = model.key("ours", &ours).frame(Some(0), 0, 768);
    let slots = prepare_retrieve(&mut waiting, &frame, 7).await.expect("what was found is there");
    assert!((0..3).all(|chunk| pool.holds(&slots[chunk], 100 + chunk as u64)));
    assert!(commit_retrieve(&mut waiting, &frame, 7).await);
}

/// #3187: an allocator without memory wrote 17,000 warnings in four hours and never came back.
#[tokio::test]
async fn a_full_pool_fills_no_log_and_serves_again() {
    let daemon = Daemon::start(&["--l1-size-gb=0.004"]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let mut held = 0;
    let frames: Vec<_> =
        (0..40).map(|seed| model.key(&format!("r{seed}"), &prompt(seed, 1)).frame(Some(0), 0, 256)).collect();
    for frame in &frames {
        held += usize::from(prepare_store(&mut client, frame, 7).await.is_some());
    }
    assert!((1..40).contains(&held), "{held} slots are held, and there is no other");
    let more = model.key("more", &prompt(1000, 1)).frame(Some(0), 0, 256);
    for _ in 0..3000 {
        assert_eq!(prepare_store(&mut client, &more, 7).await, None);
    }
    let refused = daemon.metric("lmcached_requests_total", &["prepare_store", "pool_full"]).await;
    assert_eq!(refused, (3000 + 40 - held) as f64);
    daemon.says("raise --l1-size-gb").await;
    let lines = daemon.log().iter().filter(|line| line.contains("raise --l1-size-gb")).count();
    assert!(lines < 100, "{lines} lines for {refused} refusals");
    for frame in &frames[..held] {
        assert!(commit_store(&mut client, frame, 7).await);
    }
    assert!(prepare_store(&mut client, &more, 7).await.is_some(), "what is held by nobody makes room");
}

/// #4155: the server ended with a fault at a prompt that does not fill its last chunk. Its whole chunks are stored and found.
#[tokio::test]
async fn a_prompt_that_ends_within_a_chunk_has_its_whole_chunks() {
    let daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let whole = prompt(6, 3);
    for (request, tokens) in [("a", &whole[..612]), ("b", &whole[..100])] {
        let chunks = tokens.len() / 256;
        assert_eq!(store(&mut client, &pool, &model, request, tokens, 7, 100).await, chunks, "{request}");
        assert_eq!(lookup(&mut client, &model, &format!("{request}?"), tokens, 1).await, chunks as u64);
    }
    assert_eq!(lookup(&mut client, &model, "whole", &whole, 1).await, 2);
}

/// #4825: the salt was dropped on the way, and one tenant read what another had stored. #4385: two requests' bytes in one
/// file. The same prompt under two salts are two objects, in memory and in a tier.
#[tokio::test]
async fn the_same_prompt_under_two_salts_is_two_objects_in_every_tier() {
    let dir = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(&[&fs_tier::flag(dir.path())]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(7, 2);
    let salts = [("", 100), ("one", 200), ("two", 300)];
    for (salt, seed) in salts {
        store_salted(&mut client, &pool, &model, salt, &tokens, seed).await;
    }
    assert_eq!(lookup_salted(&mut client, &model, "nobody", "three", &tokens).await, 0);
    for place in ["memory", "the tier"] {
        for (salt, seed) in salts {
            let request = format!("{place}{salt}");
            assert_eq!(lookup_salted(&mut client, &model, &request, salt, &tokens).await, 2, "{request}");
            let frame = model.key(&request, &tokens).salt(salt).frame(Some(0), 0, 512);
            let slots = prepare_retrieve(&mut client, &frame, 7).await.expect("slots");
            assert!(pool.holds(&slots[0], seed) && pool.holds(&slots[1], seed + 1), "{request}");
            assert!(commit_retrieve(&mut client, &frame, 7).await);
            client.call(&Request::EndSession { request_id: &request }).await.expect("end");
        }
        fs_tier::stored(dir.path(), 6).await;
        daemon.clear().await;
    }
}

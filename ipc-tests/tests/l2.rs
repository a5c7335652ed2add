//! L1 and L2 together, through the real daemon: what left memory is served from a tier, and what a tier does wrong is a miss.

use std::time::{Duration, Instant};

use ipc_tests::daemon::Daemon;
use ipc_tests::eventually;
use ipc_tests::fs_tier;
use ipc_tests::pool::Pool;
use ipc_tests::worker::{
    Model, await_lookup, commit_retrieve, commit_store, lookup, prepare_retrieve, prepare_store, prompt,
    start_lookup, store,
};
use lmcache_client::Connection;
use lmcache_proto::wire::{Request, Response};

async fn check(
    client: &mut Connection,
    pool: &Pool,
    model: &Model,
    request: &str,
    tokens: &[u32],
    seed: u64,
) {
    let frame = model.key(request, tokens).frame(Some(0), 0, tokens.len() as u64);
    let slots = prepare_retrieve(client, &frame, 7).await.expect("slots");
    for (chunk, slot) in slots.iter().enumerate() {
        assert!(pool.holds(slot, seed + chunk as u64), "chunk {chunk}");
    }
    assert!(commit_retrieve(client, &frame, 7).await);
    client.call(&Request::EndSession { request_id: request }).await.expect("end");
}

#[tokio::test]
async fn what_left_memory_comes_back_from_the_tier() {
    let dir = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(&[&fs_tier::flag(dir.path())]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(1, 6);
    store(&mut client, &pool, &model, "a", &tokens, 7, 100).await;
    client.call(&Request::EndSession { request_id: "a" }).await.expect("end");
    fs_tier::stored(dir.path(), 6).await;
    daemon.clear().await;
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 0.0);
    assert_eq!(lookup(&mut client, &model, "b", &tokens, 1).await, 6);
    check(&mut client, &pool, &model, "b", &tokens, 100).await;
    // The default policy: they were there for that request.
    daemon.metric_becomes("lmcached_l1_objects", &[], 0.0).await;
    assert_eq!(daemon.metric("lmcached_l1_leases", &[]).await, 0.0);
    // Half in L1, half in L2: only the missing half is loaded.
    store(&mut client, &pool, &model, "c", &tokens[..3 * 256], 7, 100).await;
    assert_eq!(lookup(&mut client, &model, "d", &tokens, 1).await, 6);
    check(&mut client, &pool, &model, "d", &tokens, 100).await;
    daemon.metric_becomes("lmcached_l1_objects", &[], 3.0).await;
    // A prompt of which the tier knows a prefix only.
    let longer: Vec<u32> = tokens.iter().copied().chain(prompt(99, 2)).collect();
    assert_eq!(lookup(&mut client, &model, "e", &longer, 1).await, 6);
}

#[tokio::test]
async fn another_daemon_serves_what_this_one_stored() {
    let dir = tempfile::tempdir().expect("a directory");
    let model = Model::small("org/m");
    let tokens = prompt(2, 4);
    {
        let mut daemon = Daemon::start(&[&fs_tier::flag(dir.path())]).await;
        let mut client = daemon.connect().await;
        client.call(&model.registration(7)).await.expect("register");
        let pool = Pool::open(&daemon.pool_path());
        store(&mut client, &pool, &model, "a", &tokens, 7, 40).await;
        // An orderly end lets the stores under way finish.
        assert_eq!(daemon.terminate(), Some(0));
    }
    let daemon = Daemon::start(&[&fs_tier::flag(dir.path()), "--l2-prefetch-policy=retain"]).await;
    let mut client = daemon.connect().await;
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    assert_eq!(lookup(&mut client, &model, "b", &tokens, 1).await, 4);
    check(&mut client, &pool, &model, "b", &tokens, 40).await;
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 4.0, "retained");
}

#[tokio::test]
async fn two_requests_for_the_same_objects_load_them_once() {
    let tier = r#"--l2-adapter={"type":"fault_inject","inner":{"type":"mock","max_size_gb":1,"mock_bandwidth_gb":100},"delay_seconds":0.3}"#;
    let daemon = Daemon::start(&[tier]).await;
    let (mut one, mut two) = (daemon.connect().await, daemon.connect().await);
    let model = Model::small("m");
    one.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(3, 4);
    store(&mut one, &pool, &model, "a", &tokens, 7, 10).await;
    one.call(&Request::EndSession { request_id: "a" }).await.expect("end");
    let stored =
        async || (daemon.status().await["storage_manager"]["l2_adapters"][0]["stores"] == 4).then_some(());
    eventually("the tier has them", stored).await;
    daemon.clear().await;
    start_lookup(&mut one, &model, "b", &tokens, 1).await;
    start_lookup(&mut two, &model, "c", &tokens, 1).await;
    let pending = one.call(&Request::QueryPrefetchStatus { request_id: "b" }).await.expect("status");
    assert_eq!(pending, Response::Nothing, "not known yet");
    assert_eq!(await_lookup(&mut one, "b").await, 4);
    assert_eq!(await_lookup(&mut two, "c").await, 4);
    assert_eq!(daemon.status().await["storage_manager"]["l2_adapters"][0]["loads"], 4);
    check(&mut one, &pool, &model, "b", &tokens, 10).await;
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 4.0, "the other request holds them");
    check(&mut two, &pool, &model, "c", &tokens, 10).await;
    daemon.metric_becomes("lmcached_l1_objects", &[], 0.0).await;
}

#[tokio::test]
async fn a_tier_that_hangs_costs_a_deadline_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let hanging = r#"--l2-adapter={"type":"fault_inject","inner":{"type":"mock","max_size_gb":1,"mock_bandwidth_gb":100},"fault":"hang","request_timeout":60}"#;
    let daemon =
        Daemon::start(&[hanging, &fs_tier::flag(dir.path()), "--l2-prefetch-deadline-seconds=1"]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(4, 4);
    store(&mut client, &pool, &model, "a", &tokens[..512], 7, 10).await;
    // What L1 has is the answer when the time is over.
    assert_eq!(lookup(&mut client, &model, "b", &tokens, 1).await, 2);
    check(&mut client, &pool, &model, "b", &tokens[..512], 10).await;
    // A lookup that L1 answers alone does not ask.
    start_lookup(&mut client, &model, "c", &tokens[..512], 1).await;
    let status = client.call(&Request::QueryPrefetchStatus { request_id: "c" }).await.expect("status");
    assert_eq!(status, Response::Count(2));
    // A request that ends gives its job up, and its leases.
    start_lookup(&mut client, &model, "d", &tokens, 1).await;
    client.call(&Request::EndSession { request_id: "d" }).await.expect("end");
    client.call(&Request::EndSession { request_id: "c" }).await.expect("end");
    daemon.metric_becomes("lmcached_l1_leases", &[], 0.0).await;
}

#[tokio::test]
async fn damaged_and_short_values_are_misses_and_go() {
    let dir = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(&[&fs_tier::flag(dir.path())]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(5, 3);
    store(&mut client, &pool, &model, "a", &tokens, 7, 10).await;
    fs_tier::stored(dir.path(), 3).await;
    daemon.clear().await;
    let files: Vec<_> = std::fs::read_dir(dir.path())
        .expect("the directory")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "data"))
        .collect();
    let mut bytes = std::fs::read(&files[0]).expect("an object");
    bytes[1000] ^= 1;
    std::fs::write(&files[0], &bytes).expect("damaged");
    std::fs::write(&files[1], &bytes[..500]).expect("cut short");
    let hit = lookup(&mut client, &model, "b", &tokens, 1).await;
    assert!(hit < 2, "two of three chunks are bad: {hit}");
    eventually("the bad values are gone", async || {
        (!files[0].exists() && !files[1].exists() && files[2].exists()).then_some(())
    })
    .await;
    client.call(&Request::EndSession { request_id: "b" }).await.expect("end");
    // Stored anew, they are served.
    let frame = model.key("c", &tokens).frame(Some(0), 0, 768);
    let context = prepare_store(&mut client, &frame, 7).await.expect("slots");
    for (slot, chunk) in context.slots.iter().zip(&context.chunk_indices) {
        pool.fill(slot, 10 + chunk);
    }
    assert!(commit_store(&mut client, &frame, 7).await);
    fs_tier::stored(dir.path(), 3).await;
    daemon.clear().await;
    assert_eq!(lookup(&mut client, &model, "d", &tokens, 1).await, 3);
    check(&mut client, &pool, &model, "d", &tokens, 10).await;
}

#[tokio::test]
async fn skip_l1_keeps_objects_in_the_tier_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(&[&fs_tier::flag(dir.path()), "--l2-store-policy=skip_l1"]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(6, 3);
    store(&mut client, &pool, &model, "a", &tokens, 7, 10).await;
    daemon.metric_becomes("lmcached_l1_objects", &[], 0.0).await;
    assert_eq!(lookup(&mut client, &model, "b", &tokens, 1).await, 3);
    check(&mut client, &pool, &model, "b", &tokens, 10).await;
}

#[tokio::test]
async fn a_waiting_client_is_woken_by_the_end_of_the_load() {
    let tier = r#"--l2-adapter={"type":"fault_inject","inner":{"type":"mock","max_size_gb":1,"mock_bandwidth_gb":100},"delay_seconds":0.2}"#;
    let daemon = Daemon::start(&[tier]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let tokens = prompt(7, 2);
    start_lookup(&mut client, &model, "b", &tokens, 1).await;
    // Its patience is over first: still pending.
    let wait = Request::WaitPrefetchStatus { request_id: "b", timeout: 0.01 };
    assert_eq!(client.call(&wait).await.expect("wait"), Response::Nothing);
    let started = Instant::now();
    let wait = Request::WaitPrefetchStatus { request_id: "b", timeout: 30.0 };
    assert_eq!(client.call(&wait).await.expect("wait"), Response::Count(0));
    assert!(started.elapsed() < Duration::from_secs(20), "woken, not timed out");
}

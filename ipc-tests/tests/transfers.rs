//! Which store a commit commits, and whose slots are whose, when requests collide.

use ipc_tests::daemon::Daemon;
use ipc_tests::pool::Pool;
use ipc_tests::worker::{Model, commit_store, lookup, prepare_retrieve, prepare_store, prompt, store};
use lmcache_proto::wire::Request;

#[tokio::test]
async fn a_reused_request_id_does_not_commit_another_prompts_slots() {
    let daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let (first, second) = (prompt(1, 2), prompt(2, 2));
    let frame = |tokens: &[u32]| model.key("0", tokens).frame(Some(0), 0, 512);
    let a = prepare_store(&mut client, &frame(&first), 7).await.expect("slots");
    let b = prepare_store(&mut client, &frame(&second), 7).await.expect("slots of its own");
    assert!(a.slots.iter().all(|slot| b.slots.iter().all(|other| other.offset != slot.offset)));
    // Only the second one's slots are filled and committed.
    b.slots.iter().for_each(|slot| pool.fill(slot, 9));
    assert!(commit_store(&mut client, &frame(&second), 7).await);
    assert_eq!(lookup(&mut client, &model, "x", &first, 1).await, 0, "nobody has written these");
    assert_eq!(lookup(&mut client, &model, "y", &second, 1).await, 2);
    // The same worker under another salt and another model: not the same transfer either.
    let salted = model.key("0", &first).salt("tenant").frame(Some(0), 0, 512);
    assert!(!commit_store(&mut client, &salted, 7).await);
    let renamed = Model { name: "other".into(), ..model.clone() };
    assert!(!commit_store(&mut client, &renamed.key("0", &first).frame(Some(0), 0, 512), 7).await);
    a.slots.iter().for_each(|slot| pool.fill(slot, 5));
    assert!(commit_store(&mut client, &frame(&first), 7).await);
    assert_eq!(lookup(&mut client, &model, "z", &first, 1).await, 2);
}

#[tokio::test]
async fn asking_again_gives_the_same_slots_from_any_connection() {
    let daemon = Daemon::start(&[]).await;
    let (mut one, mut two) = (daemon.connect().await, daemon.connect().await);
    let model = Model::small("m");
    one.call(&model.registration(7)).await.expect("register");
    let tokens = prompt(3, 3);
    let frame = model.key("r", &tokens).frame(Some(0), 0, 768);
    let first = prepare_store(&mut one, &frame, 7).await.expect("slots");
    let again = prepare_store(&mut two, &frame, 7).await.expect("slots");
    assert_eq!(first, again);
    assert_eq!(daemon.metric("lmcached_l1_pins", &[]).await, 3.0);
    assert!(commit_store(&mut two, &frame, 7).await);
    assert_eq!(daemon.metric("lmcached_l1_pins", &[]).await, 0.0, "each slot was pinned once");
}

#[tokio::test]
async fn an_overdue_store_is_neither_committed_nor_prepared_anew() {
    let daemon = Daemon::start(&["--l1-write-ttl-seconds=1"]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("m");
    client.call(&model.registration(7)).await.expect("register");
    let tokens = prompt(4, 2);
    let frame = model.key("r", &tokens).frame(Some(0), 0, 512);
    prepare_store(&mut client, &frame, 7).await.expect("slots");
    daemon.metric_becomes("lmcached_l1_quarantined_objects", &[], 2.0).await;
    // Its worker lives and may still be writing: the slots are nobody's, and no second set is given out for it.
    assert_eq!(prepare_store(&mut client, &frame, 7).await, None);
    assert_eq!(daemon.metric("lmcached_requests_total", &["prepare_store", "quarantined"]).await, 1.0);
    // Another request for the same prompt is served.
    let pool = Pool::open(&daemon.pool_path());
    assert_eq!(store(&mut client, &pool, &model, "s", &tokens, 7, 1).await, 2);
    // The late commit says that the worker is done: its slots come back, its bytes do not count.
    assert!(!commit_store(&mut client, &frame, 7).await);
    assert_eq!(daemon.metric("lmcached_l1_quarantined_objects", &[]).await, 0.0);
}

#[tokio::test]
async fn a_worker_of_another_shape_loses_what_it_had_prepared() {
    let daemon = Daemon::start(&[]).await;
    let mut client = daemon.connect().await;
    let old = Model::small("m");
    client.call(&old.registration(7)).await.expect("register");
    let tokens = prompt(5, 2);
    let frame = old.key("r", &tokens).frame(Some(0), 0, 512);
    prepare_store(&mut client, &frame, 7).await.expect("slots");
    let new = Model { layers: 3, ..old.clone() };
    client.call(&new.registration(7)).await.expect("register again");
    assert_eq!(daemon.metric("lmcached_l1_quarantined_objects", &[]).await, 2.0);
    assert!(!commit_store(&mut client, &frame, 7).await);
    assert_eq!(lookup(&mut client, &new, "x", &tokens, 1).await, 0);
}

#[tokio::test]
async fn a_store_outlives_its_session() {
    let daemon = Daemon::start(&[]).await;
    let (mut scheduler, mut worker) = (daemon.connect().await, daemon.connect().await);
    let model = Model::small("m");
    worker.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(6, 2);
    assert_eq!(lookup(&mut scheduler, &model, "r", &tokens, 1).await, 0);
    let frame = model.key("r", &tokens).frame(Some(0), 0, 512);
    let context = prepare_store(&mut worker, &frame, 7).await.expect("slots");
    scheduler.call(&Request::EndSession { request_id: "r" }).await.expect("end");
    context.slots.iter().for_each(|slot| pool.fill(slot, 3));
    assert!(commit_store(&mut worker, &frame, 7).await);
    assert_eq!(daemon.status().await["active_sessions"], 0, "a transfer makes no session");
    assert!(prepare_retrieve(&mut worker, &frame, 7).await.is_some());
}

#[tokio::test]
async fn leases_of_a_client_that_left_end_after_the_grace_period() {
    let daemon = Daemon::start(&["--lease-grace-seconds=1"]).await;
    let (mut scheduler, mut worker) = (daemon.connect().await, daemon.connect().await);
    let model = Model::small("m");
    worker.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(7, 2);
    store(&mut worker, &pool, &model, "a", &tokens, 7, 1).await;
    assert_eq!(lookup(&mut scheduler, &model, "b", &tokens, 1).await, 2);
    drop(scheduler);
    daemon.metric_becomes("lmcached_l1_leases", &[], 0.0).await;
}

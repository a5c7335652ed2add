//! What a worker with GPU memory leaves behind when it dies or goes: its memory comes back, and what it had asked for is answered.

use std::sync::Arc;
use std::time::Duration;

use ipc_tests::daemon::Daemon;
use ipc_tests::device_suite::Announce;
use ipc_tests::gpu::Gpus;
use ipc_tests::gpu_suite::{blocks, contexts_become, frame, memory, open_become, subject, unregister};
use ipc_tests::worker::ping;
use lmcache_proto::wire::{Request, Response};
use nix::sys::wait::{Id, WaitPidFlag, waitid};

/// A worker that registers itself, asks for a store behind an event that will not fire any more, and is killed: what it has open
/// at the daemon goes, and the store is answered.
async fn a_worker_dies(
    announce: Announce,
    flags: &[&str],
    endpoint: impl Fn(&Daemon) -> String,
    noticed_after: Duration,
) {
    let gpus = Gpus::new(1, &[]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), flags).await;
    let endpoint = endpoint(&daemon);
    let worker = Arc::new(gpus.worker(0, None));
    let registered = memory(&worker, announce);
    let of_worker = subject(&registered, 1);
    let registration = of_worker.registration("m");
    worker.call(&endpoint, &Request::RegisterKvCache(Box::new(registration)));
    open_become(&gpus, &daemon, 1).await;
    worker.call(&endpoint, &Request::Ping { instance_id: Some(1) });
    worker.ask("hold");
    let event = of_worker.backing.event();
    let pending_key = frame("m", "a", 1);
    let mut client = daemon.connect().await;
    let store = of_worker.store_request(&pending_key, vec![blocks()], &event);
    let uid = client.send(&store).await.expect("sent");
    // Others behind it: their events are of one word, which must not fall.
    let mut others = daemon.connect().await;
    for seed in 2..6 {
        let (event, name) = (of_worker.backing.event(), frame("m", "b", seed));
        let store = of_worker.store_request(&name, vec![blocks()], &event);
        others.send(&store).await.expect("sent");
    }
    daemon.metric_becomes("lmcached_l1_writing_objects", &[], 5.0).await;
    if announce == Announce::Isolated {
        // Its words.
        open_become(&gpus, &daemon, 2).await;
    }
    worker.sigkill();
    tokio::time::sleep(noticed_after).await;
    open_become(&gpus, &daemon, 0).await;
    assert!(matches!(
        client.wait(store.operation(), &uid).await.expect("refused"),
        Response::Transfer(_, false)
    ));
    daemon.metric_becomes("lmcached_l1_writing_objects", &[], 0.0).await;
    // Whether an event of a dead process ever fires is the driver's affair. A word is written by the daemon.
    if announce == Announce::Isolated {
        contexts_become(&gpus, &daemon, &[]).await;
    }
}

#[tokio::test]
async fn the_memory_of_a_killed_worker_comes_back_at_once() {
    for announce in [Announce::Torch, Announce::Isolated] {
        // Nothing here goes by time.
        let flags = ["--bind=ipc://{dir}/sock", "--worker-reap-timeout-seconds=0"];
        let endpoint = |daemon: &Daemon| format!("ipc://{}/sock", daemon.dir().display());
        a_worker_dies(announce, &flags, endpoint, Duration::ZERO).await;
    }
}

/// First its kernel hangs and its events are overdue, so that it is no worker any more; then somebody ends it.
#[tokio::test]
async fn words_of_a_worker_that_hung_and_was_killed_keep_nothing() {
    let gpus = Gpus::new(1, &[]);
    let flags = ["--bind=ipc://{dir}/sock", "--cuda-event-timeout-seconds=1"];
    let daemon = Daemon::start_in(&gpus.of_daemon(), &flags).await;
    let endpoint = format!("ipc://{}/sock", daemon.dir().display());
    let worker = Arc::new(gpus.worker(0, None));
    let registered = memory(&worker, Announce::Isolated);
    let of_worker = subject(&registered, 1);
    worker.ask("hold");
    let mut client = daemon.connect().await;
    // And registers again and again meanwhile: each time something waits for a higher value of the same word.
    for seed in 1..4 {
        worker.call(&endpoint, &Request::RegisterKvCache(Box::new(of_worker.registration("m"))));
        assert!(!of_worker.store(&mut client, &frame("m", "a", seed), blocks()).await.1);
    }
    daemon.says("its event did not fire within 1 s").await;
    // Its words are open, as a stream looks at them.
    open_become(&gpus, &daemon, 1).await;
    assert_eq!(gpus.contexts_of(daemon.pid()), [0]);
    worker.sigkill();
    open_become(&gpus, &daemon, 0).await;
    contexts_become(&gpus, &daemon, &[]).await;
}

/// Over TCP nobody knows that it is dead, but it is not heard any more.
async fn a_worker_dies_on_tcp(announce: Announce) {
    // The shortest that is allowed.
    let (flags, silence) = (["--worker-reap-timeout-seconds=30"], Duration::from_secs(30));
    a_worker_dies(announce, &flags, Daemon::endpoint, silence).await;
}

#[tokio::test]
async fn the_memory_of_a_worker_that_was_killed_on_tcp_comes_back_when_it_is_reaped() {
    a_worker_dies_on_tcp(Announce::Torch).await;
}

#[tokio::test]
async fn so_does_that_of_an_isolated_one() {
    a_worker_dies_on_tcp(Announce::Isolated).await;
}

/// As destroying the context might wait for it, too.
#[tokio::test]
async fn an_event_that_a_worker_left_behind_is_said_and_waited_for() {
    let gpus = Gpus::new(1, &[]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &["--cuda-event-timeout-seconds=1"]).await;
    let worker = Arc::new(gpus.worker(0, None));
    let memory = memory(&worker, Announce::Torch);
    let mut client = daemon.connect().await;
    let subject = subject(&memory, 1);
    subject.register(&mut client, "m").await;
    worker.ask("hold");
    let event = worker.event();
    let pending_key = frame("m", "a", 1);
    let store = subject.store_request(&pending_key, vec![blocks()], &event);
    client.send(&store).await.expect("sent");
    daemon.metric_becomes("lmcached_l1_writing_objects", &[], 1.0).await;
    unregister(&mut client, 1).await;
    open_become(&gpus, &daemon, 0).await;
    daemon.says("events that it had recorded have not fired since").await;
    assert_eq!(gpus.contexts_of(daemon.pid()), [0]);
    worker.ask("go");
    contexts_become(&gpus, &daemon, &[]).await;
}

#[tokio::test]
async fn a_handle_whose_exporter_is_dead_is_refused() {
    let gpus = Gpus::new(1, &[]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &[]).await;
    let worker = Arc::new(gpus.worker(0, None));
    let stale = memory(&worker, Announce::Torch);
    let registration = subject(&stale, 1).registration("m");
    worker.sigkill();
    let mut client = daemon.connect().await;
    // Dead when it can be waited for, which is left to its owner.
    let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    let pid = nix::unistd::Pid::from_raw(worker.pid() as i32);
    waitid(Id::Pid(pid), ended).expect("it ends");
    client.call(&Request::RegisterKvCache(Box::new(registration))).await.expect("acknowledged");
    daemon.says("cuIpcOpenMemHandle_v2 failed: invalid handle (400). The engine must be alive").await;
    assert!(!ping(&mut client, 1).await);
    contexts_become(&gpus, &daemon, &[]).await;
}

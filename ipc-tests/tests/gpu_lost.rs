//! GPUs that are lost: a context that had an error from which it does not recover, and events that never fire. All workers of such
//! a context let it go, busy or not, so that it can be made anew; nobody waits for what will not come.

use std::sync::Arc;

use ipc_tests::daemon::Daemon;
use ipc_tests::device_suite::{Announce, model};
use ipc_tests::eventually;
use ipc_tests::gpu::Gpus;
use ipc_tests::gpu_suite::{
    blocks, contexts_become, frame, is_served, is_told, memory, open_become, subject, unregister,
};
use ipc_tests::worker::{lookup, ping, prompt};
use lmcache_proto::wire::Response;

/// How an error from which a context does not recover arrives: at the call, or when the device gets there.
const ARRIVES: [&str; 2] = ["sticky", "late"];

/// One that is long past when the tests' patience ends.
const NO_TIMEOUT: &str = "--cuda-event-timeout-seconds=3600";

#[tokio::test]
async fn a_lost_context_is_let_go_by_all_its_workers() {
    for arrives in ARRIVES {
        let gpus = Gpus::new(1, &[]);
        let daemon = Daemon::start_in(&gpus.of_daemon(), &[]).await;
        let (one, other) = (Arc::new(gpus.worker(0, None)), Arc::new(gpus.worker(0, None)));
        let (of_one, of_other) = (memory(&one, Announce::Torch), memory(&other, Announce::Torch));
        let (busy, idle) = (subject(&of_one, 1), subject(&of_other, 2));
        let mut client = daemon.connect().await;
        busy.register(&mut client, "m").await;
        idle.register(&mut client, "m").await;
        assert!(idle.store(&mut client, &frame("m", "a", 1), blocks()).await.1);
        gpus.faults(&format!("cuMemcpyBatchAsync 700 {arrives}\n"));
        assert!(!busy.store(&mut client, &frame("m", "b", 2), blocks()).await.1, "{arrives}");
        daemon.says("the GPU context is lost").await;
        // Nothing is heard of the other one meanwhile.
        contexts_become(&gpus, &daemon, &[]).await;
        open_become(&gpus, &daemon, 0).await;
        is_told(&mut client, 2).await;
        is_told(&mut client, 1).await;
        daemon.metric_becomes("lmcached_l1_writing_objects", &[], 0.0).await;
        gpus.faults("");
        // At the first try, whoever comes first.
        is_served(&mut client, &idle, 3).await;
        is_served(&mut client, &busy, 4).await;
        open_become(&gpus, &daemon, 2).await;
        // What was stored before is there.
        assert_eq!(lookup(&mut client, &model("m"), "d", &prompt(1, 1), 1).await, 1);
        assert!(busy.retrieve(&mut client, &frame("m", "d", 1), blocks(), 0).await.1);
        assert!(busy.blocks()[1..17] == idle.blocks()[1..17]);
    }
}

/// Also one that comes while the others are still letting it go: it waits for them, and is served.
#[tokio::test]
async fn who_registers_while_a_lost_context_is_let_go_is_served() {
    let gpus = Gpus::new(1, &[]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &[]).await;
    let workers: Vec<_> = (0..4).map(|_| Arc::new(gpus.worker(0, None))).collect();
    let memories: Vec<_> = workers.iter().map(|worker| memory(worker, Announce::Torch)).collect();
    let mut client = daemon.connect().await;
    for (at, memory) in memories.iter().enumerate().skip(1) {
        subject(memory, at as u64).register(&mut client, "m").await;
    }
    for round in 1..9 {
        gpus.faults(&format!("cuMemcpyBatchAsync 700 sticky round={round}\n"));
        let lost = 1 + (round - 1) % 3;
        let failed = subject(&memories[lost as usize], lost);
        assert!(!failed.store(&mut client, &frame("m", "a", round as u32), blocks()).await.1);
        // At once: one has just failed, and the others may not have been told yet. No ping is needed.
        for (at, memory) in memories.iter().enumerate() {
            is_served(&mut client, &subject(memory, at as u64), 100 * round as u32 + at as u32).await;
        }
        for (at, memory) in memories.iter().enumerate() {
            let worker = subject(memory, at as u64);
            let name = frame("m", "c", 100 * round as u32 + at as u32 + 50);
            assert!(worker.store(&mut client, &name, blocks()).await.1, "{at} in round {round}, later");
            assert!(ping(&mut client, at as u64).await, "{at} in round {round} is known");
        }
    }
    let refused =
        daemon.metric("lmcached_requests_total", &["operation=\"register_kv_cache\"", "layout"]).await;
    assert_eq!(refused, 0.0, "registrations were refused");
}

/// Transfers that wait, are under way or come later are answered when the context is lost, and not when their time is over.
#[tokio::test]
async fn who_waits_when_the_context_is_lost_is_answered() {
    for arrives in ARRIVES {
        let gpus = Gpus::new(1, &[]);
        let daemon = Daemon::start_in(&gpus.of_daemon(), &[NO_TIMEOUT]).await;
        let (one, other) = (Arc::new(gpus.worker(0, None)), Arc::new(gpus.worker(0, None)));
        let (of_one, of_other) = (memory(&one, Announce::Torch), memory(&other, Announce::Torch));
        let (first, second) = (subject(&of_one, 1), subject(&of_other, 2));
        let mut client = daemon.connect().await;
        first.register(&mut client, "m").await;
        second.register(&mut client, "m").await;
        assert!(first.store(&mut client, &frame("m", "a", 1), blocks()).await.1);
        assert_eq!(lookup(&mut client, &model("m"), "b", &prompt(1, 1), 1).await, 1);
        // One waits for its event, one is copied; and then one is copied that fails.
        other.ask("hold");
        let (held, fired) = (other.event(), one.event());
        let names = [frame("m", "c", 2), frame("m", "b", 1), frame("m", "d", 3)];
        let waits = second.store_request(&names[0], vec![blocks()], &held);
        // Connections of their own: one drops the answers that are not waited for.
        let (mut second_client, mut third_client) = (daemon.connect().await, daemon.connect().await);
        let waits_for = client.send(&waits).await.expect("sent");
        daemon.metric_becomes("lmcached_l1_writing_objects", &[], 1.0).await;
        gpus.faults(&format!("cuMemcpyBatchAsync 1 held\ncuMemcpyBatchAsync 719 skip=1 {arrives}\n"));
        let retrieve = first.retrieve_request(&names[1], vec![blocks()], &fired, 0);
        let is_copied = second_client.send(&retrieve).await.expect("sent");
        daemon.metric_becomes("lmcached_l1_pins", &[], 2.0).await;
        // Requests with keys are handled one after the other: the retrieve has been handed over.
        assert_eq!(lookup(&mut second_client, &model("m"), "x", &prompt(9, 1), 1).await, 0);
        let fails = first.store_request(&names[2], vec![blocks()], &fired);
        let fails_at = third_client.send(&fails).await.expect("sent");
        let asked = [
            (&mut third_client, &fails, fails_at),
            (&mut second_client, &retrieve, is_copied),
            (&mut client, &waits, waits_for),
        ];
        for (asker, request, id) in asked {
            let answer = asker.wait(request.operation(), &id).await.expect("an answer");
            assert!(matches!(answer, Response::Transfer(_, false)), "{arrives}: {answer:?}");
        }
        contexts_become(&gpus, &daemon, &[]).await;
        daemon.metric_becomes("lmcached_l1_writing_objects", &[], 0.0).await;
        gpus.faults("");
        other.ask("go");
        is_served(&mut client, &second, 4).await;
        is_served(&mut client, &first, 5).await;
    }
}

/// What a GPU might still write belongs to nobody else, as long as it is not certain that its context is gone.
#[tokio::test]
async fn objects_stay_reserved_while_a_lost_context_may_be_there() {
    let gpus = Gpus::new(1, &[]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &[]).await;
    let worker = Arc::new(gpus.worker(0, None));
    let of_worker = memory(&worker, Announce::Torch);
    let failed = subject(&of_worker, 1);
    let mut client = daemon.connect().await;
    failed.register(&mut client, "m").await;
    gpus.faults("cuMemcpyBatchAsync 700 late\ncuDevicePrimaryCtxReset_v2 2\ncuDevicePrimaryCtxGetState 2\n");
    assert!(!failed.store(&mut client, &frame("m", "a", 1), blocks()).await.1);
    daemon.says("cannot destroy a GPU context; what its GPU might still write stays reserved").await;
    assert_eq!(daemon.metric("lmcached_l1_writing_objects", &[]).await, 1.0);
    is_served(&mut client, &failed, 2).await;
}

/// Nothing is under way, so nobody would notice by a call that the context is lost while the gate waits.
#[tokio::test]
async fn a_context_that_is_lost_while_a_transfer_waits_is_noticed() {
    for fault in ["cuStreamWaitEvent 714 late", "cuStreamQuery 719 sticky"] {
        let gpus = Gpus::new(1, &[]);
        let daemon = Daemon::start_in(&gpus.of_daemon(), &[NO_TIMEOUT]).await;
        let worker = Arc::new(gpus.worker(0, None));
        let of_worker = memory(&worker, Announce::Torch);
        let waits = subject(&of_worker, 1);
        let mut client = daemon.connect().await;
        waits.register(&mut client, "m").await;
        worker.ask("hold");
        gpus.faults(&format!("{fault}\n"));
        assert!(!waits.store(&mut client, &frame("m", "a", 1), blocks()).await.1, "{fault}");
        daemon.says("the GPU context is lost").await;
        contexts_become(&gpus, &daemon, &[]).await;
        gpus.faults("");
        worker.ask("go");
        waits.register(&mut client, "m").await;
        // A question that fails by itself is asked again.
        worker.ask("hold");
        gpus.faults("cuStreamQuery 2\n");
        let key_frame = frame("m", "b", 1);
        let event = worker.event();
        let store = waits.store_request(&key_frame, vec![blocks()], &event);
        let id = client.send(&store).await.expect("sent");
        daemon
            .metric_becomes("lmcached_cuda_errors_total", &["call=\"cuStreamQuery\"", "GPU memory"], 1.0)
            .await;
        worker.ask("go");
        let stored = client.wait(store.operation(), &id).await.expect("an answer");
        assert!(matches!(stored, Response::Transfer(_, true)), "{stored:?}");
    }
}

/// A pool that is pinned in a context without workers is not worth keeping the context, once it is lost.
#[tokio::test]
async fn a_lost_context_that_only_the_pool_is_pinned_in_goes() {
    let gpus = Gpus::new(2, &[]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &[]).await;
    let (first, second) = (Arc::new(gpus.worker(0, None)), Arc::new(gpus.worker(1, None)));
    let (of_first, of_second) = (memory(&first, Announce::Torch), memory(&second, Announce::Torch));
    let (one, idle) = (subject(&of_first, 1), subject(&of_second, 2));
    let mut client = daemon.connect().await;
    one.register(&mut client, "m").await;
    idle.register(&mut client, "m").await;
    unregister(&mut client, 1).await;
    open_become(&gpus, &daemon, 1).await;
    assert_eq!(gpus.contexts_of(daemon.pid()), [0, 1], "the pool is pinned in the first");
    gpus.faults("cuIpcOpenMemHandle_v2 719 sticky\n");
    one.register(&mut client, "m").await;
    daemon.says("the GPU context is lost").await;
    contexts_become(&gpus, &daemon, &[1]).await;
    gpus.faults("");
    is_served(&mut client, &one, 1).await;
    is_served(&mut client, &idle, 2).await;
}

/// All that a worker names may be open already, and what fails is something of ours.
#[tokio::test]
async fn a_context_that_is_found_lost_by_a_registration_goes() {
    let gpus = Gpus::new(1, &[]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &[]).await;
    let worker = Arc::new(gpus.worker(0, None));
    let of_worker = memory(&worker, Announce::Torch);
    let (idle, comes) = (subject(&of_worker, 1), subject(&of_worker, 2));
    let mut client = daemon.connect().await;
    idle.register(&mut client, "m").await;
    gpus.faults("cuStreamCreate 719 sticky\n");
    comes.register(&mut client, "m").await;
    contexts_become(&gpus, &daemon, &[]).await;
    is_told(&mut client, 1).await;
    gpus.faults("");
    is_served(&mut client, &comes, 1).await;
    is_served(&mut client, &idle, 2).await;
}

/// A bug in a worker's thread costs that worker: it is told so, what it asked for is answered, and it comes back.
#[tokio::test]
async fn a_thread_that_panics_costs_its_worker_alone() {
    let gpus = Gpus::new(1, &[]);
    let mut environment = gpus.of_daemon();
    environment.push(("LMCACHED_FAILPOINT", "lane.over:3"));
    let daemon = Daemon::start_in(&environment, &[]).await;
    let (one, other) = (Arc::new(gpus.worker(0, None)), Arc::new(gpus.worker(0, None)));
    let (of_one, of_other) = (memory(&one, Announce::Torch), memory(&other, Announce::Torch));
    let (fails, goes_on) = (subject(&of_one, 1), subject(&of_other, 2));
    let mut client = daemon.connect().await;
    fails.register(&mut client, "m").await;
    goes_on.register(&mut client, "m").await;
    assert!(goes_on.store(&mut client, &frame("m", "a", 1), blocks()).await.1);
    assert!(fails.store(&mut client, &frame("m", "b", 2), blocks()).await.1);
    assert!(!fails.store(&mut client, &frame("m", "c", 3), blocks()).await.1);
    daemon.says("its thread has panicked; this is a bug in lmcached, please report it").await;
    daemon.metric_becomes("lmcached_l1_writing_objects", &[], 0.0).await;
    is_told(&mut client, 1).await;
    open_become(&gpus, &daemon, 1).await;
    assert!(goes_on.store(&mut client, &frame("m", "d", 4), blocks()).await.1);
    is_served(&mut client, &fails, 5).await;
}

/// In the middle of what it enqueues: nothing is told or let go of what is under way, and what waits goes on waiting for its event,
/// or for the loss of the context.
#[tokio::test]
async fn a_thread_that_panics_lets_go_of_nothing_that_is_under_way() {
    for loss in [false, true] {
        let gpus = Gpus::new(1, &[]);
        let mut environment = gpus.of_daemon();
        environment.push(("LMCACHED_FAILPOINT", "lane.enqueued:2"));
        let daemon = Daemon::start_in(&environment, &[NO_TIMEOUT]).await;
        let (one, other) = (Arc::new(gpus.worker(0, None)), Arc::new(gpus.worker(0, None)));
        let (of_one, of_other) = (memory(&one, Announce::Torch), memory(&other, Announce::Torch));
        let (fails, goes_on) = (subject(&of_one, 1), subject(&of_other, 2));
        let mut client = daemon.connect().await;
        fails.register(&mut client, "m").await;
        goes_on.register(&mut client, "m").await;
        // The first is held in its copy, and the thread panics when the second is enqueued. A third waits.
        gpus.faults("cuMemcpyBatchAsync 1 held\n");
        let fired = one.event();
        one.ask("hold");
        let held = one.event();
        let mut asked = Vec::new();
        for (seed, event) in [(1, &fired), (2, &held), (3, &fired)] {
            let name = frame("m", "a", seed);
            let store = fails.store_request(&name, vec![blocks()], event);
            let mut asker = daemon.connect().await;
            let id = asker.send(&store).await.expect("sent");
            daemon.metric_becomes("lmcached_l1_writing_objects", &[], f64::from(seed)).await;
            // It has been handed over.
            assert_eq!(lookup(&mut asker, &model("m"), "x", &prompt(9, 1), 1).await, 0);
            asked.push((asker, store.operation(), id));
        }
        daemon.says("at lane.enqueued, as a test has asked for").await;
        assert!(ping(&mut client, 2).await);
        assert_eq!(daemon.metric("lmcached_l1_writing_objects", &[]).await, 3.0, "nothing is let go");
        gpus.faults("");
        for (asker, operation, id) in &mut asked {
            let answer = asker.wait(*operation, id).await.expect("an answer");
            assert!(matches!(answer, Response::Transfer(_, false)), "{answer:?}");
        }
        daemon.metric_becomes("lmcached_l1_writing_objects", &[], 0.0).await;
        is_told(&mut client, 1).await;
        assert!(goes_on.store(&mut client, &frame("m", "b", 4), blocks()).await.1);
        if loss {
            gpus.faults("cuMemcpyBatchAsync 700 sticky\n");
            assert!(!goes_on.store(&mut client, &frame("m", "c", 5), blocks()).await.1);
            contexts_become(&gpus, &daemon, &[]).await;
            gpus.faults("");
            goes_on.register(&mut client, "m").await;
        }
        one.ask("go");
        fails.register(&mut client, "m").await;
        for worker in [&fails, &goes_on] {
            let name = frame("m", "d", 6 + worker.instance as u32);
            assert!(worker.store(&mut client, &name, blocks()).await.1);
            unregister(&mut client, worker.instance).await;
        }
        contexts_become(&gpus, &daemon, &[]).await;
    }
}

/// Each event that never fires leaves a thread behind, and an engine that hangs registers again and again.
#[tokio::test]
async fn the_workers_of_a_gpu_have_a_bound() {
    const MOST: u64 = 256;
    let gpus = Gpus::new(1, &[]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &["--max-registered-workers=1000"]).await;
    let worker = Arc::new(gpus.worker(0, None));
    let of_worker = memory(&worker, Announce::Torch);
    let mut client = daemon.connect().await;
    for instance in 1..=MOST {
        subject(&of_worker, instance).register(&mut client, "m").await;
    }
    assert!(ping(&mut client, MOST).await);
    subject(&of_worker, MOST + 1).register(&mut client, "m").await;
    is_told(&mut client, MOST + 1).await;
    daemon.says("An engine's kernels hang").await;
    unregister(&mut client, 1).await;
    let served = async || {
        subject(&of_worker, MOST + 1).register(&mut client, "m").await;
        let (_, done) = subject(&of_worker, MOST + 1).store(&mut client, &frame("m", "a", 1), blocks()).await;
        done.then_some(())
    };
    eventually("the next one is served when one has gone", served).await;
}

/// A stream that waits for an event that does not fire ends with its context.
#[tokio::test]
async fn an_overdue_event_does_not_keep_a_context_that_is_lost_later() {
    for announce in [Announce::Torch, Announce::Isolated] {
        let gpus = Gpus::new(1, &[]);
        let daemon = Daemon::start_in(&gpus.of_daemon(), &["--cuda-event-timeout-seconds=1"]).await;
        let (bad, good) = (Arc::new(gpus.worker(0, None)), Arc::new(gpus.worker(0, None)));
        let (of_bad, of_good) = (memory(&bad, announce), memory(&good, Announce::Torch));
        let (overdue, other) = (subject(&of_bad, 1), subject(&of_good, 2));
        let mut client = daemon.connect().await;
        overdue.register(&mut client, "m").await;
        other.register(&mut client, "m").await;
        bad.ask("hold");
        assert!(!overdue.store(&mut client, &frame("m", "a", 1), blocks()).await.1);
        daemon.says("its event did not fire within 1 s").await;
        is_told(&mut client, 1).await;
        gpus.faults("cuMemcpyBatchAsync 700 sticky\n");
        assert!(!other.store(&mut client, &frame("m", "b", 2), blocks()).await.1);
        contexts_become(&gpus, &daemon, &[]).await;
        gpus.faults("");
        bad.ask("go");
        is_served(&mut client, &overdue, 4).await;
        is_served(&mut client, &other, 5).await;
    }
}

/// What waits for an overdue event is kept as long as it must be, and no longer.
#[tokio::test]
async fn a_context_goes_when_an_overdue_event_has_fired() {
    for announce in [Announce::Torch, Announce::Isolated] {
        let gpus = Gpus::new(1, &[]);
        let daemon = Daemon::start_in(&gpus.of_daemon(), &["--cuda-event-timeout-seconds=1"]).await;
        let worker = Arc::new(gpus.worker(0, None));
        let of_worker = memory(&worker, announce);
        let overdue = subject(&of_worker, 1);
        let mut client = daemon.connect().await;
        overdue.register(&mut client, "m").await;
        worker.ask("hold");
        assert!(!overdue.store(&mut client, &frame("m", "a", 1), blocks()).await.1);
        // It is closed all the same; a word stays open while a stream looks at it.
        open_become(&gpus, &daemon, usize::from(announce == Announce::Isolated)).await;
        assert_eq!(gpus.contexts_of(daemon.pid()), [0], "a stream of it still waits");
        worker.ask("go");
        open_become(&gpus, &daemon, 0).await;
        contexts_become(&gpus, &daemon, &[]).await;
        is_served(&mut client, &overdue, 1).await;
        unregister(&mut client, 1).await;
        contexts_become(&gpus, &daemon, &[]).await;
    }
}

//! Transfers of GPU workers in a daemon at work: what is copied at the same time, what waits for what, and a pool that is pinned in
//! several parts.

use std::sync::Arc;

use ipc_tests::daemon::Daemon;
use ipc_tests::device_suite::{Announce, GpuMemory, Subject, layer_bytes, model};
use ipc_tests::gpu::Gpus;
use ipc_tests::gpu_suite::{LAYOUT, blocks, frame, memory, subject};
use ipc_tests::http;
use ipc_tests::worker::{Model, commit_store, lookup, prepare_store, prompt};
use lmcache_client::Connection;
use lmcache_proto::wire::{Request, Response};

/// A copy of a batch that is not begun before this is taken back.
const HELD: &str = "cuMemcpyBatchAsync 1 held\n";

async fn is_done(client: &mut Connection, request: &Request<'_>, id: &[u8]) -> bool {
    let answer = client.wait(request.operation(), id).await.expect("an answer");
    matches!(answer, Response::Transfer(_, true))
}

/// A retrieve's objects are held, and its end is told, by the copy and not by the request or its connection.
#[tokio::test]
async fn a_retrieve_holds_its_objects_and_ends_when_it_is_copied() {
    let gpus = Gpus::new(1, &[]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &["--metrics-sample-rate=1"]).await;
    let worker = Arc::new(gpus.worker(0, None));
    let memory = memory(&worker, Announce::Torch);
    let subject = subject(&memory, 1);
    let mut client = daemon.connect().await;
    subject.register(&mut client, "m").await;
    assert!(subject.store(&mut client, &frame("m", "a", 1), blocks()).await.1);
    let ended = "lmcache_mp_l0_l1_load_throughput_gbs_count";
    for (round, connection_goes) in [(1, false), (2, true)] {
        let request = format!("r{round}");
        subject.fill(round);
        subject.wipe();
        assert_eq!(lookup(&mut client, &model("m"), &request, &prompt(1, 1), 1).await, 1);
        gpus.faults(&format!("cuMemcpyBatchAsync 1 held round={round}\n"));
        let (name, event) = (frame("m", &request, 1), worker.event());
        let asks = subject.retrieve_request(&name, vec![blocks()], &event, 0);
        let mut asker = daemon.connect().await;
        let id = asker.send(&asks).await.expect("sent");
        daemon.metric_becomes("lmcached_l1_pins", &[], 1.0).await;
        // The lookup holds it no more.
        client.call(&Request::EndSession { request_id: &request }).await.expect("ended");
        let (status, _) = http::post(daemon.http_port(), "/cache/clear", "").await.expect("an answer");
        assert_eq!(status, 200);
        assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 1.0, "what is read is not freed");
        assert_eq!(daemon.metric(ended, &[]).await, (round - 1) as f64, "not before it is copied");
        if connection_goes {
            drop(asker);
            gpus.faults("");
        } else {
            gpus.faults("");
            assert!(is_done(&mut asker, &asks, &id).await);
        }
        daemon.metric_becomes("lmcached_l1_pins", &[], 0.0).await;
        daemon.metric_becomes(ended, &[], round as f64).await;
    }
}

#[tokio::test]
async fn a_store_and_a_retrieve_of_a_worker_are_copied_at_once() {
    let gpus = Gpus::new(1, &[]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &[]).await;
    let worker = Arc::new(gpus.worker(0, None));
    let memory = memory(&worker, Announce::Torch);
    let subject = subject(&memory, 1);
    let (mut client, mut other) = (daemon.connect().await, daemon.connect().await);
    subject.fill(1);
    subject.register(&mut client, "m").await;
    let before = subject.blocks();
    assert!(subject.store(&mut client, &frame("m", "a", 1), blocks()).await.1);
    assert_eq!(lookup(&mut client, &model("m"), "b", &prompt(1, 1), 1).await, 1);
    let event = worker.event();
    let names = [frame("m", "b", 1), frame("m", "c", 2), frame("m", "d", 3)];
    let back = subject.retrieve_request(&names[0], vec![(33..49).collect()], &event, 0);
    let there = [&names[1], &names[2]].map(|name| subject.store_request(name, vec![blocks()], &event));

    // The store is in the middle of its copy, and the retrieve is done.
    gpus.faults(HELD);
    client.send(&there[0]).await.expect("sent");
    daemon.metric_becomes("lmcached_l1_writing_objects", &[], 1.0).await;
    // Keys of one connection are handled one after the other: the store has been handed over.
    assert_eq!(lookup(&mut client, &model("m"), "x", &prompt(9, 1), 1).await, 0);
    let read = other.send(&back).await.expect("sent");
    assert!(is_done(&mut other, &back, &read).await);
    assert!(subject.blocks()[33..49] == before[1..17]);
    assert_eq!(daemon.metric("lmcached_l1_writing_objects", &[]).await, 1.0, "not before it is copied");
    gpus.faults("");
    // Its answer was dropped by what else was asked on its connection.
    daemon.metric_becomes("lmcached_l1_writing_objects", &[], 0.0).await;
    assert_eq!(lookup(&mut client, &model("m"), "y", &prompt(2, 1), 1).await, 1);

    // And the other way round.
    gpus.faults(&format!("{} again\n", HELD.trim_end()));
    other.send(&back).await.expect("sent");
    daemon.metric_becomes("lmcached_l1_pins", &[], 1.0).await;
    assert_eq!(lookup(&mut other, &model("m"), "z", &prompt(9, 1), 1).await, 0);
    let id = client.send(&there[1]).await.expect("sent");
    assert!(is_done(&mut client, &there[1], &id).await);
    assert_eq!(daemon.metric("lmcached_l1_pins", &[]).await, 1.0, "not before it is copied");
    gpus.faults("");
    daemon.metric_becomes("lmcached_l1_pins", &[], 0.0).await;
}

/// Layers of a worker whose chunks have 9.4 MB.
const MANY: usize = 150;

/// A long transfer is in slices, and a short one comes between two of them.
#[tokio::test]
async fn a_short_transfer_overtakes_a_long_one() {
    let gpus = Gpus::new(1, &[]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &["--l1-size-gb=0.5"]).await;
    let worker = Arc::new(gpus.worker(0, None));
    let memory = GpuMemory::new(worker.clone(), Announce::Torch, MANY, layer_bytes(LAYOUT));
    let subject = Subject { backing: &memory, layout: LAYOUT, layers: MANY, instance: 1 };
    let (mut client, mut other) = (daemon.connect().await, daemon.connect().await);
    subject.register(&mut client, "m").await;
    daemon.says("the pool is pinned for the GPUs").await;
    let event = worker.event();
    // Of 64 MiB each: 28 chunks are five slices, 1 is one. Blocks may be stored more than once.
    let long_name = model("m").key("a", &prompt(1, 28)).frame(Some(0), 0, 28 * 256);
    let long_blocks = (0..28 * 16).map(|at| 1 + at % 64).collect();
    let long = subject.store_request(&long_name, vec![long_blocks], &event);
    let short_name = frame("m", "b", 2);
    let short = subject.store_request(&short_name, vec![blocks()], &event);
    // The first slice is not begun before both are there. The second of the long one is behind it, then its third and the short one:
    // what is held at last is the fourth.
    let last = "cuMemcpyBatchAsync 1 held skip=4\n";
    gpus.faults(&format!("{HELD}{last}"));
    let long_id = client.send(&long).await.expect("sent");
    daemon.metric_becomes("lmcached_l1_writing_objects", &[], 28.0).await;
    let short_id = other.send(&short).await.expect("sent");
    daemon.metric_becomes("lmcached_l1_writing_objects", &[], 29.0).await;
    // Keys of one connection are handled one after the other: it has been handed over, and is not answered before it is copied.
    assert_eq!(lookup(&mut other, &model("m"), "x", &prompt(9, 1), 1).await, 0);
    gpus.faults(last);
    assert!(is_done(&mut other, &short, &short_id).await);
    assert_eq!(daemon.metric("lmcached_l1_writing_objects", &[]).await, 28.0, "the long one is not over");
    gpus.faults("");
    assert!(is_done(&mut client, &long, &long_id).await);
}

/// A pool larger than what is pinned at once: the driver refuses copies with two ranges that were pinned apart.
#[tokio::test]
async fn a_pool_that_is_pinned_in_parts_is_copied_across_their_borders() {
    let gpus = Gpus::new(1, &[]);
    let daemon =
        Daemon::start_in(&gpus.of_daemon(), &["--l1-size-gb=0.6", "--eviction-trigger-watermark=1"]).await;
    let worker = Arc::new(gpus.worker(0, None));
    let memory = GpuMemory::new(worker, Announce::Torch, MANY, layer_bytes(LAYOUT));
    let subject = Subject { backing: &memory, layout: LAYOUT, layers: MANY, instance: 1 };
    let mut client = daemon.connect().await;
    subject.fill(1);
    subject.register(&mut client, "m").await;
    daemon.says("parts=3 pinned=3").await;
    let before = subject.blocks();
    // A page, so that the rows of 32 KiB in the objects behind it lie across a border and not beside it.
    let page = Model { layers: 1, width: 1, ..Model::small("page") };
    client.call(&page.registration(2)).await.expect("registered");
    let page_frame = page.key("p", &prompt(1, 1)).frame(Some(0), 0, 256);
    assert!(prepare_store(&mut client, &page_frame, 2).await.is_some());
    assert!(commit_store(&mut client, &page_frame, 2).await);
    // Objects of 9.4 MB, which do not fit evenly into parts of 256 MiB; 39 MB a prompt, until the pool is nearly full.
    const PROMPTS: u32 = 15;
    let name = |request: &str, seed| model("m").key(request, &prompt(seed, 4)).frame(Some(0), 0, 1024);
    for seed in 0..PROMPTS {
        assert!(subject.store(&mut client, &name("a", seed), (1..65).collect()).await.1, "prompt {seed}");
    }
    for seed in 0..PROMPTS {
        let request = format!("b{seed}");
        assert_eq!(lookup(&mut client, &model("m"), &request, &prompt(seed, 4), 1).await, 4, "prompt {seed}");
        subject.wipe();
        assert!(subject.retrieve(&mut client, &name(&request, seed), (1..65).rev().collect(), 0).await.1);
        assert!(subject.blocks()[1..65].iter().rev().eq(&before[1..65]), "prompt {seed}");
        client.call(&Request::EndSession { request_id: &request }).await.expect("ended");
    }
    assert_eq!(daemon.metric("lmcached_cuda_errors_total", &["cuMemcpy"]).await, 0.0);
}

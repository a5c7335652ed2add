//! What becomes of workers with GPU memory: opening and closing, devices, events that never fire, restarts. With the tests' own
//! driver; the data path is in `device_suite`, deaths are in `gpu_deaths`.

use std::sync::Arc;
use std::time::Duration;

use ipc_tests::daemon::Daemon;
use ipc_tests::device_suite::{Announce, GpuMemory, Layout, Subject, layer_bytes, model};
use ipc_tests::gpu::{GpuWorker, Gpus};
use ipc_tests::gpu_suite::{
    self, LAYERS, LAYOUT, blocks, contexts_become, frame, open_become, subject, unregister,
};
use ipc_tests::worker::{lookup, ping, prompt};
use ipc_tests::{eventually, http};
use lmcache_proto::wire::{DeviceDescriptor, Request, Response, SharedStorage};

fn memory(worker: &Arc<GpuWorker>) -> GpuMemory {
    gpu_suite::memory(worker, Announce::Torch)
}

#[tokio::test]
async fn without_a_driver_the_daemon_says_so_and_serves_the_others() {
    let gpus = Gpus::new(1, &[]);
    let worker = Arc::new(gpus.worker(0, None));
    let mut daemon = Daemon::start(&[]).await;
    daemon.says("no CUDA driver on this machine").await;
    let memory = memory(&worker);
    let mut client = daemon.connect().await;
    subject(&memory, 1).register(&mut client, "m").await;
    daemon.says("no libcuda.so.1 is installed. Run the daemon where the engine's GPU is").await;
    assert!(!subject(&memory, 1).store(&mut client, &frame("m", "a", 1), blocks()).await.1);
    assert!(daemon.alive());
}

#[tokio::test]
async fn a_driver_that_cannot_be_used_is_no_gpu() {
    for call in ["cuInit 999", "cuDriverGetVersion 1", "cuDeviceGetCount 3"] {
        let gpus = Gpus::new(1, &[]);
        let worker = Arc::new(gpus.worker(0, None));
        gpus.faults(&format!("{call} times=9\n"));
        let daemon = Daemon::start_in(&gpus.of_daemon(), &[]).await;
        daemon.says("the CUDA driver cannot be used").await;
        let memory = memory(&worker);
        let mut client = daemon.connect().await;
        subject(&memory, 1).register(&mut client, "m").await;
        daemon.says("this daemon has no GPU").await;
    }
}

#[tokio::test]
async fn a_driver_that_does_not_say_what_else_it_has_will_do() {
    let gpus = Gpus::new(1, &[]);
    gpus.faults("cuGetProcAddress_v2 1 times=9\n");
    let daemon = Daemon::start_in(&gpus.of_daemon(), &[]).await;
    daemon.says("batched_copies=false").await;
    let worker = Arc::new(gpus.worker(0, None));
    let memory = memory(&worker);
    let mut client = daemon.connect().await;
    subject(&memory, 1).register(&mut client, "m").await;
    assert!(subject(&memory, 1).store(&mut client, &frame("m", "a", 1), blocks()).await.1);
}

#[tokio::test]
async fn with_gpus_off_the_driver_is_never_loaded() {
    let gpus = Gpus::new(1, &[]);
    let worker = Arc::new(gpus.worker(0, None));
    let daemon = Daemon::start_in(&gpus.of_daemon(), &["--cuda=off"]).await;
    let memory = memory(&worker);
    let mut client = daemon.connect().await;
    subject(&memory, 1).register(&mut client, "m").await;
    daemon.says("GPUs are switched off").await;
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).expect("maps");
    assert!(!maps.contains("fake_cuda"), "the driver is loaded");
}

#[tokio::test]
async fn a_context_is_made_for_the_first_worker_on_its_own_device_and_goes_with_the_last() {
    let gpus = Gpus::new(2, &[]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &["--metrics-sample-rate=1"]).await;
    daemon.says("CUDA driver found").await;
    assert_eq!(gpus.contexts_of(daemon.pid()), [0u32; 0]);
    // It sees one device, the second of the machine, and counts it as its first.
    let second = Arc::new(gpus.worker(0, Some("1")));
    let first = Arc::new(gpus.worker(0, None));
    assert_ne!(first.uuid, second.uuid);
    let (on_second, on_first) = (memory(&second), memory(&first));
    let mut client = daemon.connect().await;
    let subjects = [subject(&on_second, 1), subject(&on_first, 2)];
    subjects[0].fill(1);
    subjects[0].register(&mut client, "m").await;
    assert_eq!(gpus.contexts_of(daemon.pid()), [1]);
    assert!(subjects[0].store(&mut client, &frame("m", "a", 1), blocks()).await.1);
    subjects[1].register(&mut client, "m").await;
    assert_eq!(gpus.contexts_of(daemon.pid()), [0, 1]);
    // What one device's worker stored is another's to retrieve.
    assert_eq!(lookup(&mut client, &model("m"), "b", &prompt(1, 1), 1).await, 1);
    assert!(subjects[1].retrieve(&mut client, &frame("m", "b", 1), blocks(), 0).await.1);
    assert!(subjects[1].blocks()[1..17] == subjects[0].blocks()[1..17]);
    // By device, and in the time that the device measured.
    let of = [["device=\"cuda:1\"", "engine_id=\"1\""], ["device=\"cuda:0\"", "engine_id=\"2\""]];
    daemon.metric_becomes("lmcache_mp_l0_l1_store_throughput_gbs_count", &of[0], 1.0).await;
    daemon.metric_becomes("lmcache_mp_l0_l1_load_throughput_gbs_count", &of[1], 1.0).await;
    unregister(&mut client, 1).await;
    // The pool was pinned in the context of the first worker: it stays while anybody needs the pinned pool.
    open_become(&gpus, &daemon, 1).await;
    unregister(&mut client, 2).await;
    open_become(&gpus, &daemon, 0).await;
    contexts_become(&gpus, &daemon, &[]).await;
    // And all of it comes back.
    subjects[1].register(&mut client, "m").await;
    assert_eq!(lookup(&mut client, &model("m"), "c", &prompt(1, 1), 1).await, 1);
    assert!(subjects[1].retrieve(&mut client, &frame("m", "c", 1), blocks(), 0).await.1);
}

#[tokio::test]
async fn an_allocation_is_open_once_however_many_use_it() {
    // Drivers that count, that close for all at once, and that refuse a second open.
    for driver in [("FAKE_CUDA_CLOSE", "one"), ("FAKE_CUDA_CLOSE", "all"), ("FAKE_CUDA_OPEN", "once")] {
        let gpus = Gpus::new(1, &[driver]);
        let daemon = Daemon::start_in(&gpus.of_daemon(), &[]).await;
        let worker = Arc::new(gpus.worker(0, None));
        let (one, other) = (memory(&worker), memory(&worker));
        let mut client = daemon.connect().await;
        for (instance, memory) in [(1, &one), (2, &one), (3, &other)] {
            subject(memory, instance).register(&mut client, "m").await;
            // Again, as after a pause of the network.
            subject(memory, instance).register(&mut client, "m").await;
        }
        open_become(&gpus, &daemon, 2).await;
        unregister(&mut client, 1).await;
        unregister(&mut client, 3).await;
        open_become(&gpus, &daemon, 1).await;
        assert!(subject(&one, 2).store(&mut client, &frame("m", "a", 1), blocks()).await.1, "still open");
        unregister(&mut client, 2).await;
        open_become(&gpus, &daemon, 0).await;
        // The worker can free what it had registered, and use it again.
        drop(one);
        worker.ask("free 1");
    }
}

#[tokio::test]
async fn a_transfer_waits_for_its_event_and_keeps_nobody_waiting() {
    let gpus = Gpus::new(1, &[]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &[]).await;
    let worker = Arc::new(gpus.worker(0, None));
    let memory = memory(&worker);
    let subject = subject(&memory, 1);
    let (mut client, mut other) = (daemon.connect().await, daemon.connect().await);
    subject.fill(1);
    subject.register(&mut client, "m").await;
    assert!(subject.store(&mut client, &frame("m", "a", 1), blocks()).await.1);
    assert_eq!(lookup(&mut client, &model("m"), "b", &prompt(1, 1), 1).await, 1);
    let fired = worker.event();
    worker.ask("hold");
    let held = worker.event();
    let (pending_key, ready_key) = (frame("m", "c", 2), frame("m", "b", 1));
    let store = subject.store_request(&pending_key, vec![blocks()], &held);
    let uid = client.send(&store).await.expect("sent");
    // On the same connection, behind it: other requests and the other direction go on.
    assert!(ping(&mut client, 1).await);
    let retrieve = subject.retrieve_request(&ready_key, vec![blocks()], &fired, 0);
    assert!(matches!(client.call(&retrieve).await.expect("retrieve"), Response::Transfer(_, true)));
    assert_eq!(daemon.metric("lmcached_l1_writing_objects", &[]).await, 1.0, "reserved, and not written");
    assert_eq!(
        lookup(&mut other, &model("m"), "d", &prompt(2, 1), 1).await,
        0,
        "not there before it is over"
    );
    worker.ask("go");
    let stored = client.wait(store.operation(), &uid).await.expect("stored");
    assert!(matches!(stored, Response::Transfer(_, true)));
    assert_eq!(lookup(&mut other, &model("m"), "e", &prompt(2, 1), 1).await, 1);
}

#[tokio::test]
async fn an_event_that_never_fires_costs_its_worker_alone() {
    for announce in [Announce::Torch, Announce::Isolated] {
        let gpus = Gpus::new(1, &[]);
        let flags = ["--cuda-event-timeout-seconds=1"];
        let daemon = Daemon::start_in(&gpus.of_daemon(), &flags).await;
        let (bad, good) = (Arc::new(gpus.worker(0, None)), Arc::new(gpus.worker(0, None)));
        let of_bad = GpuMemory::new(bad.clone(), announce, LAYERS, layer_bytes(LAYOUT));
        // Its heads come before its slots: the kernel moves them, which must not be loaded only now.
        let heads_first = Layout::HeadMajor;
        let of_good = GpuMemory::new(good.clone(), Announce::Torch, LAYERS, layer_bytes(heads_first));
        let bad_one = subject(&of_bad, 1);
        let good_one = Subject { backing: &of_good, layout: heads_first, layers: LAYERS, instance: 2 };
        let mut client = daemon.connect().await;
        bad_one.register(&mut client, "m").await;
        good_one.register(&mut client, "m").await;
        bad.ask("hold");
        let (event, done) = bad_one.store(&mut client, &frame("m", "a", 1), blocks()).await;
        assert!(event.is_empty() && !done);
        daemon.says("its event did not fire within 1 s (--cuda-event-timeout-seconds)").await;
        daemon.metric_becomes("lmcached_l1_writing_objects", &[], 0.0).await;
        assert!(good_one.store(&mut client, &frame("m", "b", 2), blocks()).await.1);
        assert!(good_one.store(&mut client, &frame("m", "c", 1), blocks()).await.1, "the key is free");
        // It is told by its pings to register again, and is served again then.
        assert!(!bad_one.store(&mut client, &frame("m", "d", 3), blocks()).await.1);
        assert!(!ping(&mut client, 1).await);
        bad.ask("go");
        bad_one.register(&mut client, "m").await;
        assert!(bad_one.store(&mut client, &frame("m", "e", 3), blocks()).await.1);
    }
}

#[tokio::test]
async fn a_staging_buffer_goes_from_worker_to_worker() {
    let gpus = Gpus::new(1, &[]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &[]).await;
    let (stays, comes) = (Arc::new(gpus.worker(0, None)), Arc::new(gpus.worker(0, None)));
    let kept = memory(&stays);
    let of_comer = GpuMemory::new(comes, Announce::Torch, LAYERS, layer_bytes(Layout::HeadMajor));
    let comer = Subject { backing: &of_comer, layout: Layout::HeadMajor, layers: LAYERS, instance: 2 };
    let mut client = daemon.connect().await;
    subject(&kept, 1).register(&mut client, "m").await;
    for seed in 0..4 {
        comer.register(&mut client, "m").await;
        assert!(comer.store(&mut client, &frame("m", "a", seed), blocks()).await.1);
        // The memory of both, and one buffer.
        open_become(&gpus, &daemon, 3).await;
        unregister(&mut client, 2).await;
        open_become(&gpus, &daemon, 2).await;
    }
}

#[tokio::test]
async fn after_a_restart_a_handle_is_opened_for_its_own_process_and_no_other() {
    let gpus = Gpus::new(1, &[]);
    let flags = ["--bind=ipc://{dir}/sock", "--metrics-sample-rate=1"];
    let mut daemon = Daemon::start_in(&gpus.of_daemon(), &flags).await;
    let endpoint = format!("ipc://{}/sock", daemon.dir().display());
    let worker = Arc::new(gpus.worker(0, None));
    let memory = memory(&worker);
    let subject = subject(&memory, 1);
    subject.fill(1);
    let registration = || Request::RegisterKvCache(Box::new(subject.registration("m")));
    let first = frame("m", "a", 1);
    let store = |frame: &[u8]| {
        let event = worker.event();
        worker.call(&endpoint, &subject.store_request(frame, vec![blocks()], &event))
    };
    worker.call(&endpoint, &registration());
    assert!(store(&first).starts_with("transfer true"));

    // Its own process comes back: it is known, and its memory is opened. It never pinged, so it is not certain that it waits for
    // what it asks before it registers.
    daemon.crash_and_restart().await;
    assert!(store(&first).starts_with("error"), "the old connection is gone");
    assert_eq!(gpus.contexts_of(daemon.pid()), [0u32; 0], "nothing is opened before it is heard");
    assert!(store(&frame("m", "b", 2)).starts_with("transfer false"));
    open_become(&gpus, &daemon, 1).await;
    worker.call(&endpoint, &registration());
    assert!(store(&frame("m", "b", 2)).starts_with("transfer true"));
    daemon.metric_becomes("lmcache_mp_l0_l1_store_throughput_gbs_count", &["device=\"cuda:0\""], 1.0).await;

    // Somebody else speaks for it over TCP, where nobody knows who that is: it is nobody until it registers.
    daemon.crash_and_restart().await;
    let mut stranger = daemon.connect().await;
    assert!(!subject.store(&mut stranger, &frame("m", "c", 3), blocks()).await.1);
    assert_eq!(gpus.mapped_by(daemon.pid()), 0);
    assert!(store(&first).starts_with("error"), "the old connection is gone");
    assert!(store(&frame("m", "d", 3)).starts_with("transfer false"), "unknown now");
    worker.call(&endpoint, &registration());
    assert!(store(&frame("m", "e", 3)).starts_with("transfer true"));
}

#[tokio::test]
async fn descriptors_that_cannot_be_served_are_refused_with_what_to_do() {
    let gpus = Gpus::new(2, &[]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &[]).await;
    let worker = Arc::new(gpus.worker(0, None));
    let elsewhere = Arc::new(gpus.worker(1, None));
    let (good, other) = (memory(&worker), memory(&elsewhere));
    let metadata = |payload: &DeviceDescriptor| payload.metadata().expect("metadata").clone();
    let mut client = daemon.connect().await;
    let mut refused = async |change: &dyn Fn(&mut Vec<DeviceDescriptor>), said: &str| {
        let mut payload = subject(&good, 1).registration("m");
        change(&mut payload.kv_cache);
        let register = Request::RegisterKvCache(Box::new(payload));
        // Again and again: the log says it at most once a second.
        let is_said = async || {
            client.call(&register).await.expect("acknowledged");
            daemon.log().iter().any(|line| line.contains(said)).then_some(())
        };
        eventually(&format!("the log says {said:?}"), is_said).await;
        assert_eq!(gpus.mapped_by(daemon.pid()), 0, "{said}");
        assert!(!ping(&mut client, 1).await || !ping(&mut client, 1).await, "{said}");
    };
    let torch = |head: &[u8], bytes: u64| {
        let handle = [head, good.handle()].concat();
        SharedStorage { device: 0, handle: &handle, bytes, offset: 0 }.encode()
    };
    let with = |tuple: Vec<u8>| {
        move |list: &mut Vec<DeviceDescriptor>| {
            list[1] =
                DeviceDescriptor::Cuda { handle: tuple.clone(), version: 1, metadata: metadata(&list[1]) };
        }
    };
    let all = LAYERS as u64 * layer_bytes(LAYOUT);
    refused(&with(torch(&[2, b'e'], all)), "Unset expandable_segments in PYTORCH_CUDA_ALLOC_CONF").await;
    refused(&with(torch(&[9, b'c'], all)), "torch's handle is of version 9").await;
    refused(&with(torch(&[2, b'c'], 10)), "its memory at 10").await;
    refused(&with(torch(&[2, b'c'], all + (1 << 20))), "its allocation has").await;
    refused(&with(vec![0x90]), "the shared storage has not eight fields").await;
    let vmm = |list: &mut Vec<DeviceDescriptor>| {
        list[0] = DeviceDescriptor::CudaVmm { fields: Vec::new(), version: 1, metadata: metadata(&list[0]) };
    };
    refused(&vmm, "Switch sleep mode").await;
    let elsewhere = subject(&other, 1).registration("m").kv_cache;
    refused(&|list| list[1] = elsewhere[1].clone(), "the tensors of one worker are on several GPUs").await;
    let unknown = |list: &mut Vec<DeviceDescriptor>| {
        for descriptor in list {
            if let DeviceDescriptor::Cuda { metadata, .. } = descriptor {
                metadata.device_uuid = "00000000-0000-4000-8000-000000000000".into();
            }
        }
    };
    refused(&unknown, "is not visible to this daemon; it sees GPU-fa4ec0da-0000-4000-8000-000000000000")
        .await;
    // The daemon's word on the worker's event.
    let subject = subject(&good, 1);
    subject.register(&mut client, "m").await;
    let key_frame = frame("m", "a", 1);
    let store = subject.store_request(&key_frame, vec![blocks()], b"short");
    assert!(matches!(client.call(&store).await.expect("refused"), Response::Transfer(_, false)));
    daemon.says("the worker's event has 5 bytes").await;
    assert_eq!(daemon.metric("lmcached_requests_total", &["operation=\"store\"", "copy_failed"]).await, 1.0);
    let (status, _) = http::get(daemon.http_port(), "/healthcheck").await.expect("an answer");
    assert_eq!(status, 200);
}

/// A copy that is under way is not broken off by an upgrade: its blocks would be written while the engine takes it for failed.
#[tokio::test]
async fn an_upgrade_waits_for_copies_and_loses_no_answer() {
    let gpus = Gpus::new(1, &[]);
    let mut daemon = Daemon::start_in(&gpus.of_daemon(), &["--bind=ipc://{dir}/sock"]).await;
    let endpoint = format!("ipc://{}/sock", daemon.dir().display());
    let worker = Arc::new(gpus.worker(0, None));
    let memory = memory(&worker);
    let subject = subject(&memory, 1);
    subject.fill(1);
    // The worker registers itself, so that the next process may open its memory for it.
    worker.call(&endpoint, &Request::RegisterKvCache(Box::new(subject.registration("m"))));
    let mut client = daemon.connect().await;
    worker.ask("hold");
    let held = worker.event();
    let pending_key = frame("m", "a", 1);
    let store = subject.store_request(&pending_key, vec![blocks()], &held);
    let uid = client.send(&store).await.expect("sent");
    daemon.metric_becomes("lmcached_l1_writing_objects", &[], 1.0).await;
    let port = daemon.http_port();
    let order = tokio::spawn(async move { http::post(port, "/lmcached/upgrade", "").await });
    // The next process is there, and soon waits for this one to come to rest.
    let has_child = async || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).ok()?.flatten();
        let mut lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        lists.any(|list| !list.trim().is_empty()).then_some(())
    };
    eventually("there is a successor", has_child).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    worker.ask("go");
    let stored = client.wait(store.operation(), &uid).await.expect("answered");
    assert!(matches!(stored, Response::Transfer(_, true)), "{stored:?}");
    let (status, body) = order.await.expect("joined").expect("an answer");
    assert_eq!(status, 200, "{body}");
    let answer: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let successor = answer["pid"].as_u64().expect("a pid") as u32;
    daemon.succeeded_by(successor);
    assert_eq!(daemon.ends().await, Some(0));
    // The same connection, the same objects, and the worker's memory is opened when it asks for a copy.
    assert_eq!(lookup(&mut client, &model("m"), "b", &prompt(1, 1), 1).await, 1);
    assert_eq!(gpus.mapped_by(successor), 0);
    let event = worker.event();
    let again = frame("m", "c", 2);
    let request = subject.store_request(&again, vec![blocks()], &event);
    assert!(worker.call(&endpoint, &request).starts_with("transfer true"));
    assert_eq!(gpus.mapped_by(successor), 1);
}

/// Reported of LMCache (#1755): 325 GB/s, as the time of a copy was that of handing it to the driver.
#[tokio::test]
async fn the_speed_of_a_copy_is_that_of_the_copy_and_not_of_its_submission() {
    const DELAY: Duration = Duration::from_millis(10);
    let delay = DELAY.as_micros().to_string();
    let gpus = Gpus::new(1, &[("FAKE_CUDA_DELAY_US", &delay)]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &["--metrics-sample-rate=1"]).await;
    let worker = Arc::new(gpus.worker(0, None));
    let memory = memory(&worker);
    let subject = subject(&memory, 1);
    let mut client = daemon.connect().await;
    subject.register(&mut client, "m").await;
    assert!(subject.store(&mut client, &frame("m", "a", 1), blocks()).await.1);
    assert_eq!(lookup(&mut client, &model("m"), "b", &prompt(1, 1), 1).await, 1);
    assert!(subject.retrieve(&mut client, &frame("m", "b", 1), blocks(), 0).await.1);
    let bytes = subject.blocks()[1..17].iter().map(Vec::len).sum::<usize>() as f64;
    for family in ["lmcache_mp_l0_l1_store_throughput_gbs", "lmcache_mp_l0_l1_load_throughput_gbs"] {
        daemon.metric_becomes(&format!("{family}_count"), &[], 1.0).await;
        let speed = daemon.metric(&format!("{family}_sum"), &[]).await;
        let most = bytes / 1e9 / DELAY.as_secs_f64();
        assert!(speed > 0.0 && speed <= most, "{family}: {speed} GB/s, at most {most} are possible");
    }
}

/// What follows a GPU's copy happens on a thread that is none of the runtime's: the tiers and the events hear of it all the same.
#[tokio::test]
async fn what_a_gpu_stored_goes_to_the_tiers_and_comes_back() {
    let gpus = Gpus::new(1, &[]);
    let flags = [r#"--l2-adapter={"type": "fs", "base_path": "{dir}/tier"}"#, "--l1-checksums"];
    let daemon = Daemon::start_in(&gpus.of_daemon(), &flags).await;
    let worker = Arc::new(gpus.worker(0, None));
    let memory = memory(&worker);
    let subject = subject(&memory, 1);
    subject.fill(1);
    let before = subject.blocks();
    let mut client = daemon.connect().await;
    subject.register(&mut client, "m").await;
    assert!(subject.store(&mut client, &frame("m", "a", 1), blocks()).await.1);
    daemon.metric_becomes("lmcache_mp_l2_store_completed_total", &[], 1.0).await;
    daemon.clear().await;
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 0.0);
    assert_eq!(lookup(&mut client, &model("m"), "b", &prompt(1, 1), 1).await, 1);
    subject.wipe();
    assert!(subject.retrieve(&mut client, &frame("m", "b", 1), (33..49).collect(), 0).await.1);
    assert!(subject.blocks()[33..49] == before[1..17]);
}

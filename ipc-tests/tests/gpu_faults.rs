//! Every call of the driver that fails once, in a daemon at work: a transfer that it spoils is answered `false`, what is
//! answered `true` is right, and the worker is served again afterwards.

use std::sync::Arc;
use std::time::Duration;

use ipc_tests::daemon::Daemon;
use ipc_tests::device_suite::{Announce, GpuMemory, Layout, Subject, layer_bytes, model};
use ipc_tests::eventually;
use ipc_tests::gpu::{GpuWorker, Gpus};
use ipc_tests::worker::{lookup, prompt};
use lmcache_client::Connection;
use lmcache_proto::wire::Request;

const LAYERS: usize = 2;
/// Out of memory: spoils the call.
const ONCE: u32 = 2;
/// A launch failure: spoils the context.
const FOR_EVER: u32 = 719;

/// What a failure of a call must spoil.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spoils {
    /// A transfer, however it fails.
    Always,
    /// A transfer if the context is lost; else there is another way.
    IfLost,
    /// Nothing, for certain: it is cleaning up, or asking for what is nice to know.
    Perhaps,
}
use Spoils::{Always, IfLost, Perhaps};

/// The drivers that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Modern,
    /// Without batches.
    Old,
    /// Without the kernel, too.
    Bare,
}
use Kind::{Bare, Modern, Old};

/// What the daemon calls. Behind a name there may be which of its calls fails.
const CALLS: [(&str, Kind, Spoils); 44] = [
    ("cuDeviceGet", Modern, Always),
    ("cuDeviceGetUuid_v2", Modern, Always),
    ("cuDevicePrimaryCtxRetain", Modern, Always),
    // The first is for the kernel.
    ("cuCtxPushCurrent_v2", Modern, IfLost),
    ("cuCtxPushCurrent_v2 times=1000", Modern, Always),
    ("cuCtxPopCurrent_v2", Modern, Perhaps),
    ("cuMemHostRegister_v2", Modern, Perhaps),
    ("cuIpcOpenMemHandle_v2", Modern, Always),
    ("cuMemGetAddressRange_v2", Modern, Always),
    ("cuStreamCreate", Modern, IfLost),
    ("cuStreamCreate skip=1", Modern, Always),
    ("cuIpcOpenEventHandle", Modern, Always),
    ("cuEventQuery", Modern, Always),
    ("cuEventCreate", Modern, Always),
    ("cuEventRecord", Modern, Always),
    ("cuEventElapsedTime", Modern, Always),
    ("cuIpcGetEventHandle", Modern, Perhaps),
    ("cuEventDestroy_v2", Modern, Perhaps),
    ("cuStreamWaitEvent", Modern, Always),
    ("cuLaunchHostFunc", Modern, Always),
    ("cuMemcpyBatchAsync", Modern, Always),
    ("cuMemcpyDtoH_v2", Modern, Always),
    ("cuStreamDestroy_v2", Modern, Perhaps),
    ("cuIpcCloseMemHandle", Modern, Perhaps),
    ("cuMemHostUnregister", Modern, Perhaps),
    ("cuDevicePrimaryCtxRelease_v2", Modern, Perhaps),
    ("cuDevicePrimaryCtxReset_v2", Modern, Perhaps),
    // The kernel: loaded and launched once for each context, and then for what is short.
    ("cuModuleLoadData", Modern, IfLost),
    ("cuModuleGetFunction", Modern, IfLost),
    ("cuLaunchKernel", Modern, IfLost),
    ("cuLaunchKernel skip=1", Modern, IfLost),
    ("cuLaunchKernel skip=2", Old, IfLost),
    ("cuMemcpyDtoHAsync_v2", Old, IfLost),
    ("cuMemcpyHtoDAsync_v2", Old, IfLost),
    ("cuMemcpyDtoHAsync_v2", Bare, Always),
    ("cuMemcpyHtoDAsync_v2", Bare, Always),
    ("cuMemcpy2DAsync_v2", Bare, Always),
    // Isolated workers.
    ("cuStreamWaitValue64_v2", Modern, Always),
    ("cuStreamWriteValue64_v2", Modern, Perhaps),
    ("cuMemAlloc_v2", Modern, Perhaps),
    ("cuMemsetD8Async", Modern, Perhaps),
    ("cuIpcGetMemHandle", Modern, Perhaps),
    ("cuStreamSynchronize", Modern, IfLost),
    // Only after another call has failed.
    ("cuStreamSynchronize skip=1", Modern, Perhaps),
];

struct Rig {
    gpus: Gpus,
    daemon: Daemon,
    worker: Arc<GpuWorker>,
    client: Connection,
    next: u32,
}

impl Rig {
    async fn start(driver: &[(&str, &str)]) -> Rig {
        let gpus = Gpus::new(1, driver);
        let daemon = Daemon::start_in(&gpus.of_daemon(), &[]).await;
        daemon.says("CUDA driver found").await;
        let worker = Arc::new(gpus.worker(0, None));
        let client = daemon.connect().await;
        Rig { gpus, daemon, worker, client, next: 0 }
    }

    /// Stores a prompt of its own and retrieves it. Whether both, and the digests, were done; what was done must be right.
    async fn works(&mut self, subject: &Subject<'_>) -> bool {
        self.next += 1;
        let (seed, model) = (self.next, model("m"));
        subject.fill(u64::from(seed));
        let tokens = prompt(seed, 1);
        let before = subject.blocks();
        let key_of = |request: &str| model.key(request, &tokens).frame(Some(0), 0, 256);
        // Behind something that is still running, so that there is something to wait for.
        let held = |worker: &Arc<GpuWorker>| {
            worker.ask("hold");
            let worker = worker.clone();
            move || drop(worker.ask("go"))
        };
        let release = held(&self.worker);
        let event = subject.backing.event();
        let frame = key_of(&format!("s{seed}"));
        let blocks: Vec<u64> = (1..17).collect();
        let request = Request::Store {
            key: ipc_tests::worker::key(&frame),
            instance_id: subject.instance,
            block_ids: vec![blocks.clone()],
            event: &event,
        };
        let uid = self.client.send(&request).await.expect("sent");
        // Let go when the daemon has it, or has answered already.
        let (answered, daemon) = (std::cell::Cell::new(false), &self.daemon);
        let letting_go = async {
            while !answered.get() && daemon.metric("lmcached_l1_writing_objects", &[]).await == 0.0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // Time for its thread to look at the event, which it may find fired otherwise.
            tokio::time::sleep(Duration::from_millis(50)).await;
            release();
        };
        let waiting = async {
            let answer = self.client.wait(request.operation(), &uid).await;
            answered.set(true);
            answer
        };
        let (stored, ()) = tokio::join!(waiting, letting_go);
        let stored = stored.expect("answered");
        let stored = matches!(stored, lmcache_proto::wire::Response::Transfer(_, true));
        let found = lookup(&mut self.client, &model, &format!("l{seed}"), &tokens, 1).await;
        assert_eq!(found, u64::from(stored), "what was not answered `true` is not there, and what was is");
        let mut good = stored;
        if stored {
            subject.wipe();
            let frame = key_of(&format!("l{seed}"));
            let into: Vec<u64> = (33..49).collect();
            let (_, retrieved) = subject.retrieve(&mut self.client, &frame, into, 0).await;
            if retrieved {
                assert!(subject.blocks()[33..49] == before[1..17], "what was answered `true` is right");
            }
            good &= retrieved;
        }
        let body = format!(r#"{{"instance_id": {}, "block_ids": [1], "chunk_size": 1}}"#, subject.instance);
        let answer = ipc_tests::http::post(self.daemon.http_port(), "/cache/checksums", &body).await;
        good && answer.expect("an answer").0 == 200
    }

    async fn spoil(&mut self, (name, which): (&str, &str), code: u32, announce: Announce) -> bool {
        let sticky = if code == FOR_EVER { "sticky" } else { "" };
        // Heads before slots: rows that have to be gathered; and plain copies.
        let layouts = [Layout::HeadMajor, Layout::KvFirst];
        let mut spoilt = false;
        for (at, layout) in layouts.into_iter().enumerate() {
            let memory = GpuMemory::new(self.worker.clone(), announce, LAYERS, layer_bytes(layout));
            let subject = Subject { backing: &memory, layout, layers: LAYERS, instance: 100 + at as u64 };
            // A line of its own for each layout: calls are counted by line.
            self.gpus.faults(&format!("{name} {code} {which} {sticky} layout={at}\n"));
            subject.register(&mut self.client, "m").await;
            spoilt |= !self.works(&subject).await;
            spoilt |= !self.works(&subject).await;
            self.gpus.faults("");
            // The worker's pings have it register again, sooner or later.
            let again = async || {
                subject.register(&mut self.client, "m").await;
                self.works(&subject).await.then_some(())
            };
            eventually(&format!("{name} {which} {code}: the worker is served again"), again).await;
            let unregister = Request::UnregisterKvCache { instance_id: subject.instance };
            self.client.call(&unregister).await.expect("unregister");
            // The next one's begins with a context of its own.
            let pid = self.daemon.pid();
            let gone = async || self.gpus.contexts_of(pid).is_empty().then_some(());
            eventually(&format!("{name} {which} {code}: no context is left"), gone).await;
        }
        self.daemon.metric_becomes("lmcached_l1_writing_objects", &[], 0.0).await;
        self.daemon.metric_becomes("lmcached_l1_pins", &[], 0.0).await;
        assert!(self.daemon.alive(), "{name} {which} {code}");
        spoilt
    }
}

async fn every_call(code: u32) {
    let mut modern = Rig::start(&[]).await;
    let mut old = Rig::start(&[("FAKE_CUDA_VERSION", "12040")]).await;
    let mut bare = Rig::start(&[("FAKE_CUDA_VERSION", "12040"), ("FAKE_CUDA_PTX", "0")]).await;
    for (call, kind, spoils) in CALLS {
        let isolated = ["Value64", "cuMemAlloc", "cuMemset", "cuIpcGetMemHandle"];
        let announce = if isolated.iter().any(|part| call.contains(part)) {
            Announce::Isolated
        } else {
            Announce::Torch
        };
        let rig = match kind {
            Modern => &mut modern,
            Old => &mut old,
            Bare => &mut bare,
        };
        let (name, which) = call.split_once(' ').unwrap_or((call, ""));
        let errors = async |rig: &Rig| {
            rig.daemon.metric("lmcached_cuda_errors_total", &[&format!("call=\"{name}\"")]).await
        };
        let before = errors(rig).await;
        let spoilt = rig.spoil((name, which), code, announce).await;
        let failed = errors(rig).await - before;
        let must = spoils == Always || spoils == IfLost && code == FOR_EVER;
        assert!(spoilt || !must, "{call} {code} was not noticed");
        // Which calls are made depends on the layout; what spoils something has been made, and is counted.
        assert!(
            failed > 0.0 || spoils == Perhaps && !spoilt,
            "{call} {code}: was it ever called, and counted?"
        );
        assert!(!spoilt || spoils != IfLost || code == FOR_EVER, "{call} {code}: there is another way");
    }
}

#[tokio::test]
async fn a_call_that_fails_once_spoils_at_most_its_transfer() {
    every_call(ONCE).await;
}

#[tokio::test]
async fn a_lost_context_is_made_anew() {
    every_call(FOR_EVER).await;
}

/// Batches that the driver does not take are made of single copies.
#[tokio::test]
async fn a_refused_batch_is_copied_one_by_one() {
    let mut rig = Rig::start(&[]).await;
    rig.gpus.faults("cuMemcpyBatchAsync 1 times=1000\n");
    let memory = GpuMemory::new(rig.worker.clone(), Announce::Torch, LAYERS, layer_bytes(Layout::KvFirst));
    let subject = Subject { backing: &memory, layout: Layout::KvFirst, layers: LAYERS, instance: 1 };
    subject.register(&mut rig.client, "m").await;
    assert!(rig.works(&subject).await);
    rig.daemon.says("the driver refuses batched copies").await;
}

/// A GPU without room for a staging buffer copies all the same, and says that it is slow.
#[tokio::test]
async fn without_a_staging_buffer_pieces_are_copied_one_by_one() {
    let mut rig = Rig::start(&[("FAKE_CUDA_VERSION", "12040")]).await;
    let memory = GpuMemory::new(rig.worker.clone(), Announce::Torch, LAYERS, layer_bytes(Layout::HeadMajor));
    rig.gpus.faults("cuMemAlloc_v2 2 times=1000\n");
    let subject = Subject { backing: &memory, layout: Layout::HeadMajor, layers: LAYERS, instance: 1 };
    subject.register(&mut rig.client, "m").await;
    assert!(rig.works(&subject).await);
    rig.daemon.says("no staging buffer on the GPU").await;
}

/// A GPU that is lost is lost for its own workers.
#[tokio::test]
async fn another_gpu_goes_on() {
    let gpus = Gpus::new(2, &[]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &[]).await;
    let (one, other) = (Arc::new(gpus.worker(0, None)), Arc::new(gpus.worker(1, None)));
    let bytes = layer_bytes(Layout::KvFirst);
    let (first, second) = (
        GpuMemory::new(one, Announce::Torch, LAYERS, bytes),
        GpuMemory::new(other, Announce::Torch, LAYERS, bytes),
    );
    let of = |backing, instance| Subject { backing, layout: Layout::KvFirst, layers: LAYERS, instance };
    let (lost, kept) = (of(&first, 1), of(&second, 2));
    let mut client = daemon.connect().await;
    lost.register(&mut client, "m").await;
    kept.register(&mut client, "m").await;
    let frame = |seed| model("m").key("r", &prompt(seed, 1)).frame(Some(0), 0, 256);
    gpus.faults("cuMemcpyBatchAsync 700 sticky\n");
    assert!(!lost.store(&mut client, &frame(1), (1..17).collect()).await.1);
    assert!(kept.store(&mut client, &frame(1), (1..17).collect()).await.1);
    daemon.says("the GPU context is lost").await;
    daemon.metric_becomes("lmcached_l1_writing_objects", &[], 0.0).await;
    let again = async || {
        lost.register(&mut client, "m").await;
        lost.store(&mut client, &frame(2), (1..17).collect()).await.1.then_some(())
    };
    eventually("the lost one is served again", again).await;
    assert!(kept.store(&mut client, &frame(3), (1..17).collect()).await.1);
}

//! Every call of the driver that fails once, in a daemon at work: a transfer that it spoils is answered `false`, what is
//! answered `true` is right, and the worker is served again afterwards.

use std::sync::Arc;
use std::time::Duration;

use ipc_tests::daemon::Daemon;
use ipc_tests::device_suite::{Announce, GpuMemory, Layout, Subject, layer_bytes, model};
use ipc_tests::eventually;
use ipc_tests::gpu::{GpuWorker, Gpus};
use ipc_tests::gpu_suite::unregister;
use ipc_tests::worker::{lookup, prompt};
use lmcache_client::Connection;

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
    /// Nothing: it is cleaning up when nothing is to be spoilt any more.
    Nothing,
    /// What comes next, or nothing: it is cleaning up, or asking for what is nice to know.
    Perhaps,
}
use Spoils::{Always, IfLost, Nothing, Perhaps};

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

/// What the daemon calls. Behind a name there may be which of its calls fails, and behind a `+` what must fail besides, that it is
/// called at all.
const CALLS: &[(&str, Kind, Spoils)] = &[
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
    // Of a slice: its beginning, its end, and the event that the worker is given.
    ("cuEventRecord", Modern, Always),
    ("cuEventRecord skip=1", Modern, Always),
    ("cuEventRecord skip=2", Modern, IfLost),
    ("cuEventElapsedTime", Modern, Always),
    ("cuIpcGetEventHandle", Modern, Perhaps),
    ("cuEventDestroy_v2", Modern, Perhaps),
    ("cuStreamWaitEvent", Modern, Always),
    // Of the gate, and of a slice.
    ("cuLaunchHostFunc behind=cuStreamWaitEvent", Modern, Always),
    ("cuLaunchHostFunc behind=cuEventRecord", Modern, Always),
    ("cuMemcpyBatchAsync", Modern, Always),
    ("cuMemcpyDtoH_v2", Modern, Always),
    ("cuStreamDestroy_v2", Modern, Perhaps),
    ("cuIpcCloseMemHandle", Modern, Nothing),
    ("cuMemHostUnregister", Modern, Nothing),
    ("cuDevicePrimaryCtxRelease_v2", Modern, Nothing),
    // Nobody else has retained it, so that its release is its end.
    ("cuDevicePrimaryCtxReset_v2 + cuMemcpyBatchAsync 700 sticky", Modern, Always),
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
    // Where nobody tells of a slice it is waited for, and if that fails the context is given up.
    ("cuStreamSynchronize behind=cuLaunchHostFunc + cuLaunchHostFunc 2 behind=cuEventRecord", Modern, Always),
];

/// Calls whose failures other tests see to: when the driver is loaded, while a transfer waits for long, and when a context may be
/// there still.
const ELSEWHERE: [(&str, &str); 6] = [
    ("cuInit", include_str!("gpu.rs")),
    ("cuDriverGetVersion", include_str!("gpu.rs")),
    ("cuDeviceGetCount", include_str!("gpu.rs")),
    ("cuGetProcAddress_v2", include_str!("gpu.rs")),
    ("cuStreamQuery", include_str!("gpu_lost.rs")),
    ("cuDevicePrimaryCtxGetState", include_str!("gpu_lost.rs")),
];

/// What is enqueued and may fail when the device gets there. Behind a name there may be which of its calls.
const ENQUEUED: [(&str, Kind); 13] = [
    ("cuStreamWaitEvent", Modern),
    ("cuEventRecord", Modern),
    ("cuEventRecord skip=1", Modern),
    ("cuLaunchHostFunc behind=cuStreamWaitEvent", Modern),
    ("cuLaunchHostFunc behind=cuEventRecord", Modern),
    ("cuMemcpyBatchAsync", Modern),
    ("cuLaunchKernel", Modern),
    ("cuLaunchKernel skip=2", Old),
    ("cuMemcpyDtoHAsync_v2", Bare),
    ("cuMemcpyHtoDAsync_v2", Bare),
    ("cuMemcpy2DAsync_v2", Bare),
    // Isolated workers.
    ("cuStreamWaitValue64_v2", Modern),
    ("cuStreamWriteValue64_v2", Modern),
];

fn announced(call: &str) -> Announce {
    let isolated = ["Value64", "cuMemAlloc", "cuMemset", "cuIpcGetMemHandle"];
    if isolated.iter().any(|part| call.contains(part)) { Announce::Isolated } else { Announce::Torch }
}

/// The functions that the daemon loads.
fn functions() -> Vec<&'static str> {
    let source = include_str!("../../daemon/src/device/cuda/driver.rs");
    let list = source.split("\nfunctions! {\n").nth(1).and_then(|rest| rest.split("\n}\n").next());
    let names = list.expect("a list of functions").lines().filter_map(|line| {
        let name = line.trim().split_once('(')?.0;
        name.starts_with("cu").then_some(name)
    });
    names.collect()
}

/// A call that comes to the daemon comes to this list.
#[test]
fn every_function_that_is_called_is_made_to_fail() {
    let functions = functions();
    assert!(functions.len() > 40, "{functions:?}");
    let here = CALLS.iter().map(|(call, ..)| call.split(' ').next().expect("a name"));
    // With the code that it must fail with, as in a line of failures.
    let is_failing = |(name, test): &&(&str, &str)| {
        let with_code =
            |at: usize| test[at + name.len()..].trim_start_matches(' ').starts_with(char::is_numeric);
        test.match_indices(name).any(|(at, _)| test[at + name.len()..].starts_with(' ') && with_code(at))
    };
    let elsewhere = ELSEWHERE.iter().filter(is_failing).map(|(name, _)| *name);
    let failing: std::collections::BTreeSet<&str> = here.chain(elsewhere).collect();
    // The batched copy is looked for by its version.
    let called: std::collections::BTreeSet<&str> =
        functions.into_iter().chain(["cuMemcpyBatchAsync"]).collect();
    assert_eq!(called, failing);
}

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
        let request = subject.store_request(&frame, vec![(1..17).collect()], &event);
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

    /// Has calls fail as `faults` says, for workers of two layouts, from a context's beginning to its end. Whether a transfer
    /// was spoilt.
    async fn spoil(&mut self, what: &str, faults: &[String], announce: Announce) -> bool {
        // Heads before slots: rows that have to be gathered; and plain copies.
        let layouts = [Layout::HeadMajor, Layout::KvFirst];
        let mut spoilt = false;
        for (at, layout) in layouts.into_iter().enumerate() {
            let memory = GpuMemory::new(self.worker.clone(), announce, LAYERS, layer_bytes(layout));
            let subject = Subject { backing: &memory, layout, layers: LAYERS, instance: 100 + at as u64 };
            // Lines of their own: calls are counted by line.
            let own = self.next;
            let lines: Vec<String> =
                faults.iter().map(|fault| format!("{fault} after-prompt={own}\n")).collect();
            self.gpus.faults(&lines.concat());
            subject.register(&mut self.client, "m").await;
            spoilt |= !self.works(&subject).await;
            spoilt |= !self.works(&subject).await;
            // What has not failed yet is called when the worker goes. What fails each time would not let it come back.
            if faults.iter().any(|fault| fault.contains("times=")) {
                self.gpus.faults("");
            }
            // The worker's pings have it register again, sooner or later.
            let again = async || {
                subject.register(&mut self.client, "m").await;
                self.works(&subject).await.then_some(())
            };
            eventually(&format!("{what}: the worker is served again"), again).await;
            self.goes(what, &subject).await;
            self.gpus.faults("");
            // Also after what failed while it went.
            subject.register(&mut self.client, "m").await;
            assert!(self.works(&subject).await, "{what}: what failed at the end spoils the next");
            self.goes(what, &subject).await;
        }
        self.daemon.metric_becomes("lmcached_l1_writing_objects", &[], 0.0).await;
        self.daemon.metric_becomes("lmcached_l1_pins", &[], 0.0).await;
        assert!(self.daemon.alive(), "{what}");
        spoilt
    }

    /// How many lines of the log have this.
    fn said(&self, what: &str) -> usize {
        self.daemon.log().iter().filter(|line| line.contains(what)).count()
    }

    /// The next one's begins with a context of its own.
    async fn goes(&mut self, what: &str, subject: &Subject<'_>) {
        unregister(&mut self.client, subject.instance).await;
        let pid = self.daemon.pid();
        let gone = async || self.gpus.contexts_of(pid).is_empty().then_some(());
        eventually(&format!("{what}: no context is left"), gone).await;
        let closed = async || (self.gpus.mapped_by(pid) == 0).then_some(());
        eventually(&format!("{what}: nothing is open"), closed).await;
    }
}

/// A daemon for each kind of driver.
struct Rigs {
    modern: Rig,
    old: Rig,
    bare: Rig,
}

impl Rigs {
    async fn start() -> Rigs {
        Rigs {
            modern: Rig::start(&[]).await,
            old: Rig::start(&[("FAKE_CUDA_VERSION", "12040")]).await,
            bare: Rig::start(&[("FAKE_CUDA_VERSION", "12040"), ("FAKE_CUDA_PTX", "0")]).await,
        }
    }

    fn of(&mut self, kind: Kind) -> &mut Rig {
        match kind {
            Modern => &mut self.modern,
            Old => &mut self.old,
            Bare => &mut self.bare,
        }
    }
}

async fn every_call(code: u32) {
    let mut rigs = Rigs::start().await;
    let sticky = if code == FOR_EVER { " sticky" } else { "" };
    for &(call, kind, spoils) in CALLS {
        let rig = rigs.of(kind);
        let (this, besides) = call.split_once(" + ").unwrap_or((call, ""));
        let (name, which) = this.split_once(' ').unwrap_or((this, ""));
        let mut faults = vec![format!("{name} {code} {which}{sticky}")];
        faults.extend((!besides.is_empty()).then(|| besides.to_owned()));
        let errors = async |rig: &Rig| {
            rig.daemon.metric("lmcached_cuda_errors_total", &[&format!("call=\"{name}\"")]).await
        };
        let before = errors(rig).await;
        let spoilt = rig.spoil(&format!("{call} {code}"), &faults, announced(call)).await;
        let failed = errors(rig).await - before;
        assert!(failed > 0.0, "{call} {code}: was it ever called, and counted?");
        let must = spoils == Always || spoils == IfLost && code == FOR_EVER;
        assert!(spoilt || !must, "{call} {code} was not noticed");
        let may = must || spoils == Perhaps;
        assert!(!spoilt || may, "{call} {code} spoils a transfer, and there is another way");
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

/// Nothing is told of what fails on the device, nor of what is behind it.
#[tokio::test]
async fn what_fails_when_the_device_gets_there_is_noticed() {
    let mut rigs = Rigs::start().await;
    for (call, kind) in ENQUEUED {
        let rig = rigs.of(kind);
        let (name, which) = call.split_once(' ').unwrap_or((call, ""));
        let faults = [format!("{name} 700 {which} late")];
        let before = rig.said("the GPU context is lost");
        let spoilt = rig.spoil(&format!("{call}, late"), &faults, announced(call)).await;
        assert!(spoilt, "{call} was not noticed");
        let said = async || (rig.said("the GPU context is lost") > before).then_some(());
        eventually(&format!("{call}: it says that the context is lost"), said).await;
    }
}

/// Neither released nor reset, it is still the device's: the next worker gets the same one, and is served.
#[tokio::test]
async fn a_context_that_cannot_be_destroyed_is_used_again() {
    let mut rig = Rig::start(&[]).await;
    rig.gpus.faults("cuDevicePrimaryCtxRelease_v2 2 times=9\ncuDevicePrimaryCtxReset_v2 2 times=9\n");
    let memory = GpuMemory::new(rig.worker.clone(), Announce::Torch, LAYERS, layer_bytes(Layout::KvFirst));
    let subject = Subject { backing: &memory, layout: Layout::KvFirst, layers: LAYERS, instance: 1 };
    for round in 0..2 {
        subject.register(&mut rig.client, "m").await;
        assert!(rig.works(&subject).await, "round {round}");
        unregister(&mut rig.client, 1).await;
        let said = async || (rig.said("cannot destroy a GPU context") == round + 1).then_some(());
        eventually("it says that it cannot destroy the context", said).await;
    }
    assert_eq!(rig.gpus.contexts_of(rig.daemon.pid()), [0]);
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

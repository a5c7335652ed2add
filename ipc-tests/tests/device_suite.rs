//! The suite of `ipc_tests::device_suite` for CPU shared memory and for GPUs, which must also agree with each other. With
//! `LMCACHED_GPU=real` the GPU is the machine's.

use std::sync::Arc;

use ipc_tests::daemon::Daemon;
use ipc_tests::device_suite::{
    Announce, Backing, CpuMemory, GpuMemory, Hybrid, LAYOUTS, Layout, Subject, checksums, layer_bytes, model,
    run, run_windows,
};
use ipc_tests::fs_tier;
use ipc_tests::gpu::Gpus;
use ipc_tests::worker::{lookup, prompt};
use lmcache_proto::wire::{DeviceDescriptor, Request};
use lmcached::device::format::{Blocks, Format, HeadOrder, View};

const LAYERS: usize = 3;
/// Layers of workers with a window: two of each kind.
const HYBRID_LAYERS: usize = 4;
/// Tokens of a window that is a quarter of a chunk, and of one that reaches into a second chunk.
const WINDOWS: [u64; 2] = [64, 320];

/// Each format that the daemon serves is one of the suite's layouts, with padding where it may have that.
#[test]
fn the_layouts_are_all_formats_that_are_served() {
    let format = |layout| {
        let memory = CpuMemory::new(1, layer_bytes(layout));
        let subject = Subject { backing: &memory, layout, layers: 1, instance: 1 };
        let registration = subject.registration("m");
        let DeviceDescriptor::CpuShm { metadata, .. } = &registration.kv_cache[0] else {
            panic!("CPU memory")
        };
        let order = HeadOrder::resolve(&registration.layout_hints, HeadOrder::Nhd).expect("a known hint");
        let view = View::new(metadata).and_then(|view| view.physical()).expect("a view");
        let blocks = Blocks::detect(&view, order).expect("a format");
        let tile = blocks.slots * blocks.heads * blocks.head_width;
        (blocks.format, blocks.planes == 1 && blocks.block_stride > tile)
    };
    let expected = [
        (Format::KvFirstNhd, false),
        (Format::KvFirstHnd, false),
        (Format::BlocksFirstNhd, false),
        (Format::BlocksFirstHnd, false),
        (Format::FusedNhd, false),
        (Format::FusedHnd, false),
        (Format::Mla, false),
        (Format::FusedNhd, true),
        (Format::FusedHnd, true),
        (Format::Mla, true),
    ];
    assert_eq!(LAYOUTS.map(format), expected);
}

#[tokio::test]
async fn cpu_memory_does_what_it_must() {
    let daemon = Daemon::start(&[]).await;
    for (at, layout) in LAYOUTS.into_iter().enumerate() {
        let memory = CpuMemory::new(LAYERS, layer_bytes(layout));
        let subject = Subject { backing: &memory, layout, layers: LAYERS, instance: 10 + at as u64 };
        run(&daemon, &subject, &format!("cpu-{layout:?}")).await;
    }
}

/// Every layout with a short window and one with a long one, in one object with full attention and in objects of their own.
async fn windows(start: impl AsyncFn(&[&str]) -> Daemon, memory: impl Fn(Layout) -> Box<dyn Backing>) {
    for separate in [false, true] {
        let tier = tempfile::tempdir().expect("a directory");
        let flag = fs_tier::flag(tier.path());
        let mut flags = vec![flag.as_str(), "--l1-size-gb=0.015625"];
        flags.extend(separate.then_some("--separate-object-groups"));
        let daemon = start(&flags).await;
        let short = LAYOUTS.map(|layout| (layout, WINDOWS[0]));
        for (at, (layout, window)) in short.into_iter().chain([(Layout::HeadMajor, WINDOWS[1])]).enumerate() {
            let backing = memory(layout);
            let subject = Subject { backing: &*backing, layout, layers: HYBRID_LAYERS, instance: at as u64 };
            let hybrid = Hybrid { subject, window, separate };
            run_windows(&daemon, &hybrid, &format!("windows-{layout:?}-{window}"), tier.path()).await;
        }
    }
}

#[tokio::test]
async fn windows_in_cpu_memory_do_what_they_must() {
    let memory = |layout| Box::new(CpuMemory::new(HYBRID_LAYERS, layer_bytes(layout))) as Box<dyn Backing>;
    windows(async |flags| Daemon::start(flags).await, memory).await;
}

async fn on_gpu(announce: Announce, more: &[(&str, &str)], flags: &[&str]) {
    let gpus = Gpus::new(1, more);
    let daemon = Daemon::start_in(&gpus.of_daemon(), flags).await;
    let worker = Arc::new(gpus.worker(0, None));
    for (at, layout) in LAYOUTS.into_iter().enumerate() {
        let memory = GpuMemory::new(worker.clone(), announce, LAYERS, layer_bytes(layout));
        let subject = Subject { backing: &memory, layout, layers: LAYERS, instance: 20 + at as u64 };
        run(&daemon, &subject, &format!("gpu-{layout:?}")).await;
    }
    drop(daemon);
    let start =
        async |of_windows: &[&str]| Daemon::start_in(&gpus.of_daemon(), &[flags, of_windows].concat()).await;
    let memory = |layout| {
        let memory = GpuMemory::new(worker.clone(), announce, HYBRID_LAYERS, layer_bytes(layout));
        Box::new(memory) as Box<dyn Backing>
    };
    windows(start, memory).await;
}

#[tokio::test]
async fn gpu_memory_does_what_it_must() {
    on_gpu(Announce::Torch, &[], &[]).await;
}

#[tokio::test]
async fn gpu_memory_of_an_isolated_worker_does_what_it_must() {
    on_gpu(Announce::Isolated, &[], &[]).await;
}

/// What is not ordered by an event happens in another order than it was written.
#[tokio::test]
async fn slow_streams_change_nothing() {
    on_gpu(Announce::Torch, &[("FAKE_CUDA_DELAY_US", "3000")], &[]).await;
}

#[tokio::test]
async fn a_driver_without_batched_copies_will_do() {
    on_gpu(Announce::Torch, &[("FAKE_CUDA_VERSION", "12040")], &[]).await;
}

/// Whatever the driver would take by itself.
#[tokio::test]
async fn every_way_of_copying_does_what_it_must() {
    for way in ["staged", "plain"] {
        on_gpu(Announce::Torch, &[], &[&format!("--cuda-copies={way}")]).await;
    }
}

/// More than the staging buffer holds, in one slice (whole blocks) and in slices that are each as large as it (heads before slots),
/// and more pieces than a launch takes.
#[tokio::test]
async fn what_is_larger_than_the_staging_buffer_takes_turns() {
    const MANY: usize = 150;
    let gpus = Gpus::new(1, &[]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &["--l1-size-gb=0.125", "--cuda-copies=staged"]).await;
    let worker = Arc::new(gpus.worker(0, None));
    let mut client = daemon.connect().await;
    for layout in [Layout::KvFirst, Layout::HeadMajor] {
        let memory = GpuMemory::new(worker.clone(), Announce::Torch, MANY, layer_bytes(layout));
        let subject = Subject { backing: &memory, layout, layers: MANY, instance: 40 };
        let model = model(&format!("large-{layout:?}"));
        subject.register(&mut client, &model.name).await;
        subject.fill(3);
        let before = subject.blocks();
        let tokens = prompt(1, 2);
        let frame = |request: &str| model.key(request, &tokens).frame(Some(0), 0, 512);
        assert!(subject.store(&mut client, &frame("s"), (1..33).collect()).await.1);
        assert_eq!(lookup(&mut client, &model, "l", &tokens, 1).await, 2);
        subject.wipe();
        assert!(subject.retrieve(&mut client, &frame("l"), (33..65).rev().collect(), 0).await.1);
        let moved: Vec<_> = subject.blocks()[33..65].iter().rev().cloned().collect();
        assert!(moved[..] == before[1..33], "{layout:?}");
        client.call(&Request::UnregisterKvCache { instance_id: 40 }).await.expect("unregister");
        client.call(&Request::EndSession { request_id: "l" }).await.expect("end of session");
    }
}

/// Without the kernel, which other drivers than these may refuse, there are still plain copies.
#[tokio::test]
async fn a_driver_that_does_not_read_our_ptx_will_do() {
    for version in ["12040", "12080"] {
        on_gpu(Announce::Torch, &[("FAKE_CUDA_VERSION", version), ("FAKE_CUDA_PTX", "0")], &[]).await;
    }
}

/// A pool that cannot be pinned is copied with all the same.
#[tokio::test]
async fn a_pool_that_is_not_pinned_will_do() {
    let gpus = Gpus::new(1, &[]);
    gpus.faults("cuMemHostRegister_v2 2 times=1000\n");
    let daemon = Daemon::start_in(&gpus.of_daemon(), &[]).await;
    let memory = GpuMemory::new(
        Arc::new(gpus.worker(0, None)),
        Announce::Torch,
        LAYERS,
        layer_bytes(Layout::HeadMajor),
    );
    let subject = Subject { backing: &memory, layout: Layout::HeadMajor, layers: LAYERS, instance: 30 };
    run(&daemon, &subject, "unpinned").await;
    if !ipc_tests::gpu::real() {
        daemon.says("cannot pin the pool").await;
    }
}

/// Objects and checksums are the same whatever memory the blocks are in.
#[tokio::test]
async fn one_kind_of_memory_reads_what_the_other_stored() {
    let gpus = Gpus::new(1, &[]);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &[]).await;
    let worker = Arc::new(gpus.worker(0, None));
    let mut client = daemon.connect().await;
    for (at, layout) in LAYOUTS.into_iter().enumerate() {
        let name = format!("both-{layout:?}");
        let bytes = layer_bytes(layout);
        let cpu = CpuMemory::new(LAYERS, bytes);
        let gpu = GpuMemory::new(worker.clone(), Announce::Torch, LAYERS, bytes);
        let of = |backing, instance| Subject { backing, layout, layers: LAYERS, instance };
        let (on_cpu, on_gpu) =
            (of(&cpu as &dyn Backing, 100 + at as u64), of(&gpu as &dyn Backing, 200 + at as u64));
        on_gpu.fill(9);
        on_cpu.register(&mut client, &name).await;
        on_gpu.register(&mut client, &name).await;
        let tokens = prompt(at as u32, 2);
        let frame = model(&name).key("a", &tokens).frame(Some(0), 0, 512);
        let blocks: Vec<u64> = (1..33).collect();
        assert!(on_gpu.store(&mut client, &frame, blocks.clone()).await.1);
        assert_eq!(lookup(&mut client, &model(&name), "b", &tokens, 1).await, 2);
        let frame = model(&name).key("b", &tokens).frame(Some(0), 0, 512);
        assert!(on_cpu.retrieve(&mut client, &frame, blocks, 0).await.1);
        assert!(on_cpu.blocks()[1..33] == on_gpu.blocks()[1..33], "{layout:?}");
        on_cpu.fill(9);
        assert_eq!(checksums(&daemon, on_cpu.instance).await, checksums(&daemon, on_gpu.instance).await);
    }
}

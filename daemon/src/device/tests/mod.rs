//! Tests of the room, and what they share.
#![allow(unsafe_code)]

mod checks;
mod conformance;
mod golden;
mod hostile;
mod memory;
mod reference;
mod speed;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};

use lmcache_proto::wire::{DeviceDescriptor, EngineGroupInfo, LayoutHints, RegisterKvCache, TensorMetadata};

use super::copy::{self, CopyError, ObjectMut, ObjectRef};
use super::cpu_shm::{CpuShm, Limits};
use super::plan::ChunkPlan;
use super::{Memory, Options, Registration};

impl Registration {
    fn shm(&self) -> &CpuShm {
        let Memory::CpuShm(shm) = &self.memory else { panic!("CPU memory") };
        shm
    }

    /// One plan, at once.
    fn store(&self, plan: &ChunkPlan<'_>, object: &mut ObjectMut<'_>) -> Result<u64, CopyError> {
        copy::store(self.shm(), plan, object)
    }

    /// One plan, at once.
    fn retrieve(&self, plan: &ChunkPlan<'_>, object: ObjectRef<'_>) -> Result<u64, CopyError> {
        copy::retrieve(self.shm(), plan, object)
    }
}

/// Byte `index` of test data; also in the script that made [`golden`].
fn pattern(index: u64) -> u8 {
    (index.wrapping_mul(2_654_435_761) as u32 >> 16) as u8
}

/// A worker's segment: a file where `shm_open` looks, removed on drop.
struct Worker {
    name: String,
    file: File,
}

impl Worker {
    fn path(name: &str) -> String {
        format!("/dev/shm{name}")
    }

    fn named(name: String, bytes: u64) -> Worker {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        let file = options.open(Worker::path(&name)).expect("create a segment");
        file.set_len(bytes).expect("size the segment");
        Worker { name, file }
    }

    fn new(bytes: u64) -> Worker {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Worker::named(format!("/lmcache_kv_{}_{number}.device-test", std::process::id()), bytes)
    }

    fn filled(bytes: u64) -> Worker {
        let worker = Worker::new(bytes);
        let data: Vec<u8> = (0..bytes).map(pattern).collect();
        worker.file.write_all_at(&data, 0).expect("fill the segment");
        worker
    }

    fn content(&self) -> Vec<u8> {
        let mut data = vec![0; self.file.metadata().expect("stat").len() as usize];
        self.file.read_exact_at(&mut data, 0).expect("read the segment");
        data
    }

    fn tensor(&self, nbytes: u64, metadata: TensorMetadata) -> DeviceDescriptor {
        DeviceDescriptor::CpuShm { shm_name: self.name.clone(), nbytes, version: 1, metadata }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(Worker::path(&self.name));
    }
}

fn metadata(dtype: &str, shape: &[u64], stride: &[u64], storage_offset: u64) -> TensorMetadata {
    TensorMetadata {
        dtype: dtype.to_owned(),
        shape: shape.to_vec(),
        stride: stride.to_vec(),
        storage_offset,
        device_uuid: "cpu".to_owned(),
    }
}

fn dense(shape: &[u64]) -> Vec<u64> {
    (1..=shape.len()).map(|at| shape[at..].iter().product()).collect()
}

fn hints(kv_layout: Option<&str>) -> LayoutHints {
    LayoutHints { kv_layout: kv_layout.map(str::to_owned), ..LayoutHints::default() }
}

fn info(layers: &[u32]) -> EngineGroupInfo {
    EngineGroupInfo {
        engine_group_id: 0,
        layer_indices: layers.to_vec(),
        tokens_per_block: 0,
        sw_size_tokens: -1,
        extra_object_group_tag: 0,
        recurrent_state: false,
    }
}

fn request(kv_cache: Vec<DeviceDescriptor>, layout_hints: LayoutHints) -> RegisterKvCache {
    RegisterKvCache {
        instance_id: 7,
        kv_cache,
        model_name: "model".to_owned(),
        world_size: 1,
        engine_type: "vllm".to_owned(),
        layout_hints,
        engine_group_infos: Vec::new(),
    }
}

fn options(chunk_tokens: u64) -> Options<'static> {
    let limits = Limits { max_bytes: 1 << 32, owner: None };
    Options { chunk_tokens, separate_object_groups: false, limits, cuda: None, process: None }
}

/// One worker with `layers` K/V-first layers of 8 blocks of 4 slots, 2 heads × 8 float16, and chunks of 16 tokens.
fn small(worker: &Worker, layers: u64) -> Registration {
    let shape = [2, 8, 4, 2, 8];
    let elements: u64 = shape.iter().product();
    let tensors = (0..layers).map(|layer| {
        worker.tensor(layers * elements * 2, metadata("float16", &shape, &dense(&shape), layer * elements))
    });
    Registration::new(&request(tensors.collect(), hints(Some("NHD"))), &options(16)).expect("registers")
}

//! What every kind of worker memory must do, over the wire: one suite for CPU shared memory and for GPUs.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lmcache_client::Connection;
use lmcache_proto::wire::{
    DeviceDescriptor, EngineGroupInfo, LayoutHints, RegisterKvCache, Request, Response, SharedStorage,
    TensorMetadata,
};

use crate::daemon::Daemon;
use crate::gpu::{Allocation, GpuWorker};
use crate::http;
use crate::worker::{Model, key, lookup, prompt};

const BLOCKS: u64 = 72;
const SLOTS: u64 = 16;
const HEADS: u64 = 2;
const WIDTH: u64 = 32;
/// Bytes of one block of one plane of one layer.
const BLOCK_BYTES: usize = (SLOTS * HEADS * WIDTH * 2) as usize;

/// How an engine lays a layer out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// All K blocks, then all V blocks.
    KvFirst,
    /// K and V of a block side by side.
    BlocksFirst,
    /// As `KvFirst`, heads before slots.
    HeadMajor,
    /// One plane.
    Mla,
}

/// All of them.
pub const LAYOUTS: [Layout; 4] = [Layout::KvFirst, Layout::BlocksFirst, Layout::HeadMajor, Layout::Mla];

impl Layout {
    fn planes(self) -> u64 {
        if self == Layout::Mla { 1 } else { 2 }
    }

    fn metadata(self, uuid: &str, offset: u64) -> TensorMetadata {
        let (slot, tile) = (HEADS * WIDTH, SLOTS * HEADS * WIDTH);
        let (shape, stride) = match self {
            Layout::KvFirst => {
                (vec![2, BLOCKS, SLOTS, HEADS, WIDTH], vec![BLOCKS * tile, tile, slot, WIDTH, 1])
            }
            Layout::BlocksFirst => {
                (vec![BLOCKS, 2, SLOTS, HEADS, WIDTH], vec![2 * tile, tile, slot, WIDTH, 1])
            }
            Layout::HeadMajor => {
                (vec![2, BLOCKS, SLOTS, HEADS, WIDTH], vec![BLOCKS * tile, tile, WIDTH, SLOTS * WIDTH, 1])
            }
            Layout::Mla => (vec![BLOCKS, SLOTS, HEADS * WIDTH], vec![tile, slot, 1]),
        };
        let (dtype, device_uuid) = ("float16".to_owned(), uuid.to_owned());
        TensorMetadata { dtype, shape, stride, storage_offset: offset, device_uuid }
    }

    /// Where a block of a plane begins.
    fn at(self, plane: u64, block: u64) -> usize {
        let tile = match self {
            Layout::KvFirst | Layout::HeadMajor => plane * BLOCKS + block,
            Layout::BlocksFirst => block * 2 + plane,
            Layout::Mla => block,
        };
        tile as usize * BLOCK_BYTES
    }

    fn layer_bytes(self) -> u64 {
        self.planes() * BLOCKS * BLOCK_BYTES as u64
    }
}

/// Memory of one worker.
pub trait Backing {
    /// A descriptor of a layer's view, which begins at element `offset` of its storage.
    fn descriptor(&self, layer: usize, metadata: TensorMetadata) -> DeviceDescriptor;
    /// Its device, as descriptors name it.
    fn uuid(&self) -> &str;
    /// Writes all of its layers.
    fn write(&self, layers: &[Vec<u8>]);
    /// Reads all of its layers.
    fn read(&self) -> Vec<Vec<u8>>;
    /// An event that the worker's memory is ready behind.
    fn event(&self) -> Vec<u8>;
    /// Whether the daemon's event has fired by now.
    fn fired(&self, event: &[u8]) -> bool;
}

/// CPU shared memory.
#[derive(Debug)]
pub struct CpuMemory {
    files: Vec<(String, File, u64)>,
}

impl CpuMemory {
    /// Segments of that many bytes.
    ///
    /// # Panics
    /// Without shared memory.
    pub fn new(layers: usize, bytes: u64) -> CpuMemory {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let make = |_| {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("/lmcache_kv_suite{}_{number}", std::process::id());
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true);
            let file = options.open(format!("/dev/shm{name}")).expect("a segment");
            file.set_len(bytes).expect("size");
            (name, file, bytes)
        };
        CpuMemory { files: (0..layers).map(make).collect() }
    }
}

impl Drop for CpuMemory {
    fn drop(&mut self) {
        for (name, ..) in &self.files {
            let _ = std::fs::remove_file(format!("/dev/shm{name}"));
        }
    }
}

impl Backing for CpuMemory {
    fn descriptor(&self, layer: usize, metadata: TensorMetadata) -> DeviceDescriptor {
        let (shm_name, _, nbytes) = &self.files[layer];
        DeviceDescriptor::CpuShm { shm_name: shm_name.clone(), nbytes: *nbytes, version: 1, metadata }
    }

    fn uuid(&self) -> &'static str {
        "cpu"
    }

    fn write(&self, layers: &[Vec<u8>]) {
        for ((_, file, _), data) in self.files.iter().zip(layers) {
            file.write_all_at(data, 0).expect("write");
        }
    }

    fn read(&self) -> Vec<Vec<u8>> {
        let read = |(_, file, bytes): &(String, File, u64)| {
            let mut data = vec![0; *bytes as usize];
            file.read_exact_at(&mut data, 0).expect("read");
            data
        };
        self.files.iter().map(read).collect()
    }

    fn event(&self) -> Vec<u8> {
        b"ev".to_vec()
    }

    fn fired(&self, event: &[u8]) -> bool {
        event == b"stub_ipc_handle"
    }
}

/// How a worker of the suite announces its memory on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announce {
    /// As torch shares storages, with the driver's events.
    Torch,
    /// As LMCache does between isolated containers: bare handles, and events that are words.
    Isolated,
}

/// GPU memory of a worker process: all layers in one allocation, behind something else.
#[derive(Debug)]
pub struct GpuMemory {
    /// The worker.
    pub worker: Arc<GpuWorker>,
    announce: Announce,
    memory: Allocation,
    layers: usize,
    bytes: u64,
}

/// Bytes before the first layer in its allocation.
const BEFORE: u64 = 4096;

impl GpuMemory {
    /// Allocates it.
    pub fn new(worker: Arc<GpuWorker>, announce: Announce, layers: usize, bytes: u64) -> GpuMemory {
        let memory = worker.alloc(BEFORE + layers as u64 * bytes);
        GpuMemory { worker, announce, memory, layers, bytes }
    }

    fn all(&self) -> Vec<u8> {
        self.worker.dump(self.memory.number)
    }

    /// Its IPC handle.
    pub fn handle(&self) -> &[u8] {
        &self.memory.handle
    }
}

impl Backing for GpuMemory {
    fn descriptor(&self, layer: usize, metadata: TensorMetadata) -> DeviceDescriptor {
        match self.announce {
            Announce::Torch => {
                // One storage for all layers, as vLLM has it: the layer is at an offset in the storage.
                let storage = SharedStorage {
                    device: 7,
                    handle: &self.memory.torch,
                    bytes: self.layers as u64 * self.bytes,
                    offset: self.memory.offset + BEFORE,
                };
                let storage_offset = metadata.storage_offset + layer as u64 * self.bytes / 2;
                let metadata = TensorMetadata { storage_offset, ..metadata };
                DeviceDescriptor::Cuda { handle: storage.encode(), version: 1, metadata }
            }
            Announce::Isolated => DeviceDescriptor::CudaRaw {
                ipc_handle: self.memory.handle.clone(),
                alloc_offset: self.memory.offset + BEFORE + layer as u64 * self.bytes,
                nbytes: self.bytes,
                version: 1,
                metadata,
            },
        }
    }

    fn uuid(&self) -> &str {
        &self.worker.uuid
    }

    fn write(&self, layers: &[Vec<u8>]) {
        let mut all = self.all();
        for (layer, data) in layers.iter().enumerate() {
            let at = BEFORE as usize + layer * self.bytes as usize;
            all[at..at + data.len()].copy_from_slice(data);
        }
        self.worker.load(self.memory.number, &all);
    }

    fn read(&self) -> Vec<Vec<u8>> {
        let layers = &self.all()[BEFORE as usize..];
        layers.chunks_exact(self.bytes as usize).take(self.layers).map(<[u8]>::to_vec).collect()
    }

    fn event(&self) -> Vec<u8> {
        match self.announce {
            Announce::Torch => self.worker.event(),
            Announce::Isolated => self.worker.word(),
        }
    }

    fn fired(&self, event: &[u8]) -> bool {
        self.worker.wait(event)
    }
}

/// A registered worker of the suite.
pub struct Subject<'b> {
    /// Its memory.
    pub backing: &'b dyn Backing,
    /// Its layout.
    pub layout: Layout,
    /// Layers.
    pub layers: usize,
    /// Its id.
    pub instance: u64,
}

/// Bytes of a layer.
pub fn layer_bytes(layout: Layout) -> u64 {
    layout.layer_bytes()
}

impl Subject<'_> {
    /// What it registers as a worker of `model`.
    pub fn registration(&self, model: &str) -> RegisterKvCache {
        let metadata = || self.layout.metadata(self.backing.uuid(), 0);
        let order = if self.layout == Layout::HeadMajor { "HND" } else { "NHD" };
        RegisterKvCache {
            instance_id: self.instance,
            kv_cache: (0..self.layers).map(|layer| self.backing.descriptor(layer, metadata())).collect(),
            model_name: model.to_owned(),
            world_size: 1,
            engine_type: "vllm".into(),
            layout_hints: LayoutHints { kv_layout: Some(order.into()), ..LayoutHints::default() },
            engine_group_infos: vec![EngineGroupInfo {
                engine_group_id: 0,
                layer_indices: (0..self.layers as u32).collect(),
                tokens_per_block: SLOTS,
                sw_size_tokens: -1,
                extra_object_group_tag: 0,
                recurrent_state: false,
            }],
        }
    }

    /// Registers it.
    ///
    /// # Panics
    /// If the daemon does not acknowledge it.
    pub async fn register(&self, client: &mut Connection, model: &str) {
        let request = Request::RegisterKvCache(Box::new(self.registration(model)));
        assert_eq!(client.call(&request).await.expect("register"), Response::Nothing);
    }

    /// Writes every byte as a function of its place.
    pub fn fill(&self, seed: u64) {
        let layer = |layer: usize| {
            let byte = |at: u64| {
                ((at * 7 + (at >> 9) + layer as u64 * 13 + seed).wrapping_mul(2_654_435_761) >> 16) as u8
            };
            (0..self.layout.layer_bytes()).map(byte).collect()
        };
        self.backing.write(&(0..self.layers).map(layer).collect::<Vec<_>>());
    }

    /// Zeroes everything.
    pub fn wipe(&self) {
        self.backing.write(&vec![vec![0; self.layout.layer_bytes() as usize]; self.layers]);
    }

    /// All blocks: by number, the bytes of all layers and planes.
    pub fn blocks(&self) -> Vec<Vec<u8>> {
        let layers = self.backing.read();
        let block = |block: u64| {
            let of_layer = |layer: &Vec<u8>| {
                let plane = |plane| {
                    let at = self.layout.at(plane, block);
                    layer[at..at + BLOCK_BYTES].to_vec()
                };
                (0..self.layout.planes()).flat_map(plane).collect::<Vec<u8>>()
            };
            layers.iter().flat_map(of_layer).collect()
        };
        (0..BLOCKS).map(block).collect()
    }

    /// Stores; the answer's event, and whether it was done.
    ///
    /// # Panics
    /// If there is no answer.
    pub async fn store(&self, client: &mut Connection, frame: &[u8], blocks: Vec<u64>) -> (Vec<u8>, bool) {
        let event = self.backing.event();
        let request = Request::Store {
            key: key(frame),
            instance_id: self.instance,
            block_ids: vec![blocks],
            event: &event,
        };
        transfer(client.call(&request).await.expect("store"))
    }

    /// Retrieves.
    ///
    /// # Panics
    /// If there is no answer.
    pub async fn retrieve(
        &self,
        client: &mut Connection,
        frame: &[u8],
        blocks: Vec<u64>,
        skip: u64,
    ) -> (Vec<u8>, bool) {
        let event = self.backing.event();
        let request = Request::Retrieve {
            key: key(frame),
            instance_id: self.instance,
            block_ids: vec![blocks],
            event: &event,
            skip_first_n_tokens: skip,
        };
        transfer(client.call(&request).await.expect("retrieve"))
    }
}

fn transfer(response: Response) -> (Vec<u8>, bool) {
    match response {
        Response::Transfer(event, done) => (event, done),
        other => panic!("a transfer answered {other:?}"),
    }
}

/// A model by the name alone: lookups need no more.
pub fn model(name: &str) -> Model {
    Model { name: name.into(), world_size: 1, layers: 1, width: 1 }
}

/// Blocks in an order with neighbours and without.
fn scattered(seed: u64, count: u64) -> Vec<u64> {
    (0..count).map(|at| 1 + (at + at / 5 * 3 + seed * 5) % (BLOCKS - 1)).collect()
}

/// Stores, wipes, and retrieves into other blocks; also what is skipped, cached already, null, and refused.
///
/// # Panics
/// When the memory does not do what it must.
pub async fn run(daemon: &Daemon, subject: &Subject<'_>, name: &str) {
    let mut client = daemon.connect().await;
    let model = model(name);
    subject.fill(subject.instance);
    subject.register(&mut client, name).await;
    let before = subject.blocks();
    let tokens = prompt(subject.instance as u32, 3);
    let frame = model.key("a", &tokens).frame(Some(0), 0, 768);
    let from = scattered(1, 48);
    let (event, done) = subject.store(&mut client, &frame, from.clone()).await;
    assert!(done && subject.backing.fired(&event), "an answered store is over");
    assert_eq!(lookup(&mut client, &model, "b", &tokens, 1).await, 3);

    // Into other blocks, and without the first 40 tokens: two whole blocks are left alone.
    subject.wipe();
    let into: Vec<u64> = (10..58).rev().collect();
    let frame = model.key("b", &tokens).frame(Some(0), 0, 768);
    let (event, done) = subject.retrieve(&mut client, &frame, into.clone(), 40).await;
    assert!(done && subject.backing.fired(&event), "an answered retrieve is over");
    let after = subject.blocks();
    for (position, (from, to)) in from.iter().zip(&into).enumerate() {
        if position < 2 {
            assert!(after[*to as usize].iter().all(|byte| *byte == 0), "block {position} was to be skipped");
        } else {
            assert!(after[*to as usize] == before[*from as usize], "block {position}");
        }
    }
    let untouched = (0..BLOCKS).filter(|block| !into.contains(block));
    for block in untouched {
        assert!(after[block as usize].iter().all(|byte| *byte == 0), "block {block} was not asked for");
    }

    // What is cached is not copied again, and null blocks are not stored.
    let (_, done) = subject.store(&mut client, &frame, scattered(2, 48)).await;
    assert!(done, "cached already");
    let more = prompt(1000 + subject.instance as u32, 2);
    let frame = model.key("c", &more).frame(Some(0), 0, 512);
    let (_, done) = subject.store(&mut client, &frame, [vec![5; 16], vec![0; 16]].concat()).await;
    assert!(done);
    assert_eq!(lookup(&mut client, &model, "d", &more, 1).await, 1, "the null chunk is not there");
    client.call(&Request::EndSession { request_id: "d" }).await.expect("ended");

    // Refused, and nothing is left of it.
    let other = prompt(2000 + subject.instance as u32, 2);
    let frame = model.key("e", &other).frame(Some(0), 0, 512);
    assert!(!subject.store(&mut client, &frame, scattered(3, 31)).await.1, "too few blocks");
    assert!(!subject.store(&mut client, &frame, vec![BLOCKS; 32]).await.1, "blocks that do not exist");
    assert!(!subject.retrieve(&mut client, &frame, scattered(3, 32), 0).await.1, "nothing is cached");
    daemon.metric_becomes("lmcached_l1_writing_objects", &[], 0.0).await;
    daemon.metric_becomes("lmcached_l1_pins", &[], 0.0).await;
}

/// Digests of blocks over the admin API.
///
/// # Panics
/// If the daemon does not answer.
pub async fn checksums(daemon: &Daemon, instance: u64) -> serde_json::Value {
    let body = format!(r#"{{"instance_id": {instance}, "block_ids": [3, 1, 0, 7], "chunk_size": 2}}"#);
    let (status, page) = http::post(daemon.http_port(), "/cache/checksums", &body).await.expect("an answer");
    assert_eq!(status, 200, "{page}");
    let page: serde_json::Value = serde_json::from_str(&page).expect("JSON");
    page["chunk_checksums"].clone()
}

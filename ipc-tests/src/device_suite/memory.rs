//! Where the suite's workers have their KV.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lmcache_proto::wire::{DeviceDescriptor, SharedStorage, TensorMetadata};

use crate::gpu::{Allocation, GpuWorker};

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

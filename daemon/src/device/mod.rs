//! Where a worker's KV cache lives, and how its blocks map to the bytes of stored objects.
//!
//! * [`mod@format`]: one tensor's shape and strides → its KV format.
//! * [`groups`]: all tensors and the engine's groups → kernel groups.
//! * [`objects`]: kernel groups → object groups, their windows and layouts.
//! * [`plan`]: block ids of a chunk → runs of bytes to copy; pure.
//! * [`cpu_shm`]: maps the worker's shared memory; [`sigbus`] keeps us alive when the worker shrinks it.
//! * [`cuda`]: opens the worker's GPU memory, and copies by the GPU.
//! * [`copy`]: executes runs between a worker's mapped memory and the pool.
//! * [`transfer`]: what is the same for all kinds of devices: a transfer is handed over, and told when it is over.
//! * [`checksum`]: digests of a worker's blocks for tests and operators.
//!
//! A [`Registration`] is what a `register_kv_cache` leaves behind. It is immutable, shared between threads, and
//! unmaps the worker's memory when the last user drops it.
#![deny(unsafe_code)]

pub mod checksum;
pub mod copy;
pub mod cpu_shm;
pub mod cuda;
pub mod format;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub mod groups;
pub mod objects;
pub mod plan;
pub mod sigbus;
pub mod transfer;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use lmcache_proto::wire::{DeviceDescriptor, RegisterKvCache, TensorMetadata};

use checksum::{ChecksumError, Checksums, checksums};
use cpu_shm::{CpuShm, Limits, MapError, SegmentIdentity};
use cuda::Cuda;
use format::HeadOrder;
use groups::{GeometryError, GeometryInput, KvGeometry};
use plan::{ChunkPlan, PlanError};
pub(crate) use sigbus::Guard as SigbusGuard;
pub use sigbus::GuardError as SigbusGuardError;
use transfer::{Device, Done, Transfer};

use crate::process::ProcessId;

/// Memory of a registered worker. One variant per kind of device.
#[derive(Debug)]
pub enum Memory {
    /// POSIX shared memory.
    CpuShm(CpuShm),
    /// GPU memory.
    Cuda(cuda::Memory),
}

impl Memory {
    fn device(&self) -> &dyn Device {
        match self {
            Memory::CpuShm(memory) => memory,
            Memory::Cuda(memory) => memory,
        }
    }
}

/// What the daemon's configuration adds to a registration.
#[derive(Clone, Copy, Debug)]
pub struct Options<'d> {
    /// Tokens of a chunk.
    pub chunk_tokens: u64,
    /// One object group per attention window instead of one for all.
    pub separate_object_groups: bool,
    /// What the worker may map.
    pub limits: Limits,
    /// The GPUs; `None` serves none.
    pub cuda: Option<&'d Cuda>,
    /// The worker's process, where it is known.
    pub process: Option<ProcessId>,
}

/// A worker's KV cache, ready for stores and retrieves.
#[derive(Debug)]
pub struct Registration {
    /// How blocks and objects correspond.
    pub geometry: Arc<KvGeometry>,
    /// Where the blocks are.
    pub memory: Memory,
}

/// Why a worker was not registered. Nothing of it stays behind.
#[derive(Debug, thiserror::Error)]
#[error("worker {instance_id} of model {model_name:?} cannot register: {reason}. {}", .reason.advice())]
pub struct RegisterError {
    /// The worker's id.
    pub instance_id: u64,
    /// Its model.
    pub model_name: String,
    /// What is wrong.
    pub reason: RegisterReason,
}

impl RegisterError {
    fn of(request: &RegisterKvCache, reason: RegisterReason) -> RegisterError {
        RegisterError {
            instance_id: request.instance_id,
            model_name: request.model_name.chars().take(128).collect(),
            reason,
        }
    }
}

/// What is wrong with a registration.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum RegisterReason {
    #[error("it announced no KV tensors")]
    NoTensors,
    #[error("tensor {tensor} is in memory of kind {kind:?}, which this daemon does not serve")]
    Device { tensor: usize, kind: String },
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    #[error("its tensors are partly in {0} memory and partly in {1} memory")]
    Mixed(String, String),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Cuda(#[from] cuda::OpenError),
}

impl RegisterReason {
    /// What an operator can do about it, in one sentence.
    pub fn advice(&self) -> &'static str {
        match self {
            RegisterReason::NoTensors => {
                "Check that the engine has a KV cache before its connector registers it"
            }
            RegisterReason::Device { .. } => {
                "Run the engine with lmcache.mp.mp_transfer_mode=engine_driven, or on a CPU or an NVIDIA GPU"
            }
            RegisterReason::Mixed(..) => "Register the tensors of each device as a worker of its own",
            RegisterReason::Cuda(error) => error.advice(),
            RegisterReason::Geometry(GeometryError::Chunk { .. } | GeometryError::Window { .. }) => {
                "Choose a --chunk-size that the engine's block size and sliding windows divide"
            }
            RegisterReason::Geometry(GeometryError::Engine(_) | GeometryError::Layer { .. }) => {
                "Use a KV layout that is served, or lmcache.mp.mp_transfer_mode=engine_driven"
            }
            RegisterReason::Geometry(_) => "Check that engine and daemon speak the same LMCache release",
            RegisterReason::Map(MapError::Announced { .. } | MapError::Guard { .. }) => {
                "Raise the daemon's limit for registered memory, or register fewer workers"
            }
            RegisterReason::Map(MapError::Owner { .. }) => {
                "Run the worker and its segments under one user; over TCP that is the daemon's, over a Unix socket (--bind ipc://) the worker's own"
            }
            RegisterReason::Map(_) => {
                "Check that worker and daemon share /dev/shm and that the daemon may open its files"
            }
        }
    }
}

/// What opens descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    CpuShm,
    Cuda,
}

/// The one kind of all descriptors.
fn kind_of(descriptors: &[DeviceDescriptor]) -> Result<Kind, RegisterReason> {
    let kind = |(tensor, descriptor): (usize, &DeviceDescriptor)| match descriptor {
        DeviceDescriptor::CpuShm { .. } => Ok(Kind::CpuShm),
        DeviceDescriptor::Cuda { .. } | DeviceDescriptor::CudaRaw { .. } => Ok(Kind::Cuda),
        DeviceDescriptor::CudaVmm { .. } => Err(cuda::OpenError::Vmm(tensor).into()),
        DeviceDescriptor::Unsupported { kind } => {
            Err(RegisterReason::Device { tensor, kind: kind.chars().take(32).collect() })
        }
    };
    let first = descriptors.first().ok_or(RegisterReason::NoTensors)?;
    let all = kind((0, first))?;
    for other in descriptors.iter().enumerate() {
        if kind(other)? != all {
            return Err(RegisterReason::Mixed(first.kind().to_owned(), other.1.kind().to_owned()));
        }
    }
    Ok(all)
}

/// Whether a worker's memory is a GPU's.
pub fn is_on_gpu(request: &RegisterKvCache) -> bool {
    kind_of(&request.kv_cache).is_ok_and(|kind| kind == Kind::Cuda)
}

impl Registration {
    /// Whether both map the very same memory, and not only memory of the same names.
    pub fn same_memory(&self, other: &Registration) -> bool {
        self.files() == other.files()
    }

    /// Checks what a worker announces and maps its memory.
    ///
    /// # Errors
    /// [`RegisterError`] with the first thing that does not hold.
    pub fn new(request: &RegisterKvCache, options: &Options<'_>) -> Result<Registration, RegisterError> {
        Registration::try_new(request, options).map_err(|reason| RegisterError::of(request, reason))
    }

    /// What a worker's blocks look like, without touching its memory.
    ///
    /// # Errors
    /// [`RegisterError`] with the first thing that does not hold.
    pub fn geometry(request: &RegisterKvCache, options: &Options<'_>) -> Result<KvGeometry, RegisterError> {
        Registration::try_geometry(request, options).map_err(|reason| RegisterError::of(request, reason))
    }

    /// The files that its memory is, in the order of its segments.
    pub fn files(&self) -> Vec<SegmentIdentity> {
        self.memory.device().identity()
    }

    fn try_new(request: &RegisterKvCache, options: &Options<'_>) -> Result<Registration, RegisterReason> {
        let geometry = Arc::new(Registration::try_geometry(request, options)?);
        let memory = match kind_of(&request.kv_cache)? {
            Kind::CpuShm => Memory::CpuShm(CpuShm::map(&request.kv_cache, &geometry, &options.limits)?),
            Kind::Cuda => {
                let none = || cuda::OpenError::NoDriver("GPUs are switched off".to_owned());
                Memory::Cuda(options.cuda.ok_or_else(none)?.open(
                    (request.instance_id, options.process),
                    &request.kv_cache,
                    &geometry,
                )?)
            }
        };
        Ok(Registration { geometry, memory })
    }

    fn try_geometry(request: &RegisterKvCache, options: &Options<'_>) -> Result<KvGeometry, RegisterReason> {
        let default_order = match kind_of(&request.kv_cache)? {
            Kind::CpuShm => HeadOrder::Hnd,
            Kind::Cuda => HeadOrder::Nhd,
        };
        let tensors: Vec<&TensorMetadata> =
            request.kv_cache.iter().filter_map(DeviceDescriptor::metadata).collect();
        Ok(KvGeometry::build(&GeometryInput {
            tensors: &tensors,
            engine_type: &request.engine_type,
            hints: &request.layout_hints,
            default_order,
            engine_groups: &request.engine_group_infos,
            chunk_tokens: options.chunk_tokens,
            separate_object_groups: options.separate_object_groups,
        })?)
    }

    /// Plans one chunk of a request; see [`ChunkPlan::new`]. Plan all chunks before the first copy: a bad block id then
    /// stops the request before it has touched anything.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn plan<'a>(
        &'a self,
        object_group: usize,
        block_ids: &'a [Vec<u64>],
        chunk: u64,
        skip_tokens: u64,
    ) -> Result<ChunkPlan<'a>, PlanError> {
        ChunkPlan::new(&self.geometry, object_group, block_ids, chunk, skip_tokens)
    }

    /// What metrics and events call its device.
    pub fn label(&self) -> &str {
        self.memory.device().label()
    }

    /// What a transfer that moves nothing is answered as its event.
    pub fn idle_event(&self) -> Vec<u8> {
        self.memory.device().idle_event()
    }

    /// See [`Device::is_lost`].
    pub fn is_lost(&self) -> bool {
        self.memory.device().is_lost()
    }

    /// See [`Device::close`].
    pub fn close(&self, dead: bool) {
        self.memory.device().close(dead);
    }

    /// Moves what `transfer` says; see [`Device::submit`].
    pub fn submit(&self, transfer: Transfer, done: Done) {
        self.memory.device().submit(transfer, done);
    }

    /// Digests of blocks; see [`checksum::checksums`].
    ///
    /// # Errors
    /// [`ChecksumError`].
    pub fn checksums(
        &self,
        block_ids: &[u64],
        chunk_size: usize,
        layerwise: bool,
    ) -> Result<Checksums, ChecksumError> {
        checksums(&self.geometry, self.memory.device(), block_ids, chunk_size, layerwise)
    }
}

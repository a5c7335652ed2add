//! A worker's KV in GPU memory (`cuda` and `cuda_raw` descriptors), opened by CUDA IPC.
//!
//! * [`descriptor`]: what a worker says of its memory, checked;
//! * [`driver`]: libcuda, loaded when it is there;
//! * [`context`]: a device's context and the allocations that are open in it, each once;
//! * [`stream`], [`events`], [`semaphores`]: what is ordered behind what, across processes;
//! * [`pin`]: the pool, pinned; [`numa`]: from near which memory;
//! * [`pieces`], [`enqueue`], [`calls`]: runs of a plan → copies of the driver's;
//! * [`staging`], [`kernel`]: short ones, gathered and scattered on the GPU;
//! * [`job`], [`lane`], [`asked`]: transfers on their way; one thread for each worker (what it enqueues, how it ends before its time),
//!   what it is asked and what it tells.
//!
//! Without a driver nothing of this runs. With one, no context is made before a worker registers, and only on its own device:
//! a GPU is found by its UUID, because every process may number them differently.
#![deny(unsafe_code)]

mod asked;
mod calls;
mod context;
mod descriptor;
mod driver;
mod enqueue;
mod error;
mod events;
mod job;
mod kernel;
mod lane;
mod numa;
mod pieces;
mod pin;
mod semaphores;
mod staging;
mod stream;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use lmcache_proto::wire::DeviceDescriptor;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

pub use error::{CudaError, OpenError, failed_calls};

use super::copy::CopyError;
use super::cpu_shm::SegmentIdentity;
use super::groups::KvGeometry;
use super::transfer::{Device, Done, Transfer};
use crate::l1::L1;
use crate::process::ProcessId;
use asked::{Command, Owner, Told};
use context::Contexts;
use descriptor::Handle;
use driver::Driver;
use job::Tensor;
use lane::{Lane, LaneParts};
use pin::Pins;

/// Longest that a registration waits for the pool to be pinned. A larger pool is pinned on beside the first transfers.
const PIN_WAIT: Duration = Duration::from_secs(20);

/// How pieces of a worker's blocks are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// In batches where the driver can; else, and what is strided, through a staging buffer if it is short.
    Auto,
    /// Never in batches.
    Staged,
    /// Each by a call of its own.
    Plain,
}

/// What the configuration says of GPUs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How pieces are copied.
    pub copies: Copies,
    /// Longest wait for a worker's event.
    pub event_timeout: Duration,
}

/// Who is told of a worker of which nothing is taken any more.
#[derive(Default)]
struct Losses(OnceLock<Box<OnLoss>>);

/// Told the worker, and whether to wait for its turn; whether it was heard.
type OnLoss = dyn Fn(u64, bool) -> bool + Send + Sync;

impl Losses {
    fn tell(&self, instance: u64, wait: bool) -> bool {
        self.0.get().is_none_or(|tell| tell(instance, wait))
    }
}

impl std::fmt::Debug for Losses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Losses")
    }
}

/// The GPUs of this daemon.
#[derive(Debug)]
pub struct Cuda {
    settings: Settings,
    contexts: Arc<Contexts>,
    pins: Arc<Pins>,
    losses: Arc<Losses>,
    /// Lanes that have not ended, of the processes that are known.
    lanes: Mutex<Vec<LaneOf>>,
}

/// A lane, and whose it is. It may outlive all that the engine knows of the worker.
#[derive(Debug)]
struct LaneOf {
    process: ProcessId,
    commands: Sender<Command>,
    /// Its lane's.
    alive: Weak<()>,
}

impl Cuda {
    /// GPUs that copy from and to the pool of `l1`. Nothing is loaded yet.
    pub fn new(l1: Arc<L1>, settings: Settings) -> Cuda {
        Cuda {
            settings,
            contexts: Arc::default(),
            pins: Arc::new(Pins::new(l1)),
            losses: Arc::default(),
            lanes: Mutex::default(),
        }
    }

    /// A process is dead: what its workers would have done on a GPU will not be done any more. Also of workers that have gone.
    pub fn process_died(&self, process: ProcessId) {
        for lane in self.lanes.lock().iter().filter(|lane| lane.process == process) {
            // It may have ended.
            let _ = lane.commands.send(Command::Close { dead: true });
        }
    }

    /// Has `tell` called with the id of each worker that must register again: its GPU takes nothing of it any more. Called on a
    /// thread of that worker's, before its failed transfers are told; if it answers `false`, again behind them, and then with `true`:
    /// it may wait a moment, but other transfers may be over meanwhile. The first to ask is told.
    pub fn on_loss(&self, tell: impl Fn(u64, bool) -> bool + Send + Sync + 'static) {
        let _ = self.losses.0.set(Box::new(tell));
    }

    /// Says in one line what there is. Loads the driver if it is there, which may take seconds; makes no context.
    pub fn announce() {
        if !Driver::present() {
            tracing::info!(
                "no CUDA driver on this machine; workers with a KV cache in GPU memory cannot register"
            );
            return;
        }
        match Driver::get() {
            Ok(driver) => tracing::info!(
                version = driver.version,
                gpus = driver.devices,
                batched_copies = driver.batch.is_some(),
                "CUDA driver found; a GPU is used from the registration of its first worker on"
            ),
            Err(error) => tracing::warn!(
                %error,
                "the CUDA driver cannot be used; workers with a KV cache in GPU memory cannot register"
            ),
        }
    }

    /// Opens a worker's memory.
    ///
    /// # Errors
    /// [`OpenError`]; nothing stays open then.
    pub(super) fn open(
        &self,
        (instance, process): (u64, Option<ProcessId>),
        descriptors: &[DeviceDescriptor],
        geometry: &KvGeometry,
    ) -> Result<Memory, OpenError> {
        let announced = descriptor::read(descriptors, geometry)?;
        let driver = Driver::get().map_err(|error| OpenError::NoDriver(error.to_string()))?;
        let with_kernel = self.settings.copies != Copies::Plain;
        // It might be all that keeps a lost context, which is waited for below.
        self.pins.drop_lost();
        let context = self.contexts.get(driver, announced.uuid, with_kernel)?;
        let pins = self.pins.user(&context);
        let label = context.device.label.clone();
        // All else may have been open already, so that this is the first call that finds the context lost.
        let failed = |source| {
            context.note(source);
            OpenError::Driver { device: label.clone(), source }
        };
        let _current = context.enter().map_err(failed)?;
        let (mut mappings, mut tensors, mut identity) = (Vec::new(), Vec::new(), Vec::new());
        let mut open: HashMap<Handle, (u64, u64)> = HashMap::new();
        for (tensor, place) in announced.places.iter().enumerate() {
            let Some(place) = place else {
                tensors.push(None);
                continue;
            };
            let (pointer, allocated) = match open.get(&place.handle) {
                Some(known) => *known,
                None => {
                    let failed = |source| {
                        context.note(source);
                        OpenError::Map { tensor, device: label.clone(), source }
                    };
                    let mapping = context.map(&place.handle).map_err(failed)?;
                    let known = (mapping.pointer(), mapping.bytes().map_err(failed)?);
                    mappings.push(mapping);
                    open.insert(place.handle, known);
                    identity.push(SegmentIdentity {
                        device: xxh3_64(&announced.uuid.0),
                        inode: xxh3_64(&place.handle),
                        size: known.1,
                    });
                    known
                }
            };
            // Checked for overflow where it was read.
            let bytes = place.offset + place.bytes;
            if bytes > allocated {
                return Err(OpenError::Allocation { tensor, bytes, allocated });
            }
            tensors.push(Some(Tensor { address: pointer + place.offset, bytes: place.bytes }));
        }
        if !pins.pin(&context).wait(PIN_WAIT) {
            tracing::info!("the pool is still being pinned; the first transfers run beside that");
        }
        let (sender, commands) = channel();
        let (told, telling) = channel();
        let is_lost = Arc::<AtomicBool>::default();
        let waker = sender.clone();
        // Without a receiver it has ended.
        let watch = context
            .watch(move || drop(waker.send(Command::Lost)))
            .map_err(|lanes| OpenError::Lanes { device: label.clone(), lanes })?;
        let parts = LaneParts {
            context: context.clone(),
            watch,
            pins,
            mappings,
            tensors,
            settings: self.settings,
            sender: sender.clone(),
            told,
            is_lost: is_lost.clone(),
        };
        let alive = Arc::new(());
        let known = process.map(|process| LaneOf {
            process,
            commands: sender.clone(),
            alive: Arc::downgrade(&alive),
        });
        let lane = Lane::new(parts).map_err(failed)?;
        drop(_current);
        let losses = self.losses.clone();
        start("cuda-done", move || tell(&telling, &losses, instance))?;
        start("cuda-lane", move || {
            lane.run(&commands);
            drop(alive);
        })?;
        let mut lanes = self.lanes.lock();
        lanes.retain(|lane| lane.alive.strong_count() > 0);
        lanes.extend(known);
        drop(lanes);
        Ok(Memory { label, identity, lane: sender, is_lost })
    }
}

/// For the fuzzers: what workers say of handles and events, and no driver behind it.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzzed(descriptors: &[DeviceDescriptor], event: &[u8]) {
    if let Ok(events::Form::Word(_, offset, _)) = events::Form::read(event) {
        assert!(offset + semaphores::WORD <= semaphores::WORDS * semaphores::WORD);
    }
    let view = super::format::View {
        dims: Vec::new(),
        strides: Vec::new(),
        dtype: lmcache_proto::layout::Dtype::Uint8,
        begin: 0,
        end: 1,
    };
    let tensor = Some(super::groups::TensorView { view, block_axis: None });
    let geometry = KvGeometry {
        chunk_tokens: 1,
        kernel_groups: Vec::new(),
        object_groups: Vec::new(),
        tensors: vec![tensor; descriptors.len()],
    };
    if let Ok(announced) = descriptor::read(descriptors, &geometry) {
        assert_eq!(announced.places.len(), descriptors.len());
        let inside =
            |place: &descriptor::Place| place.bytes > 0 && place.offset.checked_add(place.bytes).is_some();
        assert!(announced.places.iter().flatten().all(inside));
    }
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), OpenError> {
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    started.map(drop).map_err(|error| OpenError::Thread(error.to_string()))
}

/// Tells of transfers that are over, and of the worker's loss: what follows may take a while, and the lane has others.
fn tell(telling: &Receiver<Told>, losses: &Losses, instance: u64) {
    let mut untold = false;
    loop {
        // Who asked for a transfer is not kept waiting by somebody who registers.
        let told =
            if untold { telling.try_recv().ok() } else { telling.recv().map(Some).unwrap_or_default() };
        let (none, wait) = (told.is_none(), told.is_none() && untold);
        if none && !wait {
            return;
        }
        let is_loss = !matches!(told, Some(Told::Finished(_)));
        let told = || match told {
            Some(Told::Finished(finished)) => {
                finished.tell();
                true
            }
            Some(Told::Lost) | None => losses.tell(instance, wait),
        };
        let heard = catch_unwind(AssertUnwindSafe(told)).unwrap_or_else(|_| {
            tracing::error!("what follows a transfer panicked; this is a bug in lmcached, please report it");
            true
        });
        if is_loss {
            untold = !heard;
        }
    }
}

/// GPU memory of one worker. Closed when it goes and nothing of it is under way.
#[derive(Debug)]
pub struct Memory {
    label: String,
    identity: Vec<SegmentIdentity>,
    lane: Sender<Command>,
    is_lost: Arc<AtomicBool>,
}

impl Device for Memory {
    fn label(&self) -> &str {
        &self.label
    }

    fn identity(&self) -> Vec<SegmentIdentity> {
        self.identity.clone()
    }

    fn submit(&self, transfer: Transfer, done: Done) {
        // If it is not taken any more its owner is told.
        let _ = self.lane.send(Command::Transfer(transfer, Owner::new(done)));
    }

    fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    fn close(&self, dead: bool) {
        // It may have gone by itself.
        let _ = self.lane.send(Command::Close { dead });
    }

    fn read(&self, tensor: usize, offset: u64, into: &mut [u8]) -> Result<(), CopyError> {
        let (answer, read) = channel();
        let bytes = into.len();
        self.lane.send(Command::Read { tensor, offset, bytes, answer }).map_err(|_| CopyError::Closed)?;
        into.copy_from_slice(&read.recv().map_err(|_| CopyError::Closed)??);
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.close(false);
    }
}

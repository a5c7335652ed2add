//! What every kind of device does with a transfer: it is handed over, and tells when it is over.
//!
//! A transfer owns what it touches. Its objects stay reserved or pinned while it holds them, and a device lets go of them
//! only when nothing can touch their bytes any more: what has become of the request meanwhile does not matter.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::copy::{CopyError, ObjectMut, ObjectRef};
use super::cpu_shm::SegmentIdentity;
use super::groups::KvGeometry;
use super::plan::{ChunkPlan, PlanError};

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the worker's blocks into objects.
    Store,
    /// From objects into the worker's blocks.
    Retrieve,
}

/// The pool's side of a transfer. The objects are held while the value lives.
pub trait Objects: Send + Sync {
    /// The object of part `at`, to be filled by a store. `None` if it is gone.
    fn writable(&self, at: usize) -> Option<ObjectMut<'_>>;
    /// The object of part `at`, to be read by a retrieve.
    fn readable(&self, at: usize) -> Option<ObjectRef<'_>>;
    /// Whether the worker certainly waits for the transfer still. Asked before each part, so that a daemon that stood still in
    /// the middle goes no further.
    fn awaited(&self) -> bool;
}

/// One object of a transfer, and the chunk that it is.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Which object of the transfer's [`Objects`].
    pub object: usize,
    /// Object group.
    pub group: usize,
    /// Chunk of the request's range.
    pub chunk: u64,
    /// Tokens at the chunk's start that are left alone.
    pub skip_tokens: u64,
}

/// A store or a retrieve, handed to a device.
pub struct Transfer {
    /// Which way.
    pub direction: Direction,
    /// The worker's geometry.
    pub geometry: Arc<KvGeometry>,
    /// Blocks of the request's range, one list for each KV group.
    pub block_ids: Vec<Vec<u64>>,
    /// What moves, in this order.
    pub parts: Vec<Part>,
    /// Where it moves from or to.
    pub objects: Arc<dyn Objects>,
    /// The worker's event, as it came: its blocks may be read or written when it has fired.
    pub event: Vec<u8>,
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer")
            .field("direction", &self.direction)
            .field("parts", &self.parts.len())
            .finish()
    }
}

impl Transfer {
    /// The plan of a part.
    ///
    /// # Errors
    /// [`PlanError`] for blocks that do not fit the geometry.
    pub fn plan(&self, part: &Part) -> Result<ChunkPlan<'_>, PlanError> {
        ChunkPlan::new(&self.geometry, part.group, &self.block_ids, part.chunk, part.skip_tokens)
    }

    /// Plans all parts once: a bad block stops a transfer before it has touched anything. Returns the bytes that move.
    ///
    /// # Errors
    /// The first [`PlanError`].
    pub fn check(&self) -> Result<u64, PlanError> {
        self.parts.iter().try_fold(0u64, |sum, part| Ok(sum + self.plan(part)?.bytes()))
    }
}

/// What a transfer that succeeded tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes.
    pub bytes: u64,
    /// How long the device was copying, where it measures that itself.
    pub device_time: Option<Duration>,
    /// The event that the worker is given. By the time it is told, all is done; empty says so too.
    pub event: Vec<u8>,
}

/// Called once, when a transfer is over. May be called on a thread of the device's, before `submit` returns or after.
pub type Done = Box<dyn FnOnce(Result<Moved, CopyError>) + Send>;

/// Memory of one registered worker.
pub trait Device: fmt::Debug + Send + Sync {
    /// What metrics and events call the device: `cpu`, `cuda:0`.
    fn label(&self) -> &str;

    /// What the memory is, so that an other one under the same name is told from it.
    fn identity(&self) -> Vec<SegmentIdentity>;

    /// What a transfer that moves nothing is answered as its event.
    fn idle_event(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Moves what a transfer says. The caller has checked it ([`Transfer::check`]).
    ///
    /// `done` is called exactly once, with an error if anything of it did not happen. A device that gives up early keeps the
    /// objects until they are not touched any more.
    fn submit(&self, transfer: Transfer, done: Done);

    /// Whether it takes nothing of its worker any more, which has to register again. Whoever is told so
    /// ([`super::cuda::Cuda::on_loss`]) finds it so.
    fn is_lost(&self) -> bool {
        false
    }

    /// The worker has gone, or registers anew: what still waits for it is given up, and its memory is closed as soon as nothing
    /// of it is under way, whoever holds the value then. `dead`: its process is, or is taken for it.
    fn close(&self, _dead: bool) {}

    /// Copies bytes of a tensor's storage into private memory. Slow: for checks from outside.
    ///
    /// # Errors
    /// [`CopyError`]; `into` may have been written then.
    fn read(&self, tensor: usize, offset: u64, into: &mut [u8]) -> Result<(), CopyError>;
}

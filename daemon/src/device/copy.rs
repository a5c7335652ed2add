//! Moves bytes between a worker's mapped tensors and an object of the pool.
//!
//! Both sides are memory that other processes can change while we copy, so there is never a Rust reference into either:
//! only raw copies, whose result counts after the worker's segments turn out not to be poisoned.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ptr;

use super::cpu_shm::{CpuShm, Mapped, Segment};
use super::cuda::CudaError;
use super::plan::{ChunkPlan, CopyRun, PlanError};
use crate::l1::{SlotMut, SlotRef};

/// Why a copy did not happen or does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum CopyError {
    #[error("an object of {need} bytes is planned, the pool gave {have}")]
    ObjectSize { have: u64, need: u64 },
    #[error("the worker shrank its segment {0}; it must register again")]
    Truncated(String),
    #[error("tensor {0} is not mapped")]
    Unmapped(usize),
    #[error("bytes {begin}..{end} of tensor {tensor} are planned, it has {len}")]
    TensorBounds { tensor: usize, begin: u64, end: u64, len: u64 },
    #[error("bytes {begin}..{end} of the object are planned, it has {len}")]
    ObjectBounds { begin: u64, end: u64, len: u64 },
    #[error("a held object is gone")]
    Gone,
    #[error(
        "the worker may have given it up while nobody answered its pings; it is served again when it has registered"
    )]
    GivenUp,
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("on the GPU, {0}")]
    Cuda(#[from] CudaError),
    #[error(
        "the worker's event has {0} bytes and is none that is known (64: a CUDA event, 81: LMCache's isolated IPC); engine and daemon must be of the same LMCache release"
    )]
    EventForm(usize),
    #[error("the worker's GPU was lost for it: {0}; it has to register again")]
    Lost(String),
    #[error("the worker has gone")]
    Closed,
}

/// An object that a store fills.
#[derive(Debug)]
pub struct ObjectMut<'a> {
    start: *mut u8,
    len: u64,
    slot: PhantomData<&'a mut [u8]>,
}

/// An object that a retrieve reads.
#[derive(Clone, Copy, Debug)]
pub struct ObjectRef<'a> {
    start: *const u8,
    len: u64,
    slot: PhantomData<&'a [u8]>,
}

// SAFETY: stands for exclusive bytes without an owner thread, like `&mut [u8]`.
unsafe impl Send for ObjectMut<'_> {}
// SAFETY: a shared `ObjectMut` allows nothing.
unsafe impl Sync for ObjectMut<'_> {}
// SAFETY: stands for bytes that nobody writes, like `&[u8]`.
unsafe impl Send for ObjectRef<'_> {}
// SAFETY: as above.
unsafe impl Sync for ObjectRef<'_> {}

impl<'a> From<SlotMut<'a>> for ObjectMut<'a> {
    fn from(mut slot: SlotMut<'a>) -> ObjectMut<'a> {
        // SAFETY: a `SlotMut` is a reserved slot of the pool for its lifetime, and only its holder writes it; a worker's
        // segment is another mapping.
        unsafe { ObjectMut::new(slot.as_ptr(), slot.bytes()) }
    }
}

impl<'a> From<SlotRef<'a>> for ObjectRef<'a> {
    fn from(slot: SlotRef<'a>) -> ObjectRef<'a> {
        // SAFETY: a `SlotRef` is a committed and pinned slot of the pool for its lifetime.
        unsafe { ObjectRef::new(slot.as_ptr(), slot.bytes()) }
    }
}

impl ObjectMut<'_> {
    /// Where it is, for a device that copies by itself.
    pub(super) fn place(&mut self) -> (u64, u64) {
        (self.start as u64, self.len)
    }

    /// # Safety
    /// `len` bytes from `start` are mapped and writable for the lifetime, lie in no worker's segment, and are touched
    /// by nobody else of this process: the pool's slot is reserved.
    pub unsafe fn new(start: *mut u8, len: usize) -> Self {
        ObjectMut { start, len: len as u64, slot: PhantomData }
    }
}

impl ObjectRef<'_> {
    /// Where it is, for a device that copies by itself.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.start as u64, self.len)
    }

    /// # Safety
    /// `len` bytes from `start` are mapped and readable for the lifetime, lie in no worker's segment, and are written
    /// by nobody of this process: the pool's slot is committed and pinned.
    pub unsafe fn new(start: *const u8, len: usize) -> Self {
        ObjectRef { start, len: len as u64, slot: PhantomData }
    }
}

/// Fills an object from the worker's blocks; returns the bytes copied.
///
/// Room of the object that the plan does not use is cleared: it would go to L2 with what the slot held before.
///
/// # Errors
/// [`CopyError`]. The object's content is then undefined and must not be committed.
pub(super) fn store(
    memory: &CpuShm,
    plan: &ChunkPlan<'_>,
    object: &mut ObjectMut<'_>,
) -> Result<u64, CopyError> {
    clear_untouched(plan, object)?;
    let len = object.len;
    execute(memory, plan, len, |run, mapped| {
        // SAFETY: `execute` checked both sides of the run; see `strided`.
        unsafe {
            let from = mapped.start.add(run.tensor_offset as usize);
            let to = object.start.add(run.object_offset as usize);
            strided(from, run.tensor_step, to, run.object_step, run);
        }
    })
}

/// Clears what no run of the plan writes.
pub(super) fn clear_untouched(plan: &ChunkPlan<'_>, object: &mut ObjectMut<'_>) -> Result<(), CopyError> {
    let len = object.len;
    for room in plan.untouched() {
        if room.start > room.end || room.end > len {
            return Err(CopyError::ObjectBounds { begin: room.start, end: room.end, len });
        }
        // SAFETY: inside the object, by the line above; exclusive by the contract of `ObjectMut`.
        unsafe {
            ptr::write_bytes(object.start.add(room.start as usize), 0, (room.end - room.start) as usize)
        };
    }
    Ok(())
}

/// Copies an object into the worker's blocks; returns the bytes copied.
///
/// # Errors
/// [`CopyError`]. Some of the worker's blocks may have been written then.
pub(super) fn retrieve(
    memory: &CpuShm,
    plan: &ChunkPlan<'_>,
    object: ObjectRef<'_>,
) -> Result<u64, CopyError> {
    execute(memory, plan, object.len, |run, mapped| {
        // SAFETY: `execute` checked both sides of the run; see `strided`.
        unsafe {
            let from = object.start.add(run.object_offset as usize);
            let to = mapped.start.add(run.tensor_offset as usize);
            strided(from, run.object_step, to, run.tensor_step, run);
        }
    })
}

/// Hands every run of a plan to `copy`, after checking it against both sides once more, and looks for poison
/// afterwards.
fn execute(
    shm: &CpuShm,
    plan: &ChunkPlan<'_>,
    object_len: u64,
    mut copy: impl FnMut(&CopyRun, &Mapped<'_>),
) -> Result<u64, CopyError> {
    let need = plan.object_bytes();
    if object_len < need {
        return Err(CopyError::ObjectSize { have: object_len, need });
    }
    let mut current: Option<(usize, Mapped<'_>)> = None;
    let mut bytes = 0;
    for run in plan.runs() {
        let mapped = match current {
            Some((tensor, mapped)) if tensor == run.tensor => mapped,
            _ => {
                let mapped = shm.tensor(run.tensor).ok_or(CopyError::Unmapped(run.tensor))?;
                if let Some((_, before)) = current.replace((run.tensor, mapped)) {
                    intact(before.segment)?;
                }
                // Not worth starting on a segment that has gone, and what it still takes is memory of ours.
                intact(mapped.segment)?;
                mapped
            }
        };
        inside(&run, mapped.len, object_len)?;
        copy(&run, &mapped);
        bytes += run.len * run.count;
    }
    if let Some((_, mapped)) = current {
        intact(mapped.segment)?;
    }
    Ok(bytes)
}

/// Copies bytes of a tensor's storage into private memory.
///
/// # Errors
/// [`CopyError`]; `into` may have been written then.
pub(super) fn read(shm: &CpuShm, tensor: usize, offset: u64, into: &mut [u8]) -> Result<(), CopyError> {
    let mapped = shm.tensor(tensor).ok_or(CopyError::Unmapped(tensor))?;
    let end = offset.saturating_add(into.len() as u64);
    if end > mapped.len {
        return Err(CopyError::TensorBounds { tensor, begin: offset, end, len: mapped.len });
    }
    // SAFETY: inside the mapping, which `shm` keeps; `into` is private memory and does not overlap it.
    unsafe { ptr::copy_nonoverlapping(mapped.start.add(offset as usize), into.as_mut_ptr(), into.len()) };
    intact(mapped.segment)
}

fn intact(segment: &Segment) -> Result<(), CopyError> {
    if segment.poisoned() { Err(CopyError::Truncated(segment.name().to_owned())) } else { Ok(()) }
}

/// Checks a run against both sides.
pub(super) fn inside(run: &CopyRun, tensor_len: u64, object_len: u64) -> Result<(), CopyError> {
    let (tensor, begin) = (run.tensor, run.tensor_offset);
    let end = end_of(begin, run.tensor_step, run);
    if end > tensor_len {
        return Err(CopyError::TensorBounds { tensor, begin, end, len: tensor_len });
    }
    let begin = run.object_offset;
    let end = end_of(begin, run.object_step, run);
    if end > object_len {
        return Err(CopyError::ObjectBounds { begin, end, len: object_len });
    }
    Ok(())
}

/// One past the last byte of a run; `u64::MAX`, which no memory reaches, if it has no such number.
fn end_of(begin: u64, step: u64, run: &CopyRun) -> u64 {
    let end = || {
        let last = run.count.checked_sub(1)?.checked_mul(step)?;
        begin.checked_add(last)?.checked_add(run.len)
    };
    end().unwrap_or(u64::MAX)
}

/// Copies the pieces of a run.
///
/// # Safety
/// Every piece is inside one mapping on either side (hence all offsets fit in `usize`), and the two sides do not
/// overlap.
unsafe fn strided(from: *const u8, from_step: u64, to: *mut u8, to_step: u64, run: &CopyRun) {
    let (len, from_step, to_step) = (run.len as usize, from_step as usize, to_step as usize);
    for piece in 0..run.count as usize {
        // SAFETY: the caller's contract.
        unsafe { ptr::copy_nonoverlapping(from.add(piece * from_step), to.add(piece * to_step), len) };
    }
}

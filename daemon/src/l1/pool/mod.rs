//! The pool: one big shared-memory segment, made real in the background.
//!
//! Unsafe room: mapping, system calls and the write-through table live here. What the bytes are, and who may touch
//! them, is decided by the index next door.
#![allow(unsafe_code)]

mod extend;
mod file;
mod records;
mod reserve;
mod segment;
mod slot;
mod table;

pub(super) use extend::copy_records;
pub(crate) use file::{SHM_DIR, left_behind, other_group};
pub use records::{Difference, ObjectFields, PinFields, TableIdentity};
pub use reserve::{CapacityError, check_capacity, default_pool_bytes, huge_pages_refused};
pub use segment::{Segment, SegmentError};
pub(crate) use slot::in_pieces;
pub use slot::{SlotMut, SlotRef};
pub use table::Table;

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

/// Bytes that one reservation step makes real. Large enough that a step amortises its system calls, small enough
/// that the first requests find memory at once.
const STEP: u64 = 64 << 20;

/// The payload memory.
#[derive(Debug)]
pub struct Pool {
    segment: Segment,
    /// Everything below is real memory. Written by the reservation threads in order.
    frontier: AtomicU64,
    next_step: AtomicU64,
    done: Mutex<Vec<bool>>,
    stop: AtomicBool,
}

impl Pool {
    /// Wraps the pool segment, of which the first `frontier` bytes are real memory already (a pool that is taken over).
    pub fn new(segment: Segment, frontier: u64) -> Pool {
        let steps = segment.bytes().div_ceil(STEP) as usize;
        Pool {
            segment,
            frontier: AtomicU64::new(frontier),
            next_step: AtomicU64::new(0),
            done: Mutex::new(vec![false; steps]),
            stop: AtomicBool::new(false),
        }
    }

    /// The segment underneath.
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Bytes below which memory is real.
    pub fn frontier(&self) -> u64 {
        // Acquire: partner is the Release in `reserve`; who sees the frontier sees the populated pages' accounting.
        self.frontier.load(Ordering::Acquire)
    }

    /// Whether everything is reserved.
    pub fn complete(&self) -> bool {
        self.frontier() >= self.segment.bytes()
    }

    /// Ends the reservation early (shutdown).
    pub fn stop_reserving(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Takes steps until none is left; run by several threads at once. `advanced` is called with the old and the new
    /// frontier whenever it moves.
    ///
    /// # Errors
    /// No memory left. The pool stays usable up to its frontier, but the daemon has promised more and should end.
    pub fn reserve(&self, advanced: impl Fn(u64, u64)) -> io::Result<()> {
        let total = self.segment.bytes();
        loop {
            let step = self.next_step.fetch_add(1, Ordering::Relaxed);
            let start = step * STEP;
            if start >= total || self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.segment.populate(start, STEP.min(total - start))?;
            let mut done = self.done.lock();
            done[step as usize] = true;
            let old = self.frontier.load(Ordering::Relaxed);
            let mut new = old;
            // In whole steps: a pool that has been extended starts in the middle of one.
            while new < total && done[(new / STEP) as usize] {
                new = ((new / STEP + 1) * STEP).min(total);
            }
            if new > old {
                self.frontier.store(new, Ordering::Release);
                // Under the lock, so that the allocator hears of the frontiers in order.
                advanced(old, new);
            }
        }
    }

    /// The bytes of an object that the caller has reserved and not committed; `None` outside the pool.
    ///
    /// All of it is real memory: the allocator is only given what is, and what an earlier daemon's objects occupy was
    /// real when they were written.
    pub(super) fn slot_mut(&self, offset: u64, len: u64) -> Option<SlotMut<'_>> {
        let start = self.address(offset, len)?;
        // SAFETY: in the mapping (`address`); reserved by the caller's contract, which the index
        // enforces: nobody else is given a reserved object's range.
        Some(unsafe { SlotMut::new(start.as_ptr(), len as usize) })
    }

    /// The bytes of an object that the caller has pinned; `None` outside the pool.
    pub(super) fn slot_ref(&self, offset: u64, len: u64) -> Option<SlotRef<'_>> {
        let start = self.address(offset, len)?;
        // SAFETY: as above; pinned and committed by the caller's contract.
        Some(unsafe { SlotRef::new(start.as_ptr(), len as usize) })
    }

    fn address(&self, offset: u64, len: u64) -> Option<NonNull<u8>> {
        if offset.checked_add(len)? > self.segment.bytes() {
            return None;
        }
        // SAFETY: inside the mapping, checked above.
        NonNull::new(unsafe { self.segment.base().as_ptr().add(offset as usize) })
    }
}

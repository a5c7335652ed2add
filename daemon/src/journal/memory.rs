//! The journal's segment, as words that are safe to use.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::SigbusGuard;
use crate::l1::pool::Segment;

/// Words of a lane: one page.
pub(super) const LANE_WORDS: usize = 512;
/// Bytes of a lane.
pub(super) const LANE_BYTES: usize = LANE_WORDS * 8;

/// "LMCDJNL\0".
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"LMCDJNL\0");
/// Changes with the format of the segment.
pub(super) const VERSION: u64 = 2;
/// Words of the first page that say what the segment is: magic, version, lanes, inode of the pool.
pub(super) const HEADER: [usize; 4] = [0, 1, 2, 3];

/// The segment: a page that says what it is, then the lanes.
#[derive(Debug)]
pub(super) struct Memory {
    // Before the segment: the guard must go first.
    _guard: SigbusGuard,
    segment: Segment,
    lanes: u32,
}

impl Memory {
    /// Makes a segment in which nothing is noted.
    pub(super) fn create(name: &str, pool: u64, lanes: u32) -> Result<Memory, Box<dyn std::error::Error>> {
        let bytes = (u64::from(lanes) + 1) * LANE_BYTES as u64;
        let segment = Segment::open(name, bytes, false, None)?;
        // SAFETY: the whole mapping, owned by `segment`, which lives longer than the guard (field order) and is touched
        // through atomics only.
        let guard = unsafe { SigbusGuard::new(segment.base().as_ptr(), bytes as usize) }?;
        let memory = Memory { _guard: guard, segment, lanes };
        memory.segment.populate(0, LANE_BYTES as u64)?;
        for (word, value) in HEADER.into_iter().zip([MAGIC, VERSION, u64::from(lanes), pool]) {
            memory.page(0)[word].store(value, Ordering::Relaxed);
        }
        Ok(memory)
    }

    /// Makes a lane's memory real, so that writing to it cannot fault. `false`: there is no memory for it.
    pub(super) fn populate(&self, lane: u32) -> bool {
        self.segment.populate((u64::from(lane) + 1) * LANE_BYTES as u64, LANE_BYTES as u64).is_ok()
    }

    /// The words of a lane.
    ///
    /// # Panics
    /// If there is no such lane.
    pub(super) fn lane(&self, lane: u32) -> &[AtomicU64; LANE_WORDS] {
        assert!(lane < self.lanes, "lane numbers come from our own list");
        self.page(lane as usize + 1)
    }

    fn page(&self, page: usize) -> &[AtomicU64; LANE_WORDS] {
        // SAFETY: inside the mapping (both callers look at the number of lanes, from which its size comes) and page-aligned;
        // the words are atomics, for the life of `self`, and nobody else has the segment mapped. Missing pages are put there
        // by the SIGBUS guard.
        unsafe { &*self.segment.base().as_ptr().add(page * LANE_BYTES).cast() }
    }
}

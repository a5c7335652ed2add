//! The ring's segment, and its lanes as values that are safe to use.
#![allow(unsafe_code)]

use std::io;
use std::ptr;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use lmcache_proto::shm::ring::{Lane, RingHeader, RingLayout};

use super::hub::RingError;
use crate::device::SigbusGuard;
use crate::l1::pool::Segment;

/// The segment of this daemon's life. A new inode at every start: what an earlier daemon's worker still writes goes
/// into memory that nobody reads.
#[derive(Debug)]
pub(super) struct Memory {
    // Before the segment: the guard must go first.
    guard: SigbusGuard,
    segment: Segment,
    layout: RingLayout,
}

impl Memory {
    pub(super) fn create(name: &str, layout: RingLayout, group: Option<u32>) -> Result<Memory, RingError> {
        let segment = Segment::open(name, layout.bytes(), false, group)?;
        // SAFETY: the whole mapping, owned by `segment`, which lives longer than the guard (field order) and is touched
        // through atomics only, after the header below.
        let guard = unsafe { SigbusGuard::new(segment.base().as_ptr(), layout.bytes() as usize) };
        let memory = Memory { guard: guard?, segment, layout };
        memory.segment.populate(0, lmcache_proto::shm::PAGE).map_err(RingError::Memory)?;
        let header = RingHeader::new(layout).to_bytes();
        // SAFETY: inside the first page, which no lane overlaps; no worker has heard the name yet.
        unsafe {
            ptr::copy_nonoverlapping(header.as_ptr(), memory.segment.base().as_ptr(), header.len());
        }
        if let Err(error) = memory.segment.keep() {
            tracing::debug!(%error, "the ring's name cannot be restored if a client removes it");
        }
        Ok(memory)
    }

    pub(super) fn layout(&self) -> RingLayout {
        self.layout
    }

    pub(super) fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Whether a worker has shrunk the segment: then what we read here are zeros, and what workers write goes elsewhere.
    pub(super) fn broken(&self) -> bool {
        self.guard.poisoned()
    }

    /// Makes a lane's memory real, so that neither side can fault on it.
    pub(super) fn populate(&self, lane: u32) -> io::Result<()> {
        let at = self.layout.lane_at(lane).ok_or(io::ErrorKind::InvalidInput)?;
        self.segment.populate(at, self.layout.lane_bytes())
    }

    /// One lane.
    ///
    /// # Panics
    /// If there is no such lane.
    pub(super) fn lane(&self, lane: u32) -> Lane<'_, AtomicU64> {
        let at = self.layout.lane_at(lane).expect("lane numbers come from the hub's own list");
        // SAFETY: page-aligned and inside the mapping (the layout's own offsets in a segment of its own size), for the life
        // of `self`; only lanes touch these pages. Missing pages are put there by the SIGBUS guard.
        unsafe {
            let base = NonNull::new_unchecked(self.segment.base().as_ptr().add(at as usize));
            Lane::from_raw(base, self.layout.slots())
        }
    }
}

//! The worker's lane of the shared ring. Unsafe room: the lane's mapping.
#![allow(unsafe_code)]

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lmcache_proto::shm::ring::{Lane, Published, Record, RingHeader, RingLayout, Writer};
use lmcache_proto::wire::AttachRingResponse;
use parking_lot::Mutex;

use crate::error::RingError;
use crate::pool::{Mapping, open};

/// How often a publisher that meets another thread's record looks again. A record takes some 20 ns; who holds the lane for
/// longer than this was preempted, and is not waited for.
const SPINS: u32 = 200;

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publication {
    /// It is in the lane.
    Queued,
    /// The lane is full; the daemon counts it.
    Full,
    /// No lane: not registered, or the daemon offers none.
    NoLane,
    /// The daemon has taken the lane away; the next call attaches again.
    Stale,
    /// Another thread of this process was in the middle of a record; counted in [`Publisher::missed`].
    Busy,
}

#[derive(Debug)]
struct Attached {
    mapping: Mapping,
    slots: u32,
    writer: Writer,
}

/// Publishes records from any thread. No system call, no waiting.
#[derive(Debug, Default)]
pub struct Publisher {
    attached: Mutex<Option<Attached>>,
    stale: AtomicBool,
    missed: AtomicU64,
}

impl Publisher {
    /// Writes a record into the worker's lane.
    pub fn publish(&self, record: &Record) -> Publication {
        let mut spins = 0;
        // Not `lock`: that one sleeps in the kernel.
        let mut attached = loop {
            match self.attached.try_lock() {
                Some(attached) => break attached,
                None if spins == SPINS => {
                    self.missed.fetch_add(1, Ordering::Relaxed);
                    return Publication::Busy;
                }
                None => {
                    spins += 1;
                    std::hint::spin_loop();
                }
            }
        };
        let Some(attached) = attached.as_mut() else { return Publication::NoLane };
        // SAFETY: `attach` has mapped a whole lane of so many slots, at a page border; the mapping lives in `attached` and
        // is touched through lanes only.
        let lane = unsafe { Lane::from_raw(attached.mapping.base(), attached.slots) };
        match attached.writer.publish(lane, record) {
            Published::Queued => Publication::Queued,
            Published::Full => Publication::Full,
            Published::Stale => {
                self.stale.store(true, Ordering::Relaxed);
                Publication::Stale
            }
        }
    }

    /// Records that met another thread's and were not written.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Whether the worker has a lane now, as far as it knows.
    pub fn is_attached(&self) -> bool {
        !self.is_stale() && self.attached.lock().is_some()
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    /// Maps the lane that the daemon has given, and only that lane.
    pub(crate) fn attach(&self, response: &AttachRingResponse) -> Result<(), RingError> {
        let attached = Attached::new(response);
        let mut place = self.attached.lock();
        self.stale.store(false, Ordering::Relaxed);
        *place = None;
        *place = Some(attached?);
        Ok(())
    }

    pub(crate) fn detach(&self) {
        *self.attached.lock() = None;
        self.stale.store(false, Ordering::Relaxed);
    }
}

impl Attached {
    fn new(response: &AttachRingResponse) -> Result<Attached, RingError> {
        let AttachRingResponse { ring_name, ring_bytes, lane, lanes, slots, epoch } = response;
        if ring_name.is_empty() {
            return Err(RingError::None);
        }
        let bad = RingError::Layout { lane: *lane, lanes: *lanes, slots: *slots, bytes: *ring_bytes };
        let layout = RingLayout::new(*lanes, *slots).filter(|layout| layout.bytes() == *ring_bytes);
        let Some((layout, at)) = layout.and_then(|layout| Some((layout, layout.lane_at(*lane)?))) else {
            return Err(bad);
        };
        let file = open(ring_name, *ring_bytes)?;
        let mut header = [0; RingHeader::BYTES];
        file.read_exact_at(&mut header, 0).map_err(|_| RingError::Header)?;
        if header != RingHeader::new(layout).to_bytes() {
            return Err(RingError::Header);
        }
        let mapping = Mapping::new(&file, ring_name, at, layout.lane_bytes(), true)?;
        // SAFETY: just mapped: a whole lane, at a page border; touched through lanes only.
        let writer = Writer::attach(unsafe { Lane::from_raw(mapping.base(), *slots) }, *epoch);
        Ok(Attached { mapping, slots: *slots, writer: writer.ok_or(RingError::Epoch)? })
    }
}

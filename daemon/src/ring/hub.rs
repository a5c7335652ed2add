//! Who has which lane, what was drained from it, and what came of that.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use lmcache_proto::shm::ring::{Reader, Record, RingLayout};
use lmcache_proto::wire::AttachRingResponse;
use parking_lot::{Condvar, Mutex, RwLock};
use rustc_hash::FxHashMap;
use thiserror::Error;

use super::memory::Memory;
use super::stamp::{Clock, Reject};
use super::timings::{Timing, Timings};
use crate::device::SigbusGuardError;
use crate::l1::pool::SegmentError;

/// What the ring is made like.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Name of the segment.
    pub name: String,
    /// Lanes and slots; `None` offers no ring.
    pub layout: Option<RingLayout>,
    /// Group whose members may map it.
    pub group: Option<u32>,
    /// Most bytes that one transfer can move: the pool's.
    pub max_bytes: u64,
}

/// Why the ring could not be made.
#[derive(Debug, Error)]
pub enum RingError {
    /// The segment.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// No memory for its first page.
    #[error(
        "no shared memory for the ring's first page: {0}; free some in /dev/shm, or start with --ring-lanes 0"
    )]
    Memory(io::Error),
    /// It could not be guarded.
    #[error(transparent)]
    Guard(#[from] SigbusGuardError),
}

/// Why a worker gets no lane. It works without one: then the daemon's own times stand.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Switched off.
    #[error("the ring is switched off (--ring-lanes 0)")]
    Disabled,
    /// All lanes have an owner.
    #[error("all lanes are in use; raise --ring-lanes")]
    Full,
    /// A worker has shrunk the segment.
    #[error("a worker has shrunk the ring's segment; it is out of use until the daemon is restarted")]
    Broken,
    /// No memory for the lane.
    #[error("no shared memory for the lane: {0}")]
    Memory(io::Error),
}

/// What has come through a lane, or through all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Records read.
    pub records: u64,
    /// Records of transfers whose commit took their times.
    pub matched: u64,
    /// Records that no commit asked for, or that told half a story.
    pub unmatched: u64,
    /// Records that the worker could not write because its lane was full.
    pub lost: u64,
    /// Damaged slots, and positions or counters that no writer of ours leaves.
    pub corrupt: u64,
    /// Records of a kind that this daemon does not know: the worker's library is newer.
    pub unknown_kind: u64,
    /// Records with a time in the future or long ago.
    pub bad_time: u64,
    /// Records with more bytes, tokens or objects than a transfer can have.
    pub bad_range: u64,
}

impl Counters {
    /// Records that were not believed.
    pub fn rejected(&self) -> u64 {
        self.corrupt + self.unknown_kind + self.bad_time + self.bad_range
    }

    fn add(&mut self, other: &Counters) {
        for (mine, theirs) in [
            (&mut self.records, other.records),
            (&mut self.matched, other.matched),
            (&mut self.unmatched, other.unmatched),
            (&mut self.lost, other.lost),
            (&mut self.corrupt, other.corrupt),
            (&mut self.unknown_kind, other.unknown_kind),
            (&mut self.bad_time, other.bad_time),
            (&mut self.bad_range, other.bad_range),
        ] {
            *mine = mine.saturating_add(theirs);
        }
    }
}

/// One attached worker.
#[derive(Clone, Debug)]
pub struct LaneStatus {
    /// The worker.
    pub instance: u64,
    /// Its lane.
    pub lane: u32,
    /// The lane's epoch.
    pub epoch: u64,
    /// Transfers of which something is known and whose commit has not come.
    pub open: usize,
    /// What came through.
    pub counters: Counters,
}

/// Numbers about the ring.
#[derive(Clone, Debug, Default)]
pub struct RingStatus {
    /// Lanes of the segment; 0 without a ring.
    pub lanes: u32,
    /// A worker has shrunk the segment.
    pub broken: bool,
    /// Workers attached now, by instance.
    pub workers: Vec<LaneStatus>,
    /// Of all workers, those that are gone included.
    pub total: Counters,
}

#[derive(Debug)]
struct Attached {
    lane: u32,
    epoch: u64,
    reader: Reader,
    timings: Timings,
    counters: Counters,
    /// Detached: who still holds the value must not touch the lane.
    gone: bool,
}

/// The ring.
#[derive(Debug)]
pub struct RingHub {
    memory: Option<Memory>,
    max_bytes: u64,
    by_instance: RwLock<FxHashMap<u64, Arc<Mutex<Attached>>>>,
    /// Number of lanes in use; a look at it is all that a daemon without ring users pays.
    attached: AtomicUsize,
    lanes: Mutex<Free>,
    /// What workers that are gone have left.
    gone: Mutex<Counters>,
    pub(super) stop: AtomicBool,
    pub(super) wake: (Mutex<()>, Condvar),
    warned_broken: AtomicBool,
}

#[derive(Debug)]
struct Free {
    /// First in, first out: a lane rests as long as possible before it changes hands.
    lanes: VecDeque<u32>,
    next_epoch: u64,
}

impl RingHub {
    /// Makes the segment.
    ///
    /// # Errors
    /// See [`RingError`].
    pub fn open(config: &RingConfig) -> Result<Arc<RingHub>, RingError> {
        let memory =
            config.layout.map(|layout| Memory::create(&config.name, layout, config.group)).transpose()?;
        let lanes = config.layout.map_or(0, |layout| layout.lanes());
        // Random, so that no epoch of an earlier daemon comes again. Never 0: that is "nobody's".
        let next_epoch = (uuid::Uuid::new_v4().as_u128() as u64).max(1);
        Ok(Arc::new(RingHub {
            memory,
            max_bytes: config.max_bytes,
            by_instance: RwLock::default(),
            attached: AtomicUsize::new(0),
            lanes: Mutex::new(Free { lanes: (0..lanes).collect(), next_epoch }),
            gone: Mutex::default(),
            stop: AtomicBool::new(false),
            wake: (Mutex::new(()), Condvar::new()),
            warned_broken: AtomicBool::new(false),
        }))
    }

    /// A hub without a ring: every attach is turned down.
    pub fn disabled() -> Arc<RingHub> {
        let config = RingConfig { name: String::new(), layout: None, group: None, max_bytes: 0 };
        RingHub::open(&config).expect("nothing is made, nothing fails")
    }

    /// Gives a worker a lane, a fresh one if it has one already (it has reconnected, or another process took its place).
    ///
    /// # Errors
    /// See [`AttachError`]; the worker goes on without a ring.
    pub fn attach(&self, instance: u64) -> Result<AttachRingResponse, AttachError> {
        let memory = self.memory.as_ref().ok_or(AttachError::Disabled)?;
        if self.broken(memory) {
            return Err(AttachError::Broken);
        }
        self.detach(instance);
        let (lane, epoch) = {
            let mut free = self.lanes.lock();
            let lane = free.lanes.pop_front().ok_or(AttachError::Full)?;
            let epoch = free.next_epoch;
            free.next_epoch = epoch.wrapping_add(1).max(1);
            (lane, epoch)
        };
        if let Err(error) = memory.populate(lane) {
            self.lanes.lock().lanes.push_front(lane);
            return Err(AttachError::Memory(error));
        }
        if let Err(error) = memory.segment().restore_name() {
            tracing::warn!(ring = memory.segment().name(), %error, "the ring's name is gone and cannot be restored; workers that attach now cannot map it");
        }
        let reader = memory.lane(lane).open(epoch, instance);
        let attached = Attached {
            lane,
            epoch,
            reader,
            timings: Timings::default(),
            counters: Counters::default(),
            gone: false,
        };
        let replaced = self.by_instance.write().insert(instance, Arc::new(Mutex::new(attached)));
        self.attached.fetch_add(1, Ordering::Release);
        if let Some(replaced) = replaced {
            // Two attaches of one worker at once: the later one stands.
            self.retire(memory, &replaced);
        }
        self.wake_timer();
        let layout = memory.layout();
        Ok(AttachRingResponse {
            ring_name: memory.segment().name().to_owned(),
            ring_bytes: layout.bytes(),
            lane,
            lanes: layout.lanes(),
            slots: layout.slots(),
            epoch,
        })
    }

    /// Takes all lanes away. Workers see it at their next record and attach again.
    pub fn detach_all(&self) {
        let instances: Vec<u64> = self.by_instance.read().keys().copied().collect();
        instances.into_iter().for_each(|instance| self.detach(instance));
    }

    /// Takes a worker's lane away: it has unregistered, was reaped, or is dead.
    pub fn detach(&self, instance: u64) {
        let Some(memory) = &self.memory else { return };
        if self.attached.load(Ordering::Acquire) == 0 {
            return;
        }
        let removed = self.by_instance.write().remove(&instance);
        if let Some(attached) = removed {
            self.retire(memory, &attached);
        }
    }

    fn retire(&self, memory: &Memory, attached: &Mutex<Attached>) {
        let mut attached = attached.lock();
        let lane = memory.lane(attached.lane);
        lane.close();
        // What it wrote before; counted, since nobody will ask for it any more.
        self.drain(memory, &mut attached);
        attached.gone = true;
        attached.counters.unmatched += attached.timings.clear();
        self.gone.lock().add(&attached.counters);
        self.lanes.lock().lanes.push_back(attached.lane);
        self.attached.fetch_sub(1, Ordering::Release);
    }

    fn of(&self, instance: u64) -> Option<Arc<Mutex<Attached>>> {
        if self.attached.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.by_instance.read().get(&instance).cloned()
    }

    /// Lanes that workers have now.
    pub fn lanes_used(&self) -> usize {
        self.attached.load(Ordering::Acquire)
    }

    /// Whether a worker has a lane: then its commits may find its own times.
    pub fn has_lane(&self, instance: u64) -> bool {
        self.of(instance).is_some()
    }

    /// Reads what a worker has written by now.
    pub fn drain_instance(&self, instance: u64) {
        if let (Some(memory), Some(attached)) = (&self.memory, self.of(instance)) {
            self.drain(memory, &mut attached.lock());
        }
    }

    /// Reads what all workers have written by now.
    pub fn drain_all(&self) {
        let Some(memory) = &self.memory else { return };
        if self.attached.load(Ordering::Acquire) == 0 {
            return;
        }
        let all: Vec<_> = self.by_instance.read().values().cloned().collect();
        for attached in all {
            self.drain(memory, &mut attached.lock());
        }
    }

    /// A worker's own account of a transfer (by its number, see [`lmcache_proto::transfer_id`]) that is being committed. Reads its lane first: it publishes the end before it
    /// sends the commit.
    ///
    /// The daemon takes these times in place of its own, and only them: what is returned here is not found again.
    pub fn take_timing(&self, instance: u64, transfer: u64) -> Option<Timing> {
        let (Some(memory), Some(attached)) = (&self.memory, self.of(instance)) else { return None };
        let mut attached = attached.lock();
        self.drain(memory, &mut attached);
        let (timing, records) = attached.timings.take(transfer);
        match timing {
            Some(_) => attached.counters.matched += records,
            None => attached.counters.unmatched += records,
        }
        timing
    }

    /// Numbers.
    pub fn status(&self) -> RingStatus {
        let Some(memory) = &self.memory else { return RingStatus::default() };
        let mut total = *self.gone.lock();
        let all: Vec<_> = self.by_instance.read().iter().map(|(id, a)| (*id, a.clone())).collect();
        let mut workers = Vec::with_capacity(all.len());
        for (instance, attached) in all {
            let attached = attached.lock();
            if attached.gone {
                continue;
            }
            total.add(&attached.counters);
            workers.push(LaneStatus {
                instance,
                lane: attached.lane,
                epoch: attached.epoch,
                open: attached.timings.len(),
                counters: attached.counters,
            });
        }
        workers.sort_by_key(|worker| worker.instance);
        RingStatus { lanes: memory.layout().lanes(), broken: memory.broken(), workers, total }
    }

    /// Removes the segment's name, at an orderly exit. Workers notice by their connections.
    pub fn unlink(&self) {
        if let Some(memory) = &self.memory {
            memory.segment().unlink();
        }
    }

    pub(super) fn idle(&self) -> bool {
        self.attached.load(Ordering::Acquire) == 0
    }

    pub(super) fn wake_timer(&self) {
        // Taken, so that the timer is either before its look at the condition or asleep, never between.
        drop(self.wake.0.lock());
        self.wake.1.notify_all();
    }

    fn broken(&self, memory: &Memory) -> bool {
        let broken = memory.broken();
        if broken && !self.warned_broken.swap(true, Ordering::Relaxed) {
            tracing::error!(
                ring = memory.segment().name(),
                "a worker has shrunk the ring's segment; workers' own timings are off until the daemon is restarted, everything else goes on"
            );
        }
        broken
    }

    fn drain(&self, memory: &Memory, attached: &mut Attached) {
        if attached.gone {
            return;
        }
        let mut records: Vec<Record> = Vec::new();
        let lane = memory.lane(attached.lane);
        let drained = attached.reader.drain(lane, |record| records.push(record));
        if self.broken(memory) {
            return;
        }
        let counters = &mut attached.counters;
        counters.records += drained.taken;
        counters.lost = counters.lost.saturating_add(drained.lost);
        counters.corrupt += drained.corrupt;
        counters.unknown_kind += drained.unknown;
        let now = Instant::now();
        counters.unmatched += attached.timings.expire(now);
        if records.is_empty() {
            return;
        }
        let Some(clock) = Clock::read() else {
            counters.bad_time += records.len() as u64;
            return;
        };
        for record in &records {
            match clock.stamp(record, self.max_bytes) {
                Ok(at) => counters.unmatched += attached.timings.note(record, at, now),
                Err(Reject::Time) => counters.bad_time += 1,
                Err(Reject::Range) => counters.bad_range += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests;

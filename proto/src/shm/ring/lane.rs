//! The algorithm of one lane: single writer, single reader, nobody waits.
//!
//! Positions count up from a base that the daemon draws anew for each epoch; `position & (slots - 1)` is the slot. The
//! writer fills a slot, stores `position + 1` into its first word, then moves `head`. The reader believes a slot only when
//! its first word is the position that it waits for, so `head` serves one purpose: what it claims and what does not prove
//! itself is damaged, and is skipped and counted instead of waited for.
//!
//! * killed or stopped before the first word: the slot proves nothing and is not seen; nobody waits for it;
//! * killed between first word and `head`: the record is complete, and is taken;
//! * a writer of an earlier epoch that wakes up: it looks at the epoch before each record, and the one record that it may
//!   have been in the middle of carries another base and another seal, so it costs its successor at most that slot;
//! * a full lane: the record is not written and `dropped`, which only the writer writes, counts it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::Record;

/// A 64-bit cell that two processes share. `AtomicU64` in the product, a model checker's in its tests.
pub trait Cell {
    /// Reads.
    fn load(&self, order: Ordering) -> u64;
    /// Writes.
    fn store(&self, value: u64, order: Ordering);
}

impl Cell for AtomicU64 {
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        AtomicU64::load(self, order)
    }

    #[inline]
    fn store(&self, value: u64, order: Ordering) {
        AtomicU64::store(self, value, order);
    }
}

/// Written by the daemon when it allots the lane.
#[repr(C, align(128))]
#[derive(Debug, Default)]
struct OwnerLine<C> {
    /// Changes with every allotment; 0 while the lane is nobody's.
    epoch: C,
    /// Instance that has the lane, for those who look at a dump.
    instance: C,
}

/// Written by the worker.
#[repr(C, align(128))]
#[derive(Debug, Default)]
struct WriterLine<C> {
    head: C,
    dropped: C,
}

/// Written by the daemon when it drains.
#[repr(C, align(128))]
#[derive(Debug, Default)]
struct ReaderLine<C> {
    tail: C,
}

/// First bytes of a lane. The lines are two cache lines apart: the hardware fetches lines in pairs.
#[repr(C)]
#[derive(Debug, Default)]
pub struct LaneHeader<C> {
    owner: OwnerLine<C>,
    writer: WriterLine<C>,
    reader: ReaderLine<C>,
}

/// One record as it lies in the lane: position + 1, six words of [`Record`], seal.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Slot<C> {
    words: [C; 8],
}

/// A lane in shared memory.
#[derive(Debug)]
pub struct Lane<'a, C> {
    header: &'a LaneHeader<C>,
    slots: &'a [Slot<C>],
}

impl<C> Clone for Lane<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Lane<'_, C> {}

impl<'a, C: Cell> Lane<'a, C> {
    /// A lane of these parts.
    ///
    /// # Panics
    /// If the number of slots is not a power of two.
    pub fn new(header: &'a LaneHeader<C>, slots: &'a [Slot<C>]) -> Lane<'a, C> {
        assert!(slots.len().is_power_of_two(), "slots are found by a mask");
        Lane { header, slots }
    }

    fn slot(&self, position: u64) -> &'a Slot<C> {
        // A mask of a power of two: inside, whatever the position is.
        &self.slots[position as usize & (self.slots.len() - 1)]
    }

    /// Daemon: gives the lane to `instance` under `epoch` (not 0, and never used before). The reader that drains it.
    pub fn open(&self, epoch: u64, instance: u64) -> Reader {
        let base = spread(epoch);
        self.header.owner.instance.store(instance, Ordering::Relaxed);
        self.header.writer.dropped.store(0, Ordering::Relaxed);
        self.header.writer.head.store(base, Ordering::Relaxed);
        self.header.reader.tail.store(base, Ordering::Relaxed);
        // SYNC POINT: allotment; partner is the Acquire in `Writer::attach`.
        self.header.owner.epoch.store(epoch, Ordering::Release);
        Reader { epoch, tail: base, dropped: 0, bad_head: None }
    }

    /// Daemon: takes the lane away. Its writer notices at its next record.
    pub fn close(&self) {
        self.header.owner.epoch.store(0, Ordering::Release);
    }

    /// Epoch of the lane's owner now; 0 while it is nobody's.
    pub fn epoch(&self) -> u64 {
        self.header.owner.epoch.load(Ordering::Acquire)
    }
}

impl<'a> Lane<'a, AtomicU64> {
    /// The lane whose bytes start at `base`.
    ///
    /// # Safety
    /// `base` is aligned to a page, and [`super::RingLayout::lane_bytes`] bytes for `slots` (a power of two) from there are
    /// mapped, readable and writable, for `'a`, and are touched through lanes only. Other processes may write them: all
    /// accesses here are atomic.
    #[allow(unsafe_code)]
    pub unsafe fn from_raw(base: std::ptr::NonNull<u8>, slots: u32) -> Lane<'a, AtomicU64> {
        let header = base.cast::<LaneHeader<AtomicU64>>();
        // SAFETY: mapped, aligned and atomic by the caller's contract; any bit pattern is a valid header and a valid slot.
        let (header, slots) = unsafe {
            let first = header.add(1).cast::<Slot<AtomicU64>>();
            (header.as_ref(), std::slice::from_raw_parts(first.as_ptr(), slots as usize))
        };
        Lane::new(header, slots)
    }
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// It is in the lane.
    Queued,
    /// The lane is full; counted in the lane.
    Full,
    /// The lane is somebody else's, or nobody's: attach again.
    Stale,
}

/// The worker's end.
#[derive(Debug)]
pub struct Writer {
    epoch: u64,
    head: u64,
    /// The reader's position when last looked at; the line is the reader's and dear to look at.
    tail: u64,
    dropped: u64,
}

impl Writer {
    /// The end of the worker to which the daemon has given the lane under `epoch`; `None` if it is under another by now.
    pub fn attach<C: Cell>(lane: Lane<'_, C>, epoch: u64) -> Option<Writer> {
        if epoch == 0 || lane.epoch() != epoch {
            return None;
        }
        let base = spread(epoch);
        Some(Writer { epoch, head: base, tail: base, dropped: 0 })
    }

    /// Records that found the lane full.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Writes one record. No system call, no waiting, bounded.
    #[inline]
    pub fn publish<C: Cell>(&mut self, lane: Lane<'_, C>, record: &Record) -> Published {
        if lane.header.owner.epoch.load(Ordering::Relaxed) != self.epoch {
            return Published::Stale;
        }
        let capacity = lane.slots.len() as u64;
        if self.head.wrapping_sub(self.tail) >= capacity {
            // SYNC POINT: reader's tail; partner is the Release in `Reader::drain`. What the reader has passed, it has read.
            self.tail = lane.header.reader.tail.load(Ordering::Acquire);
            // A tail that is garbage is a full lane as well.
            if self.head.wrapping_sub(self.tail) >= capacity {
                self.dropped += 1;
                lane.header.writer.dropped.store(self.dropped, Ordering::Relaxed);
                return Published::Full;
            }
        }
        let slot = lane.slot(self.head);
        let words = record.to_words();
        let next = self.head.wrapping_add(1);
        for (cell, word) in slot.words[1..].iter().zip(words) {
            cell.store(word, Ordering::Relaxed);
        }
        slot.words[7].store(seal(self.epoch, next, words), Ordering::Relaxed);
        // SYNC POINT: slot; partner is the Acquire of the first word in `Reader::drain`.
        slot.words[0].store(next, Ordering::Release);
        // SYNC POINT: head; partner is the Acquire of `head` in `Reader::drain`: what it claims has its first word.
        lane.header.writer.head.store(next, Ordering::Release);
        self.head = next;
        Published::Queued
    }
}

/// What a drain found besides records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Records taken.
    pub taken: u64,
    /// Records that their writer says it could not write.
    pub lost: u64,
    /// Slots without a good seal, and numbers that no writer of ours would leave.
    pub corrupt: u64,
    /// Good records of a kind that this version does not know.
    pub unknown: u64,
}

/// The daemon's end. Its positions are in its own memory; those in the lane are for the writer.
#[derive(Debug)]
pub struct Reader {
    epoch: u64,
    tail: u64,
    dropped: u64,
    /// The last head that made no sense, so that it is counted once.
    bad_head: Option<u64>,
}

impl Reader {
    /// Takes what is there: at most one lane's worth, whatever the writer does meanwhile.
    pub fn drain<C: Cell>(&mut self, lane: Lane<'_, C>, mut take: impl FnMut(Record)) -> Drained {
        let mut drained = Drained::default();
        let capacity = lane.slots.len() as u64;
        // SYNC POINT: head; partner is the Release in `Writer::publish`.
        let head = lane.header.writer.head.load(Ordering::Acquire);
        let mut claimed = head.wrapping_sub(self.tail);
        if claimed > capacity {
            claimed = 0;
            // One behind is a writer that we have overtaken between its first word and its head.
            if head.wrapping_add(1) != self.tail && self.bad_head != Some(head) {
                self.bad_head = Some(head);
                drained.corrupt += 1;
            }
        }
        for step in 0..capacity {
            let slot = lane.slot(self.tail);
            let next = self.tail.wrapping_add(1);
            // SYNC POINT: slot; partner is the Release of the first word in `Writer::publish`.
            if slot.words[0].load(Ordering::Acquire) == next {
                let words: [u64; 6] = std::array::from_fn(|i| slot.words[i + 1].load(Ordering::Relaxed));
                let sealed = slot.words[7].load(Ordering::Relaxed);
                match Record::from_words(words) {
                    _ if sealed != seal(self.epoch, next, words) => drained.corrupt += 1,
                    None => drained.unknown += 1,
                    Some(record) => {
                        drained.taken += 1;
                        take(record);
                    }
                }
            } else if step < claimed {
                drained.corrupt += 1;
            } else {
                break;
            }
            self.tail = next;
        }
        // SYNC POINT: reader's tail; partner is the Acquire in `Writer::publish`. After the loads of the slots.
        lane.header.reader.tail.store(self.tail, Ordering::Release);
        drained.lost = self.lost(lane.header.writer.dropped.load(Ordering::Relaxed), &mut drained.corrupt);
        drained
    }

    /// Losses since the last look. A counter that goes back, or leaps as no writer can, is not a counter.
    fn lost(&mut self, dropped: u64, corrupt: &mut u64) -> u64 {
        let lost = dropped.wrapping_sub(self.dropped);
        self.dropped = dropped;
        if lost > u64::from(u32::MAX) {
            *corrupt += 1;
            return 0;
        }
        lost
    }
}

/// Covers epoch, position and words. Tells a torn or foreign slot from a good one, not a forged one: the worker may write
/// what it likes, and what it says is checked as numbers. Sums of products rather than a chain: the multiplications overlap.
#[inline]
fn seal(epoch: u64, next: u64, words: [u64; 6]) -> u64 {
    const ODD: [u64; 6] = [
        0x9e37_79b9_7f4a_7c15,
        0xbf58_476d_1ce4_e5b9,
        0x94d0_49bb_1331_11eb,
        0xd6e8_feb8_6659_fd93,
        0xa076_1d64_78bd_642f,
        0xe703_7ed1_a0b4_28db,
    ];
    words
        .into_iter()
        .zip(ODD)
        .fold(epoch.rotate_left(32) ^ next, |sum, (word, odd)| sum.wrapping_add(word.wrapping_mul(odd)))
}

/// First position of an epoch: far from every other epoch's (splitmix64's finalizer).
fn spread(epoch: u64) -> u64 {
    let mut z = epoch.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;

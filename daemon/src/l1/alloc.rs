//! Which pages of the pool are free.
//!
//! Only free ranges are kept; what is somebody's is bits of [`Taken`]. They are kept in two-level size classes (as in TLSF): 32 linear classes per power of two, a bitmap over
//! them, so that allocation and release are O(1) and neighbours coalesce at once. Objects of one model all have
//! the same size, and a range that an object left is exactly what the next one needs: the class of the wanted size
//! is looked at first, before a larger range is split.
#![forbid(unsafe_code)]

use lmcache_proto::shm::PAGE;
use rustc_hash::FxHashMap;

use super::taken::Taken;

const SUB_BITS: u32 = 5;
const SUBS: usize = 1 << SUB_BITS;
const CLASSES: usize = 48 * SUBS;
/// Ranges looked at in the class of the wanted size, where a range may be up to 1/32 too small.
const PROBES: usize = 8;
const NIL: u32 = u32::MAX;

/// A run of free pages.
#[derive(Clone, Copy, Debug)]
struct Range {
    start: u64,
    pages: u64,
    /// Neighbours in the class list; NIL at its ends.
    prev: u32,
    next: u32,
}

/// The allocator. Sizes and positions are in bytes outside and in pages inside.
#[derive(Debug)]
pub struct Allocator {
    /// Bytes of one page here: [`PAGE`], or a larger alignment that the user asked for.
    unit: u64,
    ranges: Vec<Range>,
    unused: Vec<u32>,
    by_start: FxHashMap<u64, u32>,
    by_end: FxHashMap<u64, u32>,
    heads: Vec<u32>,
    bitmap: [u64; CLASSES.div_ceil(64)],
    free_pages: u64,
    used_pages: u64,
    /// What is somebody's.
    taken: Taken,
    /// Pages below it are known: each is free or somebody's. Behind it only adopted ones are known.
    end: u64,
}

impl Allocator {
    /// An allocator of ranges of a pool of `bytes` that start on multiples of `unit` bytes, a power of two of at least [`PAGE`].
    /// It has no memory to give before [`Allocator::extend`].
    pub fn new(unit: u64, bytes: u64) -> Allocator {
        assert!(unit.is_power_of_two() && unit >= PAGE, "the configuration checks the alignment");
        Allocator {
            unit,
            ranges: Vec::new(),
            unused: Vec::new(),
            by_start: FxHashMap::default(),
            by_end: FxHashMap::default(),
            heads: vec![NIL; CLASSES],
            bitmap: [0; CLASSES.div_ceil(64)],
            free_pages: 0,
            used_pages: 0,
            taken: Taken::new(bytes.div_ceil(unit)),
            end: 0,
        }
    }
}

/// Class whose ranges have at least the class's lower bound of pages.
fn class_of(pages: u64) -> usize {
    debug_assert!(pages > 0);
    if pages < SUBS as u64 {
        return pages as usize;
    }
    let power = pages.ilog2();
    let sub = (pages >> (power - SUB_BITS)) as usize & (SUBS - 1);
    ((power - SUB_BITS + 1) as usize) * SUBS + sub
}

impl Allocator {
    /// Bytes in use, rounded up to pages per object.
    pub fn used(&self) -> u64 {
        self.used_pages * self.unit
    }

    /// Bytes free.
    pub fn free(&self) -> u64 {
        self.free_pages * self.unit
    }

    /// Pages that `bytes` take.
    fn pages(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.unit).max(1)
    }

    /// Bytes that an object of `bytes` takes from the pool.
    pub fn footprint(&self, bytes: u64) -> u64 {
        self.pages(bytes) * self.unit
    }

    /// Adds `[start, end)` of the pool, newly reserved, around the adopted ranges.
    pub fn extend(&mut self, start: u64, end: u64) {
        let (start, end) = (start / self.unit, end / self.unit);
        for (start, pages) in self.taken.gaps(start, end) {
            self.insert_free(start, pages);
        }
        self.end = self.end.max(end);
    }

    /// Takes `[offset, offset + bytes)` of the pool, which was in use before a restart, out of what [`Allocator::extend`] will
    /// add. `false` if it overlaps another adopted range or is not on a page.
    pub fn adopt(&mut self, offset: u64, bytes: u64) -> bool {
        let (start, pages) = (offset / self.unit, self.pages(bytes));
        let new = offset.is_multiple_of(self.unit) && self.taken.take(start, start + pages);
        if new {
            self.used_pages += pages;
        }
        new
    }

    /// Takes a range that holds `bytes`; its offset in bytes.
    pub fn allocate(&mut self, bytes: u64) -> Option<u64> {
        let pages = self.pages(bytes);
        if pages > self.free_pages {
            return None;
        }
        let class = class_of(pages);
        let id = self
            .probe(class, pages, PROBES)
            .or_else(|| self.first_at_or_above(class + 1))
            // Rare: only ranges of the wanted class are left, and none of the first few is large enough.
            .or_else(|| self.probe(class, pages, usize::MAX))?;
        let Range { start, pages: have, .. } = self.remove(id);
        assert!(self.taken.take(start, start + pages), "free pages are nobody's");
        self.used_pages += pages;
        if have > pages {
            self.insert_free(start + pages, have - pages);
        }
        Some(start * self.unit)
    }

    /// Gives back the range of `bytes` that starts at `offset`.
    ///
    /// # Panics
    /// If not all of it is somebody's: a bookkeeping error that must not turn into two owners of one range.
    pub fn release(&mut self, offset: u64, bytes: u64) {
        let (start, pages) = (offset / self.unit, self.pages(bytes));
        assert!(self.taken.give_back(start, start + pages), "range at {offset} released twice");
        self.used_pages -= pages;
        // What lies behind the end is not real memory yet; it is found when it is.
        let known = self.end.saturating_sub(start).min(pages);
        if known > 0 {
            self.insert_free(start, known);
        }
    }

    /// Adds a free range, merged with its free neighbours.
    fn insert_free(&mut self, mut start: u64, mut pages: u64) {
        if let Some(&left) = self.by_end.get(&start) {
            let left = self.remove(left);
            start = left.start;
            pages += left.pages;
        }
        if let Some(&right) = self.by_start.get(&(start + pages)) {
            pages += self.remove(right).pages;
        }
        self.free_pages += pages;
        let range = Range { start, pages, prev: NIL, next: NIL };
        let id = match self.unused.pop() {
            Some(id) => {
                self.ranges[id as usize] = range;
                id
            }
            None => {
                self.ranges.push(range);
                (self.ranges.len() - 1) as u32
            }
        };
        self.by_start.insert(start, id);
        self.by_end.insert(start + pages, id);
        self.link(id);
    }

    /// Takes a range out.
    fn remove(&mut self, id: u32) -> Range {
        self.unlink(id);
        let range = self.ranges[id as usize];
        self.by_start.remove(&range.start);
        self.by_end.remove(&(range.start + range.pages));
        self.free_pages -= range.pages;
        self.unused.push(id);
        range
    }

    fn probe(&self, class: usize, pages: u64, limit: usize) -> Option<u32> {
        let mut id = self.heads[class];
        for _ in 0..limit {
            if id == NIL {
                return None;
            }
            let range = &self.ranges[id as usize];
            if range.pages >= pages {
                return Some(id);
            }
            id = range.next;
        }
        None
    }

    fn first_at_or_above(&self, class: usize) -> Option<u32> {
        let mut word = class / 64;
        let mut bits = self.bitmap.get(word)? & (u64::MAX << (class % 64));
        while bits == 0 {
            word += 1;
            bits = *self.bitmap.get(word)?;
        }
        Some(self.heads[word * 64 + bits.trailing_zeros() as usize])
    }

    fn link(&mut self, id: u32) {
        let class = class_of(self.ranges[id as usize].pages);
        let head = self.heads[class];
        self.ranges[id as usize].prev = NIL;
        self.ranges[id as usize].next = head;
        if head != NIL {
            self.ranges[head as usize].prev = id;
        }
        self.heads[class] = id;
        self.bitmap[class / 64] |= 1 << (class % 64);
    }

    fn unlink(&mut self, id: u32) {
        let Range { pages, prev, next, .. } = self.ranges[id as usize];
        let class = class_of(pages);
        if prev == NIL {
            self.heads[class] = next;
        } else {
            self.ranges[prev as usize].next = next;
        }
        if next != NIL {
            self.ranges[next as usize].prev = prev;
        }
        if self.heads[class] == NIL {
            self.bitmap[class / 64] &= !(1 << (class % 64));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn same_sizes_fill_and_refill_the_pool() {
        let mut alloc = Allocator::new(PAGE, 100 * 33 * PAGE);
        alloc.extend(0, 100 * 33 * PAGE);
        let offsets: Vec<u64> = (0..100).map(|_| alloc.allocate(33 * PAGE).expect("fits")).collect();
        assert_eq!(alloc.allocate(1), None);
        // Every second one back: no neighbours merge, and each hole must be found again although its class starts at 32.
        for offset in offsets.iter().step_by(2) {
            alloc.release(*offset, 33 * PAGE);
        }
        for _ in 0..50 {
            assert!(alloc.allocate(33 * PAGE).is_some());
        }
        assert_eq!(alloc.free(), 0);
    }

    #[test]
    fn a_class_full_of_slightly_smaller_ranges_is_searched_to_the_end() {
        let mut alloc = Allocator::new(PAGE, 2000 * PAGE);
        // 64 and 65 pages share a class (width 2 at that power); build 20 holes of 64 in front of one of 65.
        alloc.extend(0, (65 + 1 + 20 * 65) * PAGE);
        let big = alloc.allocate(65 * PAGE).expect("big");
        alloc.allocate(PAGE).expect("wall");
        let holes: Vec<u64> = (0..20)
            .map(|_| {
                let hole = alloc.allocate(64 * PAGE).expect("hole");
                alloc.allocate(PAGE).expect("wall");
                hole
            })
            .collect();
        alloc.release(big, 65 * PAGE);
        for hole in holes {
            alloc.release(hole, 64 * PAGE);
        }
        assert_eq!(alloc.allocate(65 * PAGE), Some(big));
    }

    #[test]
    fn adopted_ranges_are_not_handed_out_until_released() {
        let mut alloc = Allocator::new(PAGE, 20 * PAGE);
        assert!(alloc.adopt(10 * PAGE, 5 * PAGE));
        assert!(!alloc.adopt(14 * PAGE, PAGE), "overlap");
        assert!(!alloc.adopt(9 * PAGE, 2 * PAGE), "overlap from below");
        assert!(!alloc.adopt(20 * PAGE + 1, PAGE), "not on a page");
        assert!(!alloc.adopt(64 * PAGE, PAGE), "behind the pool");
        assert!(alloc.adopt(0, PAGE));
        alloc.extend(0, 12 * PAGE);
        alloc.extend(12 * PAGE, 20 * PAGE);
        assert_eq!(alloc.free(), 14 * PAGE);
        assert_eq!(alloc.allocate(9 * PAGE), Some(PAGE));
        assert_eq!(alloc.allocate(5 * PAGE), Some(15 * PAGE));
        assert_eq!(alloc.allocate(1), None);
        alloc.release(10 * PAGE, 5 * PAGE);
        assert_eq!(alloc.allocate(5 * PAGE), Some(10 * PAGE));
    }

    #[test]
    fn what_is_released_before_it_is_known_is_free_once() {
        let mut alloc = Allocator::new(PAGE, 20 * PAGE);
        assert!(alloc.adopt(3 * PAGE, 4 * PAGE) && alloc.adopt(10 * PAGE, 5 * PAGE));
        alloc.extend(0, 5 * PAGE);
        alloc.release(10 * PAGE, 5 * PAGE);
        alloc.release(3 * PAGE, 4 * PAGE);
        assert_eq!((alloc.used(), alloc.free()), (0, 5 * PAGE));
        alloc.extend(5 * PAGE, 20 * PAGE);
        assert_eq!(alloc.free(), 20 * PAGE);
        assert_eq!(alloc.allocate(20 * PAGE), Some(0));
        assert_eq!(alloc.allocate(1), None);
    }

    proptest! {
        #[test]
        fn never_overlaps_never_leaks(steps in proptest::collection::vec((0u8..4, 1u64..70), 1..400)) {
            let total = 1000 * PAGE;
            let mut alloc = Allocator::new(PAGE, total);
            alloc.extend(0, total / 2);
            alloc.extend(total / 2, total);
            let mut live: BTreeMap<u64, u64> = BTreeMap::new();
            for (kind, size) in steps {
                match kind {
                    0 | 1 => {
                        if let Some(offset) = alloc.allocate(size * PAGE - 7) {
                            let before = live.range(..=offset).next_back();
                            prop_assert!(before.is_none_or(|(start, len)| start + len <= offset));
                            let after = live.range(offset..).next();
                            prop_assert!(after.is_none_or(|(start, _)| offset + size * PAGE <= *start));
                            prop_assert!(offset + size * PAGE <= total);
                            live.insert(offset, size * PAGE);
                        } else {
                            // Refusal is honest: no hole is large enough.
                            let mut end = 0;
                            for (start, len) in &live {
                                prop_assert!(start - end < size * PAGE);
                                end = start + len;
                            }
                            prop_assert!(total - end < size * PAGE);
                        }
                    }
                    2 => {
                        let pick = live.keys().nth(size as usize % live.len().max(1)).copied();
                        if let Some((offset, len)) = pick.and_then(|offset| live.remove_entry(&offset)) {
                            alloc.release(offset, len - 7);
                        }
                    }
                    _ => {}
                }
                prop_assert_eq!(alloc.used(), live.values().sum::<u64>());
                prop_assert_eq!(alloc.used() + alloc.free(), total);
            }
            for (offset, len) in &live {
                alloc.release(*offset, *len);
            }
            prop_assert_eq!(alloc.allocate(total), Some(0));
        }
    }
}

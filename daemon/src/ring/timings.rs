//! What one worker has said about its transfers, until the commit of each asks for it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use lmcache_proto::shm::ring::{Kind, Record};
use rustc_hash::FxHashMap;

use super::stamp::MAX_AGE;

/// Transfers remembered for one worker. A worker has a few under way; more means that nobody commits them.
const MAX_OPEN: usize = 256;

/// A worker's own account of one transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// When it asked for the transfer, if it said so.
    pub submitted: Option<Instant>,
    /// When it began to copy.
    pub start: Instant,
    /// When it had copied; not before `start`.
    pub end: Instant,
    /// Bytes that it says it has moved. The daemon knows better what it handed out; this is for comparison.
    pub bytes: u64,
    /// Tokens that it says it has moved.
    pub tokens: u64,
    /// Objects that it says it has moved.
    pub count: u32,
    /// Whether it says that all of it arrived.
    pub success: bool,
}

impl Timing {
    /// Time spent copying.
    pub fn duration(&self) -> Duration {
        self.end - self.start
    }
}

#[derive(Clone, Copy, Debug)]
struct Open {
    submitted: Option<Instant>,
    start: Option<Instant>,
    end: Option<(Instant, Record)>,
    records: u64,
    touched: Instant,
    /// Tells this entry's place in the queue from an earlier one's of the same transfer.
    serial: u64,
}

/// Bounded: the oldest transfer gives way.
#[derive(Debug, Default)]
pub(super) struct Timings {
    open: FxHashMap<u64, Open>,
    /// In the order of arrival. May name transfers that have been taken since; `serial` tells.
    order: VecDeque<(u64, u64)>,
    next_serial: u64,
}

impl Timings {
    /// Notes a record. Returns how many records have given way, unasked for.
    pub(super) fn note(&mut self, record: &Record, at: Instant, now: Instant) -> u64 {
        let mut forgotten = 0;
        // A new attempt at the same transfer: what an earlier one said is void.
        let restart = matches!(
            record.kind,
            Kind::MpStoreSubmitted | Kind::MpRetrieveSubmitted | Kind::MpStoreStart | Kind::MpRetrieveStart
        );
        if restart && self.open.get(&record.transfer).is_some_and(|open| open.end.is_some()) {
            forgotten += self.remove(record.transfer).map_or(0, |open| open.records);
        }
        if !self.open.contains_key(&record.transfer) {
            while self.open.len() >= MAX_OPEN {
                forgotten += self.forget_oldest();
            }
            self.next_serial += 1;
            self.order.push_back((record.transfer, self.next_serial));
            let serial = self.next_serial;
            let open = Open { submitted: None, start: None, end: None, records: 0, touched: now, serial };
            self.open.insert(record.transfer, open);
        }
        if let Some(open) = self.open.get_mut(&record.transfer) {
            open.records += 1;
            open.touched = now;
            match record.kind {
                Kind::MpStoreSubmitted | Kind::MpRetrieveSubmitted => open.submitted = Some(at),
                Kind::MpStoreStart | Kind::MpRetrieveStart => open.start = Some(at),
                Kind::MpStoreEnd | Kind::MpRetrieveEnd => open.end = Some((at, *record)),
            }
        }
        forgotten
    }

    /// What was said about a transfer, and in how many records. It is forgotten here in any case.
    pub(super) fn take(&mut self, transfer: u64) -> (Option<Timing>, u64) {
        let Some(open) = self.remove(transfer) else { return (None, 0) };
        match (open.start, open.end) {
            (Some(start), Some((end, record))) if start <= end => {
                let timing = Timing {
                    submitted: open.submitted.filter(|submitted| *submitted <= start),
                    start,
                    end,
                    bytes: record.bytes,
                    tokens: record.tokens,
                    count: record.count,
                    success: record.success,
                };
                (Some(timing), open.records)
            }
            // Half a story, or an end before its start.
            _ => (None, open.records),
        }
    }

    /// Forgets what nobody has asked for in time; returns the number of records.
    pub(super) fn expire(&mut self, now: Instant) -> u64 {
        let mut forgotten = 0;
        while let Some((transfer, serial)) = self.order.front() {
            match self.open.get(transfer) {
                Some(open) if open.serial == *serial => {
                    if now.saturating_duration_since(open.touched) <= MAX_AGE {
                        break;
                    }
                    forgotten += self.forget_oldest();
                }
                _ => drop(self.order.pop_front()),
            }
        }
        forgotten
    }

    /// Forgets everything; returns the number of records.
    pub(super) fn clear(&mut self) -> u64 {
        self.order.clear();
        self.open.drain().map(|(_, open)| open.records).sum()
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    fn remove(&mut self, transfer: u64) -> Option<Open> {
        let removed = self.open.remove(&transfer);
        // Places of taken transfers pile up when they are taken out of order: bounded, and mostly at the front.
        while let Some((transfer, serial)) = self.order.front()
            && self.open.get(transfer).is_none_or(|open| open.serial != *serial)
        {
            self.order.pop_front();
        }
        if self.order.len() > 4 * MAX_OPEN {
            let open = &self.open;
            self.order.retain(|(transfer, serial)| open.get(transfer).is_some_and(|o| o.serial == *serial));
        }
        removed
    }

    fn forget_oldest(&mut self) -> u64 {
        while let Some((transfer, serial)) = self.order.pop_front() {
            if self.open.get(&transfer).is_some_and(|open| open.serial == serial) {
                return self.open.remove(&transfer).map_or(0, |open| open.records);
            }
        }
        // Every open transfer has a place; should one not have, it must not be kept for ever.
        self.clear()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: Kind, transfer: u64) -> Record {
        Record { kind, transfer, nanos: 0, bytes: 7, tokens: 8, count: 9, success: true, request: 0 }
    }

    #[test]
    fn a_pair_becomes_a_timing_once() {
        let mut timings = Timings::default();
        let now = Instant::now();
        let at = |ms| now - Duration::from_millis(ms);
        for (kind, ms) in [(Kind::MpStoreSubmitted, 30), (Kind::MpStoreStart, 20), (Kind::MpStoreEnd, 10)] {
            assert_eq!(timings.note(&record(kind, 1), at(ms), now), 0);
        }
        let (timing, records) = timings.take(1);
        let timing = timing.expect("a pair");
        assert_eq!((timing.submitted, timing.start, timing.end), (Some(at(30)), at(20), at(10)));
        assert_eq!((timing.bytes, timing.tokens, timing.count, timing.success), (7, 8, 9, true));
        assert_eq!(timing.duration(), Duration::from_millis(10));
        assert_eq!(records, 3);
        assert_eq!(timings.take(1), (None, 0), "once");
    }

    #[test]
    fn half_a_pair_and_a_reversed_one_are_no_timing() {
        let mut timings = Timings::default();
        let now = Instant::now();
        timings.note(&record(Kind::MpStoreStart, 1), now, now);
        assert_eq!(timings.take(1), (None, 1));
        timings.note(&record(Kind::MpRetrieveStart, 2), now, now);
        timings.note(&record(Kind::MpRetrieveEnd, 2), now - Duration::from_millis(1), now);
        assert_eq!(timings.take(2), (None, 2));
    }

    #[test]
    fn a_second_attempt_starts_over() {
        let mut timings = Timings::default();
        let now = Instant::now();
        let at = |ms| now - Duration::from_millis(ms);
        timings.note(&record(Kind::MpStoreStart, 1), at(50), now);
        timings.note(&record(Kind::MpStoreEnd, 1), at(40), now);
        assert_eq!(timings.note(&record(Kind::MpStoreStart, 1), at(20), now), 2, "the first attempt's");
        assert_eq!(timings.take(1), (None, 1), "its end has not come");
    }

    #[test]
    fn nothing_grows() {
        let mut timings = Timings::default();
        let now = Instant::now();
        let mut forgotten = 0;
        for transfer in 0..10_000 {
            forgotten += timings.note(&record(Kind::MpStoreStart, transfer), now, now);
            // Out of order, so that places stay behind.
            if transfer % 3 == 0 {
                timings.take(transfer.saturating_sub(100));
            }
            assert!(timings.open.len() <= MAX_OPEN && timings.order.len() <= 4 * MAX_OPEN + 1);
        }
        assert!(forgotten > 6000);
        let left = timings.len() as u64;
        assert_eq!(timings.expire(now), 0);
        assert_eq!(timings.expire(now + MAX_AGE + Duration::from_secs(1)), left);
        assert_eq!((timings.len(), timings.order.len()), (0, 0));
    }
}

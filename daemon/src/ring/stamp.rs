//! From a worker's record to a time and counts that are plausible.

use std::time::{Duration, Instant};

use lmcache_proto::shm::ring::Record;
use nix::time::{ClockId, clock_gettime};

/// A record older than this belongs to nothing that still goes on.
pub(super) const MAX_AGE: Duration = Duration::from_secs(600);
/// Most objects and tokens of one transfer; a request of the wire cannot name more.
const MAX_COUNT: u32 = 1 << 24;
const MAX_TOKENS: u64 = 1 << 32;

/// Why a record is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reject {
    /// From the future, or from long ago: another clock (a time namespace, another boot), or nonsense.
    Time,
    /// More bytes, tokens or objects than a transfer can have.
    Range,
}

/// One reading of both clocks. `Instant` is CLOCK_MONOTONIC on Linux, and so is what workers write; the reading turns the
/// one into the other without relying on that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    instant: Instant,
    nanos: u64,
}

impl Clock {
    /// Reads the clocks; `None` if the system has no monotonic clock. After the records, so that none is from the future.
    pub(super) fn read() -> Option<Clock> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?;
        let nanos = u64::try_from(now.tv_sec()).ok()?.checked_mul(1_000_000_000)?;
        let nanos = nanos.checked_add(u64::try_from(now.tv_nsec()).ok()?)?;
        Some(Clock { instant: Instant::now(), nanos })
    }

    fn instant_of(&self, nanos: u64) -> Result<Instant, Reject> {
        let age = Duration::from_nanos(self.nanos.checked_sub(nanos).ok_or(Reject::Time)?);
        if age > MAX_AGE {
            return Err(Reject::Time);
        }
        self.instant.checked_sub(age).ok_or(Reject::Time)
    }

    /// When the record happened, if its numbers are plausible.
    pub(super) fn stamp(&self, record: &Record, max_bytes: u64) -> Result<Instant, Reject> {
        if record.bytes > max_bytes || record.tokens > MAX_TOKENS || record.count > MAX_COUNT {
            return Err(Reject::Range);
        }
        self.instant_of(record.nanos)
    }
}

#[cfg(test)]
mod tests {
    use lmcache_proto::shm::ring::Kind;
    use proptest::prelude::*;

    use super::*;

    fn record(nanos: u64, bytes: u64, tokens: u64, count: u32) -> Record {
        Record { kind: Kind::MpStoreEnd, transfer: 1, nanos, bytes, tokens, count, success: true, request: 2 }
    }

    #[test]
    fn times_convert_and_the_implausible_is_turned_down() {
        let clock = Clock { instant: Instant::now(), nanos: 1_000_000_000_000 };
        let stamp = |nanos| clock.stamp(&record(nanos, 0, 0, 0), 100);
        assert_eq!(stamp(1_000_000_000_000), Ok(clock.instant));
        assert_eq!(stamp(999_999_999_000), Ok(clock.instant - Duration::from_micros(1)));
        assert_eq!(stamp(1_000_000_000_001), Err(Reject::Time), "from the future");
        assert_eq!(stamp(1_000_000_000_000 - 600_000_000_001), Err(Reject::Time), "too old");
        assert_eq!(clock.stamp(&record(999_999_999_000, 101, 0, 0), 100), Err(Reject::Range));
        assert_eq!(clock.stamp(&record(999_999_999_000, 0, u64::MAX, 0), 100), Err(Reject::Range));
        assert_eq!(clock.stamp(&record(999_999_999_000, 0, 0, u32::MAX), 100), Err(Reject::Range));
    }

    #[test]
    fn the_clock_of_the_machine_is_read() {
        let (before, clock, after) = (Instant::now(), Clock::read().expect("a clock"), Instant::now());
        let stamp = clock.stamp(&record(clock.nanos, 0, 0, 0), 1).expect("now");
        assert!(before <= stamp && stamp <= after);
    }

    proptest! {
        #[test]
        fn no_number_panics(nanos in any::<u64>(), bytes in any::<u64>(), tokens in any::<u64>(), count in any::<u32>()) {
            let clock = Clock::read().expect("a clock");
            if let Ok(at) = clock.stamp(&record(nanos, bytes, tokens, count), u64::MAX) {
                prop_assert!(at <= clock.instant && clock.instant - at <= MAX_AGE);
            }
        }
    }
}

//! Durations counted where they happen and read at every scrape: for what is too frequent to be an event of its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets in nanoseconds: 10 µs to 10 s. `telemetry::catalogue::Bounds::Latency` is the same in
/// seconds; a test compares them.
pub const TIMING_BOUNDS_NS: [u64; 19] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// A distribution of durations that any thread may add to: two relaxed additions each.
#[derive(Debug)]
pub struct Timing {
    buckets: [AtomicU64; TIMING_BOUNDS_NS.len() + 1],
    sum_ns: AtomicU64,
}

/// What a [`Timing`] has counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TimingReading {
    /// Durations at or below each bound and above the one before; the last are those above all bounds.
    pub buckets: Vec<u64>,
    /// Sum of all.
    pub sum_seconds: f64,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing { buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum_ns: AtomicU64::new(0) }
    }
}

impl Timing {
    /// Counts one.
    #[inline]
    pub fn record(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = TIMING_BOUNDS_NS.partition_point(|bound| *bound < nanoseconds);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn read(&self) -> TimingReading {
        TimingReading {
            buckets: self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect(),
            sum_seconds: self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }
}

impl TimingReading {
    /// How many.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

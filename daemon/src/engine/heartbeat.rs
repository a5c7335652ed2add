//! How long a worker goes on waiting for what it has asked for.
//!
//! LMCache's worker pings, waits for the answer as long as its interval says, and pings again an interval after the answer
//! was there or had failed to come (`HeartbeatThread` of LMCache 0.5.6). After one ping without an answer it gives up all that
//! is under way, and the blocks of its loads and stores are the engine's again: whoever copies then, copies into or out of
//! somebody else's.
//!
//! After an answer it is an interval until the next ping, and one more until that one has failed. The interval is taken to be
//! the shortest of several distances between pings: they are longer by what a ping waited to be read.
#![forbid(unsafe_code)]

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

/// Distances between pings that must have been seen before the shortest of them is taken for the interval.
const ENOUGH: u32 = 3;

/// The pings of one worker.
#[derive(Debug, Default)]
struct Heartbeat {
    last: Option<Duration>,
    shortest: Option<Duration>,
    distances: u32,
    /// Until when it certainly waits; zero if that cannot be told.
    until: Duration,
}

impl Heartbeat {
    fn answered(&mut self, now: Duration) -> Duration {
        if let Some(last) = self.last.replace(now) {
            let distance = now.saturating_sub(last);
            self.shortest = Some(self.shortest.map_or(distance, |shortest| shortest.min(distance)));
            self.distances = self.distances.saturating_add(1);
        }
        self.until = match self.shortest {
            // A quarter more, for the way of the next ping: well within the two intervals that there are.
            Some(interval) if self.distances >= ENOUGH => now + interval * 5 / 4,
            _ => Duration::ZERO,
        };
        self.until
    }
}

/// Those of registered workers whose memory the daemon copies.
#[derive(Debug, Default)]
pub(super) struct Heartbeats(Mutex<FxHashMap<u64, Heartbeat>>);

impl Heartbeats {
    /// A registered worker's ping is answered `true` at `now`. Until when does it certainly wait? Zero: that cannot be told.
    pub(super) fn answered(&self, instance: u64, now: Duration) -> Duration {
        self.0.lock().entry(instance).or_default().answered(now)
    }

    /// Until when a worker certainly waits; zero if that cannot be told. `None`: it has not pinged yet, and no ping of its can
    /// have failed.
    pub(super) fn until(&self, instance: u64) -> Option<Duration> {
        self.0.lock().get(&instance).map(|heartbeat| heartbeat.until)
    }

    /// A worker that has pinged before it was known is registered now.
    pub(super) fn begin(&self, instance: u64) {
        self.0.lock().entry(instance).or_default();
    }

    /// A worker registers, perhaps again. It may have given up before: what was seen of its pings may have been any number of
    /// intervals.
    pub(super) fn begin_anew(&self, instance: u64) {
        self.0.lock().entry(instance).and_modify(|heartbeat| *heartbeat = Heartbeat::default());
    }

    /// A worker is gone.
    pub(super) fn forget(&self, instance: u64) {
        self.0.lock().remove(&instance);
    }
}

/// The clock by which workers wait, the same for every process of the machine: time since its start, without that in which it
/// was suspended.
pub(super) fn now() -> Duration {
    // It cannot fail for this clock. Far in the future nobody waits for anything.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::MAX, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn the_shortest_distance_of_several_is_the_interval() {
        let pings = Heartbeats::default();
        for at in [0.0, 11.0, 23.0] {
            assert_eq!(pings.answered(1, seconds(at)), Duration::ZERO, "at {at}");
        }
        assert_eq!(pings.answered(1, seconds(33.0)), seconds(33.0 + 12.5));
        assert_eq!(pings.answered(1, seconds(50.0)), seconds(50.0 + 12.5));
        assert_eq!((pings.until(1), pings.until(2)), (Some(seconds(62.5)), None));
    }

    #[test]
    fn a_registration_begins_anew() {
        let pings = Heartbeats::default();
        for at in 0..4 {
            pings.answered(1, Duration::from_secs(at));
        }
        pings.begin_anew(1);
        assert_eq!(pings.until(1), Some(Duration::ZERO), "it pings, and nothing is known");
        assert_eq!(pings.answered(1, seconds(8.0)), Duration::ZERO);
        pings.forget(1);
        pings.begin_anew(1);
        assert_eq!(pings.until(1), None, "nothing is kept of who is gone");
        pings.begin(1);
        assert_eq!(pings.until(1), Some(Duration::ZERO));
    }
}

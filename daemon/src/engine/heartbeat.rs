//! How long a worker certainly goes on waiting for what it has asked for.
//!
//! LMCache's worker pings, waits for the answer as long as its interval says, and pings again an interval after the answer
//! was there or had failed to come (`HeartbeatThread` of LMCache 0.5.6). After one ping without an answer it gives up all that is under way,
//! and the blocks of its loads and stores are the engine's again: whoever copies then, copies into or out of somebody else's.
//!
//! From here two pings are never closer together than the interval. After an answer it is an interval until the next ping, and
//! one more until that one has failed.
#![forbid(unsafe_code)]

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Distances between pings that must have been seen before the shortest of them is taken for the interval.
const ENOUGH: u32 = 3;

/// The pings of one connection.
#[derive(Debug, Default)]
pub(super) struct Heartbeat {
    instance: Option<u64>,
    last: Option<Duration>,
    shortest: Option<Duration>,
    distances: u32,
}

impl Heartbeat {
    /// A ping for a worker is answered `true`. Until when does the worker certainly wait? Zero: that cannot be told.
    pub(super) fn answered(&mut self, instance: u64, now: Duration) -> Duration {
        if self.instance != Some(instance) {
            *self = Heartbeat { instance: Some(instance), ..Heartbeat::default() };
        }
        if let Some(last) = self.last.replace(now) {
            let distance = now.saturating_sub(last);
            self.shortest = Some(self.shortest.map_or(distance, |shortest| shortest.min(distance)));
            self.distances = self.distances.saturating_add(1);
        }
        match self.shortest {
            // A quarter more, for the way of the next ping. It is far from the two intervals that there are.
            Some(interval) if self.distances >= ENOUGH => now + interval * 5 / 4,
            _ => Duration::ZERO,
        }
    }

    /// The worker had given up, or never begun: what was seen of its pings may have been any number of intervals.
    pub(super) fn begins_anew(&mut self) {
        *self = Heartbeat::default();
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
        let mut pings = Heartbeat::default();
        for at in [0.0, 11.0, 23.0] {
            assert_eq!(pings.answered(1, seconds(at)), Duration::ZERO, "at {at}");
        }
        assert_eq!(pings.answered(1, seconds(33.0)), seconds(33.0 + 12.5));
        assert_eq!(pings.answered(1, seconds(50.0)), seconds(50.0 + 12.5));
    }

    #[test]
    fn another_worker_or_a_registration_begins_anew() {
        let mut pings = Heartbeat::default();
        for at in 0..4 {
            pings.answered(1, Duration::from_secs(at));
        }
        assert_eq!(pings.answered(2, seconds(4.0)), Duration::ZERO);
        for at in 5..8 {
            pings.answered(2, Duration::from_secs(at));
        }
        pings.begins_anew();
        assert_eq!(pings.answered(2, seconds(8.0)), Duration::ZERO);
    }
}

//! Times in which the daemon itself stood still: stopped by a signal or a debugger, frozen with its container, out of memory or
//! of cores. Nobody was answered meanwhile, and what was asked before lies in the sockets as after a crash: workers whose memory
//! the daemon copies may have given it up (see `heartbeat` and `untold`).
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::instances::Mode;
use super::{Engine, heartbeat};

/// A time without a look that counts. Shorter than any heartbeat with which an engine can live.
const STANDSTILL: Duration = Duration::from_millis(750);

/// When the daemon looked at the clock last (milliseconds of CLOCK_MONOTONIC); zero while nobody looks, as in a replay.
#[derive(Debug, Default)]
pub(super) struct Looked(AtomicU64);

impl Looked {
    /// Since when nobody has looked, if that is too long ago.
    fn not_since(&self, now: Duration) -> Option<Duration> {
        // Acquire: pairs with the Release in `looks`. Who finds that somebody has looked finds the workers noted, too.
        let last = Duration::from_millis(self.0.load(Ordering::Acquire));
        (!last.is_zero() && now.saturating_sub(last) >= STANDSTILL).then_some(last)
    }

    fn looks(&self, now: Duration) {
        // Never backwards: of two threads the later one may come first.
        self.0.fetch_max(milliseconds(now), Ordering::Release);
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Engine {
    /// How often the daemon looks at the clock.
    pub const LOOK: Duration = Duration::from_millis(250);

    /// Looks at the clock, every [`Self::LOOK`].
    pub fn looks_at_the_clock(&self) {
        let now = heartbeat::now();
        self.notices_standstill(now);
        // The time from before: a standstill between the two is found by the next look.
        self.looked.looks(now);
    }

    /// After a standstill, notes of workers that may not wait any more that they must be told. Before each ping and each part of
    /// a copy, too: the thread that copies may be the first to run again.
    pub(super) fn notices_standstill(&self, now: Duration) {
        if let Some(since) = self.looked.not_since(now) {
            self.stood_still(since, now);
            // After the workers were noted; see `not_since`.
            self.looked.looks(now);
        }
    }

    fn stood_still(&self, since: Duration, now: Duration) {
        let mut late = 0;
        for worker in self.instances.all().iter().filter(|worker| worker.mode() == Mode::LmcacheDriven) {
            // Who never pings gives up nothing by it, and could not be told either.
            let Some(until) = self.heartbeats.until(worker.id) else { continue };
            let until = self.untold.expect_after_pause(worker.id, until, since);
            late += u32::from(until <= now);
        }
        let seconds = (now - since).as_secs_f64();
        if late > 0 {
            tracing::warn!(
                seconds,
                workers = late,
                "the daemon stood still (stopped, frozen, or without a core); workers that may have given up are not served before they have registered again"
            );
        } else {
            tracing::debug!(seconds, "the daemon stood still");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_long_time_without_a_look_is_a_standstill() {
        let at = |seconds: f64| Duration::from_secs_f64(seconds);
        let looked = Looked::default();
        assert_eq!(looked.not_since(at(100.0)), None, "nobody looks");
        looked.looks(at(5.0));
        assert_eq!(looked.not_since(at(5.7)), None);
        assert_eq!(looked.not_since(at(5.75)), Some(at(5.0)));
        looked.looks(at(6.0));
        looked.looks(at(5.5));
        assert_eq!(looked.not_since(at(6.5)), None);
        assert_eq!(looked.not_since(at(4.0)), None, "of two threads the earlier one");
        assert_eq!(looked.not_since(at(9.0)), Some(at(6.0)));
    }
}

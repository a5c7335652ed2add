//! Workers that nobody has answered for a while, and whether they still wait for what they have asked for.
//!
//! LMCache's worker waits without a deadline for the answer to a `retrieve`, and after a crash nobody is left who could give
//! the one that was under way. It gives such loads up when a ping is answered `false`, or not at all, and registers when the next
//! one is answered `true`. What it has given up must not be copied any more: its blocks may be another request's by now, and its
//! requests can lie in a socket, or in its own queue, until long after. So a worker is served after a crash or an upgrade only as
//! long as it certainly waits still (see `heartbeat`), and so after a time in which the daemon stood still (see `standstill`);
//! who is heard later, or of whom that cannot be told, is told of the restart and registers.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::instances::Mode;
use super::{Client, Engine, Failure, Refusal, heartbeat};
use crate::device::copy::CopyError;

/// For how long a worker waits of whose pings not enough has been seen, when a daemon that goes on is silent: less than the
/// interval that LMCache's workers have unless told otherwise (`lmcache.mp.heartbeat_interval`, 10 s).
const PATIENCE: Duration = Duration::from_millis(7500);

/// Until when a worker waits that has heard of the daemon at `last`: `until`, or zero if its pings do not tell.
fn patience(until: Duration, last: Duration) -> Duration {
    if until.is_zero() { last + PATIENCE } else { until }
}

/// Workers whose memory the daemon copies, and until when they certainly wait (CLOCK_MONOTONIC).
#[derive(Debug, Default)]
pub(super) struct Untold {
    /// Read before every ping and copy; 0 where there are none.
    left: AtomicUsize,
    workers: Mutex<FxHashMap<u64, Duration>>,
    /// The daemon is about to be silent: who is answered in time stays here.
    pausing: AtomicBool,
}

impl Untold {
    /// One that an earlier daemon knew.
    pub(super) fn expect(&self, instance: u64, until: Duration) {
        self.change(|workers| {
            workers.insert(instance, until);
        });
    }

    /// One that will be heard again after the daemon has been silent from `since` on; `until` as far as its pings tell. Returns
    /// until when it is taken to wait.
    pub(super) fn expect_after_pause(&self, instance: u64, until: Duration, since: Duration) -> Duration {
        let mut least = patience(until, since);
        self.change(|workers| {
            // One that is expected already has not been answered since.
            let known = workers.entry(instance).or_insert(least);
            *known = least.min(*known);
            least = *known;
        });
        least
    }

    /// A connection is here on which the earlier daemon heard the worker. `until`: how long it waits, as far as that daemon
    /// could tell; zero if it could not.
    pub(super) fn is_back(&self, instance: u64, until: Duration) {
        self.change(|workers| {
            workers.entry(instance).and_modify(|known| {
                // Of two connections the less patient one decides.
                *known = if known.is_zero() || until.is_zero() {
                    (*known).max(until)
                } else {
                    (*known).min(until)
                };
            });
        });
    }

    /// It need not be told: it registers, is gone, or has been answered in time.
    pub(super) fn need_not_tell(&self, instance: u64) {
        self.change(|workers| {
            workers.remove(&instance);
        });
    }

    /// Until when a worker that may have to be told certainly waits.
    fn until(&self, instance: u64) -> Option<Duration> {
        // Relaxed: filled before a connection is served, or while none is.
        if self.left.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.workers.lock().get(&instance).copied()
    }

    pub(super) fn contains(&self, instance: u64) -> bool {
        self.until(instance).is_some()
    }

    /// Whether a worker may have given up, by `now`, what it has asked for.
    fn may_have_given_up(&self, instance: u64, now: Duration) -> bool {
        self.until(instance).is_some_and(|until| until <= now)
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<(u64, Duration)> {
        self.workers.lock().iter().map(|(instance, until)| (*instance, *until)).collect()
    }

    fn change(&self, change: impl FnOnce(&mut FxHashMap<u64, Duration>)) {
        let mut workers = self.workers.lock();
        change(&mut workers);
        self.left.store(workers.len(), Ordering::Relaxed);
    }
}

impl Engine {
    /// A worker pings that may not know of a restart: unless it certainly waits still, it must learn of it.
    ///
    /// From the `false` on it must not be served before it registers. So it becomes unknown, and not while a copy of its
    /// runs: then the next ping tells it. (Workers that copy by themselves wait with a deadline, and are not told.)
    pub(super) fn tell_of_restart(&self, instance: u64) {
        let now = heartbeat::now();
        self.notices_standstill(now);
        if !self.untold.contains(instance) {
            return;
        }
        if !self.untold.may_have_given_up(instance, now) {
            // This ping is answered before it could fail, and those before it were. The next may not be, if the daemon pauses.
            if !self.untold.pausing.load(Ordering::Acquire) {
                self.untold.need_not_tell(instance);
            }
            return;
        }
        // Somebody registers: the next ping tells it, if it must be told still.
        let Some(_turn) = self.turns.now(instance) else { return };
        if self.instances.remove_unused(instance, Mode::LmcacheDriven).is_none() {
            return;
        }
        self.forget_registration(instance, Mode::LmcacheDriven);
        self.worker_gone(instance);
        tracing::info!(
            instance,
            "worker that nobody may have answered in time is told so: it gives up the loads that were under way, and registers again"
        );
    }

    /// Whether a worker certainly waits for what it has asked for.
    pub(super) fn certainly_waits(&self, instance: u64) -> bool {
        let now = heartbeat::now();
        self.notices_standstill(now);
        !self.untold.may_have_given_up(instance, now)
    }

    /// A worker asks for a copy into or out of its memory. Does it certainly wait for it?
    pub(super) fn waits(&self, instance: u64) -> Result<(), Failure> {
        if !self.certainly_waits(instance) {
            return Err((Refusal::Restarted, format!("instance {instance}: {}", CopyError::GivenUp)));
        }
        Ok(())
    }

    /// A registered worker's ping is about to be answered `true` on `client`.
    pub(super) fn answers_ping(&self, client: &Client, instance: u64) {
        if self.instances.get(instance, Mode::LmcacheDriven).is_none()
            || !self.is_workers_own(client, instance)
        {
            return;
        }
        let now = heartbeat::now();
        let until = self.heartbeats.answered(instance, now);
        if let Some(lane) = &client.lane {
            lane.waits_until(until);
        }
        if self.untold.pausing.load(Ordering::Acquire) {
            self.untold.expect(instance, patience(until, now));
        }
    }

    /// The daemon is about to answer nobody for a while: whoever is heard after it, in this process or another, is served only
    /// as long as he certainly waits.
    pub fn pauses(&self) {
        // Before the workers are gone through: who pings meanwhile is either seen here, or sees this.
        self.untold.pausing.store(true, Ordering::Release);
        let now = heartbeat::now();
        for worker in self.instances.all().iter().filter(|worker| worker.mode() == Mode::LmcacheDriven) {
            let until = self.heartbeats.until(worker.id).unwrap_or_default();
            self.untold.expect_after_pause(worker.id, until, now);
        }
    }

    /// The daemon goes on after all.
    pub fn goes_on(&self) {
        self.untold.pausing.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);
    const LATER: Duration = Duration::from_secs(101);

    fn expecting(until: &[Duration]) -> Untold {
        let untold = Untold::default();
        untold.expect(1, Duration::ZERO);
        until.iter().for_each(|until| untold.is_back(1, *until));
        untold
    }

    #[test]
    fn one_is_served_as_long_as_it_certainly_waits() {
        let untold = expecting(&[LATER]);
        assert!(untold.contains(1));
        assert!(!untold.may_have_given_up(1, NOW));
        assert!(untold.may_have_given_up(1, LATER));
        untold.need_not_tell(1);
        assert!(!untold.may_have_given_up(1, LATER));
    }

    #[test]
    fn one_of_which_nothing_is_known_is_not_served() {
        assert!(expecting(&[]).may_have_given_up(1, NOW));
        assert!(expecting(&[Duration::ZERO]).may_have_given_up(1, NOW));
    }

    #[test]
    fn the_less_patient_connection_decides() {
        for order in [[LATER, NOW], [NOW, LATER]] {
            assert!(expecting(&order).may_have_given_up(1, NOW));
        }
        for order in [[LATER, Duration::ZERO], [Duration::ZERO, LATER]] {
            assert!(!expecting(&order).may_have_given_up(1, NOW), "one that never pinged says nothing");
        }
    }

    #[test]
    fn a_pause_makes_nobody_more_patient() {
        let untold = Untold::default();
        assert_eq!(untold.expect_after_pause(1, Duration::ZERO, NOW), NOW + PATIENCE);
        assert_eq!(untold.expect_after_pause(1, LATER, NOW), LATER);
        assert_eq!(untold.expect_after_pause(1, NOW + PATIENCE, LATER), LATER);
        untold.expect(1, Duration::ZERO);
        assert_eq!(
            untold.expect_after_pause(1, Duration::ZERO, LATER),
            Duration::ZERO,
            "it must be told still"
        );
    }

    #[test]
    fn who_is_not_expected_is_not_remembered() {
        let untold = expecting(&[LATER]);
        untold.is_back(2, LATER);
        assert!(!untold.contains(2) && !untold.may_have_given_up(2, LATER));
    }
}

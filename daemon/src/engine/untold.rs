//! Workers that do not know of the restart yet, and whether they still wait for what they asked the earlier daemon for.
//!
//! LMCache's worker waits without a deadline for the answer to a `retrieve`, and nobody is left who could give the one that
//! was under way at the restart. It gives such loads up when a ping is answered `false`, or not at all, and registers when the
//! next one is answered `true`. What it has given up must not be copied any more: its blocks may be another request's by now, and its
//! requests can lie in a socket, or in its own queue, until long after.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::instances::Mode;
use super::{Engine, Failure, Refusal, heartbeat};

/// What is known of a worker's patience: until when it certainly waits; `None` if it has not pinged, or nothing is known.
type Patience = Option<Duration>;

/// Workers whose memory the daemon copies and whose requests may have been under way when the earlier daemon ended.
#[derive(Debug, Default)]
pub(super) struct Untold {
    /// Read before every ping and copy; 0 as soon as all have been told.
    left: AtomicUsize,
    workers: Mutex<FxHashMap<u64, Patience>>,
}

impl Untold {
    /// One that an earlier daemon knew.
    pub(super) fn expect(&self, instance: u64) {
        self.change(|workers| {
            workers.insert(instance, None);
        });
    }

    /// The connection is here on which the earlier daemon heard the worker. `complete`: all of its requests are.
    pub(super) fn is_back(&self, instance: u64, patience: Patience, complete: bool) {
        match patience {
            // It knows of no answer that it has missed, and will not.
            None if complete => self.need_not_tell(instance),
            None => {}
            Some(_) => self.change(|workers| {
                workers.entry(instance).and_modify(|known| *known = patience);
            }),
        }
    }

    /// It need not be told: it registers, is gone, or has been answered in time.
    pub(super) fn need_not_tell(&self, instance: u64) {
        self.change(|workers| {
            workers.remove(&instance);
        });
    }

    pub(super) fn contains(&self, instance: u64) -> bool {
        self.of(instance).is_some()
    }

    fn of(&self, instance: u64) -> Option<Patience> {
        // Relaxed: filled before the first connection is accepted; after that it only falls.
        if self.left.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.workers.lock().get(&instance).copied()
    }

    /// Whether a worker may have given up, by `now`, what it has asked for.
    fn may_have_given_up(&self, instance: u64, now: impl FnOnce() -> Duration) -> bool {
        matches!(self.of(instance), Some(Some(until)) if until <= now())
    }

    /// A worker pings. Must it be told of the restart?
    fn must_be_told(&self, instance: u64, now: impl FnOnce() -> Duration) -> bool {
        match self.of(instance) {
            None => false,
            Some(None) => true,
            Some(Some(until)) if until <= now() => true,
            Some(Some(_)) => {
                // This ping is answered before it could fail, and those before it were.
                self.need_not_tell(instance);
                false
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut FxHashMap<u64, Patience>)) {
        let mut workers = self.workers.lock();
        change(&mut workers);
        self.left.store(workers.len(), Ordering::Relaxed);
    }
}

impl Engine {
    /// A worker of the earlier daemon pings: unless it certainly knows nothing of a restart, it must learn of it.
    ///
    /// From the `false` on it must not be served before it registers. So it becomes unknown, and not while a copy of its
    /// runs: then the next ping tells it. (Workers that copy by themselves wait with a deadline, and are not told.)
    pub(super) fn tell_of_restart(&self, instance: u64) {
        if !self.untold.must_be_told(instance, heartbeat::now)
            || self.instances.remove_unused(instance, Mode::LmcacheDriven).is_none()
        {
            return;
        }
        self.forget_registration(instance, Mode::LmcacheDriven);
        self.worker_gone(instance);
        tracing::info!(
            instance,
            "worker of the earlier daemon is told of the restart: it gives up the loads that were under way, and registers again"
        );
    }

    /// A worker asks for a copy into or out of its memory. Does it certainly wait for it?
    pub(super) fn waits(&self, instance: u64) -> Result<(), Failure> {
        if self.untold.may_have_given_up(instance, heartbeat::now) {
            let detail = format!(
                "instance {instance} may have given it up while no daemon answered its pings; it is served again when it has registered"
            );
            return Err((Refusal::Restarted, detail));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn expecting(patience: Patience, complete: bool) -> Untold {
        let untold = Untold::default();
        untold.expect(1);
        untold.is_back(1, patience, complete);
        untold
    }

    #[test]
    fn one_that_pinged_lately_is_served_and_need_not_be_told_if_it_pings_in_time() {
        let untold = expecting(Some(NOW), true);
        let early = || NOW - Duration::from_secs(1);
        assert!(!untold.may_have_given_up(1, early));
        assert!(!untold.must_be_told(1, early));
        assert!(!untold.may_have_given_up(1, || NOW) && !untold.must_be_told(1, || NOW));
    }

    #[test]
    fn one_that_may_have_given_up_is_not_served_and_is_told() {
        let untold = expecting(Some(NOW), true);
        assert!(untold.may_have_given_up(1, || NOW) && untold.must_be_told(1, || NOW));
        // Until it registers.
        assert!(untold.may_have_given_up(1, || NOW) && untold.must_be_told(1, || NOW));
        untold.need_not_tell(1);
        assert!(!untold.may_have_given_up(1, || NOW) && !untold.must_be_told(1, || NOW));
    }

    #[test]
    fn one_that_never_pinged_is_served_and_told_only_if_something_of_its_was_lost() {
        for complete in [true, false] {
            let untold = expecting(None, complete);
            assert!(!untold.may_have_given_up(1, || NOW));
            assert_eq!(untold.must_be_told(1, || NOW), !complete);
        }
    }

    #[test]
    fn who_is_not_expected_is_not_remembered() {
        let untold = expecting(Some(NOW), true);
        untold.is_back(2, Some(NOW), true);
        assert!(!untold.contains(2) && !untold.may_have_given_up(2, || NOW));
    }
}

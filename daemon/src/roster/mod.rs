//! Registered workers, as bytes that outlive the daemon.
//!
//! A registration is plain data: what the worker sent, whose process it is, and which files its memory was. It is kept beside
//! the pool in shared memory (a file that is written and read, never mapped), so that the next daemon knows the worker
//! without being told again. Nothing of a worker is opened here; the engine does that when it hears the worker.
//!
//! * `record`: what one entry says, and how it is spelt;
//! * `log`: the file: entries are appended, and rewritten together when most of them are stale.
#![forbid(unsafe_code)]

mod log;
mod record;
#[cfg(test)]
mod tests;

use parking_lot::Mutex;

#[cfg(feature = "fuzzing")]
pub(crate) use record::fuzz_record;
pub use record::{Kept, MemoryFile, Mode};

use log::Log;

/// The pool whose workers are registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolFile {
    /// Its file.
    pub inode: u64,
    /// Its length: workers that copy have mapped so much of it.
    pub bytes: u64,
}

/// The registrations of one pool's workers.
///
/// Keeping them is a service to the next daemon and never fails a request of this one: what goes wrong is logged, and the
/// worker registers again after a restart.
#[derive(Debug)]
pub struct Roster(Mutex<Option<Log>>);

impl Roster {
    /// A roster that keeps nothing.
    pub fn none() -> Roster {
        Roster(Mutex::new(None))
    }

    /// Opens the roster `name` (in shared memory, without slash) of `pool`, and returns what an earlier daemon kept there for
    /// the same pool. If that has become longer since, workers that have it mapped are not among them.
    ///
    /// The caller owns the pool and with it this file: no other daemon writes it.
    pub fn open(name: &str, pool: PoolFile) -> (Roster, Vec<Kept>) {
        match Log::open(name, pool) {
            Ok((log, kept)) => (Roster(Mutex::new(Some(log))), kept),
            Err(error) => {
                tracing::warn!(
                    file = name,
                    %error,
                    "cannot keep the workers' registrations in shared memory; after a restart they have to register again"
                );
                (Roster::none(), Vec::new())
            }
        }
    }

    /// Keeps a registration, in place of an older one of the same worker and mode.
    pub fn keep(&self, kept: &Kept) {
        let mut log = self.0.lock();
        if let Some(open) = log.as_mut()
            && let Err(error) = open.keep(kept)
        {
            tracing::warn!(
                instance = kept.instance,
                %error,
                "cannot keep the worker's registration; after a restart it has to register again"
            );
            // Nor may an older one of it be believed.
            forget(&mut log, kept.instance, kept.mode);
        }
    }

    /// Forgets a registration.
    pub fn forget(&self, instance: u64, mode: Mode) {
        forget(&mut self.0.lock(), instance, mode);
    }

    /// Removes the file.
    pub fn discard(&self) {
        if let Some(log) = self.0.lock().take() {
            log.unlink();
        }
    }
}

fn forget(log: &mut Option<Log>, instance: u64, mode: Mode) {
    if let Some(open) = log.as_mut()
        && let Err(error) = open.forget(instance, mode)
    {
        // Believed after the restart, it would be a worker that is gone: rather none at all.
        tracing::warn!(
            instance,
            %error,
            "cannot note that the worker is gone; no registration is kept any more, and after a restart all workers have to register again"
        );
        open.unlink();
        *log = None;
    }
}

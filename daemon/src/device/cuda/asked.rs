//! What a worker's thread is asked, and what it tells.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;

use super::job::Finished;
use crate::device::copy::CopyError;
use crate::device::transfer::{Done, Transfer};

/// What the thread is asked and told.
pub(super) enum Command {
    Transfer(Submitted),
    /// The worker's event of this job has fired.
    Fired(u64),
    /// This slice is over.
    Over(u64),
    /// The context is lost.
    Lost,
    /// Bytes of a tensor's storage.
    Read {
        tensor: usize,
        offset: u64,
        bytes: usize,
        answer: Sender<Result<Vec<u8>, CopyError>>,
    },
    /// The worker has gone.
    Close,
}

/// What another thread tells of it.
pub(super) enum Told {
    /// A transfer is over.
    Finished(Finished),
    /// Nothing is taken of the worker any more.
    Lost,
}

/// A transfer that nobody has taken yet. If nobody does, it is told so when this goes: a thread may end while it is asked.
pub(super) struct Submitted(Option<(Transfer, Done)>);

impl Submitted {
    pub(super) fn new(transfer: Transfer, done: Done) -> Submitted {
        Submitted(Some((transfer, done)))
    }

    /// Whoever takes it tells when it is over.
    pub(super) fn take(mut self) -> Option<(Transfer, Done)> {
        self.0.take()
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        let Some((transfer, done)) = self.0.take() else { return };
        // Whoever is told finds the objects let go.
        drop(transfer);
        if catch_unwind(AssertUnwindSafe(|| done(Err(CopyError::Closed)))).is_err() {
            tracing::error!("what follows a transfer panicked; this is a bug in lmcached, please report it");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::super::job::tests::transfer;
    use super::*;

    #[test]
    fn what_nobody_takes_is_told_once() {
        let (told, results) = channel();
        let submitted = || {
            let told = told.clone();
            Submitted::new(transfer(1), Box::new(move |result| told.send(result).expect("heard")))
        };
        let (lane, commands) = channel();
        assert!(lane.send(submitted()).is_ok());
        drop(commands);
        assert!(lane.send(submitted()).is_err(), "the thread has ended");
        assert_eq!(results.try_iter().collect::<Vec<_>>(), [Err(CopyError::Closed), Err(CopyError::Closed)]);
        assert!(submitted().take().is_some());
        assert_eq!(results.try_iter().count(), 0, "whoever took it tells");
    }
}

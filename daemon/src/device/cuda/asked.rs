//! What a worker's thread is asked, and what it tells.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;

use super::job::Finished;
use crate::device::copy::CopyError;
use crate::device::transfer::{Done, Moved, Transfer};

/// What the thread is asked and told.
pub(super) enum Command {
    /// Not taken by anybody yet. Who is told of it finds its objects let go.
    Transfer(Transfer, Owner),
    /// The worker's event of this job has fired.
    Fired(u64),
    /// This slice is over.
    Over(u64),
    /// The context is lost.
    Lost,
    /// Bytes of a tensor's storage.
    Read { tensor: usize, offset: u64, bytes: usize, answer: Sender<Result<Vec<u8>, CopyError>> },
    /// The worker has gone, or registers anew.
    Close {
        /// Its process is dead, or has been silent for as long as if it were.
        dead: bool,
    },
}

/// What another thread tells of it.
pub(super) enum Told {
    /// A transfer is over.
    Finished(Finished),
    /// Nothing is taken of the worker any more.
    Lost,
}

/// Who is told of a transfer when it is over, once. If this goes before, the transfer is over, too: a thread may end while it is
/// asked.
pub(super) struct Owner(Option<Done>);

impl Owner {
    pub(super) fn new(done: Done) -> Owner {
        Owner(Some(done))
    }

    pub(super) fn tell(mut self, result: Result<Moved, CopyError>) {
        if let Some(done) = self.0.take() {
            done(result);
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let Some(done) = self.0.take() else { return };
        // Perhaps in the middle of a panic.
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
    fn who_asked_is_told_once() {
        let (told, results) = channel();
        let owner = || {
            let told = told.clone();
            Owner::new(Box::new(move |result| told.send(result).expect("heard")))
        };
        let submitted = || Command::Transfer(transfer(1), owner());
        let (lane, commands) = channel();
        assert!(lane.send(submitted()).is_ok());
        drop(commands);
        assert!(lane.send(submitted()).is_err(), "the thread has ended");
        assert_eq!(results.try_iter().collect::<Vec<_>>(), [Err(CopyError::Closed), Err(CopyError::Closed)]);
        owner().tell(Ok(Moved::default()));
        assert_eq!(results.try_iter().collect::<Vec<_>>(), [Ok(Moved::default())]);
    }
}

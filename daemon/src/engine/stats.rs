//! Counters of what was asked and what came of it, and the logs of what went wrong, at most one a second each.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};

use lmcache_proto::wire::Operation;

use super::Refusal;
use crate::log_limit::LogLimit;

/// Outcome label of the request counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpOutcome {
    /// Done.
    Ok,
    /// Not done, with the reason.
    Refused(Refusal),
}

const OUTCOMES: usize = 1 + Refusal::ALL.len();

/// The counters.
#[derive(Debug)]
pub struct Stats {
    requests: [[AtomicU64; OUTCOMES]; Operation::COUNT],
    limits: [[LogLimit; Refusal::ALL.len()]; Operation::COUNT],
    /// Tokens that lookups asked for, whole chunks only.
    pub requested_tokens: AtomicU64,
    /// Tokens that lookups found.
    pub hit_tokens: AtomicU64,
    /// Tokens stored.
    pub stored_tokens: AtomicU64,
    /// Tokens retrieved.
    pub retrieved_tokens: AtomicU64,
    /// Workers reaped.
    pub reaped: AtomicU64,
    /// Leases that ended because their connection was gone.
    pub leases_expired: AtomicU64,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            requests: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            limits: std::array::from_fn(|_| std::array::from_fn(|_| LogLimit::default())),
            requested_tokens: AtomicU64::new(0),
            hit_tokens: AtomicU64::new(0),
            stored_tokens: AtomicU64::new(0),
            retrieved_tokens: AtomicU64::new(0),
            reaped: AtomicU64::new(0),
            leases_expired: AtomicU64::new(0),
        }
    }
}

impl Stats {
    /// Counts a request.
    pub fn count(&self, operation: Operation, outcome: OpOutcome) {
        let column = match outcome {
            OpOutcome::Ok => 0,
            OpOutcome::Refused(reason) => 1 + reason as usize,
        };
        self.requests[operation.index()][column].fetch_add(1, Ordering::Relaxed);
    }

    /// Every request counter that has moved.
    pub fn requests(&self) -> impl Iterator<Item = (Operation, OpOutcome, u64)> {
        Operation::all().flat_map(move |operation| {
            (0..OUTCOMES).filter_map(move |column| {
                let count = self.requests[operation.index()][column].load(Ordering::Relaxed);
                let outcome =
                    if column == 0 { OpOutcome::Ok } else { OpOutcome::Refused(Refusal::ALL[column - 1]) };
                (count > 0).then_some((operation, outcome, count))
            })
        })
    }

    /// A request was not done.
    pub fn refused(&self, peer: &str, operation: Operation, reason: Refusal, detail: impl Display) {
        self.count(operation, OpOutcome::Refused(reason));
        if let Some(suppressed) = self.limits[operation.index()][reason as usize].pass() {
            // A miss after a lookup is life; the rest is worth a look.
            if reason == Refusal::NotResident {
                tracing::info!(%operation, peer, %detail, suppressed, "request refused: {}", reason.advice());
            } else {
                tracing::warn!(%operation, peer, %reason, %detail, suppressed, "request refused: {}", reason.advice());
            }
        }
    }
}

//! Counters of what was asked and what came of it, and the logs of what went wrong, at most one a second each.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use lmcache_proto::wire::{ForeignRelease, Operation};

use super::{Client, Refusal};

/// Outcome label of the request counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpOutcome {
    /// Done.
    Ok,
    /// Not done, with the reason.
    Refused(Refusal),
}

const OUTCOMES: usize = 1 + Refusal::ALL.len();

/// Lets one of many equal lines through each second and counts the rest.
#[derive(Debug, Default)]
struct Limit {
    last: AtomicU64,
    suppressed: AtomicU64,
}

impl Limit {
    /// `Some(lines suppressed since the last one)` if a line may be written now.
    fn pass(&self) -> Option<u64> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs().max(1));
        let last = self.last.load(Ordering::Relaxed);
        if last == now || self.last.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.suppressed.swap(0, Ordering::Relaxed))
    }
}

/// The counters.
#[derive(Debug)]
pub struct Stats {
    requests: [[AtomicU64; OUTCOMES]; Operation::COUNT],
    limits: [[Limit; Refusal::ALL.len()]; Operation::COUNT],
    other: Limit,
    /// Messages that are no requests.
    pub malformed: AtomicU64,
    /// Requests of operations that are not served.
    pub unknown: AtomicU64,
    /// Connections ended or not admitted by the daemon.
    pub peers_refused: AtomicU64,
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
            limits: std::array::from_fn(|_| std::array::from_fn(|_| Limit::default())),
            other: Limit::default(),
            malformed: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            peers_refused: AtomicU64::new(0),
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
    pub fn refused(&self, client: &Client, operation: Operation, reason: Refusal, detail: impl Display) {
        self.count(operation, OpOutcome::Refused(reason));
        if let Some(suppressed) = self.limits[operation.index()][reason as usize].pass() {
            // A miss after a lookup is life; the rest is worth a look.
            if reason == Refusal::NotResident {
                tracing::info!(%operation, peer = %client.peer, %detail, suppressed, "request refused: {}", reason.advice());
            } else {
                tracing::warn!(%operation, peer = %client.peer, %reason, %detail, suppressed, "request refused: {}", reason.advice());
            }
        }
    }

    /// A message that is no request.
    pub fn malformed(&self, client: &Client, detail: impl Display) {
        self.malformed.fetch_add(1, Ordering::Relaxed);
        if let Some(suppressed) = self.other.pass() {
            tracing::warn!(peer = %client.peer, %detail, suppressed, "dropped a message that is no LMCache request");
        }
    }

    /// An operation of 0.5.6 that belongs to a feature this daemon does not have.
    pub fn unserved(&self, client: &Client, name: &str) {
        self.unknown.fetch_add(1, Ordering::Relaxed);
        if let Some(suppressed) = self.other.pass() {
            tracing::warn!(peer = %client.peer, operation = name, suppressed, "operation is not served by lmcached and has no negative answer: the client waits for its own timeout; switch the feature off in the client");
        }
    }

    /// An operation that 0.5.6 does not have.
    pub fn unknown(&self, client: &Client, name: &str) {
        self.unknown.fetch_add(1, Ordering::Relaxed);
        if let Some(suppressed) = self.other.pass() {
            tracing::warn!(peer = %client.peer, operation = name, suppressed, "unknown operation; this daemon speaks lmcache 0.5.6");
        }
    }

    /// A request that looks like another release's.
    pub fn foreign(&self, client: &Client, release: ForeignRelease) {
        if let Some(suppressed) = self.other.pass() {
            tracing::error!(peer = %client.peer, suppressed, "client looks like lmcache {}; this daemon speaks 0.5.6: install lmcache==0.5.6 in the engine's image", release.name());
        }
    }

    /// A connection over the limit.
    pub fn connection_refused(&self) {
        self.peers_refused.fetch_add(1, Ordering::Relaxed);
        if let Some(suppressed) = self.other.pass() {
            tracing::warn!(suppressed, "connection refused: --max-connections are open");
        }
    }

    /// A peer whose connection the daemon ended.
    pub fn peer_refused(&self, client: &Client, why: impl Display) {
        self.peers_refused.fetch_add(1, Ordering::Relaxed);
        if let Some(suppressed) = self.other.pass() {
            tracing::warn!(peer = %client.peer, suppressed, "connection closed: {why}");
        }
    }
}

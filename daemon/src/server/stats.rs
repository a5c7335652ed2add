//! What peers sent that is no request, and why connections were ended: counted by reason, and logged at most once a
//! second for each reason, so that a flood of one kind does not hide the others.

use std::array::from_fn;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};

use lmcache_proto::wire::{ForeignRelease, Operation};

use super::endpoint::Stream;
use crate::config::Endpoint;
use crate::engine::Client;
use crate::events::Timing;
use crate::log_limit::LogLimit;

/// Why a message was not taken for a request of 0.5.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BadMessage {
    /// Fewer than two frames.
    TooShort,
    /// A correlation id longer than any client's.
    OverlongId,
    /// The operation frame is neither an id nor a name.
    Operation,
    /// A stream's control message other than `ack` and `cancel`.
    Control,
    /// An operation of 0.5.6 that belongs to a feature this daemon does not have.
    Unserved,
    /// An operation that 0.5.6 does not have.
    Unknown,
    /// Looks like a request of another LMCache release. Counted besides what else is wrong with it.
    Foreign,
}

impl BadMessage {
    /// Every reason, in counter order.
    pub const ALL: [BadMessage; 7] = [
        BadMessage::TooShort,
        BadMessage::OverlongId,
        BadMessage::Operation,
        BadMessage::Control,
        BadMessage::Unserved,
        BadMessage::Unknown,
        BadMessage::Foreign,
    ];

    /// The label.
    pub fn name(self) -> &'static str {
        match self {
            BadMessage::TooShort => "too_short",
            BadMessage::OverlongId => "overlong_id",
            BadMessage::Operation => "bad_operation",
            BadMessage::Control => "bad_control",
            BadMessage::Unserved => "unserved_operation",
            BadMessage::Unknown => "unknown_operation",
            BadMessage::Foreign => "foreign_release",
        }
    }
}

/// Why the daemon ended a connection or did not take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    /// `--max-connections` are open.
    TooMany,
    /// A user whom the Unix socket is not for.
    Stranger,
    /// No ZMTP peer, or one of another kind, or none in time.
    Handshake,
    /// Bytes that are no ZMTP frame.
    Frame,
    /// A message above `--max-message-bytes`.
    Oversized,
    /// A message that was not whole in time.
    Slow,
    /// Answers that were not taken in time.
    NotTaken,
    /// It had asked for nothing yet when all places were taken and another one came.
    Displaced,
}

impl Ended {
    /// Every reason, in counter order.
    pub const ALL: [Ended; 8] = [
        Ended::TooMany,
        Ended::Stranger,
        Ended::Handshake,
        Ended::Frame,
        Ended::Oversized,
        Ended::Slow,
        Ended::NotTaken,
        Ended::Displaced,
    ];

    /// The label.
    pub fn name(self) -> &'static str {
        match self {
            Ended::TooMany => "too_many_connections",
            Ended::Stranger => "user_not_allowed",
            Ended::Handshake => "handshake",
            Ended::Frame => "bad_frame",
            Ended::Oversized => "oversized_message",
            Ended::Slow => "slow_message",
            Ended::NotTaken => "answers_not_taken",
            Ended::Displaced => "displaced",
        }
    }
}

/// Why a peer was not read for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Paused {
    /// It has as much queued as one peer may have.
    Peer,
    /// It does not take its answers.
    Answers,
    /// It has sent `--max-peer-requests-per-second`.
    Rate,
    /// All peers together hold `--max-total-bytes`.
    Total,
}

impl Paused {
    /// Every reason, in counter order.
    pub const ALL: [Paused; 4] = [Paused::Peer, Paused::Answers, Paused::Rate, Paused::Total];

    /// The label.
    pub fn name(self) -> &'static str {
        match self {
            Paused::Peer => "peer_budget",
            Paused::Answers => "answers",
            Paused::Rate => "rate",
            Paused::Total => "total_budget",
        }
    }
}

#[derive(Debug)]
struct Counters<const N: usize>([(AtomicU64, LogLimit); N]);

impl<const N: usize> Counters<N> {
    fn new() -> Counters<N> {
        Counters(from_fn(|_| Default::default()))
    }

    /// Counts, and says whether a line may be written (as [`LogLimit::pass`]).
    fn hit(&self, index: usize) -> Option<u64> {
        self.0[index].0.fetch_add(1, Ordering::Relaxed);
        self.0[index].1.pass()
    }

    fn get(&self, index: usize) -> u64 {
        self.0[index].0.load(Ordering::Relaxed)
    }
}

/// The counters.
#[derive(Debug)]
pub struct ServerStats {
    messages: Counters<{ BadMessage::ALL.len() }>,
    ended: Counters<{ Ended::ALL.len() }>,
    paused: Counters<{ Paused::ALL.len() }>,
    timings: [OperationTimes; Operation::COUNT],
}

/// How long one operation's requests took.
#[derive(Debug, Default)]
pub struct OperationTimes {
    /// From its last byte until it began.
    pub queued: Timing,
    /// From its last byte until its answer was made. A parked request's is made when it parks.
    pub total: Timing,
}

impl ServerStats {
    pub(super) fn new() -> ServerStats {
        ServerStats {
            messages: Counters::new(),
            ended: Counters::new(),
            paused: Counters::new(),
            timings: from_fn(|_| OperationTimes::default()),
        }
    }

    /// How long an operation's requests took.
    pub fn timing(&self, operation: Operation) -> &OperationTimes {
        &self.timings[operation.index()]
    }

    /// Messages that were no requests, by reason.
    pub fn bad_messages(&self) -> impl Iterator<Item = (BadMessage, u64)> {
        BadMessage::ALL.into_iter().map(|reason| (reason, self.messages.get(reason as usize)))
    }

    /// Connections ended or not taken by the daemon, by reason.
    pub fn ended(&self) -> impl Iterator<Item = (Ended, u64)> {
        Ended::ALL.into_iter().map(|reason| (reason, self.ended.get(reason as usize)))
    }

    /// Times that the daemon stopped reading from a peer, by reason.
    pub fn paused(&self) -> impl Iterator<Item = (Paused, u64)> {
        Paused::ALL.into_iter().map(|reason| (reason, self.paused.get(reason as usize)))
    }

    /// A message that is no request. `detail` is printed escaped: it may carry a peer's text.
    pub(super) fn bad_message(&self, client: &Client, reason: BadMessage, detail: impl Display) {
        let Some(suppressed) = self.messages.hit(reason as usize) else { return };
        let (peer, detail) = (&client.peer, detail.to_string());
        match reason {
            BadMessage::Unserved => {
                tracing::warn!(
                    peer,
                    operation = detail,
                    suppressed,
                    "operation is not served by lmcached and has no negative answer: the client waits for its own timeout; switch the feature off in the client"
                );
            }
            BadMessage::Unknown => {
                tracing::warn!(
                    peer,
                    operation = detail,
                    suppressed,
                    "unknown operation; this daemon speaks lmcache 0.5.6"
                );
            }
            _ => {
                tracing::warn!(
                    peer,
                    reason = reason.name(),
                    detail,
                    suppressed,
                    "dropped a message that is no LMCache request"
                );
            }
        }
    }

    /// A request that looks like another release's.
    pub(super) fn foreign(&self, client: &Client, release: ForeignRelease) {
        if let Some(suppressed) = self.messages.hit(BadMessage::Foreign as usize) {
            tracing::error!(
                peer = client.peer,
                suppressed,
                "client looks like lmcache {}; this daemon speaks 0.5.6: install lmcache==0.5.6 in the engine's image",
                release.name()
            );
        }
    }

    /// A connection that was not taken.
    pub(super) fn not_admitted(&self, limit: usize) {
        if let Some(suppressed) = self.ended.hit(Ended::TooMany as usize) {
            tracing::warn!(limit, suppressed, "connection refused: --max-connections are open");
        }
    }

    /// A connection to a Unix socket by a user whom it is not for.
    pub(super) fn stranger(&self, endpoint: &Endpoint, stream: &Stream) {
        let Some(suppressed) = self.ended.hit(Ended::Stranger as usize) else { return };
        match stream {
            Stream::Ipc(_, Some(peer)) => tracing::warn!(
                %endpoint,
                uid = peer.uid,
                pid = peer.pid(),
                suppressed,
                "connection refused: this user is not the daemon's; if its workers are to share the cache, start the daemon with --ipc-allow-uid {} or put the user into the group of --shm-group",
                peer.uid
            ),
            Stream::Ipc(_, None) | Stream::Tcp(..) => tracing::warn!(
                %endpoint,
                suppressed,
                "connection refused: the kernel does not say who it is"
            ),
        }
    }

    /// A connection that the daemon ended.
    pub(super) fn end(&self, client: &Client, reason: Ended, detail: impl Display) {
        if let Some(suppressed) = self.ended.hit(reason as usize) {
            tracing::warn!(
                peer = client.peer,
                reason = reason.name(),
                suppressed,
                "connection closed: {detail}"
            );
        }
    }

    /// A peer is not read until something has drained.
    pub(super) fn pause(&self, client: &Client, reason: Paused) {
        let Some(suppressed) = self.paused.hit(reason as usize) else { return };
        match reason {
            Paused::Peer => {
                tracing::info!(
                    peer = client.peer,
                    suppressed,
                    "not reading from a client until its requests are done and its answers taken (--max-peer-bytes, or its number of requests)"
                );
            }
            Paused::Answers => {
                tracing::info!(
                    peer = client.peer,
                    suppressed,
                    "not reading from a client until it takes the answers that wait for it"
                );
            }
            Paused::Rate => {
                tracing::info!(
                    peer = client.peer,
                    suppressed,
                    "not reading from a client for a moment: it sends more than --max-peer-requests-per-second"
                );
            }
            Paused::Total => {
                tracing::warn!(
                    peer = client.peer,
                    suppressed,
                    "clients together hold --max-total-bytes; not reading from this one until some of it is done"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Origin;

    #[test]
    fn reasons_are_in_counter_order() {
        assert!(BadMessage::ALL.into_iter().enumerate().all(|(at, reason)| reason as usize == at));
        assert!(Ended::ALL.into_iter().enumerate().all(|(at, reason)| reason as usize == at));
        assert!(Paused::ALL.into_iter().enumerate().all(|(at, reason)| reason as usize == at));
    }

    #[test]
    fn reasons_are_counted_and_limited_apart() {
        let stats = ServerStats::new();
        let client = Client::new(1, "test".into(), Origin::default());
        for _ in 0..3 {
            stats.bad_message(&client, BadMessage::Unknown, "x");
        }
        stats.foreign(&client, ForeignRelease::V045);
        let moved: Vec<_> = stats.bad_messages().filter(|(_, count)| *count > 0).collect();
        assert_eq!(moved, [(BadMessage::Unknown, 3), (BadMessage::Foreign, 1)]);
        // The flood of the first kind has not used up the line of the second.
        assert_eq!(stats.messages.0[BadMessage::Foreign as usize].1.pass(), None);
        assert_eq!(stats.messages.0[BadMessage::TooShort as usize].1.pass(), Some(0));
    }
}

//! What a peer may make the daemon hold and do, and for how long: when it is read, when its requests start, when it is ended.
#![forbid(unsafe_code)]

use tokio::time::Instant;

use super::budget::PARKED_OVERHEAD;
use super::connection::Connection;
use super::stats::{Ended, Paused};

/// Answers that may wait for a peer before the daemon does no more for it: some ten thousand small ones, or those to some
/// retrieves of the longest prompts. What clients have under way at once is far less.
const MAX_UNTAKEN: usize = 1 << 20;
/// What a peer must take of its answers within the message timeout, if more waits for it.
const MIN_TAKEN: usize = 64 << 10;

impl Connection<'_> {
    /// One ordered request at a time, and none while the peer does not take the answers of those before.
    pub(super) fn may_start(&self) -> bool {
        self.executing.is_none()
            && self.out.len() <= MAX_UNTAKEN.min(self.server.config.max_peer_bytes)
            && (self.out.is_empty() || self.share.room() > 0)
    }

    /// Whether queued requests wait for other peers' bytes to go.
    pub(super) fn is_held_back(&self) -> bool {
        !self.queue.is_empty() && !self.out.is_empty() && self.share.room() == 0
    }

    /// Backpressure: a peer over its budget, or that does not take its answers, is not read until it has drained.
    pub(super) fn is_full(&self) -> Option<Paused> {
        self.is_full_with(0, 0)
    }

    /// The same with `messages` more that cost `cost`.
    pub(super) fn is_full_with(&self, cost: usize, messages: usize) -> Option<Paused> {
        if self.out.len() > MAX_UNTAKEN {
            return Some(Paused::Answers);
        }
        let waiting = self.queue.cost() + self.executing.unwrap_or(0) + self.out.len() + cost;
        (waiting > self.server.config.max_peer_bytes || self.queue.is_full_with(messages))
            .then_some(Paused::Peer)
    }

    /// Records everything that the peer makes us hold.
    pub(super) fn hold(&mut self, unread: usize) {
        // While a request is on the compute threads the memo is theirs; it is looked at when they are done.
        if self.executing.is_none() {
            self.client.remember_if(|bytes| self.share.set_memo(bytes));
        }
        let waiting = self.queue.cost() + self.executing.unwrap_or(0) + self.out.len();
        let parked = (self.parked.len() + self.copying + self.streams.len()) * PARKED_OVERHEAD;
        self.share.set(unread + waiting + parked);
    }

    /// What a peer is ended for whose time is over; `begun` is when its unfinished message did.
    pub(super) fn late(&mut self, begun: Option<Instant>, unread: usize) -> Option<(Ended, String)> {
        let timeout = self.server.config.message_timeout;
        let over = |since: Instant| since.elapsed() >= timeout;
        let seconds = timeout.as_secs_f64();
        if begun.is_some_and(over) {
            let detail = format!(
                "a message was not whole {seconds:.0} s after its first byte; {unread} bytes of it had come"
            );
            return Some((Ended::Slow, detail));
        }
        if let Some((since, taken)) = self.unsent
            && over(since)
        {
            if taken < MIN_TAKEN {
                let left = self.out.len();
                let detail =
                    format!("it took {taken} bytes of its answers in {seconds:.0} s; {left} bytes are left");
                return Some((Ended::NotTaken, detail));
            }
            self.unsent = Some((Instant::now(), 0));
        }
        None
    }

    pub(super) fn note_pause(&mut self, full: Option<Paused>, starved: bool) {
        let now = full.or_else(|| starved.then_some(Paused::Total));
        if now != self.paused {
            self.paused = now;
            if let Some(reason) = now {
                self.server.stats.pause(&self.client, reason);
            }
        }
    }
}

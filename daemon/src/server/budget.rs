//! Bytes that peers make the daemon hold: counted where they arrive and where they leave, and waited for when there are
//! too many.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Most bytes taken from a peer in one read.
pub(super) const READ_BYTES: usize = 64 << 10;
/// What a peer may hold even when the others have used up the budget, so that nobody is starved: pings and everything a
/// worker sends for prompts of some 10 k tokens go on.
pub(super) const PEER_FLOOR: usize = 64 << 10;
/// What a waiting message costs besides its bytes: its entry in the queue. A million empty messages are not free.
pub(super) const MESSAGE_OVERHEAD: usize = 64;
/// What each frame costs besides its bytes: a handle, and its share of the list.
pub(super) const FRAME_OVERHEAD: usize = 32;
/// What a parked request or a stream costs: a task, its entry, and its copied id and operation.
pub(super) const PARKED_OVERHEAD: usize = 1024;

/// Remembered keys get at most this part of the budget: they stay while their clients are idle, so they must not be able
/// to fill it.
const MEMO_PART: usize = 4;

/// Bytes of all peers together.
#[derive(Debug)]
pub struct Budget {
    /// With `memos`.
    used: AtomicUsize,
    memos: AtomicUsize,
    limit: usize,
    freed: Notify,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Budget {
        Budget { used: AtomicUsize::new(0), memos: AtomicUsize::new(0), limit, freed: Notify::new() }
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }

    fn is_full(&self, used: usize) -> bool {
        used >= self.limit
    }

    // SeqCst here and in `room`: a peer that saw the budget full after making its `freed` future is woken by that future.
    fn change(&self, from: usize, to: usize) {
        if to >= from {
            self.used.fetch_add(to - from, Ordering::SeqCst);
        } else {
            let before = self.used.fetch_sub(from - to, Ordering::SeqCst);
            if self.is_full(before) && !self.is_full(before - (from - to)) {
                self.freed.notify_waiters();
            }
        }
    }
}

/// One peer's share: says how much it holds now, and gives it back when the peer goes.
///
/// Peers ask before they read, and read at most [`READ_BYTES`] at a time; so the total stays below the limit, plus
/// [`PEER_FLOOR`] or one read for each peer, plus the answers to requests that are here already.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    held: usize,
    memo: usize,
}

impl Share {
    pub(super) fn new(budget: Arc<Budget>) -> Share {
        Share { budget, held: 0, memo: 0 }
    }

    /// Records that the peer holds `bytes` now, besides its remembered key.
    pub(super) fn set(&mut self, bytes: usize) {
        self.budget.change(self.held, bytes);
        self.held = bytes;
    }

    /// Records that the peer's remembered key takes `bytes` now. `false`, and 0 recorded, if all of them together would
    /// take more than their part: it is to be forgotten.
    pub(super) fn set_memo(&mut self, bytes: usize) -> bool {
        if bytes == self.memo {
            return true;
        }
        let others = self.budget.memos.fetch_sub(self.memo, Ordering::SeqCst) - self.memo;
        let fits = others + bytes <= self.budget.limit / MEMO_PART;
        let now = if fits { bytes } else { 0 };
        self.budget.memos.fetch_add(now, Ordering::SeqCst);
        self.budget.change(self.memo, now);
        self.memo = now;
        fits
    }

    /// Bytes that the peer may take now; 0 means that it has to wait for [`Share::freed`].
    pub(super) fn room(&self) -> usize {
        if self.budget.is_full(self.budget.used()) {
            PEER_FLOOR.saturating_sub(self.held)
        } else {
            READ_BYTES
        }
    }

    /// Resolves when the budget has room again. To be made before [`Share::room`] is asked: it is woken by what happens
    /// after it was made.
    pub(super) fn freed(budget: &Budget) -> Notified<'_> {
        budget.freed.notified()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
        self.set_memo(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_come_back() {
        let budget = Arc::new(Budget::new(1 << 20));
        let mut a = Share::new(budget.clone());
        let mut b = Share::new(budget.clone());
        a.set(60);
        b.set(40);
        a.set(10);
        assert_eq!(budget.used(), 50);
        drop(b);
        assert_eq!(budget.used(), 10);
    }

    #[tokio::test]
    async fn a_full_budget_leaves_each_peer_its_floor_and_wakes_who_waits() {
        let budget = Arc::new(Budget::new(1 << 20));
        let (mut big, mut small) = (Share::new(budget.clone()), Share::new(budget.clone()));
        assert_eq!(big.room(), READ_BYTES);
        big.set(1 << 20);
        assert_eq!(big.room(), 0);
        assert_eq!(small.room(), PEER_FLOOR);
        small.set(PEER_FLOOR - 10);
        assert_eq!(small.room(), 10);
        small.set(PEER_FLOOR);
        let freed = Share::freed(&budget);
        assert_eq!(small.room(), 0);
        // Before the future is polled for the first time.
        big.set(0);
        freed.await;
        assert_eq!(small.room(), READ_BYTES);
    }

    #[test]
    fn remembered_keys_get_a_part_and_no_more() {
        let budget = Arc::new(Budget::new(1000));
        let (mut a, mut b) = (Share::new(budget.clone()), Share::new(budget.clone()));
        assert!(a.set_memo(200));
        assert!(!b.set_memo(51));
        assert_eq!(budget.used(), 200);
        assert!(b.set_memo(50));
        assert!(!a.set_memo(201), "and what it had is forgotten with it");
        assert_eq!(budget.used(), 50);
        drop((a, b));
        assert_eq!((budget.used(), budget.memos.load(Ordering::SeqCst)), (0, 0));
    }
}

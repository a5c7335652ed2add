//! Bytes that peers make the daemon hold, counted where they arrive and where they leave.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of all peers together.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Budget {
        Budget { used: AtomicUsize::new(0), limit }
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// One peer's share: says how much it holds now, and gives it back when the peer goes.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    held: usize,
}

impl Share {
    pub(super) fn new(budget: Arc<Budget>) -> Share {
        Share { budget, held: 0 }
    }

    /// Records that the peer holds `bytes` now. `false` if that takes all peers together over the limit; a peer that
    /// shrinks is always fine.
    pub(super) fn set(&mut self, bytes: usize) -> bool {
        if bytes <= self.held {
            self.budget.used.fetch_sub(self.held - bytes, Ordering::Relaxed);
            self.held = bytes;
            return true;
        }
        let more = bytes - self.held;
        let before = self.budget.used.fetch_add(more, Ordering::Relaxed);
        if before + more > self.budget.limit {
            self.budget.used.fetch_sub(more, Ordering::Relaxed);
            return false;
        }
        self.held = bytes;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_come_back() {
        let budget = Arc::new(Budget::new(100));
        let mut a = Share::new(budget.clone());
        let mut b = Share::new(budget.clone());
        assert!(a.set(60) && b.set(40));
        assert!(!b.set(41));
        assert!(a.set(10));
        assert!(b.set(41));
        assert_eq!(budget.used(), 51);
        drop(b);
        assert_eq!(budget.used(), 10);
    }
}

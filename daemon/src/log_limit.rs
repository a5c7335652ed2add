//! Log lines that a peer can cause at will, at most one a second each.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Lets one of many equal lines through each second and counts the rest.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    last: AtomicU64,
    suppressed: AtomicU64,
}

impl LogLimit {
    /// `Some(lines suppressed since the last one)` if a line may be written now.
    ///
    /// The wall clock is only compared for equality, so a clock that jumps costs or saves one line.
    pub(crate) fn pass(&self) -> Option<u64> {
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

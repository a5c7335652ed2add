//! What ARC remembers of evicted objects.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

/// A queue of key hashes with sizes.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    sizes: FxHashMap<u64, (u64, u64)>,
    queue: VecDeque<(u64, u64)>,
    bytes: u64,
    stamp: u64,
}

impl Ghosts {
    pub(super) fn insert(&mut self, key: u64, bytes: u64, limit: u64) {
        self.remove(key);
        self.stamp += 1;
        self.sizes.insert(key, (self.stamp, bytes));
        self.queue.push_back((key, self.stamp));
        self.bytes += bytes;
        while self.bytes > limit {
            let Some((old, stamp)) = self.queue.pop_front() else { break };
            if self.sizes.get(&old).is_some_and(|entry| entry.0 == stamp) {
                self.remove(old);
            }
        }
    }

    pub(super) fn remove(&mut self, key: u64) -> Option<u64> {
        let (_, bytes) = self.sizes.remove(&key)?;
        self.bytes -= bytes;
        // Stale queue entries are skipped when they reach the front; keep them from piling up.
        if self.queue.len() > 2 * self.sizes.len() + 64 {
            let sizes = &self.sizes;
            self.queue.retain(|(key, stamp)| sizes.get(key).is_some_and(|entry| entry.0 == *stamp));
        }
        Some(bytes)
    }

    /// Bytes of the objects remembered.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    #[cfg(test)]
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }
}

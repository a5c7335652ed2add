//! How long, and how much storage, chunks wait for their next read, by tenant.

use std::sync::Arc;
use std::time::Instant;

use lmcache_proto::hash::ChunkHash;
use rustc_hash::{FxHashMap, FxHashSet};

use super::pending::Pending;
use crate::events::{Event, Keys, Stamped, Subscriber};
use crate::telemetry::catalogue::Id;
use crate::telemetry::sample::Sampler;
use crate::telemetry::series::Store;

/// Chunks followed at once.
const ROOM: usize = 100_000;
/// Tenants whose accesses are counted.
const SALTS: usize = 100_000;

/// A chunk's last access.
struct Access {
    at: Instant,
    /// The tenant's accesses by then.
    count: u64,
}

pub(super) struct RealReuse {
    store: Arc<Store>,
    sampler: Sampler,
    /// Accesses of each tenant, of all chunks.
    accesses: FxHashMap<Arc<str>, u64>,
    chunks: Pending<(Arc<str>, ChunkHash), Access>,
    /// Chunks of the event at hand; kept for its memory.
    seen: FxHashSet<ChunkHash>,
}

impl RealReuse {
    pub(super) fn new(store: Arc<Store>, sampler: Sampler) -> RealReuse {
        RealReuse {
            store,
            sampler,
            accesses: FxHashMap::default(),
            chunks: Pending::new(ROOM),
            seen: FxHashSet::default(),
        }
    }

    fn accessed(&mut self, keys: &Keys, at: Instant, is_read: bool) {
        let salt = keys.salt();
        if !self.accesses.contains_key(salt) {
            if self.accesses.len() >= SALTS {
                self.store.add(Id::UntrackedItems, &[self.name()], keys.len() as u64);
                return;
            }
            self.accesses.insert(salt.clone(), 0);
        }
        let mut count = self.accesses[salt];
        self.seen.clear();
        for cell in keys.cells() {
            // The first rank speaks for the chunk; its groups hold the same chunk once more each.
            if rank(cell.rank) != 0 || !self.seen.insert(cell.hash) {
                continue;
            }
            count += 1;
            if !self.sampler.takes(&(&**salt, cell.hash)) {
                continue;
            }
            let name = (salt.clone(), cell.hash);
            let before = self.chunks.end(&name);
            if let (true, Some(before)) = (is_read, before) {
                let gap = at.saturating_duration_since(before.at).as_secs_f64();
                self.store.record(Id::RealReuseGapSeconds, &[salt], gap);
                self.store.record(Id::RealReuseGapChunks, &[salt], (count - before.count) as f64);
            }
            self.chunks.begin(name, Access { at, count });
        }
        self.accesses.insert(salt.clone(), count);
    }
}

/// The worker's number in a packed rank (`lmcache_proto::object_key::kv_rank`).
fn rank(packed: u32) -> u32 {
    (packed >> 16) & 0xff
}

impl Subscriber for RealReuse {
    fn name(&self) -> &'static str {
        "RealReuse"
    }

    fn on_event(&mut self, event: &Stamped) {
        match &event.event {
            Event::SmReadPrefetchedFinished { succeeded, .. } => self.accessed(succeeded, event.at, true),
            Event::SmWriteFinished { succeeded, .. } => self.accessed(succeeded, event.at, false),
            _ => {}
        }
    }
}

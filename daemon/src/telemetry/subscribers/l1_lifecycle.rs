//! How long chunks stay in L1 and how they are used there, for a part of them.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::events::{Cell, Event, EvictionCause, Keys, Stamped, Subscriber};
use crate::telemetry::catalogue::Id;
use crate::telemetry::sample::{Sampler, spread};
use crate::telemetry::series::Store;

/// Chunks followed at once; also those waited for after their removal.
const ROOM: usize = 100_000;
/// How long a removed chunk is waited for.
const EVICT_REUSE: Duration = Duration::from_secs(300);

/// A chunk's name, as two hashes of it: names are long, and two chunks with equal hashes would only blur a histogram.
type Name = (u64, u64);

struct Chunk {
    written: Instant,
    used: Instant,
}

pub(super) struct L1Lifecycle {
    store: Arc<Store>,
    sampler: Sampler,
    chunks: FxHashMap<Name, Chunk>,
    removed: FxHashMap<Name, Instant>,
    /// In the order of their removal.
    removals: VecDeque<(Name, Instant)>,
}

impl L1Lifecycle {
    pub(super) fn new(store: Arc<Store>, sampler: Sampler) -> L1Lifecycle {
        L1Lifecycle {
            store,
            sampler,
            chunks: FxHashMap::default(),
            removed: FxHashMap::default(),
            removals: VecDeque::new(),
        }
    }

    fn record(&self, id: Id, time: Duration) {
        self.store.record(id, &[], time.as_secs_f64());
    }

    /// Names of the sampled objects among `keys`.
    fn sampled<'a>(&self, keys: &'a Keys) -> impl Iterator<Item = Name> + use<'a> {
        let sampler = self.sampler;
        let domain = FxBuildHasher.hash_one((keys.model(), keys.salt()));
        keys.cells().iter().filter(move |cell| sampler.takes_cell(cell)).map(move |cell| name(domain, cell))
    }

    fn written(&mut self, keys: &Keys, at: Instant) {
        for name in self.sampled(keys) {
            if let Some(removed) = self.removed.remove(&name) {
                self.record(Id::L1ChunkEvictReuseGap, at.saturating_duration_since(removed).min(EVICT_REUSE));
            }
            if let Some(chunk) = self.chunks.get(&name) {
                self.record(Id::L1ChunkReuseGap, at.saturating_duration_since(chunk.used));
            } else if self.chunks.len() >= ROOM {
                self.store.add(Id::UntrackedItems, &[self.name()], 1);
                continue;
            }
            self.chunks.insert(name, Chunk { written: at, used: at });
        }
    }

    fn read(&mut self, keys: &Keys, at: Instant) {
        for name in self.sampled(keys) {
            if let Some(chunk) = self.chunks.get_mut(&name) {
                let gap = at.saturating_duration_since(chunk.used);
                chunk.used = at;
                self.record(Id::L1ChunkReuseGap, gap);
            }
        }
    }

    fn removed(&mut self, keys: &Keys, cause: EvictionCause, at: Instant) {
        for name in self.sampled(keys) {
            let Some(chunk) = self.chunks.remove(&name) else { continue };
            // Cleared, replaced and temporary chunks say nothing about how much room there is.
            if cause != EvictionCause::Policy {
                continue;
            }
            self.record(Id::L1ChunkLifetime, at.saturating_duration_since(chunk.written));
            self.record(Id::L1ChunkIdleBeforeEvict, at.saturating_duration_since(chunk.used));
            if self.removals.len() < ROOM {
                self.removed.insert(name, at);
                self.removals.push_back((name, at));
            }
        }
    }

    /// Those that were not written again in time count as that time.
    fn give_up(&mut self, now: Instant) {
        while let Some((name, at)) = self.removals.front().copied() {
            if now.saturating_duration_since(at) < EVICT_REUSE {
                break;
            }
            self.removals.pop_front();
            // Unless it came back, and perhaps was removed again later.
            if self.removed.get(&name) == Some(&at) {
                self.removed.remove(&name);
                self.record(Id::L1ChunkEvictReuseGap, EVICT_REUSE);
            }
        }
    }
}

fn name(domain: u64, cell: &Cell) -> Name {
    let mut hasher = FxBuildHasher.build_hasher();
    (domain, cell).hash(&mut hasher);
    let first = hasher.finish();
    cell.hash(&mut hasher);
    (spread(first), spread(hasher.finish()))
}

impl Subscriber for L1Lifecycle {
    fn name(&self) -> &'static str {
        "L1Lifecycle"
    }

    fn on_event(&mut self, event: &Stamped) {
        match &event.event {
            Event::L1WriteFinished { keys } | Event::L1WriteFinishedAndReadReserved { keys } => {
                self.written(keys, event.at);
            }
            Event::L1ReadFinished { keys } => self.read(keys, event.at),
            Event::L1KeysEvicted { keys, cause } => self.removed(keys, *cause, event.at),
            Event::L1EvictionLoopTick { .. } => {}
            _ => return,
        }
        self.give_up(event.at);
    }
}

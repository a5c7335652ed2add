//! Lifecycle of the engines' own blocks (L0), as far as they report their allocations.
//!
//! A block is evicted when it is given other tokens. Which blocks are followed is random and decided once for each.

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Instant;

use lmcache_proto::wire::BlockAllocationRecord;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::events::{Event, Stamped, Subscriber};
use crate::telemetry::catalogue::Id;
use crate::telemetry::sample::{hash_of, spread};
use crate::telemetry::series::Store;

/// Blocks followed at once.
const ROOM: usize = 200_000;
/// Blocks known not to be followed. An engine has as many as its memory has room for; a peer can claim any number.
const SKIPPED_ROOM: usize = 1 << 20;
/// Requests that are known to share a block.
const MAX_OWNERS: usize = 32;

/// Instance and block.
type Place = (u64, i64);

struct Block {
    /// Hash of its tokens.
    tokens: u64,
    /// Hashes of the requests that use it; none: released.
    owners: Vec<u64>,
    allocated: Instant,
    used: Instant,
}

pub(super) struct L0Lifecycle {
    store: Arc<Store>,
    rate: f64,
    /// State of the random numbers.
    random: u64,
    blocks: FxHashMap<Place, Block>,
    skipped: FxHashSet<Place>,
    /// Blocks of each request.
    requests: FxHashMap<u64, Vec<Place>>,
}

impl L0Lifecycle {
    pub(super) fn new(store: Arc<Store>, rate: f64) -> L0Lifecycle {
        let seed = uuid::Uuid::new_v4().as_u64_pair().0;
        L0Lifecycle {
            store,
            rate,
            random: seed,
            blocks: FxHashMap::default(),
            skipped: FxHashSet::default(),
            requests: FxHashMap::default(),
        }
    }

    fn allocated(&mut self, instance: u64, model: &str, record: &BlockAllocationRecord, at: Instant) {
        if record.new_block_ids.is_empty() {
            return;
        }
        let size = record.new_token_ids.len().div_ceil(record.new_block_ids.len()).max(1);
        let request = hash_of(record.req_id.as_str());
        let instance_label = instance.to_string();
        let labels = [instance_label.as_str(), model];
        // Blocks without tokens are placeholders.
        for (block, tokens) in record.new_block_ids.iter().zip(record.new_token_ids.chunks(size)) {
            self.block((instance, *block), hash_of(tokens), request, &labels, at);
        }
    }

    fn block(&mut self, place: Place, tokens: u64, request: u64, labels: &[&str], at: Instant) {
        let fresh = Block { tokens, owners: vec![request], allocated: at, used: at };
        let full = self.blocks.len() >= ROOM;
        match self.blocks.entry(place) {
            Entry::Vacant(vacant) => {
                if self.skipped.contains(&place) {
                    return;
                }
                self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let taken = (spread(self.random) as f64) < self.rate * u64::MAX as f64 || self.rate >= 1.0;
                if !taken {
                    if self.skipped.len() < SKIPPED_ROOM {
                        self.skipped.insert(place);
                    }
                    return;
                }
                // Not skipped for good: there may be room later.
                if full {
                    self.store.add(Id::UntrackedItems, &["L0Lifecycle"], 1);
                    return;
                }
                vacant.insert(fresh);
            }
            Entry::Occupied(mut occupied) => {
                let block = occupied.get_mut();
                if block.tokens != tokens {
                    let since = |then| at.saturating_duration_since(then).as_secs_f64();
                    self.store.record(Id::L0BlockLifetime, labels, since(block.allocated));
                    self.store.record(Id::L0BlockIdleBeforeEvict, labels, since(block.used));
                    let before = std::mem::replace(block, fresh);
                    for owner in before.owners {
                        if let Entry::Occupied(mut places) = self.requests.entry(owner) {
                            places.get_mut().retain(|other| *other != place);
                            if places.get().is_empty() {
                                places.remove();
                            }
                        }
                    }
                } else if block.owners.contains(&request) {
                    // The same allocation, told again.
                    return;
                } else if block.owners.is_empty() {
                    let gap = at.saturating_duration_since(block.used).as_secs_f64();
                    self.store.record(Id::L0BlockReuseGap, labels, gap);
                    block.used = at;
                    block.owners.push(request);
                } else if block.owners.len() < MAX_OWNERS {
                    // A prefix shared with a running request is no reuse.
                    block.owners.push(request);
                } else {
                    return;
                }
            }
        }
        self.requests.entry(request).or_default().push(place);
    }

    fn released(&mut self, request: u64) {
        for place in self.requests.remove(&request).unwrap_or_default() {
            if let Some(block) = self.blocks.get_mut(&place) {
                block.owners.retain(|owner| *owner != request);
            }
        }
    }

    fn gone(&mut self, instance: u64) {
        self.blocks.retain(|(of, _), _| *of != instance);
        self.skipped.retain(|(of, _)| *of != instance);
        self.requests.retain(|_, places| {
            places.retain(|(of, _)| *of != instance);
            !places.is_empty()
        });
    }
}

impl Subscriber for L0Lifecycle {
    fn name(&self) -> &'static str {
        "L0Lifecycle"
    }

    fn on_event(&mut self, event: &Stamped) {
        match &event.event {
            Event::MpVllmBlockAllocation { instance, model, records } => {
                for record in records.iter() {
                    self.allocated(*instance, model, record, event.at);
                }
            }
            Event::MpVllmEndSession { session } => self.released(hash_of(&**session)),
            Event::WorkerGone { instance } => self.gone(*instance),
            _ => {}
        }
    }
}

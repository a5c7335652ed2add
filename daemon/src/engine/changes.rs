//! What follows from a change of the cache: the KV event log, the events, the evictor.
//!
//! The log must tell its readers of a chunk's coming and going in the order in which they happened. Both ends therefore
//! run under one lock, `order`: what has been removed is logged before anything new is made readable, and what is made
//! readable is logged before its removal can be. It is taken before the index lock and never the other way round.

use lmcache_proto::hash::{Chain, ChunkHash};
use lmcache_proto::wire::CacheKey;

use super::Engine;
use super::prefetch::Ask;
use crate::events::Event;
use crate::l1::{ObjectId, Pin};
use crate::l2::control::Batch;

impl Engine {
    /// Tells the KV event log and the bus what has gone.
    pub(super) fn flush_removed(&self) {
        let removed = {
            let _order = self.order.lock();
            self.log_removed()
        };
        self.tell_removed(&removed);
    }

    fn log_removed(&self) -> Vec<crate::l1::Removed> {
        let removed = self.l1.take_removed();
        if !removed.is_empty() {
            self.kv_events.removed(&removed);
        }
        removed
    }

    /// Makes written objects readable and logs those of rank 0. `chunk_of` says which chunk of the prompt a pin is. Returns
    /// for each pin whether it was still reserved.
    pub(super) fn commit_and_log(
        &self,
        key: &CacheKey<'_>,
        chain: &Chain,
        pins: &[Pin],
        chunk_of: impl Fn(usize) -> usize,
    ) -> Vec<bool> {
        // Outside of the lock of the log: it reads every byte.
        self.l1.seal(pins);
        // All ranks store the same tokens: one tells.
        if key.worker_id != Some(0) || !self.kv_events.enabled() {
            return self.l1.commit(pins);
        }
        let (done, removed) = {
            let _order = self.order.lock();
            let removed = self.log_removed();
            let done = self.l1.commit(pins);
            let chunks = (0..pins.len()).filter(|at| done[*at]).map(chunk_of).collect();
            self.report_stored(key.model_name, key.tokens.bytes(), chain, chunks);
            (done, removed)
        };
        self.tell_removed(&removed);
        done
    }

    /// Objects that came from the tiers stay in L1 after their last reader: the log tells of their chunks. The caller holds
    /// leases on them, so that nothing but a forced clear can have removed them since they became readable.
    pub(super) fn kept(&self, ask: &Ask, objects: &[(usize, ObjectId)]) {
        let removed = {
            let _order = self.order.lock();
            let removed = self.log_removed();
            if let Some(tokens) = &ask.tokens {
                let there = self.l1.attached(objects.iter().map(|(_, object)| *object));
                let kept =
                    objects.iter().zip(there).filter_map(|((chunk, _), there)| there.then_some(*chunk));
                self.report_stored(&ask.model, tokens, &ask.chain, kept.collect());
            }
            removed
        };
        self.tell_removed(&removed);
    }

    /// Offers newly readable objects (hash, rank, group) of one shape to the tiers. Never waits.
    pub(super) fn offer(
        &self,
        key: &CacheKey<'_>,
        cells: Vec<(ChunkHash, u32, u32)>,
        layout: u64,
        object_bytes: u64,
    ) {
        if let Some(l2) = self.l2.as_ref().filter(|l2| !cells.is_empty() && !l2.opened.tiers.all().is_empty())
        {
            let model = self.instances.shared_model(key.model_name);
            let salt = self.shared_salt(key.cache_salt);
            l2.opened.stores.submit(Batch { model, salt, cells, layout, object_bytes });
        }
    }

    /// After something was stored or freed: what has gone is told, and the evictor wakes if the pool is too full.
    pub(super) fn after_change(&self) {
        self.flush_removed();
        let stats = self.l1.stats();
        if stats.used as f64 >= self.config.watermark * stats.capacity as f64 {
            self.evict.notify_one();
        }
    }

    /// Evicts if the pool is filled above its watermark.
    fn evict_above_watermark(&self, usage: f64) {
        let (watermark, ratio) = (self.config.watermark, self.config.eviction_ratio);
        let freed = self.l1.evict_above(watermark, ratio);
        if freed > 0 {
            tracing::info!(
                freed,
                "L1 memory usage {usage:.2} above watermark {watermark:.2}; triggering eviction."
            );
            self.flush_removed();
        }
    }

    /// A round of the eviction loop: once a second, so that one sees it alive, and when a commit has filled the pool.
    pub fn eviction_tick(&self) {
        let stats = self.l1.stats();
        let usage = if stats.capacity == 0 { 0.0 } else { stats.used as f64 / stats.capacity as f64 };
        let watermark = self.config.watermark;
        let triggered = usage >= watermark && stats.capacity > 0;
        self.bus.publish(|| Event::L1EvictionLoopTick { usage, watermark, triggered });
        if triggered {
            self.evict_above_watermark(usage);
        }
        // What was held when its salt should have given it up may be free by now.
        self.l1.trim_to_quotas();
        self.flush_removed();
    }
}

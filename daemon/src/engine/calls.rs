//! The calls of the storage layer, for whoever records them. Each is told as it begins, so that the order of a recording is
//! the order in which the calls could see each other's work. While nobody records, each of these is one branch.

use std::collections::BTreeMap;
use std::sync::Arc;

use lmcache_proto::hash::{Chain, ChunkHash};
use lmcache_proto::layout::ObjectLayout;
use lmcache_proto::wire::CacheKey;

use super::Engine;
use super::leases::{Ended, Lookup};
use super::lookup::keys_of;
use super::prefetch::Ask;
use super::publish::Told;
use crate::events::{Cell, Event, Keys, SessionId, TraceCall, TraceRow};
use crate::l1::{Cells, Hit, LeasedCell, Row};

impl Engine {
    fn call(&self, make: impl FnOnce() -> Option<TraceCall>) {
        if self.config.publish_calls
            && self.bus.enabled()
            && let Some(call) = make()
        {
            self.bus.publish(|| Event::TraceCall { call: Arc::new(call) });
        }
    }

    /// Memory is asked for objects.
    pub(super) fn call_reserve(&self, key: &CacheKey<'_>, cells: impl Cells, layout: &ObjectLayout) {
        self.call(|| {
            let cells = cells.map(|(hash, rank, group)| Cell { hash, rank, group }).collect();
            let model = self.instances.shared_model(key.model_name);
            let keys = Keys::new(model, self.shared_salt(key.cache_salt), cells);
            Some(TraceCall::ReserveWrite { keys, layout: layout.clone() })
        });
    }

    /// A transfer's objects become readable.
    pub(super) fn call_finish_write(&self, told: Option<&Told>) {
        self.call(|| Some(TraceCall::FinishWrite { keys: told?.keys.clone() }));
    }

    /// One reader is done with a transfer's objects.
    pub(super) fn call_finish_read(&self, told: Option<&Told>) {
        self.call(|| Some(TraceCall::FinishRead { keys: told?.keys.clone(), read_locks: 1 }));
    }

    /// A lookup begins. One that has nothing to look for makes no call.
    pub(super) fn call_submit(&self, key: &CacheKey<'_>, session: &SessionId, chain: &Chain, rows: &[Row]) {
        self.call(|| {
            if rows.is_empty() || chain.hashes.is_empty() || key.num_kv_readers == 0 {
                return None;
            }
            let groups = self.instances.rows(key.model_name, key.world_size);
            let row = |row: &Row| {
                let group = groups.iter().find(|group| group.group == row.group)?;
                let Row { rank, group: number, window, .. } = *row;
                Some(TraceRow { rank, group: number, window, layout: group.object.clone() })
            };
            Some(TraceCall::SubmitPrefetch {
                session: session.clone(),
                model: self.instances.shared_model(key.model_name),
                salt: self.shared_salt(key.cache_salt),
                hashes: chain.hashes.as_slice().into(),
                // A model that was registered anew in between has other rows: then there is nothing to tell.
                rows: rows.iter().map(row).collect::<Option<_>>()?,
                readers: key.num_kv_readers,
            })
        });
    }

    /// Leases of a lookup end before all their readers came.
    pub(super) fn call_released(&self, lookup: &Lookup, hashes: &[ChunkHash], ended: &[Ended]) {
        if !self.config.publish_calls {
            return;
        }
        let mut by_readers: BTreeMap<u32, Vec<LeasedCell>> = BTreeMap::new();
        for ended in ended.iter().rev() {
            by_readers.entry(ended.readers).or_default().push(ended.cell);
        }
        for (readers, cells) in by_readers {
            self.call_let_go(&lookup.model, &lookup.salt, &lookup.rows, hashes, &cells, readers);
        }
    }

    /// What a lookup has found cannot be kept.
    pub(super) fn call_unleased(&self, key: &CacheKey<'_>, hashes: &[ChunkHash], rows: &[Row], hit: &Hit) {
        if self.config.publish_calls {
            let model = self.instances.shared_model(key.model_name);
            let salt = self.shared_salt(key.cache_salt);
            self.call_let_go(&model, &salt, rows, hashes, &hit.cells, key.num_kv_readers);
        }
    }

    /// What a lookup has loaded comes too late for its request.
    pub(super) fn call_unwanted(&self, ask: &Ask, hit: &Hit) {
        self.call_let_go(&ask.model, &ask.salt, &ask.rows, &ask.chain.hashes, &hit.cells, ask.readers);
    }

    fn call_let_go(
        &self,
        model: &Arc<str>,
        salt: &Arc<str>,
        rows: &[Row],
        hashes: &[ChunkHash],
        cells: &[LeasedCell],
        read_locks: u32,
    ) {
        self.call(|| {
            let keys = keys_of(model, salt, rows, hashes, cells);
            (!keys.is_empty()).then_some(TraceCall::FinishRead { keys, read_locks })
        });
    }
}

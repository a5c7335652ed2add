//! The KV event log: what has come into the cache and what has gone, for engines' routers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use lmcache_proto::hash::ChunkHash;
use lmcache_proto::wire::{CacheKey, KvEventBatch, KvEventRecord};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use serde_bytes::ByteBuf;
use tokio::sync::watch;

use super::Engine;

/// The log.
#[derive(Debug)]
pub struct KvEvents {
    capacity: usize,
    incarnation: u64,
    state: Mutex<State>,
    /// The newest sequence number; wakes the streams.
    newest: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    records: VecDeque<KvEventRecord>,
    next_seq: u64,
    /// Newest subscription of each worker; an older one ends when it sees another number here.
    subscriptions: FxHashMap<u64, u64>,
    next_subscription: u64,
}

/// Numbers for status and metrics.
#[derive(Clone, Copy, Debug)]
pub struct KvEventStatus {
    /// Whether the log is kept.
    pub enabled: bool,
    /// Changes at every start.
    pub incarnation: u64,
    /// Records held.
    pub depth: usize,
    /// Records that fit.
    pub capacity: usize,
    /// Sequence number of the next record.
    pub next_seq: u64,
    /// Streams open.
    pub subscribers: usize,
}

impl KvEvents {
    /// A log of `capacity` records; 0 is off.
    pub fn new(capacity: usize) -> KvEvents {
        let incarnation =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64);
        KvEvents {
            capacity,
            incarnation,
            state: Mutex::new(State {
                records: VecDeque::new(),
                next_seq: 1,
                subscriptions: FxHashMap::default(),
                next_subscription: 1,
            }),
            newest: watch::Sender::new(0),
        }
    }

    /// Whether the log is kept.
    pub fn enabled(&self) -> bool {
        self.capacity > 0
    }

    /// For `/status`.
    pub fn status(&self) -> KvEventStatus {
        let state = self.state.lock();
        KvEventStatus {
            enabled: self.enabled(),
            incarnation: self.incarnation,
            depth: state.records.len(),
            capacity: self.capacity,
            next_seq: state.next_seq,
            subscribers: state.subscriptions.len(),
        }
    }

    fn append(
        &self,
        records: impl Iterator<Item = (&'static str, String, Vec<ByteBuf>, Option<ByteBuf>, Vec<u32>)>,
    ) {
        let mut state = self.state.lock();
        for (kind, model_name, block_hashes, parent_block_hash, token_ids) in records {
            if state.records.len() == self.capacity {
                state.records.pop_front();
            }
            let seq = state.next_seq;
            state.next_seq += 1;
            state.records.push_back(KvEventRecord {
                seq,
                kind: kind.to_owned(),
                medium: "CPU".to_owned(),
                model_name,
                block_hashes,
                parent_block_hash,
                token_ids,
            });
        }
        let newest = state.next_seq - 1;
        drop(state);
        self.newest.send_replace(newest);
    }

    /// Chunks have become readable.
    pub(super) fn stored(&self, model: &str, chunks: Vec<(ChunkHash, Option<ChunkHash>, Vec<u32>)>) {
        self.append(chunks.into_iter().map(|(hash, parent, tokens)| {
            let parent = parent.map(|hash| ByteBuf::from(hash.to_vec()));
            ("stored", model.to_owned(), vec![ByteBuf::from(hash.to_vec())], parent, tokens)
        }));
    }

    /// Objects have gone. All groups and ranks of a chunk are one record.
    pub(super) fn removed(&self, objects: Vec<(String, ChunkHash)>) {
        if !self.enabled() || objects.is_empty() {
            return;
        }
        let mut by_model: FxHashMap<String, Vec<ChunkHash>> = FxHashMap::default();
        for (model, hash) in objects {
            let hashes = by_model.entry(model).or_default();
            if hashes.last() != Some(&hash) && !hashes.contains(&hash) {
                hashes.push(hash);
            }
        }
        self.append(by_model.into_iter().map(|(model, hashes)| {
            let hashes = hashes.iter().map(|hash| ByteBuf::from(hash.to_vec())).collect();
            ("removed", model, hashes, None, Vec::new())
        }));
    }

    /// Opens a stream; a worker has at most one, a new one ends the old one.
    pub(super) fn subscribe(
        self: &Arc<KvEvents>,
        instance: u64,
        model: &str,
        cursor: u64,
        max: usize,
    ) -> EventSource {
        let mut state = self.state.lock();
        let number = state.next_subscription;
        state.next_subscription += 1;
        state.subscriptions.insert(instance, number);
        drop(state);
        // Wakes an older stream of the worker, so that it sees that it is over.
        self.newest.send_modify(|_| {});
        EventSource {
            log: self.clone(),
            newest: self.newest.subscribe(),
            instance,
            number,
            model: model.to_owned(),
            cursor,
            max,
            first: true,
        }
    }

    fn read(&self, model: &str, cursor: u64, max: usize) -> KvEventBatch {
        let state = self.state.lock();
        if !self.enabled() {
            return KvEventBatch {
                enabled: false,
                incarnation: self.incarnation,
                next_cursor: 0,
                lost: false,
                events: vec![],
            };
        }
        let last = state.next_seq - 1;
        let first = state.records.front().map_or(last + 1, |record| record.seq);
        let mut next_cursor = cursor.min(last);
        let mut events = Vec::new();
        let skip = (cursor + 1).saturating_sub(first) as usize;
        for record in state.records.iter().skip(skip) {
            next_cursor = record.seq;
            if record.model_name == model {
                events.push(record.clone());
                if events.len() == max {
                    break;
                }
            }
        }
        let lost = cursor + 1 < first || cursor > last;
        KvEventBatch { enabled: true, incarnation: self.incarnation, next_cursor, lost, events }
    }
}

/// The reading end of a stream.
#[derive(Debug)]
pub struct EventSource {
    log: Arc<KvEvents>,
    newest: watch::Receiver<u64>,
    instance: u64,
    number: u64,
    model: String,
    cursor: u64,
    max: usize,
    first: bool,
}

impl EventSource {
    /// The next batch: at once the first time (it says where the log stands), later when there is something. `None`
    /// when the stream is over.
    pub async fn next(&mut self) -> Option<KvEventBatch> {
        loop {
            // Before reading: what is appended after this is a change again.
            self.newest.borrow_and_update();
            if self.log.state.lock().subscriptions.get(&self.instance) != Some(&self.number) {
                return None;
            }
            let batch = self.log.read(&self.model, self.cursor, self.max);
            self.cursor = batch.next_cursor;
            if self.first || !batch.events.is_empty() || batch.lost {
                self.first = false;
                return Some(batch);
            }
            if !batch.enabled || self.newest.changed().await.is_err() {
                return None;
            }
        }
    }
}

impl Drop for EventSource {
    fn drop(&mut self) {
        let mut state = self.log.state.lock();
        if state.subscriptions.get(&self.instance) == Some(&self.number) {
            state.subscriptions.remove(&self.instance);
        }
    }
}

impl Engine {
    /// Logs newly stored chunks of a prompt. Only rank 0 reports: the tokens of a chunk are the same for all ranks.
    pub(super) fn report_stored(&self, key: &CacheKey<'_>, chunks: impl Iterator<Item = usize>) {
        if !self.kv_events.enabled() || key.worker_id != Some(0) {
            return;
        }
        let size = self.hasher.chunk_size();
        let chunks: Vec<usize> = chunks.collect();
        let Some(last) = chunks.last() else { return };
        let Ok(hashes) = self.hashes(key, last + 1) else { return };
        let mut tokens = key.tokens.iter_from(0);
        let mut at = 0;
        let mut stored = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            // Chunk numbers grow, so one pass over the tokens serves all.
            while at < chunk * size {
                if tokens.token().is_err() {
                    return;
                }
                at += 1;
            }
            let Ok(ids) = (0..size).map(|_| tokens.token()).collect::<Result<Vec<u32>, _>>() else { return };
            at += size;
            let parent = chunk.checked_sub(1).map(|previous| hashes[previous]);
            stored.push((hashes[chunk], parent, ids));
        }
        self.kv_events.stored(key.model_name, stored);
    }
}

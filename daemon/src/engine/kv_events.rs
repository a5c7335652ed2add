//! The KV event log: what has come into the cache and what has gone, for engines' routers.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use lmcache_proto::hash::{Chain, ChunkHash};
use lmcache_proto::wire::{KvEventBatch, KvEventRecord, decode_tokens};
use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHashSet};
use serde_bytes::ByteBuf;
use tokio::sync::watch;

use super::Engine;
use crate::l1::Removed;

/// Most hashes of one record of removals.
const REMOVED_PER_RECORD: usize = 1024;

/// The log.
#[derive(Debug)]
pub struct KvEvents {
    capacity: usize,
    incarnation: u64,
    state: Mutex<State>,
    /// The newest sequence number; wakes the streams.
    newest: watch::Sender<u64>,
}

/// One change. Tokens stay encoded, in one allocation per store, until somebody reads them.
#[derive(Clone, Debug)]
enum Record {
    Stored {
        model: Arc<str>,
        hash: ChunkHash,
        parent: Option<ChunkHash>,
        tokens: Arc<[u8]>,
        range: Range<u32>,
    },
    Removed {
        model: Arc<str>,
        hashes: Arc<[ChunkHash]>,
    },
}

/// A newly stored chunk: its hash, the one before it, and where its tokens are in the store's encoded list.
pub(super) struct StoredChunk {
    pub(super) hash: ChunkHash,
    pub(super) parent: Option<ChunkHash>,
    pub(super) range: Range<u32>,
}

#[derive(Debug)]
struct State {
    /// Oldest first; the newest has sequence number `next_seq - 1`.
    records: VecDeque<Record>,
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

    fn append(&self, records: impl Iterator<Item = Record>) {
        let mut state = self.state.lock();
        for record in records {
            if state.records.len() == self.capacity {
                state.records.pop_front();
            }
            state.next_seq += 1;
            state.records.push_back(record);
        }
        let newest = state.next_seq - 1;
        drop(state);
        self.newest.send_replace(newest);
    }

    /// Chunks have become readable; `tokens` is the encoded list that their ranges point into.
    pub(super) fn stored(&self, model: &str, tokens: &[u8], chunks: impl Iterator<Item = StoredChunk>) {
        let (model, tokens): (Arc<str>, Arc<[u8]>) = (model.into(), tokens.into());
        self.append(chunks.map(|StoredChunk { hash, parent, range }| Record::Stored {
            model: model.clone(),
            hash,
            parent,
            tokens: tokens.clone(),
            range,
        }));
    }

    /// Objects have gone. All groups and ranks of a chunk are one entry.
    pub(super) fn removed(&self, objects: &[Removed]) {
        if !self.enabled() {
            return;
        }
        let mut by_model: FxHashMap<&Arc<str>, (Vec<ChunkHash>, FxHashSet<ChunkHash>)> = FxHashMap::default();
        for gone in objects {
            let (hashes, seen) = by_model.entry(&gone.model).or_default();
            if seen.insert(gone.hash) {
                hashes.push(gone.hash);
            }
        }
        // In pieces, so that a reader's batch of some hundred records stays small whatever was cleared.
        let records = by_model.iter().flat_map(|(model, (hashes, _))| {
            hashes
                .chunks(REMOVED_PER_RECORD)
                .map(|hashes| Record::Removed { model: (*model).clone(), hashes: hashes.into() })
        });
        self.append(records);
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
        let mut batch = KvEventBatch {
            enabled: self.enabled(),
            incarnation: self.incarnation,
            next_cursor: 0,
            lost: false,
            events: vec![],
        };
        if !batch.enabled {
            return batch;
        }
        let mut found: Vec<(u64, Record)> = Vec::new();
        {
            let state = self.state.lock();
            let last = state.next_seq - 1;
            let first = last + 1 - state.records.len() as u64;
            batch.lost = cursor + 1 < first || cursor > last;
            batch.next_cursor = cursor.min(last);
            let skip = (cursor + 1).saturating_sub(first) as usize;
            for (record, seq) in state.records.iter().skip(skip).zip(first + skip as u64..) {
                batch.next_cursor = seq;
                if record.model() == model {
                    found.push((seq, record.clone()));
                    if found.len() == max {
                        break;
                    }
                }
            }
        }
        // Tokens are decoded without the lock: writers of the log are request threads.
        batch.events = found.iter().map(|(seq, record)| record.to_wire(*seq)).collect();
        batch
    }
}

impl Record {
    fn model(&self) -> &str {
        match self {
            Record::Stored { model, .. } | Record::Removed { model, .. } => model,
        }
    }

    fn to_wire(&self, seq: u64) -> KvEventRecord {
        let bytes = |hash: &ChunkHash| ByteBuf::from(hash.to_vec());
        let (kind, block_hashes, parent, token_ids) = match self {
            Record::Stored { hash, parent, tokens, range, .. } => {
                // The list was walked when its chunks were hashed, so it decodes.
                let bytes_of = &tokens[range.start as usize..range.end as usize];
                ("stored", vec![bytes(hash)], parent.as_ref().map(bytes), decode_tokens(bytes_of))
            }
            Record::Removed { hashes, .. } => {
                ("removed", hashes.iter().map(bytes).collect(), None, Vec::new())
            }
        };
        KvEventRecord {
            seq,
            kind: kind.to_owned(),
            medium: "CPU".to_owned(),
            model_name: self.model().to_owned(),
            block_hashes,
            parent_block_hash: parent,
            token_ids,
        }
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
    /// Logs newly stored chunks of a prompt, given by their positions in it, each once however many groups and ranks it has.
    /// `encoded` is its token list as it came.
    pub(super) fn report_stored(&self, model: &str, encoded: &[u8], chain: &Chain, mut chunks: Vec<usize>) {
        if chunks.is_empty() {
            return;
        }
        chunks.sort_unstable();
        chunks.dedup();
        let end = |chunk: usize| chain.ends.get(chunk).copied().unwrap_or_default() as usize;
        let begin = |chunk: usize| chunk.checked_sub(1).map_or(0, end);
        // Only the new chunks' tokens are kept: what lies between them was stored by others.
        let mut tokens = Vec::with_capacity(chunks.iter().map(|chunk| end(*chunk) - begin(*chunk)).sum());
        let mut stored = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let from = tokens.len() as u32;
            tokens.extend_from_slice(encoded.get(begin(chunk)..end(chunk)).unwrap_or_default());
            stored.push(StoredChunk {
                hash: chain.hashes[chunk],
                parent: chunk.checked_sub(1).map(|previous| chain.hashes[previous]),
                range: from..tokens.len() as u32,
            });
        }
        self.kv_events.stored(model, &tokens, stored.into_iter());
    }
}

//! The KV event log: what has come into the cache and what has gone, for engines' routers.

mod log;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use lmcache_proto::hash::{Chain, ChunkHash};
use lmcache_proto::wire::{KvEventBatch, KvEventRecord, decode_tokens};
use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHashSet};
use serde_bytes::ByteBuf;
use tokio::sync::watch;

use self::log::{Copied, Kind, Log, Record};
use super::Engine;
use crate::l1::Removed;

/// Most hashes of one record of removals.
const REMOVED_PER_RECORD: usize = 1024;

/// Bytes after which a batch ends: they are copied under the lock that stores wait for, and the next batch follows at once.
const BATCH_BYTES: usize = 256 << 10;

/// The log.
#[derive(Debug)]
pub struct KvEvents {
    /// Whether the log keeps anything, known without its lock.
    enabled: bool,
    incarnation: u64,
    state: Mutex<State>,
    /// The newest sequence number; wakes the streams.
    newest: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    log: Log,
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
    /// Records that are kept at most.
    pub capacity: usize,
    /// Bytes that the records held take.
    pub bytes: usize,
    /// Bytes that they take at most.
    pub capacity_bytes: usize,
    /// Sequence number of the next record.
    pub next_seq: u64,
    /// Streams open.
    pub subscribers: usize,
}

impl KvEvents {
    /// A log of at most `capacity` records and `bytes` bytes of hashes and tokens; no records is off.
    pub fn new(capacity: usize, bytes: usize) -> KvEvents {
        let incarnation =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64);
        KvEvents {
            enabled: capacity > 0,
            incarnation,
            state: Mutex::new(State {
                log: Log::new(capacity, bytes),
                subscriptions: FxHashMap::default(),
                next_subscription: 1,
            }),
            newest: watch::Sender::new(0),
        }
    }

    /// Whether the log is kept.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// For `/status`.
    pub fn status(&self) -> KvEventStatus {
        let state = self.state.lock();
        KvEventStatus {
            enabled: self.enabled(),
            incarnation: self.incarnation,
            depth: state.log.depth(),
            capacity: state.log.capacity(),
            bytes: state.log.used(),
            capacity_bytes: state.log.size(),
            next_seq: state.log.next_seq(),
            subscribers: state.subscriptions.len(),
        }
    }

    /// Appends what `write` appends, and wakes the streams.
    fn append(&self, write: impl FnOnce(&mut Log)) {
        let mut state = self.state.lock();
        write(&mut state.log);
        let newest = state.log.next_seq() - 1;
        drop(state);
        self.newest.send_replace(newest);
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
        self.append(|log| {
            for (model, (hashes, _)) in by_model {
                // In pieces, so that a reader's batch stays small whatever was cleared.
                for hashes in hashes.chunks(REMOVED_PER_RECORD) {
                    log.append(model, Kind::Removed, hashes, &[]);
                }
            }
        });
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
        let copied = match self.enabled() {
            true => self.state.lock().log.read(model, cursor, max, BATCH_BYTES),
            false => Copied::default(),
        };
        KvEventBatch {
            enabled: self.enabled(),
            incarnation: self.incarnation,
            next_cursor: copied.cursor,
            lost: copied.lost,
            // Tokens are decoded without the lock: writers of the log are request threads.
            events: copied.records().map(|record| to_wire(model, &record)).collect(),
        }
    }
}

fn to_wire(model: &str, record: &Record<'_>) -> KvEventRecord {
    let bytes = |hash: &ChunkHash| ByteBuf::from(hash.to_vec());
    let (kind, parent, hashes) = match (record.kind, record.hashes) {
        (Kind::StoredFirst, hashes) => ("stored", None, hashes),
        (Kind::Stored, hashes) => {
            let (parent, hash) = hashes.split_at(1);
            ("stored", parent.first(), hash)
        }
        (Kind::Removed, hashes) => ("removed", None, hashes),
    };
    KvEventRecord {
        seq: record.seq,
        kind: kind.to_owned(),
        medium: "CPU".to_owned(),
        model_name: model.to_owned(),
        block_hashes: hashes.iter().map(bytes).collect(),
        parent_block_hash: parent.map(bytes),
        // The list was walked when its chunks were hashed, so it decodes.
        token_ids: decode_tokens(record.tokens),
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
        self.kv_events.append(|log| {
            for chunk in chunks {
                let (kind, first) = match chunk.checked_sub(1) {
                    Some(previous) => (Kind::Stored, previous),
                    None => (Kind::StoredFirst, chunk),
                };
                let begin = if chunk == 0 { 0 } else { end(first) };
                let tokens = encoded.get(begin..end(chunk)).unwrap_or_default();
                log.append(model, kind, &chain.hashes[first..=chunk], tokens);
            }
        });
    }
}

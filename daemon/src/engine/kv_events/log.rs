//! What the KV event log keeps: an index of records, and one buffer that their hashes and tokens lie in.
//!
//! Both have their size from the start and nothing is allocated for a record, so that the log takes what it may take and no
//! more, whatever the chunks' size: the tokens of one are a kilobyte at 256 tokens, and hundreds at the longest chunks.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use lmcache_proto::hash::ChunkHash;
use rustc_hash::FxHashSet;

/// Bytes of a hash.
const HASH: usize = size_of::<ChunkHash>();

/// The index and the buffer.
#[derive(Debug)]
pub(super) struct Log {
    /// The records' bytes, each in one piece; free is what lies between the newest's end and the oldest's begin.
    bytes: Box<[u8]>,
    /// Most records.
    capacity: usize,
    /// Oldest first; the newest has sequence number `next_seq - 1`.
    entries: VecDeque<Entry>,
    next_seq: u64,
    /// Where the newest record ends.
    end: usize,
    /// Bytes of the records held.
    used: usize,
    /// The models of the records held, each once.
    models: FxHashSet<Arc<str>>,
}

/// A record of the index.
#[derive(Debug)]
struct Entry {
    model: Arc<str>,
    piece: Piece,
}

/// Where a record's bytes are, in the log or in a reader's copy: its hashes, then its tokens.
#[derive(Clone, Copy, Debug)]
struct Piece {
    at: u32,
    hashes: u32,
    /// Bytes of the encoded tokens.
    tokens: u32,
    kind: Kind,
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A chunk with none before it: its hash, its tokens.
    StoredFirst,
    /// A chunk: the hash of the one before it, its own, its tokens.
    Stored,
    /// Chunks that have gone: their hashes.
    Removed,
}

/// Records that a reader has copied, with their bytes.
#[derive(Debug, Default)]
pub(super) struct Copied {
    /// By sequence number.
    records: Vec<(u64, Piece)>,
    bytes: Vec<u8>,
    /// Records have gone that the reader had not seen.
    pub(super) lost: bool,
    /// The last record that was looked at.
    pub(super) cursor: u64,
}

/// A record of a copy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub(super) seq: u64,
    pub(super) kind: Kind,
    pub(super) hashes: &'a [ChunkHash],
    /// As they came.
    pub(super) tokens: &'a [u8],
}

impl Piece {
    fn len(&self) -> usize {
        self.hashes as usize * HASH + self.tokens as usize
    }

    fn bytes(&self) -> Range<usize> {
        self.at as usize..self.at as usize + self.len()
    }
}

impl Log {
    /// A log of at most `capacity` records in `size` bytes, at most 4 GiB. The memory is touched when it is written.
    pub(super) fn new(capacity: usize, size: usize) -> Log {
        let size = if capacity == 0 { 0 } else { size.min(u32::MAX as usize) };
        Log {
            bytes: vec![0; size].into_boxed_slice(),
            capacity,
            // A record has one hash or more.
            entries: VecDeque::with_capacity(capacity.min(size / HASH)),
            next_seq: 1,
            end: 0,
            used: 0,
            models: FxHashSet::default(),
        }
    }

    /// Records held.
    pub(super) fn depth(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of the records held.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Records that are held at most.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that there are.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Sequence number of the next record.
    pub(super) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The models of the records held.
    #[cfg(test)]
    pub(super) fn models(&self) -> &FxHashSet<Arc<str>> {
        &self.models
    }

    /// Appends a record; the oldest give way. One that is larger than the log leaves a gap, of which readers are told.
    pub(super) fn append(&mut self, model: &str, kind: Kind, hashes: &[ChunkHash], tokens: &[u8]) {
        self.next_seq += 1;
        let len = hashes.len() * HASH + tokens.len();
        let Some(at) = self.make_room(len) else { return };
        let model = match self.models.get(model) {
            Some(model) => model.clone(),
            None => {
                let model: Arc<str> = model.into();
                self.models.insert(model.clone());
                model
            }
        };
        let (to, rest) = self.bytes[at..at + len].split_at_mut(hashes.len() * HASH);
        to.copy_from_slice(hashes.as_flattened());
        rest.copy_from_slice(tokens);
        self.end = at + len;
        self.used += len;
        let piece = Piece { at: at as u32, hashes: hashes.len() as u32, tokens: tokens.len() as u32, kind };
        self.entries.push_back(Entry { model, piece });
    }

    /// Where `len` bytes can lie in one piece, after the oldest records have gone that are in the way. None: nowhere, and all
    /// have gone.
    fn make_room(&mut self, len: usize) -> Option<usize> {
        if self.entries.len() == self.capacity {
            self.forget_oldest();
        }
        loop {
            let size = self.bytes.len();
            let Some(oldest) = self.entries.front().map(|oldest| oldest.piece.at as usize) else {
                return (len <= size && self.capacity > 0).then_some(0);
            };
            if oldest < self.end {
                // In use is one piece: free is what lies behind it, then what lies before it.
                if size - self.end >= len {
                    return Some(self.end);
                }
                if oldest >= len {
                    return Some(0);
                }
            } else if oldest - self.end >= len {
                return Some(self.end);
            }
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        self.used -= entry.piece.len();
        // The table's and this one: no other record has it.
        if Arc::strong_count(&entry.model) == 2 {
            self.models.remove(&entry.model);
        }
    }

    /// Copies a model's records after `cursor`: at most `max`, and no more once they take `enough` bytes. The cursor moves over
    /// the records of other models.
    pub(super) fn read(&self, model: &str, cursor: u64, max: usize, enough: usize) -> Copied {
        let last = self.next_seq - 1;
        let first = last + 1 - self.entries.len() as u64;
        let lost = cursor.saturating_add(1) < first || cursor > last;
        let mut copied = Copied { lost, cursor: cursor.min(last), ..Copied::default() };
        let Some(model) = self.models.get(model) else {
            copied.cursor = last;
            return copied;
        };
        let skip = cursor.saturating_add(1).saturating_sub(first) as usize;
        for (entry, seq) in self.entries.iter().skip(skip).zip(first.max(cursor.saturating_add(1))..) {
            copied.cursor = seq;
            if !Arc::ptr_eq(&entry.model, model) {
                continue;
            }
            copied.push(seq, entry.piece, &self.bytes[entry.piece.bytes()]);
            if copied.records.len() == max || copied.bytes.len() >= enough {
                break;
            }
        }
        copied
    }
}

impl Copied {
    /// At most the log's bytes come together, so that the place in the copy has 32 bits too.
    fn push(&mut self, seq: u64, piece: Piece, bytes: &[u8]) {
        self.records.push((seq, Piece { at: self.bytes.len() as u32, ..piece }));
        self.bytes.extend_from_slice(bytes);
    }

    /// The records, oldest first.
    pub(super) fn records(&self) -> impl Iterator<Item = Record<'_>> {
        self.records.iter().map(|&(seq, piece)| {
            let (hashes, tokens) = self.bytes[piece.bytes()].split_at(piece.hashes as usize * HASH);
            Record { seq, kind: piece.kind, hashes: hashes.as_chunks().0, tokens }
        })
    }
}

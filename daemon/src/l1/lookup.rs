//! Lookups: the longest prefix that can be served, and the leases that keep it.
#![forbid(unsafe_code)]

use std::sync::Arc;

use lmcache_proto::hash::ChunkHash;
use lmcache_proto::shm::ObjectState;
use serde::{Deserialize, Serialize};

use super::index::{Index, Key};
use super::lock::Lock;
use super::{L1, ObjectId};

/// Chunks looked up per hold of the lock.
const LOOKUP_SLICE: usize = 64;

/// One row of a lookup: an object group as one rank stores it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Packed rank.
    pub rank: u32,
    /// Object group.
    pub group: u32,
    /// Chunks at the end of a hit that must be there; `None` for all.
    pub window: Option<u64>,
    /// Layouts that the objects of the asking model may have: one per shape that its workers have registered.
    pub layouts: Arc<[u64]>,
}

/// A leased object of a lookup.
#[derive(Clone, Copy, Debug)]
pub struct LeasedCell {
    /// Position of the row.
    pub row: u32,
    /// Chunk of the prompt.
    pub chunk: u32,
    /// The object.
    pub object: ObjectId,
}

/// What a lookup found and now holds.
#[derive(Clone, Debug, Default)]
pub struct Hit {
    /// Chunks of the prompt, from its start, that every row can serve.
    pub chunks: u64,
    /// One lease per cell that those chunks need, chunk-major.
    pub cells: Vec<LeasedCell>,
}

impl<K: Lock<Index>> L1<K> {
    /// Leases the longest prefix of `hashes` that every row can serve (with its window rule), and nothing else.
    ///
    /// A hit of `L` chunks is valid iff each row has the last `min(window, L)` of them. The lock is taken anew for every
    /// few chunks; what has been found is leased and cannot go in between.
    pub fn lookup(&self, model: &str, salt: &str, hashes: &[ChunkHash], rows: &[Row]) -> Hit {
        if rows.is_empty() {
            return Hit::default();
        }
        let mut search = Search::new(rows);
        for (slice, start) in hashes.chunks(LOOKUP_SLICE).zip((0..).step_by(LOOKUP_SLICE)) {
            let index = &mut *self.index.lock();
            // Under this hold: an id without objects may be another name's a moment later.
            let (Some(model), Some(salt)) = (index.names.find(model), index.names.find(salt)) else { break };
            let key =
                |hash: ChunkHash, row: &Row| Key { hash, model, salt, rank: row.rank, group: row.group };
            if !slice
                .iter()
                .zip(start..)
                .all(|(hash, chunk)| search.step(index, chunk, |row| key(*hash, row)))
            {
                break;
            }
        }
        let (hit, beyond) = search.finish();
        if !beyond.is_empty() {
            self.end_leases(beyond.into_iter().rev());
        }
        hit
    }

    /// Leases every object of the rows that is there, holes or not, chunk-major: what a prefetch builds on. Cells that the
    /// rows' windows can never need are not known here; whoever plans gives them back.
    pub fn lease_present(
        &self,
        model: &str,
        salt: &str,
        hashes: &[ChunkHash],
        rows: &[Row],
    ) -> Vec<Option<ObjectId>> {
        let mut found = Vec::with_capacity(hashes.len() * rows.len());
        for slice in hashes.chunks(LOOKUP_SLICE) {
            let index = &mut *self.index.lock();
            let names = index.names.find(model).zip(index.names.find(salt));
            for hash in slice {
                found.extend(rows.iter().map(|row| {
                    let (model, salt) = names?;
                    let key = Key { hash: *hash, model, salt, rank: row.rank, group: row.group };
                    let object = index.find(&key, &row.layouts)?;
                    index.lease(object);
                    Some(object)
                }));
            }
        }
        found
    }

    /// Leases one object (hash, rank, group), if it is there with that layout.
    pub fn lease_one(
        &self,
        model: &str,
        salt: &str,
        (hash, rank, group): (ChunkHash, u32, u32),
        layout: u64,
    ) -> Option<ObjectId> {
        let index = &mut *self.index.lock();
        let (model, salt) = index.names.find(model).zip(index.names.find(salt))?;
        let object = index.find(&Key { hash, model, salt, rank, group }, &[layout])?;
        index.lease(object);
        Some(object)
    }

    /// Leases objects as an earlier daemon had them leased; says of each whether it is there and readable.
    pub fn lease_again(&self, objects: &[ObjectId]) -> Vec<bool> {
        let index = &mut *self.index.lock();
        let lease = |object: &ObjectId| {
            let there = index.entry(*object).is_some_and(|entry| entry.state == ObjectState::Committed);
            if there {
                index.lease(*object);
            }
            there
        };
        objects.iter().map(lease).collect()
    }

    /// Ends leases. Give them tail first: the head of a prompt is worth most and should be the most recently used.
    pub fn end_leases(&self, objects: impl Iterator<Item = ObjectId>) {
        let mut objects = objects.peekable();
        while objects.peek().is_some() {
            let mut index = self.index.lock();
            for object in objects.by_ref().take(super::SLICE) {
                index.end_lease(object, &self.table);
            }
            self.tell_unheld(&index);
        }
    }
}

/// A walk along a prompt, leasing as it goes.
struct Search<'r> {
    rows: &'r [Row],
    /// Consecutive present chunks of each row that end at the current one.
    runs: Vec<u64>,
    found: Vec<Option<ObjectId>>,
    /// Longest valid hit so far, in chunks.
    best: u64,
    cells: Vec<LeasedCell>,
}

impl<'r> Search<'r> {
    fn new(rows: &'r [Row]) -> Search<'r> {
        Search { rows, runs: vec![0; rows.len()], found: Vec::new(), best: 0, cells: Vec::new() }
    }

    /// Looks at the next chunk. `false`: no longer hit is possible.
    fn step(&mut self, index: &mut Index, chunk: usize, key: impl Fn(&Row) -> Key) -> bool {
        let length = chunk as u64 + 1;
        self.found.clear();
        self.found.extend(self.rows.iter().map(|row| index.find(&key(row), &row.layouts)));
        for (run, found) in self.runs.iter_mut().zip(&self.found) {
            *run = if found.is_some() { *run + 1 } else { 0 };
        }
        // A row without window that has a hole can never be valid again: nothing of this chunk is needed either.
        let hole = self.rows.iter().zip(&self.runs).any(|(row, run)| row.window.is_none() && *run < length);
        if hole {
            return false;
        }
        for (row, found) in self.found.iter().enumerate() {
            if let Some(object) = *found {
                index.lease(object);
                self.cells.push(LeasedCell { row: row as u32, chunk: chunk as u32, object });
            }
        }
        let valid = |(row, run): (&Row, &u64)| *run >= row.window.map_or(length, |window| window.min(length));
        if self.rows.iter().zip(&self.runs).all(valid) {
            self.best = length;
        }
        true
    }

    /// The hit, and what was leased on the way and is not part of it.
    fn finish(self) -> (Hit, Vec<ObjectId>) {
        let Search { rows, best, cells, .. } = self;
        let needed = |cell: &LeasedCell| {
            let chunk = u64::from(cell.chunk);
            chunk < best && chunk >= first_needed(rows[cell.row as usize].window, best)
        };
        if cells.iter().all(needed) {
            return (Hit { chunks: best, cells }, Vec::new());
        }
        let (cells, beyond): (Vec<_>, Vec<_>) = cells.into_iter().partition(needed);
        (Hit { chunks: best, cells }, beyond.into_iter().map(|cell| cell.object).collect())
    }
}

/// Longest hit, in chunks, when `present(chunk, row)` says what is there. The rule is that of [`L1::lookup`].
pub fn longest_prefix(rows: &[Row], chunks: u64, present: impl Fn(u64, usize) -> bool) -> u64 {
    let mut runs = vec![0u64; rows.len()];
    let mut best = 0;
    for chunk in 0..chunks {
        let length = chunk + 1;
        for (row, run) in runs.iter_mut().enumerate() {
            *run = if present(chunk, row) { *run + 1 } else { 0 };
        }
        let valid = |(row, run): (&Row, &u64)| *run >= row.window.map_or(length, |window| window.min(length));
        if rows.iter().zip(&runs).all(valid) {
            best = length;
        }
        if rows.iter().zip(&runs).any(|(row, run)| row.window.is_none() && *run < length) {
            break;
        }
    }
    best
}

/// First chunk that a row with `window` must have for a hit of `length`.
pub fn first_needed(window: Option<u64>, length: u64) -> u64 {
    window.map_or(0, |window| length.saturating_sub(window))
}

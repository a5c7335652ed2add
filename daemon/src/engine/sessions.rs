//! Requests in flight: their hashed prompts, and the leases that their lookups took.

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lmcache_proto::hash::{Chain, ChunkHash, TokenHasher};
use lmcache_proto::wire::{DecodeError, Tokens};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::l1::{Hit, ObjectId, Row};

/// Sessions by request id.
#[derive(Debug)]
pub(super) struct Sessions {
    map: Mutex<FxHashMap<Box<str>, Arc<Mutex<Session>>>>,
    limit: usize,
}

/// One request.
#[derive(Debug)]
pub(super) struct Session {
    tokens: Vec<u8>,
    chain: Chain,
    pub(super) lookups: Vec<Lookup>,
    last_used: Instant,
}

/// One lookup of a request, and the leases it holds.
#[derive(Debug)]
pub(super) struct Lookup {
    /// The connection that looked up.
    pub(super) client: u64,
    pub(super) model: Box<str>,
    pub(super) salt: Box<str>,
    pub(super) rows: Vec<Row>,
    pub(super) hit_chunks: u64,
    cells: Vec<Cell>,
}

#[derive(Debug)]
struct Cell {
    row: u32,
    chunk: u32,
    object: ObjectId,
    /// Readers that have not retrieved yet; at 0 the lease has ended.
    left: u32,
    taken_by: Vec<u64>,
}

impl Sessions {
    pub(super) fn new(limit: usize) -> Sessions {
        Sessions { map: Mutex::new(FxHashMap::default()), limit }
    }

    pub(super) fn len(&self) -> usize {
        self.map.lock().len()
    }

    pub(super) fn get(&self, request_id: &str) -> Option<Arc<Mutex<Session>>> {
        self.map.lock().get(request_id).cloned()
    }

    /// The request's session, and whether it will be found again. Above the limit of sessions it will not: the request
    /// is hashed anew each time, and its lookups miss, but it is served.
    pub(super) fn get_or_create(&self, request_id: &str) -> (Arc<Mutex<Session>>, bool) {
        let mut map = self.map.lock();
        if let Some(session) = map.get(request_id) {
            return (session.clone(), true);
        }
        let session = Arc::new(Mutex::new(Session {
            tokens: Vec::new(),
            chain: Chain::default(),
            lookups: Vec::new(),
            last_used: Instant::now(),
        }));
        let room = map.len() < self.limit;
        if room {
            map.insert(request_id.into(), session.clone());
        }
        (session, room)
    }

    /// Takes the session out if `keep` says that nothing of it is needed.
    pub(super) fn remove_unless(&self, request_id: &str, keep: impl Fn(&Session) -> bool) {
        if let Entry::Occupied(entry) = self.map.lock().entry(request_id.into()) {
            let keep = keep(&entry.get().lock());
            if !keep {
                entry.remove();
            }
        }
    }

    /// All sessions now.
    pub(super) fn snapshot(&self) -> Vec<(Box<str>, Arc<Mutex<Session>>)> {
        self.map.lock().iter().map(|(id, session)| (id.clone(), session.clone())).collect()
    }

    /// Removes sessions that were idle for `ttl` and hold no lease.
    pub(super) fn expire(&self, ttl: Duration) {
        // Short holds: collect first, then remove one by one.
        for (id, session) in self.snapshot() {
            let idle =
                session.try_lock().is_some_and(|s| s.last_used.elapsed() > ttl && s.lookups.is_empty());
            if idle {
                self.remove_unless(&id, |s| s.last_used.elapsed() <= ttl || !s.lookups.is_empty());
            }
        }
    }
}

impl Session {
    /// The chain over the first `chunks` chunks of `tokens`.
    ///
    /// The client sends the whole prompt with every operation; what is hashed already is only compared.
    pub(super) fn chain(
        &mut self,
        hasher: &TokenHasher,
        tokens: &Tokens<'_>,
        chunks: usize,
    ) -> Result<Chain, DecodeError> {
        self.last_used = Instant::now();
        let bytes = tokens.bytes();
        if !bytes.starts_with(&self.tokens) && !self.tokens.starts_with(bytes) {
            // Another prompt under the same id (a benchmark, or an engine that counts from 0 again).
            self.chain = Chain::default();
            self.tokens.clear();
        }
        if bytes.len() > self.tokens.len() {
            self.tokens.extend_from_slice(&bytes[self.tokens.len()..]);
        }
        hasher.extend(&mut self.chain, tokens, chunks)?;
        let have = chunks.min(tokens.len() / hasher.chunk_size()).min(self.chain.hashes.len());
        Ok(Chain { hashes: self.chain.hashes[..have].to_vec(), ends: self.chain.ends[..have].to_vec() })
    }

    /// Hashes known so far.
    pub(super) fn known_hashes(&self) -> &[ChunkHash] {
        &self.chain.hashes
    }

    /// The lookup that a status query of `client` is about: its own, or else the newest.
    pub(super) fn lookup_of(&self, client: u64) -> Option<&Lookup> {
        self.lookups.iter().rev().find(|l| l.client == client).or(self.lookups.last())
    }

    /// Notes that `instance` has retrieved `chunks` of the row (`rank`, `group`). Returns the leases that end with that.
    ///
    /// Each instance counts once per cell, so a repeated retrieve changes nothing.
    pub(super) fn retrieved(
        &mut self,
        instance: u64,
        rank: u32,
        group: u32,
        chunks: std::ops::Range<usize>,
    ) -> Vec<ObjectId> {
        self.last_used = Instant::now();
        let mut ended = Vec::new();
        for chunk in chunks {
            for lookup in &mut self.lookups {
                let Some(row) = lookup.rows.iter().position(|row| (row.rank, row.group) == (rank, group))
                else {
                    continue;
                };
                let place = (chunk as u32, row as u32);
                let Ok(at) = lookup.cells.binary_search_by_key(&place, |cell| (cell.chunk, cell.row)) else {
                    continue;
                };
                let cell = &mut lookup.cells[at];
                if cell.left == 0 || cell.taken_by.contains(&instance) {
                    continue;
                }
                cell.left -= 1;
                cell.taken_by.push(instance);
                if cell.left == 0 {
                    ended.push(cell.object);
                }
                // One retrieve is one reader of one lookup.
                break;
            }
        }
        ended
    }
}

impl Lookup {
    pub(super) fn new(
        client: u64,
        model: &str,
        salt: &str,
        rows: Vec<Row>,
        hit: &Hit,
        readers: u32,
    ) -> Lookup {
        let cell = |cell: &crate::l1::LeasedCell| Cell {
            row: cell.row,
            chunk: cell.chunk,
            object: cell.object,
            left: readers.max(1),
            taken_by: Vec::new(),
        };
        Lookup {
            client,
            model: model.into(),
            salt: salt.into(),
            rows,
            hit_chunks: hit.chunks,
            cells: hit.cells.iter().map(cell).collect(),
        }
    }

    /// Ends the leases of `chunks`, tail first; all rows, whatever readers are left.
    pub(super) fn end_leases(&mut self, chunks: std::ops::Range<u64>) -> Vec<ObjectId> {
        let mut ended = Vec::new();
        for cell in self.cells.iter_mut().rev().filter(|cell| chunks.contains(&u64::from(cell.chunk))) {
            if cell.left > 0 {
                cell.left = 0;
                ended.push(cell.object);
            }
        }
        ended
    }
}

//! L1: the cache's memory. It knows objects, bytes and holders; it knows nothing of requests, sockets or events.
//!
//! * [`pool`]: the shared-memory segment and the write-through object table (unsafe room);
//! * `alloc`: which pages are free;
//! * `names`: interned model names and salts;
//! * `policy`: who goes first;
//! * `index`: states, leases and pins;
//! * `recover`: what an earlier daemon left.
//!
//! There is one lock, around the index; it is held for map operations only, never across a copy or a system call, and
//! no other lock is taken under it. A hit takes the lock, touches two list links and leaves.
#![deny(unsafe_code)]

mod alloc;
mod index;
mod names;
mod policy;
pub mod pool;
mod recover;

use std::sync::Arc;

use lmcache_proto::hash::{ChunkHash, HashAlgorithm};
use lmcache_proto::shm::{PinKind, TableLayout};
use parking_lot::Mutex;
use thiserror::Error;

use index::Index;
pub use index::{Key, ReserveError, Reserved, Totals};
pub use names::NameId;
use names::Names;
use policy::Policy;
pub use policy::PolicyKind;
use pool::{CapacityError, Pool, Segment, SegmentError, Table, TableIdentity, check_capacity};
pub use pool::{SlotMut, SlotRef};
pub use recover::Recovered;

/// Chunks looked up per hold of the lock.
const LOOKUP_SLICE: usize = 64;

/// One use of a table record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ObjectId {
    /// Record index.
    pub index: u32,
    /// Use of that record.
    pub generation: u32,
}

/// Who may touch bytes of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Worker id.
    pub instance: u64,
    /// Its process, 0 if unknown.
    pub pid: u32,
    /// That process's start time, 0 if unknown.
    pub start_time: u64,
}

/// A hold on an object's bytes. Not `Drop`: it must be ended through [`L1`], by whoever knows that the bytes are no
/// longer touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Pin {
    /// The object.
    pub object: ObjectId,
    record: Option<u32>,
}

/// A pinned object's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Pinned {
    /// The hold.
    pub pin: Pin,
    /// Byte offset into the pool.
    pub offset: u64,
    /// Payload bytes.
    pub length: u64,
}

/// One row of a lookup: an object group as one rank stores it.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Packed rank.
    pub rank: u32,
    /// Object group.
    pub group: u32,
    /// Chunks at the end of a hit that must be there; `None` for all.
    pub window: Option<u64>,
    /// Layout that the asking model's objects have.
    pub layout: u64,
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

/// How to open L1.
#[derive(Clone, Debug)]
pub struct L1Config {
    /// Name of the pool segment, without slash.
    pub pool_name: String,
    /// Bytes of the pool.
    pub pool_bytes: u64,
    /// Tokens per chunk.
    pub chunk_size: u32,
    /// Hash of the chunks.
    pub algorithm: HashAlgorithm,
    /// Eviction policy.
    pub policy: PolicyKind,
    /// Alignment of every object, a power of two; below a page it means a page.
    pub align: u64,
    /// Ask for transparent huge pages.
    pub hugepages: bool,
    /// Discard what an earlier daemon left.
    pub fresh: bool,
}

/// Why L1 could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A limit is in the way.
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    /// A segment is in the way.
    #[error(transparent)]
    Segment(#[from] SegmentError),
}

/// A snapshot for status and metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Bytes of the pool.
    pub capacity: u64,
    /// Bytes that are real memory.
    pub frontier: u64,
    /// Bytes that objects take.
    pub used: u64,
    /// Readable objects.
    pub objects: u64,
    /// Objects being written.
    pub writing: u64,
    /// Objects in quarantine.
    pub quarantined: u64,
    /// Leases.
    pub leases: u64,
    /// Pins.
    pub pins: u64,
    /// Counters.
    pub totals: Totals,
}

/// The cache's memory.
#[derive(Debug)]
pub struct L1 {
    pool: Pool,
    table: Table,
    index: Mutex<Index>,
}

impl L1 {
    /// Opens the pool and its table, and takes over what an earlier daemon left there, if it was made for the same
    /// chunks and the same pool.
    ///
    /// # Errors
    /// Not enough memory, or a living daemon owns the segments.
    pub fn open(config: &L1Config) -> Result<(L1, Recovered), OpenError> {
        let bytes = config.pool_bytes;
        let existing = std::fs::metadata(format!("{}/{}", pool::SHM_DIR, config.pool_name));
        // A pool that is taken over has its memory already (blocks, not length: it may be sparse).
        let already = existing.map_or(0, |meta| {
            use std::os::unix::fs::MetadataExt;
            if meta.len() == bytes && !config.fresh { meta.blocks() * 512 } else { 0 }
        });
        check_capacity(bytes, already.min(bytes))?;
        let segment = Segment::open(&config.pool_name, bytes, !config.fresh)?;
        let layout = TableLayout::for_pool(bytes);
        let table_segment =
            Segment::open(&format!("lmcached_{}_table", config.pool_name), layout.bytes(), segment.reused())?;
        let identity = TableIdentity {
            chunk_size: config.chunk_size,
            algorithm: config.algorithm,
            pool_bytes: bytes,
            pool_inode: segment.inode(),
        };
        let (table, matches) = Table::open(table_segment, layout, identity);
        if let Err(error) = segment.keep() {
            tracing::warn!(pool = segment.name(), %error, "cannot keep a second name for the pool; if a client unlinks it, its name cannot be restored");
        }
        if config.hugepages
            && let Err(error) = segment.advise_huge()
        {
            tracing::warn!(%error, "the kernel gives no huge pages for shared memory (see /sys/kernel/mm/transparent_hugepage/shmem_enabled); going on with small ones");
        }
        let mut index = Index::new(
            Names::new(layout.names),
            Policy::new(config.policy, bytes),
            config.align.max(lmcache_proto::shm::PAGE),
        );
        // Before the allocator gets any memory: what is pinned must never be in it.
        let (recovered, frontier) = if matches {
            // What was real memory still is; without it, stores would evict what has just been taken over while the
            // background reservation walks over pages that are there.
            let frontier = table.frontier().min(bytes);
            let recovered = index.recover(&table, bytes);
            index.allocator.extend(0, frontier);
            (recovered, frontier)
        } else {
            (Recovered::default(), 0)
        };
        Ok((L1 { pool: Pool::new(segment, frontier), table, index: Mutex::new(index) }, recovered))
    }

    /// The pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Takes part in reserving the pool's memory; call it from several threads.
    ///
    /// # Errors
    /// No memory left.
    pub fn reserve_memory(&self) -> std::io::Result<()> {
        self.pool.reserve(|old, new| {
            self.index.lock().allocator.extend(old, new);
            self.table.set_frontier(new);
        })
    }

    /// Leases the longest prefix of `hashes` that every row can serve (with its window rule), and nothing else.
    ///
    /// A hit of `L` chunks is valid iff each row has the last `min(window, L)` of them.
    pub fn lookup(&self, model: &str, salt: &str, hashes: &[ChunkHash], rows: &[Row]) -> Hit {
        let Some((model, salt)) = self.find_names(model, salt) else { return Hit::default() };
        if rows.is_empty() {
            return Hit::default();
        }
        let key = |row: &Row, chunk: usize| Key {
            hash: hashes[chunk],
            model,
            salt,
            rank: row.rank,
            group: row.group,
        };
        if rows.iter().all(|row| row.window.is_none()) {
            self.lookup_full(hashes.len(), rows, key)
        } else {
            self.lookup_windowed(hashes.len(), rows, key)
        }
    }

    /// Every row needs every chunk: stop at the first hole.
    fn lookup_full(&self, chunks: usize, rows: &[Row], key: impl Fn(&Row, usize) -> Key) -> Hit {
        let mut hit = Hit::default();
        let mut found = Vec::with_capacity(rows.len());
        for start in (0..chunks).step_by(LOOKUP_SLICE) {
            let mut index = self.index.lock();
            for chunk in start..chunks.min(start + LOOKUP_SLICE) {
                found.clear();
                found.extend(rows.iter().map_while(|row| index.find(&key(row, chunk), row.layout)));
                if found.len() < rows.len() {
                    return hit;
                }
                for (row, object) in found.iter().enumerate() {
                    index.lease(*object);
                    hit.cells.push(LeasedCell { row: row as u32, chunk: chunk as u32, object: *object });
                }
                hit.chunks += 1;
            }
        }
        hit
    }

    /// Rows with windows: find what is there, fold it to the longest valid length, lease what that length needs.
    fn lookup_windowed(&self, chunks: usize, rows: &[Row], key: impl Fn(&Row, usize) -> Key) -> Hit {
        let index = &mut *self.index.lock();
        // run[r]: consecutive present chunks of row r that end at the current chunk.
        let mut run = vec![0u64; rows.len()];
        let mut best = 0;
        for chunk in 0..chunks {
            for (row, run) in rows.iter().zip(&mut run) {
                *run = if index.find(&key(row, chunk), row.layout).is_some() { *run + 1 } else { 0 };
            }
            let length = chunk as u64 + 1;
            if rows.iter().zip(&run).all(|(row, run)| *run >= row.window.map_or(length, |w| w.min(length))) {
                best = length;
            }
            // A row without window that has a hole can never be valid again.
            if rows.iter().zip(&run).any(|(row, run)| row.window.is_none() && *run < length) {
                break;
            }
        }
        let mut hit = Hit { chunks: best, cells: Vec::new() };
        for chunk in 0..best {
            for (position, row) in rows.iter().enumerate() {
                if chunk >= first_needed(row.window, best)
                    && let Some(object) = index.find(&key(row, chunk as usize), row.layout)
                {
                    index.lease(object);
                    hit.cells.push(LeasedCell { row: position as u32, chunk: chunk as u32, object });
                }
            }
        }
        hit
    }

    /// Ends leases. Give them tail first: the head of a prompt is worth most and should be the most recently used.
    pub fn end_leases(&self, objects: impl Iterator<Item = ObjectId>) {
        let mut index = self.index.lock();
        for object in objects {
            index.end_lease(object, &self.table);
        }
    }

    /// Reserves memory for the objects of `keys` that are not there yet: all of them or none.
    ///
    /// With an `owner` the pins are in the shared table and survive the daemon; without, they are the daemon's own.
    ///
    /// # Errors
    /// `Full` when eviction cannot make room, `TableFull` when a bound of the table is reached.
    pub fn reserve(
        &self,
        model: &str,
        salt: &str,
        keys: impl Iterator<Item = (ChunkHash, u32, u32)>,
        layout: u64,
        length: u64,
        owner: Option<Owner>,
    ) -> Result<Vec<Reserved>, ReserveError> {
        let index = &mut *self.index.lock();
        let table = &self.table;
        let model = index.names.acquire(model, table).ok_or(ReserveError::TableFull)?;
        let Some(salt) = index.names.acquire(salt, table) else {
            index.names.release(model, table);
            return Err(ReserveError::TableFull);
        };
        let mut reserved: Vec<Reserved> = Vec::new();
        let mut failed = None;
        for (position, (hash, rank, group)) in keys.enumerate() {
            let key = Key { hash, model, salt, rank, group };
            match index.reserve(key, layout, length, owner, table) {
                Ok(Some((pin, offset))) => reserved.push(Reserved { position, pin, offset }),
                Ok(None) => {}
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        if failed.is_some() {
            for object in &reserved {
                index.abort(&object.pin, table);
            }
        }
        // The objects hold the names now.
        index.names.release(model, table);
        index.names.release(salt, table);
        failed.map_or(Ok(reserved), Err)
    }

    /// Makes written objects readable, tail first. Returns how many were still reserved.
    pub fn commit<'a>(&self, pins: impl DoubleEndedIterator<Item = &'a Pin>) -> usize {
        let mut index = self.index.lock();
        pins.rev().filter(|pin| index.commit(pin, &self.table)).count()
    }

    /// Gives up reservations that nobody writes to any more.
    pub fn abort<'a>(&self, pins: impl Iterator<Item = &'a Pin>) {
        let mut index = self.index.lock();
        for pin in pins {
            index.abort(pin, &self.table);
        }
    }

    /// Takes the keys of reservations away while their owner may still write.
    pub fn quarantine<'a>(&self, pins: impl Iterator<Item = &'a Pin>) {
        let mut index = self.index.lock();
        for pin in pins {
            index.quarantine(pin, &self.table);
        }
    }

    /// Pins the objects of all `keys` for reading, or none if one is missing or has another layout.
    pub fn pin_read(
        &self,
        model: &str,
        salt: &str,
        keys: impl Iterator<Item = (ChunkHash, u32, u32)>,
        layout: u64,
        owner: Option<Owner>,
    ) -> Option<Vec<Pinned>> {
        let (model, salt) = self.find_names(model, salt)?;
        let index = &mut *self.index.lock();
        let mut pinned: Vec<Pinned> = Vec::new();
        for (hash, rank, group) in keys {
            let key = Key { hash, model, salt, rank, group };
            let pin = index.find(&key, layout).and_then(|object| match owner {
                None => Some(index.pin_internal(object)),
                Some(owner) => index.pin_shared(object, PinKind::Read, owner, &self.table),
            });
            let Some(pin) = pin else {
                for done in &pinned {
                    index.unpin(&done.pin, &self.table);
                }
                return None;
            };
            let entry = index.entry(pin.object)?;
            pinned.push(Pinned { pin, offset: entry.offset, length: entry.length });
        }
        Some(pinned)
    }

    /// Ends pins, tail first.
    pub fn unpin<'a>(&self, pins: impl DoubleEndedIterator<Item = &'a Pin>) {
        let mut index = self.index.lock();
        for pin in pins.rev() {
            index.unpin(pin, &self.table);
        }
    }

    /// Marks objects as used now, tail first.
    pub fn touch(
        &self,
        model: &str,
        salt: &str,
        keys: impl DoubleEndedIterator<Item = (ChunkHash, u32, u32)>,
    ) {
        let Some((model, salt)) = self.find_names(model, salt) else { return };
        let mut index = self.index.lock();
        for (hash, rank, group) in keys.rev() {
            index.touch(&Key { hash, model, salt, rank, group });
        }
    }

    /// Drops objects; with `force` also those that are leased or pinned (their bytes stay until they are let go).
    pub fn clear(&self, force: bool) -> u64 {
        self.index.lock().clear(force, &self.table)
    }

    /// Evicts `ratio` of the bytes in use if the pool is filled above `watermark`. Returns the bytes evicted.
    pub fn evict_above(&self, watermark: f64, ratio: f64) -> u64 {
        let mut index = self.index.lock();
        let used = index.allocator.used();
        if (used as f64) < watermark * self.pool.segment().bytes() as f64 {
            return 0;
        }
        let want = (used as f64 * ratio) as u64;
        // In slices, so that a lookup never waits for a whole eviction of a large pool.
        drop(index);
        let mut freed = 0;
        while freed < want {
            index = self.index.lock();
            let slice = index.evict((want - freed).min(256 * lmcache_proto::shm::PAGE), &self.table);
            drop(index);
            if slice == 0 {
                break;
            }
            freed += slice;
        }
        freed
    }

    /// Objects that have gone since the last call, with their model names.
    pub fn take_removed(&self) -> Vec<(Arc<str>, ChunkHash)> {
        self.index.lock().take_removed()
    }

    /// The bytes of an object that the daemon itself has reserved, to fill them. `None` if it is gone.
    pub fn slot_mut(&self, reserved: &Reserved) -> Option<SlotMut<'_>> {
        let length = self.index.lock().entry(reserved.pin.object)?.length;
        self.pool.slot_mut(reserved.offset, length)
    }

    /// The bytes of a pinned object.
    pub fn slot_ref(&self, pinned: &Pinned) -> Option<SlotRef<'_>> {
        self.pool.slot_ref(pinned.offset, pinned.length)
    }

    /// A snapshot.
    pub fn stats(&self) -> Stats {
        let index = self.index.lock();
        Stats {
            capacity: self.pool.segment().bytes(),
            frontier: self.pool.frontier(),
            used: index.allocator.used(),
            objects: index.committed,
            writing: index.writing,
            quarantined: index.quarantined_now,
            leases: index.leased_now,
            pins: index.pins_now,
            totals: index.totals,
        }
    }

    /// Removes the segments' names (`--discard-on-exit`).
    pub fn discard(&self) {
        self.pool.segment().unlink();
        self.table.segment().unlink();
    }

    fn find_names(&self, model: &str, salt: &str) -> Option<(NameId, NameId)> {
        let index = self.index.lock();
        Some((index.names.find(model)?, index.names.find(salt)?))
    }
}

/// First chunk that a row with `window` must have for a hit of `length`.
pub fn first_needed(window: Option<u64>, length: u64) -> u64 {
    window.map_or(0, |window| length.saturating_sub(window))
}

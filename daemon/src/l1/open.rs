//! Opening L1: the segments, and what an earlier daemon left in them.
#![forbid(unsafe_code)]

use std::fs::Metadata;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use lmcache_proto::hash::HashAlgorithm;
use lmcache_proto::shm::{self, PAGE, TableLayout};
use rustc_hash::FxHashSet;
use thiserror::Error;

use super::alloc::Allocator;
use super::extend::{Extended, extend};
use super::index::Index;
use super::lock::Lock;
use super::names::Names;
use super::policy::{Policy, PolicyKind};
use super::pool::{
    self, CapacityError, Difference, Pool, Segment, SegmentError, Table, TableIdentity, check_capacity,
    huge_pages_refused,
};
use super::recover::Recovered;
use super::{L1, ObjectId};
use crate::failpoint;
use crate::quota::Quotas;
use crate::shm_file;

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
    /// Refuse to start rather than discard what an earlier daemon left and this one cannot use.
    pub require_warm: bool,
    /// Hold the bytes of what is taken over against their checksums, where they have one.
    pub verify_payload: bool,
    /// Model names and salts that objects may have at once.
    pub max_names: u32,
    /// Group whose members may map the pool.
    pub group: Option<u32>,
    /// Keep a checksum of every object's bytes, and hold them against it when they are read.
    pub checksums: bool,
    /// Limits of the salts.
    pub quotas: Arc<Quotas>,
    /// What a daemon that lives hands over.
    pub handed_over: Option<HandedOver>,
}

/// Segments whose owner lives and touches them no more, and what it was doing.
#[derive(Clone, Debug)]
pub struct HandedOver {
    /// The pool's file, with the lock.
    pub pool: Arc<OwnedFd>,
    /// The table's.
    pub table: Arc<OwnedFd>,
    /// Objects that are being written by workers and whose reservations are known.
    pub writing: FxHashSet<ObjectId>,
}

impl L1Config {
    /// A pool of `pool_bytes` under `pool_name`, and everything else as the daemon has it without flags: chunks of 256 tokens,
    /// what an earlier daemon left is taken over.
    pub fn new(pool_name: String, pool_bytes: u64) -> L1Config {
        L1Config {
            pool_name,
            pool_bytes,
            chunk_size: 256,
            algorithm: HashAlgorithm::Blake3,
            policy: PolicyKind::Lru,
            align: PAGE,
            hugepages: false,
            fresh: false,
            require_warm: false,
            verify_payload: false,
            max_names: 65_535,
            group: None,
            checksums: false,
            quotas: Arc::default(),
            handed_over: None,
        }
    }
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
    /// There is a pool that would have to be discarded, and `--require-warm` forbids that.
    #[error(
        "pool {pool} was left by a daemon with another {} ({}, here {}), so its objects cannot be taken over, and --require-warm forbids to discard them; start as that daemon was started, or without --require-warm",
        .difference.field, .difference.found, .difference.wanted
    )]
    NotWarm {
        /// The pool.
        pool: String,
        /// What is in the way.
        difference: Difference,
    },
    /// No memory for the object table.
    #[error(
        "no shared memory for the object table of pool {pool}: {source}; free some in /dev/shm or lower --l1-size-gb"
    )]
    Table {
        /// The pool.
        pool: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl L1 {
    /// Opens the pool and its table, and takes over what an earlier daemon left there, if it was made for the same
    /// chunks and the same pool.
    ///
    /// # Errors
    /// Not enough memory, or a living daemon owns the segments.
    pub fn open(config: &L1Config) -> Result<(L1, Recovered), OpenError> {
        L1::open_with(config)
    }
}

impl<K: Lock<Index>> L1<K> {
    /// [`L1::open`] with the lock that `K` is.
    pub(super) fn open_with(config: &L1Config) -> Result<(L1<K>, Recovered), OpenError> {
        let bytes = config.pool_bytes;
        let existing = pool::left_behind(&config.pool_name);
        // What is there is taken over or given back (blocks, not length: it may be sparse).
        let half_made = pool::left_behind(&shm::names::larger_table(&config.pool_name));
        let blocks = |meta: &std::fs::Metadata| meta.blocks() * 512;
        let already = existing.as_ref().map_or(0, blocks);
        check_capacity(bytes, (already + half_made.as_ref().map_or(0, blocks)).min(bytes))?;
        let align = config.align.max(PAGE);
        let (warm, taken) = made_fit(config, existing.as_ref(), align)?;
        let config = taken.as_ref().unwrap_or(config);
        let handed_over = clone_of(config, |handed| &handed.pool)?;
        let mut segment = Segment::open_or_take(&config.pool_name, bytes, warm, config.group, handed_over)?;
        // With the pool's lock: it is nobody's.
        discard_half_made(config);
        if already > 0 && !segment.reused() {
            // Workers may have the old one mapped: then it takes its memory as long as they live.
            check_capacity(bytes, 0)?;
        }
        failpoint::hit("l1.open.pool");
        let mut table = open_table(config, segment.reused())?;
        failpoint::hit("l1.open.both");
        if segment.reused()
            && let Some(difference) = differs(&table, config, &segment, align)?
        {
            cold(config, difference)?;
            // The pool without its table says nothing, but workers of the earlier daemon's time may still write into it:
            // they keep the old memory, we take new.
            drop((table, segment));
            failpoint::hit("l1.open.unbelieved");
            segment = Segment::open(&config.pool_name, bytes, false, config.group)?;
            check_capacity(bytes, 0)?;
            table = open_table(config, false)?;
        }
        let identity = identity(config, &segment, align);
        let (table, believed) =
            Table::open(table, layout(config), identity).map_err(|source| no_table(config, source))?;
        failpoint::hit("l1.open.table");
        if let Err(error) = segment.keep() {
            tracing::warn!(pool = segment.name(), %error, "cannot keep a second name for the pool; if a client unlinks it, its name cannot be restored");
        }
        if config.hugepages {
            ask_for_huge_pages(&segment);
        }
        let mut index = Index::new(
            Names::new(table.layout().names.min(u64::from(config.max_names) + 1)),
            Policy::new(config.policy, bytes),
            Allocator::new(align, bytes),
        );
        // What was real memory still is; without it, stores would evict what has just been taken over while the background
        // reservation walks over pages that are there.
        let frontier = if believed { table.frontier().min(bytes) } else { 0 };
        let pool = Pool::new(segment, frontier);
        let mut recovered = Recovered::default();
        if believed {
            // Before the allocator gets any memory: what is pinned must never be in it.
            let writing = config.handed_over.as_ref().map(|handed| &handed.writing);
            recovered = index.recover(&table, bytes, config.verify_payload.then_some(&pool), writing);
            failpoint::hit("l1.open.recovered");
            index.allocator.extend(0, frontier);
        }
        let quotas = config.quotas.clone();
        Ok((L1 { pool, table, quotas, checksums: config.checksums, index: K::new(index) }, recovered))
    }
}

/// Whether the pool that is there may be taken over, as far as sizes say. A smaller one is extended, and the configuration that
/// goes on with its segments is returned as well. One without a byte is what a start that died has begun.
fn made_fit(
    config: &L1Config,
    existing: Option<&Metadata>,
    align: u64,
) -> Result<(bool, Option<L1Config>), OpenError> {
    let Some(existing) = existing.filter(|meta| meta.len() > 0 && !config.fresh) else {
        return Ok((false, None));
    };
    let (found, wanted) = (existing.len(), config.pool_bytes);
    let difference = if let Some(others) = pool::other_group(existing, config.group) {
        let wanted = config.group.map_or_else(|| "none".to_owned(), |gid| gid.to_string());
        Some(Difference { field: "group", found: others.to_string(), wanted })
    } else if found == wanted {
        // Asked before it is opened: opening takes a new file for one of another size.
        let (bytes, table) =
            (layout(config).bytes(), pool::left_behind(&shm::names::table(&config.pool_name)));
        let other = table.map(|meta| meta.len()).filter(|found| *found > 0 && *found != bytes);
        other.map(|found| Difference::size("table size in bytes", found, bytes))
    } else if found < wanted && config.handed_over.is_none() {
        match extend(config, found, align)? {
            Extended::Not(difference) => Some(difference),
            Extended::Done(extended) => {
                return Ok((true, Some(L1Config { handed_over: Some(extended), ..config.clone() })));
            }
        }
    } else {
        Some(Difference::size("pool size in bytes", found, wanted))
    };
    match difference {
        None => Ok((true, None)),
        Some(difference) => cold(config, difference).map(|()| (false, None)),
    }
}

/// Removes the table that a start which died has begun for a larger pool.
fn discard_half_made(config: &L1Config) {
    let path = Path::new(pool::SHM_DIR).join(shm::names::larger_table(&config.pool_name));
    if let Err(error) = shm_file::remove(&path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove the unfinished table of an earlier start; it takes memory");
    }
}

fn layout(config: &L1Config) -> TableLayout {
    TableLayout::for_pool(config.pool_bytes)
}

fn open_table(config: &L1Config, reuse: bool) -> Result<Segment, SegmentError> {
    // No worker maps it, so it is for nobody else, whatever group the pool has.
    let (name, handed_over) =
        (shm::names::table(&config.pool_name), clone_of(config, |handed| &handed.table)?);
    Segment::open_or_take(&name, layout(config).bytes(), reuse, None, handed_over)
}

fn clone_of(
    config: &L1Config,
    which: impl Fn(&HandedOver) -> &Arc<OwnedFd>,
) -> Result<Option<OwnedFd>, SegmentError> {
    let handed = config.handed_over.as_ref().map(|handed| which(handed).try_clone()).transpose();
    handed.map_err(|source| SegmentError::Os { action: "take over", name: config.pool_name.clone(), source })
}

/// What an earlier daemon left is of no use to this one: says so, or refuses.
fn cold(config: &L1Config, difference: Difference) -> Result<(), OpenError> {
    if config.require_warm {
        return Err(OpenError::NotWarm { pool: config.pool_name.clone(), difference });
    }
    let Difference { field, found, wanted } = difference;
    tracing::warn!(
        pool = config.pool_name,
        field,
        found,
        wanted,
        "the earlier daemon's objects cannot be taken over: this field of theirs differs; starting with an empty pool (--require-warm refuses instead)"
    );
    Ok(())
}

/// In what the table is not that of `pool`, or not made as we would make it. Asked before anything is written: a start that dies
/// right after must find both as they were. A table made ours, beside the old pool, would say of slots that workers still
/// touch that they are free.
pub(super) fn differs(
    table: &Segment,
    config: &L1Config,
    pool: &Segment,
    align: u64,
) -> Result<Option<Difference>, OpenError> {
    Table::differs(table, layout(config), &identity(config, pool, align))
        .map_err(|source| no_table(config, source))
}

fn identity(config: &L1Config, pool: &Segment, align: u64) -> TableIdentity {
    TableIdentity {
        chunk_size: config.chunk_size,
        algorithm: config.algorithm,
        pool_bytes: config.pool_bytes,
        pool_inode: pool.inode(),
        align,
    }
}

pub(super) fn no_table(config: &L1Config, source: std::io::Error) -> OpenError {
    OpenError::Table { pool: config.pool_name.clone(), source }
}

fn ask_for_huge_pages(segment: &Segment) {
    const WHERE: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    if let Some(word) = huge_pages_refused() {
        tracing::warn!(
            "--l1-use-hugepages: the kernel gives no huge pages for shared memory ({WHERE} says {word}); set it to advise; going on with small ones"
        );
    } else if let Err(error) = segment.advise_huge() {
        tracing::warn!(%error, "--l1-use-hugepages: the kernel gives no huge pages for shared memory (see {WHERE}); going on with small ones");
    }
}

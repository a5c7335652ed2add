//! Opening L1: the segments, and what an earlier daemon left in them.
#![forbid(unsafe_code)]

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use lmcache_proto::hash::HashAlgorithm;
use lmcache_proto::shm::{self, PAGE, TableLayout};
use parking_lot::Mutex;
use thiserror::Error;

use super::L1;
use super::index::Index;
use super::names::Names;
use super::policy::{Policy, PolicyKind};
use super::pool::{
    self, CapacityError, Pool, Segment, SegmentError, Table, TableIdentity, check_capacity,
    huge_pages_refused,
};
use super::recover::Recovered;
use crate::quota::Quotas;

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
    /// Group whose members may map the pool.
    pub group: Option<u32>,
    /// Keep a checksum of every object's bytes, and hold them against it when they are read.
    pub checksums: bool,
    /// Limits of the salts.
    pub quotas: Arc<Quotas>,
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
        let bytes = config.pool_bytes;
        let existing = std::fs::metadata(format!("{}/{}", pool::SHM_DIR, config.pool_name));
        // A pool that is taken over has its memory already (blocks, not length: it may be sparse).
        let already = existing
            .map_or(0, |meta| if meta.len() == bytes && !config.fresh { meta.blocks() * 512 } else { 0 });
        check_capacity(bytes, already.min(bytes))?;
        let align = config.align.max(PAGE);
        let mut segment = Segment::open(&config.pool_name, bytes, !config.fresh, config.group)?;
        let (mut table, mut believed) = open_table(config, &segment, align)?;
        if segment.reused() && !believed {
            // The pool without its table says nothing, but workers of the earlier daemon's time may still write into it:
            // they keep the old memory, we take new.
            tracing::warn!(
                pool = config.pool_name,
                "the pool's object table is missing, of another release, or made for another chunk size, hash or alignment; starting with an empty pool"
            );
            drop((table, segment));
            segment = Segment::open(&config.pool_name, bytes, false, config.group)?;
            check_capacity(bytes, 0)?;
            (table, believed) = open_table(config, &segment, align)?;
        }
        if let Err(error) = segment.keep() {
            tracing::warn!(pool = segment.name(), %error, "cannot keep a second name for the pool; if a client unlinks it, its name cannot be restored");
        }
        if config.hugepages {
            ask_for_huge_pages(&segment);
        }
        let mut index =
            Index::new(Names::new(table.layout().names), Policy::new(config.policy, bytes), align);
        // Before the allocator gets any memory: what is pinned must never be in it.
        let (recovered, frontier) = if believed {
            // What was real memory still is; without it, stores would evict what has just been taken over while the
            // background reservation walks over pages that are there.
            let frontier = table.frontier().min(bytes);
            let recovered = index.recover(&table, bytes);
            index.allocator.extend(0, frontier);
            (recovered, frontier)
        } else {
            (Recovered::default(), 0)
        };
        let (pool, quotas) = (Pool::new(segment, frontier), config.quotas.clone());
        Ok((
            L1 {
                pool,
                table,
                quotas,
                checksums: config.checksums,
                index: Mutex::new(index),
                unheld: parking_lot::Condvar::new(),
            },
            recovered,
        ))
    }
}

fn open_table(config: &L1Config, pool: &Segment, align: u64) -> Result<(Table, bool), OpenError> {
    let layout = TableLayout::for_pool(config.pool_bytes);
    // No worker maps it, so it is for nobody else, whatever group the pool has.
    let segment = Segment::open(&shm::names::table(&config.pool_name), layout.bytes(), pool.reused(), None)?;
    let identity = TableIdentity {
        chunk_size: config.chunk_size,
        algorithm: config.algorithm,
        pool_bytes: config.pool_bytes,
        pool_inode: pool.inode(),
        align,
    };
    Table::open(segment, layout, identity)
        .map_err(|source| OpenError::Table { pool: config.pool_name.clone(), source })
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

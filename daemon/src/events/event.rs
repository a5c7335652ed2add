//! What happens in the daemon, as typed events.
//!
//! One event drives logs, metrics, spans and trace records; a subscriber looks at nothing else. The set is that of
//! LMCache 0.5.6 (`docs/INSTRUMENTATION.md` has the table), with the two events that 0.5.6 dropped and the metrics of the
//! documented page need: [`Event::SmReadPrefetched`] and [`Event::L2PrefetchLookupCompleted`].
//!
//! Events are cheap to make: numbers, static strings and shared pointers. A request's key list is allocated once and
//! shared by all its events.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use lmcache_proto::hash::ChunkHash;
use lmcache_proto::layout::{ObjectLayout, Region};
use lmcache_proto::wire::BlockAllocationRecord;

/// One object of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cell {
    /// Chunk hash.
    pub hash: ChunkHash,
    /// Packed rank.
    pub rank: u32,
    /// Object group.
    pub group: u32,
}

/// Objects of one model and salt.
#[derive(Debug)]
pub struct KeyBatch {
    /// Model.
    pub model: Arc<str>,
    /// Salt; empty is the shared domain.
    pub salt: Arc<str>,
    /// The objects.
    pub cells: Box<[Cell]>,
}

/// Part of a shared key batch.
#[derive(Clone, Debug)]
pub struct Keys {
    batch: Arc<KeyBatch>,
    range: Range<u32>,
}

impl Keys {
    /// All of a batch.
    pub fn new(model: Arc<str>, salt: Arc<str>, cells: Box<[Cell]>) -> Keys {
        let range = 0..cells.len() as u32;
        Keys { batch: Arc::new(KeyBatch { model, salt, cells }), range }
    }

    /// The part `range` of these keys, sharing the allocation.
    ///
    /// # Panics
    /// If the range is not inside.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Keys {
        assert!(range.start <= range.end && range.end <= self.len(), "slice inside the batch");
        let start = self.range.start;
        Keys { batch: self.batch.clone(), range: start + range.start as u32..start + range.end as u32 }
    }

    /// Model of all of them.
    pub fn model(&self) -> &Arc<str> {
        &self.batch.model
    }

    /// Salt of all of them.
    pub fn salt(&self) -> &Arc<str> {
        &self.batch.salt
    }

    /// The objects.
    pub fn cells(&self) -> &[Cell] {
        &self.batch.cells[self.range.start as usize..self.range.end as usize]
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

/// Key counts by salt, for events whose keys are not needed.
pub type SaltCounts = Arc<[(Arc<str>, u64)]>;

/// Which adapter an L2 event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AdapterId {
    /// Position in the adapter list.
    pub index: u32,
    /// Registered type, for example `fs`.
    pub name: Arc<str>,
}

/// Who moves bytes between a worker and L1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Instance id.
    pub engine_id: u64,
    /// `cpu`, `cuda:3`, …
    pub device: Arc<str>,
    /// Model.
    pub model: Arc<str>,
}

/// Names one transfer, so that its start and end find each other when ranks of one request overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TransferId(pub u64);

/// During which step an allocation or a read failed; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the label says it")]
pub enum During {
    L1Store,
    L2Prefetch,
    L2Store,
    L1Retrieve,
}

impl During {
    /// The label.
    pub fn name(self) -> &'static str {
        match self {
            During::L1Store => "l1_store",
            During::L2Prefetch => "l2_prefetch",
            During::L2Store => "l2_store",
            During::L1Retrieve => "l1_retrieve",
        }
    }
}

/// Why a read of L1 failed; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the label says it")]
pub enum ReadFailure {
    NotFound,
    WriteLocked,
    Damaged,
}

impl ReadFailure {
    /// The label.
    pub fn name(self) -> &'static str {
        match self {
            ReadFailure::NotFound => "not_found",
            ReadFailure::WriteLocked => "write_locked",
            ReadFailure::Damaged => "damaged",
        }
    }
}

/// Why a key that L2 announced did not land in L1; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the label says it")]
pub enum PrefetchFailure {
    L1Oom,
    NotFound,
    SerdeFailure,
}

impl PrefetchFailure {
    /// The label.
    pub fn name(self) -> &'static str {
        match self {
            PrefetchFailure::L1Oom => "l1_oom",
            PrefetchFailure::NotFound => "not_found",
            PrefetchFailure::SerdeFailure => "serde_failure",
        }
    }
}

/// Why objects left L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EvictionCause {
    /// The eviction policy chose them.
    Policy,
    /// An operator or a client cleared the cache, or deleted them.
    Cleared,
    /// An object of another shape took their key.
    Replaced,
    /// Loaded for one request and released by it.
    Temporary,
    /// Their bytes were not those that were committed (`--l1-checksums`).
    Damaged,
}

/// What a finished lookup found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookupEnd {
    /// Chunks of the prefix that is there.
    pub found_count: u64,
    /// Tokens asked for, whole chunks only.
    pub requested_tokens: u64,
    /// Tokens found; `l1_hit_tokens + l2_hit_tokens`.
    pub hit_tokens: u64,
    /// Of these, what L1 alone could serve.
    pub l1_hit_tokens: u64,
    /// Of these, what L2 added.
    pub l2_hit_tokens: u64,
    /// Objects that L1 held.
    pub l1_hit_keys: u64,
    /// Objects that L2 loaded.
    pub l2_hit_keys: u64,
    /// Why nothing was looked up; empty normally.
    pub early_exit_reason: &'static str,
    /// Model.
    pub model: Arc<str>,
    /// Salt.
    pub salt: Arc<str>,
}

/// How a transfer between a worker and L1 ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferEnd {
    /// Objects moved.
    pub count: u64,
    /// Bytes moved; 0 if it failed.
    pub total_bytes: u64,
    /// Tokens moved; 0 if it did not succeed as a whole.
    pub num_tokens: u64,
    /// Salt of the request.
    pub salt: Arc<str>,
}

/// A phase of a blend request: the operations come later, their events and spans are ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the peer's names")]
pub enum CbPhase {
    Lookup,
    Retrieve,
    FingerprintMatch,
    PrefixLookup,
    CoordinatorMatch,
    SparsePrefetch,
    Scatter,
}

impl CbPhase {
    /// Span name of the phase.
    pub fn span_name(self) -> &'static str {
        match self {
            CbPhase::Lookup => "cb.lookup",
            CbPhase::Retrieve => "cb.retrieve",
            CbPhase::FingerprintMatch => "cb.fingerprint_match",
            CbPhase::PrefixLookup => "cb.prefix_lookup",
            CbPhase::CoordinatorMatch => "cb.coordinator_match",
            CbPhase::SparsePrefetch => "cb.sparse_prefetch",
            CbPhase::Scatter => "cb.scatter",
        }
    }
}

/// A request's id, shared by all its events.
pub type SessionId = Arc<str>;

/// Something that happened.
#[derive(Clone, Debug)]
#[expect(
    missing_docs,
    reason = "the variants are the peer's event types; docs/INSTRUMENTATION.md describes each"
)]
pub enum Event {
    L1ReadReserved {
        keys: Keys,
    },
    L1ReadFinished {
        keys: Keys,
    },
    L1WriteReserved {
        keys: Keys,
    },
    L1WriteFinished {
        keys: Keys,
    },
    L1WriteFinishedAndReadReserved {
        keys: Keys,
    },
    L1KeysEvicted {
        keys: Keys,
        cause: EvictionCause,
    },
    L1KeysAccessed {
        keys: Keys,
    },
    L1EvictionLoopTick {
        usage: f64,
        watermark: f64,
        triggered: bool,
    },
    L1AllocationFailed {
        during: During,
        model: Arc<str>,
        keys: u64,
    },
    L1ReadFailed {
        during: During,
        reason: ReadFailure,
        model: Arc<str>,
        keys: u64,
    },

    /// A prefetch has ended: what it retained, and the rest. (Dropped by 0.5.6.)
    SmReadPrefetched {
        succeeded: Keys,
        failed: u64,
    },
    SmReadPrefetchedFinished {
        succeeded: Keys,
        failed: u64,
    },
    SmWriteReserved {
        succeeded: u64,
        failed: u64,
    },
    SmWriteFinished {
        succeeded: Keys,
        failed: u64,
    },
    SmCapacityChanged {
        l1_bytes: u64,
    },

    L2StoreSubmitted {
        adapter: AdapterId,
        task: u64,
        keys: u64,
        bytes: u64,
        by_salt: SaltCounts,
    },
    L2StoreCompleted {
        adapter: AdapterId,
        task: u64,
        bytes: u64,
        succeeded: u64,
        failed: u64,
        by_salt: SaltCounts,
    },
    L2PrefetchLookupSubmitted {
        session: SessionId,
        keys: u64,
        adapters: u32,
        by_salt: SaltCounts,
    },
    /// What the adapters have of a lookup. (Dropped by 0.5.6.)
    L2PrefetchLookupCompleted {
        session: SessionId,
        prefix_hits: u64,
    },
    L2PrefetchLoadSubmitted {
        session: SessionId,
        keys: u64,
        adapters: u32,
        by_salt: SaltCounts,
    },
    L2PrefetchLoadCompleted {
        session: SessionId,
        loaded: u64,
        failed: u64,
        by_salt: SaltCounts,
    },
    L2LoadTaskSubmitted {
        session: SessionId,
        adapter: AdapterId,
        task: u64,
        keys: u64,
        bytes: u64,
    },
    L2LoadTaskCompleted {
        session: SessionId,
        adapter: AdapterId,
        task: u64,
    },
    L2KeysStored {
        adapter: AdapterId,
        keys: u64,
    },
    L2KeysAccessed {
        adapter: AdapterId,
        keys: u64,
    },
    L2KeysDeleted {
        adapter: AdapterId,
        keys: u64,
    },
    L2KeysEvicted {
        keys: u64,
        by_salt: SaltCounts,
    },
    L2PrefetchFailed {
        reason: PrefetchFailure,
        model: Arc<str>,
        keys: u64,
    },

    MpRequestStart {
        session: SessionId,
        traceparent: Option<Arc<str>>,
    },
    MpRequestEnd {
        session: SessionId,
    },
    MpLookupPrefetchStart {
        session: SessionId,
    },
    MpLookupPrefetchEnd {
        session: SessionId,
        end: LookupEnd,
    },
    MpLookup {
        session: SessionId,
        model: Arc<str>,
        hashes: Arc<[ChunkHash]>,
        chunk_size: u32,
        seq_len: u64,
        /// Of a chunk's objects, group after group.
        regions: Arc<[Region]>,
    },
    MpStoreSubmitted {
        session: SessionId,
        transfer: TransferId,
        worker: Arc<Worker>,
    },
    MpStoreStart {
        session: SessionId,
        transfer: TransferId,
        worker: Arc<Worker>,
    },
    MpStoreEnd {
        session: SessionId,
        transfer: TransferId,
        worker: Arc<Worker>,
        end: TransferEnd,
    },
    MpRetrieveSubmitted {
        session: SessionId,
        transfer: TransferId,
        worker: Arc<Worker>,
    },
    MpRetrieveStart {
        session: SessionId,
        transfer: TransferId,
        worker: Arc<Worker>,
    },
    MpRetrieveEnd {
        session: SessionId,
        transfer: TransferId,
        worker: Arc<Worker>,
        end: TransferEnd,
    },
    MpTransferPhaseSamples {
        transfer: TransferId,
        staging_bytes: u64,
        staging_seconds: f64,
    },
    MpTokens {
        session: SessionId,
        chunks: u64,
    },
    MpVllmBlockAllocation {
        instance: u64,
        model: Arc<str>,
        records: Arc<[BlockAllocationRecord]>,
    },
    MpVllmEndSession {
        session: SessionId,
    },

    /// A worker was unregistered or reaped, or its process is gone. (Not the peer's: its metric series grow for ever.)
    WorkerGone {
        instance: u64,
    },
    TimeoutRaised {
        session: SessionId,
        message: Arc<str>,
        kind: &'static str,
    },
    TraceCall {
        call: Arc<TraceCall>,
    },

    CbRequestStart {
        session: SessionId,
    },
    CbRequestEnd {
        session: SessionId,
    },
    CbRetrieveSubmitted {
        session: SessionId,
        instance: u64,
    },
    CbPhaseStart {
        session: SessionId,
        phase: CbPhase,
        worker: Option<u32>,
    },
    CbPhaseEnd {
        session: SessionId,
        phase: CbPhase,
        worker: Option<u32>,
        success: bool,
    },
    CbLookupEnd {
        session: SessionId,
        requested_tokens: u64,
        hit_tokens: u64,
    },
    CbFingerprintsRegistered {
        session: SessionId,
        chunks: u64,
    },
    CbChunksEvicted {
        chunks: u64,
    },
    CbRetrieveNoop {
        session: SessionId,
        reason: &'static str,
        dropped_matches: u64,
    },
}

/// A call of the storage layer, for replay: published while somebody records, at the moment at which the call begins.
#[derive(Debug)]
pub enum TraceCall {
    /// Memory was asked for objects, those that are there already included.
    ReserveWrite {
        /// The objects.
        keys: Keys,
        /// What each of them is.
        layout: ObjectLayout,
    },
    /// Written objects become readable.
    FinishWrite {
        /// The objects.
        keys: Keys,
    },
    /// A lookup leases what is there and loads the rest.
    SubmitPrefetch {
        /// The request.
        session: SessionId,
        /// Model.
        model: Arc<str>,
        /// Salt.
        salt: Arc<str>,
        /// Chunks of the prompt, from its start.
        hashes: Box<[ChunkHash]>,
        /// What is looked for of each chunk.
        rows: Box<[TraceRow]>,
        /// Readers that each object is leased for.
        readers: u32,
    },
    /// Leased objects were read, or let go unread.
    FinishRead {
        /// The objects.
        keys: Keys,
        /// Readers that are done with each of them.
        read_locks: u32,
    },
}

/// One row of a recorded lookup: an object group as one rank stores it.
#[derive(Debug)]
pub struct TraceRow {
    /// Packed rank.
    pub rank: u32,
    /// Object group.
    pub group: u32,
    /// Chunks at the end of a hit that must be there; `None` for all.
    pub window: Option<u64>,
    /// What its objects are.
    pub layout: ObjectLayout,
}

/// An event with its time.
#[derive(Clone, Debug)]
pub struct Stamped {
    /// When it happened. Monotonic: durations between events never jump with the wall clock.
    pub at: Instant,
    /// What happened.
    pub event: Event,
}

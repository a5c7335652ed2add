//! Requests as values. `decode` and `encode` go from and to payload frames.

use super::key::CacheKey;
use super::operation::Operation;
use super::ring::ProcessIdentity;
use super::structs::{BlockAllocationRecord, RegisterEngineDrivenPayload, RegisterKvCache};

/// Text that no log line shows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret<'a>(pub &'a str);

impl std::fmt::Debug for Secret<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// A decoded request.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "variants and fields are the protocol's arguments, see ARCHITECTURE.md")]
pub enum Request<'a> {
    RegisterKvCache(Box<RegisterKvCache>),
    UnregisterKvCache {
        instance_id: u64,
    },
    Store {
        key: CacheKey<'a>,
        instance_id: u64,
        block_ids: Vec<Vec<u64>>,
        event: &'a [u8],
    },
    Retrieve {
        key: CacheKey<'a>,
        instance_id: u64,
        block_ids: Vec<Vec<u64>>,
        event: &'a [u8],
        skip_first_n_tokens: u64,
    },
    Lookup {
        key: CacheKey<'a>,
        tp_size: u64,
    },
    QueryPrefetchStatus {
        request_id: &'a str,
    },
    WaitPrefetchStatus {
        request_id: &'a str,
        timeout: f64,
    },
    FreeLookupLocks {
        key: CacheKey<'a>,
        tp_size: u64,
    },
    EndSession {
        request_id: &'a str,
    },
    RegisterEngineDriven(Box<RegisterEngineDrivenPayload>),
    UnregisterEngineDriven {
        instance_id: u64,
    },
    PrepareStore {
        key: CacheKey<'a>,
        instance_id: u64,
    },
    CommitStore {
        key: CacheKey<'a>,
        instance_id: u64,
        data: &'a [u8],
    },
    PrepareRetrieve {
        key: CacheKey<'a>,
        instance_id: u64,
    },
    CommitRetrieve {
        key: CacheKey<'a>,
        instance_id: u64,
    },
    Clear {
        force: bool,
    },
    GetChunkSize,
    Ping {
        instance_id: Option<u64>,
    },
    ReportBlockAllocation {
        instance_id: u64,
        model_name: &'a str,
        records: Vec<BlockAllocationRecord>,
    },
    Noop,
    GetExperimental,
    SubscribeKvEvents {
        instance_id: u64,
        model_name: &'a str,
        cursor: i64,
        max_events: i64,
    },
    AttachRing {
        instance_id: u64,
        process: Option<Box<ProcessIdentity>>,
    },
    Authenticate {
        token: Secret<'a>,
    },
}

impl Request<'_> {
    /// The operation that this request is.
    pub fn operation(&self) -> Operation {
        match self {
            Request::RegisterKvCache(_) => Operation::RegisterKvCache,
            Request::UnregisterKvCache { .. } => Operation::UnregisterKvCache,
            Request::Store { .. } => Operation::Store,
            Request::Retrieve { .. } => Operation::Retrieve,
            Request::Lookup { .. } => Operation::Lookup,
            Request::QueryPrefetchStatus { .. } => Operation::QueryPrefetchStatus,
            Request::WaitPrefetchStatus { .. } => Operation::WaitPrefetchStatus,
            Request::FreeLookupLocks { .. } => Operation::FreeLookupLocks,
            Request::EndSession { .. } => Operation::EndSession,
            Request::RegisterEngineDriven(_) => Operation::RegisterEngineDriven,
            Request::UnregisterEngineDriven { .. } => Operation::UnregisterEngineDriven,
            Request::PrepareStore { .. } => Operation::PrepareStore,
            Request::CommitStore { .. } => Operation::CommitStore,
            Request::PrepareRetrieve { .. } => Operation::PrepareRetrieve,
            Request::CommitRetrieve { .. } => Operation::CommitRetrieve,
            Request::Clear { .. } => Operation::Clear,
            Request::GetChunkSize => Operation::GetChunkSize,
            Request::Ping { .. } => Operation::Ping,
            Request::ReportBlockAllocation { .. } => Operation::ReportBlockAllocation,
            Request::Noop => Operation::Noop,
            Request::GetExperimental => Operation::GetExperimental,
            Request::SubscribeKvEvents { .. } => Operation::SubscribeKvEvents,
            Request::AttachRing { .. } => Operation::AttachRing,
            Request::Authenticate { .. } => Operation::Authenticate,
        }
    }
}

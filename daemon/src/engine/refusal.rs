//! What a client gets when its request cannot be done: an answer, wherever the protocol has one.

use std::fmt;

use lmcache_proto::wire::{
    AttachRingResponse, Operation, PrepareRetrieveResponse, PrepareStoreResponse,
    RegisterEngineDrivenResponse, Response,
};

use super::{Engine, Outcome};

/// Why a request was not done; a label of the refusal counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the label says it")]
pub enum Refusal {
    Undecodable,
    UnknownInstance,
    BadValue,
    PoolFull,
    OverQuota,
    TableFull,
    NotResident,
    NothingPending,
    Quarantined,
    Limit,
    Pickle,
    CopyFailed,
    Damaged,
    Layout,
    Disabled,
    Draining,
    Restarted,
    WrongTenant,
    Internal,
}

impl Refusal {
    /// Every reason, in label order.
    pub const ALL: [Refusal; 19] = [
        Refusal::Undecodable,
        Refusal::UnknownInstance,
        Refusal::BadValue,
        Refusal::PoolFull,
        Refusal::OverQuota,
        Refusal::TableFull,
        Refusal::NotResident,
        Refusal::NothingPending,
        Refusal::Quarantined,
        Refusal::Limit,
        Refusal::Pickle,
        Refusal::CopyFailed,
        Refusal::Damaged,
        Refusal::Layout,
        Refusal::Disabled,
        Refusal::Draining,
        Refusal::Restarted,
        Refusal::WrongTenant,
        Refusal::Internal,
    ];

    /// The label.
    pub fn name(self) -> &'static str {
        match self {
            Refusal::Undecodable => "undecodable",
            Refusal::UnknownInstance => "unknown_instance",
            Refusal::BadValue => "bad_value",
            Refusal::PoolFull => "pool_full",
            Refusal::OverQuota => "over_quota",
            Refusal::TableFull => "table_full",
            Refusal::NotResident => "not_resident",
            Refusal::NothingPending => "nothing_pending",
            Refusal::Quarantined => "quarantined",
            Refusal::Limit => "limit",
            Refusal::Pickle => "pickle",
            Refusal::CopyFailed => "copy_failed",
            Refusal::Damaged => "damaged",
            Refusal::Layout => "layout",
            Refusal::Disabled => "disabled",
            Refusal::Draining => "draining",
            Refusal::Restarted => "restarted",
            Refusal::WrongTenant => "wrong_tenant",
            Refusal::Internal => "internal",
        }
    }

    /// What it means and what to do, for the log.
    pub fn advice(self) -> &'static str {
        match self {
            Refusal::Undecodable => "the payload is not LMCache 0.5.6's; check the client's release",
            Refusal::UnknownInstance => {
                "the worker is not registered here (was the daemon restarted?); its next pings are answered so that it registers again"
            }
            Refusal::BadValue => "a value is outside the protocol; the request was not done",
            Refusal::PoolFull => "no memory left and nothing can be evicted; raise --l1-size-gb",
            Refusal::OverQuota => {
                "the cache salt is at its quota, and nothing of its own can be evicted for this request; other salts are not touched: raise the quota (PUT /quota/<salt>), or expect prompts larger than it to go without cache"
            }
            Refusal::TableFull => {
                "the object table has no record or name left, or /dev/shm no memory for it: too many models and salts at once, or a full tmpfs"
            }
            Refusal::NotResident => "a chunk is not (or no longer) in L1; the engine recomputes it",
            Refusal::NothingPending => {
                "no prepared transfer of this worker fits (expired, or prepared before a restart); nothing was committed"
            }
            Refusal::Quarantined => {
                "an earlier reservation of this very store ran out, and its worker may still be writing; it is not cached"
            }
            Refusal::Limit => {
                "a limit is reached, and this one goes without cache, or with less of it: raise the limit that the detail names, or look for an engine that never ends what it begins"
            }
            Refusal::Pickle => {
                "the client sends pickled tensors, which would run code here; let it map the shared-memory pool (same host and IPC namespace)"
            }
            Refusal::CopyFailed => "the copy did not complete; nothing was committed",
            Refusal::Damaged => {
                "an object's bytes in the pool are not those that were committed; it is dropped and the engine recomputes it: a worker writes where it should not (the pool is mapped by every engine-driven worker), or the memory is bad"
            }
            Refusal::Layout => "the worker's KV cache layout is not served; it runs without cache",
            Refusal::Disabled => {
                "switched off here, or used up; see --supported-transfer-mode, --ring-lanes and --tenant-tokens-file"
            }
            Refusal::WrongTenant => {
                "the cache salt belongs to a tenant whose token this connection has not shown, or it is of another machine and has shown none (--tenant-tokens-file; lmcache-client's option token)"
            }
            Refusal::Draining => "the daemon drains and stores nothing new; the engine goes on without",
            Refusal::Restarted => {
                "it was under way when the earlier daemon ended, and may have been done or not; or the worker may have given it up while nobody answered it. The engine goes on without its result"
            }
            Refusal::Internal => "a bug in lmcached; the request was not done",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Engine {
    /// The negative answer of `operation`. One row per operation in `docs/ARCHITECTURE.md`.
    pub fn refuse(&self, operation: Operation, _reason: Refusal) -> Outcome {
        Outcome::Reply(self.negative(operation))
    }

    /// The same, where nothing but an answer is possible.
    pub fn negative(&self, operation: Operation) -> Response {
        match operation {
            // An empty event handle says that no device work was submitted.
            Operation::Store | Operation::Retrieve => Response::Transfer(Vec::new(), false),
            // 0 chunks: a miss, and final.
            Operation::QueryPrefetchStatus | Operation::WaitPrefetchStatus => Response::Count(0),
            // An empty `slots` would mean "cached already" to the client: the context itself stays empty.
            Operation::PrepareStore => Response::PrepareStore(PrepareStoreResponse { context: None }),
            Operation::PrepareRetrieve => Response::PrepareRetrieve(PrepareRetrieveResponse { slots: None }),
            Operation::CommitStore | Operation::CommitRetrieve | Operation::Authenticate => {
                Response::Flag(false)
            }
            // No pool: the worker falls back to sending data inline, which is then refused request by request.
            Operation::RegisterEngineDriven => {
                Response::Registered(RegisterEngineDrivenResponse { shm_name: String::new(), pool_size: 0 })
            }
            // `false` would make a worker report its pending loads as failed.
            Operation::Ping => Response::Flag(true),
            Operation::GetChunkSize => Response::Count(self.hasher.chunk_size() as u64),
            Operation::Noop => Response::Text("OK"),
            Operation::GetExperimental => Response::Names(self.capabilities()),
            // Void operations: the acknowledgement keeps the client from waiting; the log says what was not done.
            Operation::RegisterKvCache
            | Operation::UnregisterKvCache
            | Operation::Lookup
            | Operation::FreeLookupLocks
            | Operation::EndSession
            | Operation::UnregisterEngineDriven
            | Operation::Clear
            | Operation::ReportBlockAllocation
            // The end of the stream.
            | Operation::SubscribeKvEvents => Response::Nothing,
            // No name: the worker goes on without a lane.
            Operation::AttachRing => Response::RingAttached(AttachRingResponse::default()),
        }
    }
}

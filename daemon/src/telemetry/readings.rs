//! What is read at every scrape instead of being carried by events: the engine's own numbers.

use crate::events::TimingReading;

/// Somebody who knows the daemon's numbers. Called at every scrape and export: it must be quick and take no lock that a
/// request waits for.
pub trait Gauges: Send + Sync {
    /// The numbers of now.
    fn read(&self) -> Readings;
}

/// The numbers. What is not known stays at its default.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    /// Prefetches under way.
    pub active_prefetch_jobs: u64,
    /// Pool.
    pub l1: L1Readings,
    /// L2 adapters, in the order of the adapter list.
    pub adapters: Vec<AdapterReading>,
    /// Requests by operation and outcome.
    pub requests: Vec<(&'static str, &'static str, u64)>,
    /// Time of requests by operation: waiting, and in all.
    pub timings: Vec<OperationTiming>,
    /// Tokens stored by workers.
    pub stored_tokens: u64,
    /// Tokens retrieved by workers.
    pub retrieved_tokens: u64,
    /// Messages that are no requests.
    pub malformed_messages: u64,
    /// Requests of operations that are not served.
    pub unknown_operations: u64,
    /// Connections refused or ended by the daemon, by reason.
    pub peers_refused: Vec<(&'static str, u64)>,
    /// Times that clients were not read for a while, by reason.
    pub peer_pauses: Vec<(&'static str, u64)>,
    /// Calls of the CUDA driver that failed: function, error, how often.
    pub cuda_errors: Vec<(&'static str, String, u64)>,
    /// Workers forgotten because they were silent.
    pub workers_reaped: u64,
    /// Leases that ended because their connection was gone.
    pub leases_expired: u64,
    /// Events that each worker's lane lost.
    pub ring_lost: Vec<(u64, u64)>,
    /// Registered workers.
    pub workers: u64,
    /// Bytes of their registrations.
    pub registration_bytes: u64,
    /// Lanes of the ring that they have.
    pub ring_lanes_used: u64,
    /// Bytes of the sessions.
    pub session_bytes: u64,
    /// Connections to the HTTP ports.
    pub http_connections: u64,
    /// HTTP requests that were not read, by reason.
    pub http_refused: Vec<(&'static str, u64)>,
    /// Requests that the daemon remembers.
    pub sessions: u64,
    /// Open connections.
    pub connections: u64,
    /// Bytes queued for and from clients.
    pub queued_bytes: u64,
    /// KV event records kept.
    pub kv_events_log_depth: u64,
    /// Bytes of these records.
    pub kv_events_log_bytes: u64,
    /// Quotas; their number has a bound.
    pub quotas: Vec<QuotaReading>,
}

/// Numbers of the pool.
#[derive(Clone, Copy, Debug, Default)]
pub struct L1Readings {
    /// Bytes that objects take.
    pub used_bytes: u64,
    /// Bytes there are.
    pub capacity_bytes: u64,
    /// Bytes that are real memory by now.
    pub reserved_bytes: u64,
    /// Bytes reserved for objects that are being written.
    pub writing_bytes: u64,
    /// Readable objects.
    pub objects: u64,
    /// Objects that workers are writing.
    pub writing_objects: u64,
    /// Slots kept from everybody.
    pub quarantined_objects: u64,
    /// Lookup leases.
    pub leases: u64,
    /// Slots that transfers touch.
    pub pins: u64,
    /// Model names and salts of objects.
    pub names: u64,
    /// Bytes evicted by the policy, ever.
    pub evicted_bytes: u64,
    /// Objects replaced by another layout, ever.
    pub replaced_objects: u64,
    /// Reservations taken away, ever.
    pub quarantined: u64,
    /// Allocations that failed, ever.
    pub full: u64,
    /// Objects dropped because their bytes had changed, ever.
    pub damaged: u64,
}

/// Numbers of one L2 adapter.
#[derive(Clone, Debug, Default)]
pub struct AdapterReading {
    /// Registered type.
    pub name: String,
    /// Place in the adapter list.
    pub index: u32,
    /// Stores that it executes.
    pub inflight_stores: u64,
    /// Loads that it executes.
    pub inflight_loads: u64,
    /// L1 bytes reserved for these loads.
    pub inflight_load_bytes: u64,
    /// Bytes of this daemon's objects in it, if it knows.
    pub used_bytes: Option<u64>,
    /// It takes nothing new.
    pub draining: bool,
    /// Stores go to it.
    pub stores: bool,
    /// Loads come from it.
    pub loads: bool,
}

/// A cache salt that has a quota.
#[derive(Clone, Debug, Default)]
pub struct QuotaReading {
    /// The salt.
    pub cache_salt: String,
    /// Bytes that its objects may take.
    pub limit_bytes: u64,
    /// Bytes that they take, in `l1` and in each tier by its label.
    pub used_bytes: Vec<(String, u64)>,
}

/// How long the requests of one operation took.
#[derive(Clone, Debug)]
pub struct OperationTiming {
    /// Which operation.
    pub operation: &'static str,
    /// From arrival to execution.
    pub queued: TimingReading,
    /// From arrival to the answer.
    pub total: TimingReading,
}

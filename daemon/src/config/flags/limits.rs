//! Flags the peer does not have: byte and count budgets against hostile or broken workers, and the way out.

use clap::Args;

#[derive(Debug, Args)]
#[command(next_help_heading = "Honoured: limits")]
pub(crate) struct LimitFlags {
    /// Largest request accepted from a worker
    #[arg(long, default_value_t = 64 << 20, value_name = "BYTES")]
    pub(crate) max_message_bytes: i64,

    /// Bytes one worker may have waiting in the daemon
    #[arg(long, default_value_t = 128 << 20, value_name = "BYTES")]
    pub(crate) max_peer_bytes: i64,

    /// Bytes all workers together may have waiting in the daemon
    #[arg(long, default_value_t = 512 << 20, value_name = "BYTES")]
    pub(crate) max_total_bytes: i64,

    /// Requests that one connection may send in a second, and at once; above it the daemon reads no more of it until it
    /// may send again; 0 does not limit them
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) max_peer_requests_per_second: i64,

    /// Connections open at the same time; one that has asked for nothing yet gives way to a new one
    #[arg(long, default_value_t = 4096, value_name = "N")]
    pub(crate) max_connections: i64,

    /// Request sessions remembered at the same time
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    pub(crate) max_sessions: i64,

    /// Bytes that the prompts and leases of all sessions may take; above it prompts are hashed anew and lookups miss
    #[arg(long, default_value_t = 512 << 20, value_name = "BYTES")]
    pub(crate) max_session_bytes: i64,

    /// Lookups, and prefetches of the admin API, that wait for L2 or load from it at the same time; more lookups are answered
    /// from L1 alone
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub(crate) max_prefetch_jobs: i64,

    /// Workers registered at the same time
    #[arg(long, default_value_t = 4096, value_name = "N")]
    pub(crate) max_registered_workers: i64,

    /// Bytes that the registrations of all workers may take
    #[arg(long, default_value_t = 64 << 20, value_name = "BYTES")]
    pub(crate) max_registration_bytes: i64,

    /// Model names and cache salts that objects in L1 may have at the same time; a new one evicts until one is free
    #[arg(long, default_value_t = 65_535, value_name = "N")]
    pub(crate) max_names: i64,

    /// Bytes that the hashes and tokens of the KV event log may take; above it the oldest records go, however few there are
    #[arg(long, default_value_t = 32 << 20, value_name = "BYTES")]
    pub(crate) kv_event_log_bytes: i64,

    /// Connections to each HTTP port at the same time; one that has asked for nothing gives way, else the new one gets a 503
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub(crate) http_max_connections: i64,

    /// Largest body of an HTTP request
    #[arg(long, default_value_t = 4 << 20, value_name = "BYTES")]
    pub(crate) http_max_body_bytes: i64,

    /// Workers that may publish their own timings at the same time, each in a lane of its own; 0 offers no ring
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub(crate) ring_lanes: i64,

    /// Records that fit in a lane before they are lost and counted; a power of two
    #[arg(long, default_value_t = 1024, value_name = "RECORDS")]
    pub(crate) ring_slots: i64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Honoured: shutdown")]
pub(crate) struct ShutdownFlags {
    /// How long SIGTERM waits for transfers under way; 0 does not wait
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    pub(crate) drain_seconds: f64,

    /// Remove the pool at an orderly exit instead of leaving it to the next daemon
    #[arg(long)]
    pub(crate) discard_on_exit: bool,
}

//! Flags of the L1 pool, of eviction, and of how long silence is tolerated.

use clap::Args;

use crate::config::types::EvictionPolicy;

#[derive(Debug, Args)]
#[command(next_help_heading = "Honoured: L1 pool")]
pub(crate) struct L1Flags {
    /// Size of the pool in GiB; fractions are fine [default: from the memory that is free at start]
    #[arg(long, value_name = "GIB")]
    pub(crate) l1_size_gb: Option<f64>,

    /// Alignment of every object in the pool, a power of two
    #[arg(long, default_value_t = 4096, value_name = "BYTES")]
    pub(crate) l1_align_bytes: i64,

    /// Ask the kernel for transparent huge pages for the pool (see shmem_enabled)
    #[arg(long, overrides_with = "no_l1_use_hugepages")]
    pub(crate) l1_use_hugepages: bool,

    /// Back the pool with ordinary pages (the default)
    #[arg(long, overrides_with = "l1_use_hugepages")]
    pub(crate) no_l1_use_hugepages: bool,

    /// Name of the pool in shared memory, used as lmcache_l1_pool_NAME [default: from the port]
    #[arg(long, value_name = "NAME")]
    pub(crate) shm_name: Option<String>,

    /// Group, by name or number, whose members may map the pool and connect to the daemon's Unix sockets: engines of
    /// other users; the daemon's user must be in it, too
    #[arg(long, value_name = "GROUP")]
    pub(crate) shm_group: Option<String>,

    /// Start with an empty pool, even if an earlier daemon left a good one
    #[arg(long)]
    pub(crate) fresh: bool,

    /// Refuse to start if an earlier daemon left a pool whose objects this one cannot take over, instead of discarding them
    #[arg(long, conflicts_with = "fresh")]
    pub(crate) require_warm: bool,

    /// Before objects of an earlier daemon are served, hold their bytes against the checksums of --l1-checksums
    #[arg(long)]
    pub(crate) verify_payload: bool,

    /// Keep a checksum of every object's bytes, and serve none whose bytes have changed since; costs reading each object
    /// once more at its store and at each retrieve
    #[arg(long)]
    pub(crate) l1_checksums: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Honoured: eviction")]
pub(crate) struct EvictionFlags {
    /// Which objects leave a full pool first
    #[arg(long, value_enum, default_value_t = EvictionPolicy::Lru, value_name = "POLICY")]
    pub(crate) eviction_policy: EvictionPolicy,

    /// Part of the pool that may fill before eviction starts, above 0 and up to 1
    #[arg(long, default_value_t = 0.8, value_name = "FRACTION")]
    pub(crate) eviction_trigger_watermark: f64,

    /// Part that one round of eviction removes, above 0 and up to 1
    #[arg(long, default_value_t = 0.2, value_name = "FRACTION")]
    pub(crate) eviction_ratio: f64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Honoured: liveness and leases")]
pub(crate) struct LivenessFlags {
    /// Silence after which a worker that has pinged counts as dead; 0 never, else at least 30
    #[arg(long, default_value_t = 120.0, value_name = "SECONDS")]
    pub(crate) worker_reap_timeout_seconds: f64,

    /// The same for a worker that registered and has not pinged yet; not below the reap timeout
    #[arg(long, default_value_t = 3600.0, value_name = "SECONDS")]
    pub(crate) worker_registration_grace_seconds: f64,

    /// Idle time after which a request's session is forgotten
    #[arg(long, default_value_t = 600.0, value_name = "SECONDS")]
    pub(crate) session_ttl_seconds: f64,

    /// How long a worker may take to fill a slot; after that it is nobody's until the worker is gone
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub(crate) l1_write_ttl_seconds: i64,

    /// How long what a lookup found is kept for a client whose connection is gone
    #[arg(long, default_value_t = 30.0, value_name = "SECONDS")]
    pub(crate) lease_grace_seconds: f64,
}

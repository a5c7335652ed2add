//! The checked configuration: plain data that the rest of the daemon reads and never has to check again.

mod l2;
mod observability;

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use lmcache_proto::shm::ring::RingLayout;

use super::endpoint::Endpoint;

pub use l2::{L2Adapter, L2Config, L2PrefetchPolicy, L2StorePolicy};
pub use observability::{
    LogFormat, LogLevel, LookupHashLogConfig, MetricsCompat, ObservabilityConfig, TraceArgs, TraceConfig,
    TraceLevel,
};

/// Everything the daemon was told, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The request server: where workers connect and how chunks are made.
    pub server: ServerConfig,
    /// The pool in shared memory.
    pub l1: L1Config,
    /// What leaves a full pool.
    pub eviction: EvictionConfig,
    /// How long silence is tolerated.
    pub liveness: LivenessConfig,
    /// The admin API.
    pub http: HttpConfig,
    /// Metrics, logs, spans and recordings.
    pub observability: ObservabilityConfig,
    /// The colder tiers.
    pub l2: L2Config,
    /// GPUs.
    pub gpu: GpuConfig,
    /// How the daemon ends.
    pub shutdown: ShutdownConfig,
}

/// The request server.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerConfig {
    /// Where workers connect, at least one, without repetition. Default: `tcp://localhost:5555`.
    pub endpoints: Vec<Endpoint>,
    /// Tokens in one chunk, 1 to 65536. Default: 256.
    pub chunk_size: NonZeroU32,
    /// Engine block id that denotes absent KV. Default: 0; engines with a real block 0 use -1.
    pub null_block_id: i64,
    /// How chunks are hashed. Default: BLAKE3.
    pub hash_algorithm: HashAlgorithm,
    /// `PYTHONHASHSEED` as the engine sees it: the root of vLLM's `sha256_cbor` chain. BLAKE3 ignores it.
    pub hash_seed: Option<String>,
    /// Transfer modes offered to workers. Default: both.
    pub transfer_modes: TransferModes,
    /// One object group per sliding-window size. Default: one group for all layers.
    pub separate_object_groups: bool,
    /// Records kept for KV-event subscribers. Default: 32768; `None` (flag 0) closes the channel.
    pub kv_event_log_size: Option<NonZeroU32>,
    /// Threads for hashing and copying. `None`: the daemon counts cores.
    pub compute_threads: Option<NonZeroUsize>,
    /// Directory for state other than the pool. `None`: nothing is kept.
    pub state_dir: Option<PathBuf>,
    /// Budgets against broken or hostile workers.
    pub limits: Limits,
    /// Users that may connect to Unix sockets, besides the daemon's own and root.
    pub ipc_allow_uids: Vec<u32>,
    /// File with the tokens of tenants and their cache salts. Default: none; all salts are everybody's.
    pub tenant_tokens_file: Option<PathBuf>,
    /// Whether connections of this machine have to show one too. Default: no.
    pub tenant_token_required: bool,
}

/// Budgets of the request server. A message never exceeds a worker's budget, nor that the daemon's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest request, in bytes. Default: 64 MiB.
    pub max_message_bytes: u64,
    /// Bytes one worker may have waiting. Default: 128 MiB.
    pub max_peer_bytes: u64,
    /// Bytes all workers may have waiting. Default: 512 MiB.
    pub max_total_bytes: u64,
    /// Messages that one worker may send in a second. Default: 0, which does not limit them.
    pub max_peer_requests_per_second: u32,
    /// Open connections. Default: 4096.
    pub max_connections: usize,
    /// Remembered request sessions. Default: 100000.
    pub max_sessions: usize,
    /// Bytes of all sessions. Default: 512 MiB.
    pub max_session_bytes: usize,
    /// Lookups and prefetches that wait for L2 or load from it. Default: 1024.
    pub max_prefetch_jobs: usize,
    /// Registered workers. Default: 4096.
    pub max_registered_workers: usize,
    /// Bytes of all registrations. Default: 64 MiB.
    pub max_registration_bytes: usize,
    /// Model names and salts of objects in L1. Default: 65535.
    pub max_names: u32,
    /// Bytes that the KV event log may take. Default: 32 MiB.
    pub kv_event_log_bytes: usize,
    /// Connections to each HTTP port. Default: 128.
    pub http_max_connections: usize,
    /// Largest HTTP body. Default: 4 MiB.
    pub http_max_body_bytes: usize,
    /// Lanes and slots of the shared ring. Default: 256 lanes of 1024 slots; `None` (no lanes) offers no ring.
    pub ring: Option<RingLayout>,
}

/// How token chunks are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// BLAKE3 over the parent hash and the tokens; the peer's default.
    Blake3,
    /// SHA-256 over canonical CBOR, vLLM's `sha256_cbor`.
    Sha256Cbor,
}

/// Who may copy KV bytes. At least one is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferModes {
    /// The daemon copies (`store`, `retrieve`).
    pub lmcache_driven: bool,
    /// The worker copies (`prepare_*`, `commit_*`).
    pub engine_driven: bool,
}

/// The pool in shared memory.
#[derive(Debug, Clone, PartialEq)]
pub struct L1Config {
    /// Bytes. `None`: the daemon takes a part of the free memory. The flag counts GiB.
    pub size_bytes: Option<NonZeroU64>,
    /// Alignment of every object in bytes, a power of two from 64 to 1 GiB. Default: 4096.
    pub align_bytes: NonZeroU64,
    /// Name of the segment, `lmcache_l1_pool_…`, without a leading slash: what workers open, too.
    pub pool_name: String,
    /// Back the pool with reserved 2 MiB pages.
    pub use_hugepages: bool,
    /// Start empty, even if an earlier daemon left a good pool.
    pub fresh: bool,
    /// Refuse to start rather than discard an earlier pool that does not fit.
    pub require_warm: bool,
    /// Hold the bytes of what is taken over against their checksums.
    pub verify_payload: bool,
    /// Group whose members may map the pool and connect to Unix sockets.
    pub group: Option<u32>,
    /// Keep a checksum of every object's bytes, and hold them against it when they are read.
    pub checksums: bool,
}

/// What leaves a full pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EvictionConfig {
    /// Which objects go first. Default: LRU.
    pub policy: EvictionPolicy,
    /// Part of the pool that may fill, in (0, 1]. Default: 0.8.
    pub trigger_watermark: f64,
    /// Part one round removes, in (0, 1]. Default: 0.2.
    pub ratio: f64,
}

/// Order of eviction. The names are the peer's, in its spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EvictionPolicy {
    /// Least recently used first.
    #[value(name = "LRU")]
    Lru,
    /// Adaptive: recent against frequent.
    #[value(name = "ARC")]
    Arc,
    /// One LRU list per cache salt, bounded by quotas.
    #[value(name = "IsolatedLRU")]
    IsolatedLru,
    /// Nothing is evicted; a full pool refuses stores.
    #[value(name = "noop")]
    Noop,
}

impl EvictionPolicy {
    /// The peer's name, as `/status` says it.
    pub fn name(self) -> &'static str {
        match self {
            EvictionPolicy::Lru => "LRU",
            EvictionPolicy::Arc => "ARC",
            EvictionPolicy::IsolatedLru => "IsolatedLRU",
            EvictionPolicy::Noop => "noop",
        }
    }
}

/// How long silence is tolerated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LivenessConfig {
    /// Silence after which a worker that has pinged is dead. Default: 120 s; `None` (flag 0) never.
    pub reap_timeout: Option<Duration>,
    /// The same for a worker that has only registered; never below `reap_timeout`. Default: 3600 s.
    pub registration_grace: Duration,
    /// Idle time after which a request's session is forgotten. Default: 600 s.
    pub session_ttl: Duration,
    /// Longest hold on a slot being written. Default: 600 s.
    pub write_ttl: Duration,
    /// How long leases outlive their connection. Default: 30 s.
    pub lease_grace: Duration,
}

/// The admin API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Default: `127.0.0.1:8080`.
    pub listen: Listen,
    /// File with the token that the admin API asks for. Default: none.
    pub token_file: Option<PathBuf>,
}

/// A TCP address to listen on that has a default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Host name or address; IPv6 without brackets.
    pub host: String,
    /// Port; 0 lets the kernel choose.
    pub port: u16,
    /// The port came from the command line: if it is busy, that is an error. A busy default is only a warning.
    pub port_is_explicit: bool,
}

/// What the daemon does with GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuConfig {
    /// Whether workers with a KV cache in GPU memory are served if there is a driver. Default: they are.
    pub enabled: bool,
    /// How blocks are copied. Default: as the driver does it best.
    pub copies: CudaCopies,
    /// Longest wait for a worker's event. Default: 120 s.
    pub event_timeout: Duration,
}

/// How blocks in GPU memory are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CudaCopies {
    /// In batches where the driver can; what it cannot through a staging buffer on the GPU, if it is short.
    Auto,
    /// Never in batches.
    Staged,
    /// Piece by piece.
    Plain,
}

/// How the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutdownConfig {
    /// Longest wait for transfers under way. Default: 10 s; zero does not wait.
    pub drain: Duration,
    /// Remove the pool at an orderly exit.
    pub discard_on_exit: bool,
}

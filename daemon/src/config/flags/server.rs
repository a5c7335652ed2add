//! Flags of the request server and of the HTTP API.

use clap::Args;

#[derive(Debug, Args)]
#[command(next_help_heading = "Honoured: request server")]
pub(crate) struct ServerFlags {
    /// Name of this daemon on every metric and span (service.instance.id); "" stays empty [default: a new UUID]
    #[arg(long, visible_alias = "service-instance-id", value_name = "ID")]
    pub(crate) instance_id: Option<String>,

    /// Where workers connect: tcp://host:port or ipc:///path; repeatable; replaces --host and --port unless they
    /// are given as well [default: tcp://HOST:PORT]
    #[arg(long, value_name = "ENDPOINT")]
    pub(crate) bind: Vec<String>,

    /// User that may connect to Unix sockets besides the daemon's own and root; repeatable
    #[arg(long, value_name = "UID")]
    pub(crate) ipc_allow_uid: Vec<i64>,

    /// File that binds connections to cache salts: lines of a token of at least 16 characters and the salts that it opens,
    /// readable by nobody else; clients show it with lmcached_authenticate, SIGHUP reads it again
    #[arg(long, value_name = "FILE")]
    pub(crate) tenant_tokens_file: Option<String>,

    /// Serve only connections that have shown a token, those of this machine too; LMCache's own client has none
    #[arg(long)]
    pub(crate) tenant_token_required: bool,

    /// Host or address to listen on for workers; 0.0.0.0 is every IPv4 interface
    #[arg(long, default_value = "localhost")]
    pub(crate) host: String,

    /// TCP port to listen on for workers
    #[arg(long, default_value_t = 5555)]
    pub(crate) port: i64,

    /// Tokens in one chunk, the unit of storing and of lookup (1 to 65536)
    #[arg(long, default_value_t = 256, value_name = "TOKENS")]
    pub(crate) chunk_size: i64,

    /// Engine block id that means "no KV here"
    #[arg(long, default_value_t = 0, value_name = "ID")]
    pub(crate) null_block_id: i64,

    /// How token chunks are hashed; builtin is refused
    #[arg(long, default_value = "blake3", value_name = "NAME", value_parser = ["builtin", "sha256_cbor", "blake3"])]
    pub(crate) hash_algorithm: String,

    /// Who copies the KV bytes: the server, the worker, or both ways offered [default: auto]
    #[arg(long, value_name = "MODE", value_parser = ["lmcache_driven", "engine_driven", "auto"])]
    pub(crate) supported_transfer_mode: Option<String>,

    /// One object group per sliding-window size for hybrid models
    #[arg(long, overrides_with = "no_separate_object_groups")]
    pub(crate) separate_object_groups: bool,

    /// One object group for all layers (the default)
    #[arg(long, overrides_with = "separate_object_groups")]
    pub(crate) no_separate_object_groups: bool,

    /// Stored and evicted chunks remembered for KV-event subscribers; 0 closes the channel
    #[arg(long, default_value_t = 32_768, value_name = "RECORDS")]
    pub(crate) kv_event_log_size: i64,

    /// Threads for hashing and copying [default: from the number of cores]
    #[arg(long, value_name = "N")]
    pub(crate) compute_threads: Option<i64>,

    /// Directory for what has to outlive the daemon besides the pool, such as quotas
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Honoured: HTTP API")]
pub(crate) struct HttpFlags {
    /// Host or address of the admin API; on any but a loopback address it needs --http-token-file, or it serves
    /// only /healthcheck and /metrics
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST")]
    pub(crate) http_host: String,

    /// Port of the admin API; 0 takes a free one
    #[arg(long, default_value_t = 8080, value_name = "PORT")]
    pub(crate) http_port: i64,

    /// File with the bearer token of the admin API, at least 16 characters, readable by nobody else; without it whoever
    /// reaches a loopback address may use the whole API
    #[arg(long, value_name = "FILE")]
    pub(crate) http_token_file: Option<String>,
}

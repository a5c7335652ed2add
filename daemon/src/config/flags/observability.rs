//! Flags of the event bus and everything that listens to it.

use clap::Args;

use crate::config::types::{LogFormat, MetricsCompat, TraceArgs, TraceLevel};

#[derive(Debug, Args)]
#[command(next_help_heading = "Honoured: observability")]
pub(crate) struct ObservabilityFlags {
    /// Turn the event bus off: no metrics, no event logs, no spans
    #[arg(long)]
    pub(crate) disable_observability: bool,

    /// No metrics, and no Prometheus port
    #[arg(long)]
    pub(crate) disable_metrics: bool,

    /// No log lines made from events
    #[arg(long)]
    pub(crate) disable_logging: bool,

    /// Export a span per request; needs --otlp-endpoint
    #[arg(long)]
    pub(crate) enable_tracing: bool,

    /// OTLP gRPC collector for metrics, log records and spans, such as http://localhost:4317
    #[arg(long, value_name = "URL")]
    pub(crate) otlp_endpoint: Option<String>,

    /// Events that may wait in the bus; later ones are dropped and counted
    #[arg(long, default_value_t = 10_000, value_name = "EVENTS")]
    pub(crate) event_bus_queue_size: i64,

    /// Host or address of the Prometheus port
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST")]
    pub(crate) prometheus_host: String,

    /// Port of the Prometheus page; 0 takes a free one
    #[arg(long, default_value_t = 9090, value_name = "PORT")]
    pub(crate) prometheus_port: i64,

    /// Part of the chunks followed for the lifecycle histograms, above 0 and up to 1; counters count all
    #[arg(long, default_value_t = 0.01, value_name = "FRACTION")]
    pub(crate) metrics_sample_rate: f64,

    /// Names of the metrics: those of the documented page, those of LMCache 0.5.6, or both
    #[arg(long, value_enum, default_value = "seed", value_name = "SET")]
    pub(crate) metrics_compat: MetricsCompat,

    /// Series of one metric; more are counted together until some retire
    #[arg(long, default_value_t = 2000, value_name = "N")]
    pub(crate) metrics_max_series: i64,

    /// Form of the log lines
    #[arg(long, value_enum, default_value = "human", value_name = "FORM")]
    pub(crate) log_format: LogFormat,

    /// Log throughput and pool use at intervals
    #[arg(long)]
    pub(crate) enable_extra_logging: bool,

    /// Time between two such lines
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    pub(crate) extra_logging_interval: f64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Honoured: lookup hash log")]
pub(crate) struct LookupHashLogFlags {
    /// Directory for JSON lines of looked-up chunk hashes; "" writes none
    #[arg(long, default_value = "", value_name = "DIR")]
    pub(crate) lookup_hash_log_dir: String,

    /// Age at which a file is closed and the next begun
    #[arg(long, default_value_t = 21_600, value_name = "SECONDS")]
    pub(crate) lookup_hash_log_rotation_interval: i64,

    /// Size at which a file is closed and the next begun
    #[arg(long, default_value_t = 100 << 20, value_name = "BYTES")]
    pub(crate) lookup_hash_log_rotation_max_size: i64,

    /// Files kept; the oldest goes first
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub(crate) lookup_hash_log_max_files: i64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Honoured: trace recording")]
pub(crate) struct TraceFlags {
    /// Record calls of the storage layer to a .lct file, for replay; events is refused
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub(crate) trace_level: Option<TraceLevel>,

    /// The file [default: lmcache-trace-PID-UTC.lct in $TMPDIR]
    #[arg(long, value_name = "PATH")]
    pub(crate) trace_output: Option<String>,

    /// Names and shapes of the recorded arguments: those of LMCache 0.5.6, or of the documented page
    #[arg(long, value_enum, default_value = "0.5.6", value_name = "RELEASE")]
    pub(crate) trace_args: TraceArgs,
}

//! The checked configuration of the event bus and of everything that listens to it.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::Listen;

/// Metrics, logs, spans and recordings.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservabilityConfig {
    /// `service.instance.id`. `None`: a new UUID at every start; `Some("")`: empty because it was asked for.
    pub instance_id: Option<String>,
    /// Threshold of the log, from `LMCACHE_LOG_LEVEL`. Default: INFO.
    pub log_level: LogLevel,
    /// The event bus runs. Without it the four fields below are off as well.
    pub enabled: bool,
    /// Metrics are made from events.
    pub metrics: bool,
    /// Log lines are made from events.
    pub logging: bool,
    /// Spans are exported; `otlp_endpoint` is then set.
    pub tracing: bool,
    /// Interval of the throughput lines. Default: `None`, no such lines.
    pub extra_logging: Option<Duration>,
    /// OTLP gRPC collector, with scheme.
    pub otlp_endpoint: Option<String>,
    /// Events that may wait in the bus. Default: 10000.
    pub event_bus_queue_size: NonZeroUsize,
    /// The Prometheus port, `None` with metrics off or where the admin API serves the same address.
    /// Default: `127.0.0.1:9090`.
    pub prometheus: Option<Listen>,
    /// Part of the chunks followed for lifecycle histograms, in (0, 1]. Default: 0.01.
    pub metrics_sample_rate: f64,
    /// Under which names metrics are exposed. Default: those of the documented page.
    pub metrics_compat: MetricsCompat,
    /// Series of one metric. Default: 2000.
    pub metrics_max_series: NonZeroUsize,
    /// Form of the log lines. Default: for people.
    pub log_format: LogFormat,
    /// JSON lines of looked-up hashes. Default: off.
    pub lookup_hash_log: Option<LookupHashLogConfig>,
    /// `.lct` recording. Default: off.
    pub trace: Option<TraceConfig>,
}

/// Threshold of the log, in Python's five names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// The default.
    Info,
    /// Something is off, the daemon copes.
    Warning,
    /// Something failed.
    Error,
    /// The daemon cannot go on.
    Critical,
}

impl LogLevel {
    /// Python's name.
    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Debug => "DEBUG",
            LogLevel::Info => "INFO",
            LogLevel::Warning => "WARNING",
            LogLevel::Error => "ERROR",
            LogLevel::Critical => "CRITICAL",
        }
    }

    /// The level of that name, in either case.
    pub fn from_name(name: &str) -> Option<LogLevel> {
        Some(match name.to_ascii_uppercase().as_str() {
            "DEBUG" => LogLevel::Debug,
            "INFO" => LogLevel::Info,
            "WARNING" => LogLevel::Warning,
            "ERROR" => LogLevel::Error,
            "CRITICAL" => LogLevel::Critical,
            _ => return None,
        })
    }
}

/// Names under which metrics are exposed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum MetricsCompat {
    /// Those of the documented page.
    #[default]
    #[value(name = "seed")]
    Seed,
    /// Those of LMCache 0.5.6, for dashboards made for it.
    #[value(name = "0.5")]
    V05,
    /// Both; where they coincide, with the labels of the documented page.
    #[value(name = "both")]
    Both,
}

/// Form of the log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// JSON lines of looked-up chunk hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookupHashLogConfig {
    /// Where the files go.
    pub dir: PathBuf,
    /// Age at which a file is closed. Default: 6 h.
    pub rotation_interval: Duration,
    /// Size at which a file is closed, in bytes. Default: 100 MiB.
    pub rotation_max_bytes: NonZeroU64,
    /// Files kept. Default: 100.
    pub max_files: NonZeroUsize,
}

/// `.lct` recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceConfig {
    /// What is recorded.
    pub level: TraceLevel,
    /// The file. `None`: `$TMPDIR/lmcache-trace-<pid>-<UTC>.lct`.
    pub output: Option<PathBuf>,
    /// Whose argument names and shapes. Default: those of LMCache 0.5.6.
    pub args: TraceArgs,
}

/// Whose argument names and shapes a recording has. Both are the same version of the format, and readers tell them apart by
/// the names; LMCache's own replay only takes those of its release.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum TraceArgs {
    /// LMCache 0.5.6.
    #[default]
    #[value(name = "0.5.6")]
    V056,
    /// LMCache 0.4.5, which is what the documented page describes.
    #[value(name = "0.4.5")]
    V045,
}

impl TraceArgs {
    /// As the flag has it.
    pub fn name(self) -> &'static str {
        match self {
            TraceArgs::V056 => "0.5.6",
            TraceArgs::V045 => "0.4.5",
        }
    }
}

/// What a recording holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TraceLevel {
    /// Calls of the storage layer, for replay.
    #[value(name = "storage")]
    Storage,
    /// Cache events as a coordinator would get them.
    #[value(name = "events")]
    Events,
}

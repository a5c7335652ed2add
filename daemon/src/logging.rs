//! Where log lines go: standard error, and the OTLP collector if there is one.
//!
//! The daemon never waits for either. Lines go through a bounded queue to a thread of their own; when standard error is
//! slower than the daemon talks, lines are dropped and counted (`lmcached_log_lines_dropped_total`).
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::time::Duration;

use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{EnvFilter, FilterFn, LevelFilter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::{LogFormat, LogLevel, ObservabilityConfig};
use crate::telemetry::{CollectorError, Outlet};

/// Lines that may wait for standard error.
const WAITING_LINES: usize = 8192;
/// How long the collector may take to get the last records.
const LAST_EXPORT: Duration = Duration::from_secs(3);

/// Modules whose records would be about sending records: forwarding them would never end.
const NOT_FORWARDED: &[&str] =
    &["tonic", "h2", "hyper", "hyper_util", "tower", "rustls", "opentelemetry", "lmcached::otlp"];

/// Writes what is left when it is dropped.
#[derive(Debug)]
pub struct Guard {
    provider: Option<SdkLoggerProvider>,
    _writer: WorkerGuard,
}

/// Starts logging as `config` says. `RUST_LOG`, when set, refines the level per module.
///
/// # Errors
/// If the collector's variables are wrong.
pub fn start(config: &ObservabilityConfig, outlet: &Outlet) -> Result<Guard, CollectorError> {
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING_LINES)
        .lossy(true)
        .thread_name("lmcached-log")
        .finish(std::io::stderr());
    let lost = writer.error_counter();
    outlet.health.count_lost_lines(move || lost.dropped_lines() as u64);
    let lines = fmt::layer().with_writer(writer).with_ansi(std::io::stderr().is_terminal());
    let lines = match config.log_format {
        LogFormat::Human => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_ansi(false).boxed(),
    };
    let provider = match &outlet.collector {
        Some(collector) => Some(collector.logger_provider(outlet.resource.clone())?),
        None => None,
    };
    let records = provider.as_ref().map(|provider| {
        OpenTelemetryTracingBridge::new(provider).with_filter(FilterFn::new(|meta| forwarded(meta.target())))
    });
    let _ =
        tracing_subscriber::registry().with(filter(config.log_level)).with(lines).with(records).try_init();
    Ok(Guard { provider, _writer: guard })
}

fn filter(level: LogLevel) -> EnvFilter {
    let level = match level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Error | LogLevel::Critical => LevelFilter::ERROR,
    };
    EnvFilter::builder().with_default_directive(level.into()).from_env_lossy()
}

/// Whether a record goes to the collector.
fn forwarded(target: &str) -> bool {
    !NOT_FORWARDED.iter().any(|module| {
        target.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '_']))
    })
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take() {
            let _ = provider.shutdown_with_timeout(LAST_EXPORT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sends_records_forwards_none() {
        for target in [
            "tonic",
            "tonic::transport",
            "h2::codec",
            "hyper_util::client",
            "opentelemetry_sdk",
            "lmcached::otlp",
        ] {
            assert!(!forwarded(target), "{target}");
        }
        for target in ["lmcached", "lmcached::events", "h264", "tonics"] {
            assert!(forwarded(target), "{target}");
        }
    }
}

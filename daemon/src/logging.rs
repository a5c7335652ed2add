//! Where log lines go: standard error, and the OTLP collector if there is one.
//!
//! The daemon never waits for either. Lines go through a bounded queue to a thread of their own; when standard error is
//! slower than the daemon talks, lines are dropped and counted (`lmcached_log_lines_dropped_total`).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use parking_lot::Mutex;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{Directive, EnvFilter, FilterFn, LevelFilter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::{LogFormat, LogLevel, ObservabilityConfig};
use crate::process;
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
    /// Changes levels while the daemon runs.
    pub levels: Levels,
}

/// Modules that may have a level of their own at the same time: each is looked at for every new call site.
const MAX_MODULES: usize = 64;

/// The levels, which can be changed at run time. Cheap to share.
#[derive(Clone, Debug)]
pub struct Levels {
    handle: reload::Handle<EnvFilter, Registry>,
    now: Arc<Mutex<Now>>,
}

#[derive(Clone, Debug)]
struct Now {
    all: LogLevel,
    modules: BTreeMap<String, LogLevel>,
}

impl Levels {
    /// The level of everything that has none of its own, and those of modules.
    pub fn now(&self) -> (LogLevel, BTreeMap<String, LogLevel>) {
        let now = self.now.lock();
        (now.all, now.modules.clone())
    }

    /// Sets the level of a module (its path, such as `lmcached::l2`), or of everything. `RUST_LOG`, when set, still stands
    /// for the modules that it names.
    ///
    /// # Errors
    /// A line that says what is wrong with the module.
    pub fn set(&self, module: Option<&str>, level: LogLevel) -> Result<(), String> {
        let mut now = self.now.lock();
        let mut next = now.clone();
        match module {
            None => next.all = level,
            Some(module) => {
                let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let is_path = module.split("::").all(|part| !part.is_empty() && part.chars().all(word));
                if !is_path || module.len() > 128 {
                    return Err("a logger is a module path such as lmcached::l2".into());
                }
                next.modules.insert(module.to_owned(), level);
                if next.modules.len() > MAX_MODULES {
                    return Err(format!("{MAX_MODULES} modules have a level of their own already"));
                }
            }
        }
        let mut filter = filter(next.all);
        for (module, level) in &next.modules {
            let directive = format!("{module}={}", threshold(*level));
            let directive: Directive = directive.parse().map_err(|_| "not a module path".to_owned())?;
            filter = filter.add_directive(directive);
        }
        self.handle.reload(filter).map_err(|error| error.to_string())?;
        *now = next;
        Ok(())
    }
}

/// Levels of a log that goes nowhere.
#[cfg(feature = "fuzzing")]
pub(crate) fn unheard_levels() -> Levels {
    let (layer, handle) = reload::Layer::new(filter(LogLevel::Error));
    // The handle asks it to live.
    Box::leak(Box::new(layer));
    Levels { handle, now: Arc::new(Mutex::new(Now { all: LogLevel::Error, modules: BTreeMap::new() })) }
}

/// Starts logging as `config` says. `RUST_LOG`, when set, refines the level per module.
///
/// # Errors
/// If the collector's variables are wrong.
pub fn start(config: &ObservabilityConfig, outlet: &Outlet) -> Result<Guard, CollectorError> {
    let (writer, guard) = process::behind(|| {
        NonBlockingBuilder::default()
            .buffered_lines_limit(WAITING_LINES)
            .lossy(true)
            .thread_name("lmcached-log")
            .finish(std::io::stderr())
    });
    let lost = writer.error_counter();
    outlet.health.count_lost_lines(move || lost.dropped_lines() as u64);
    let lines = fmt::layer().with_writer(writer).with_ansi(std::io::stderr().is_terminal());
    let lines = match config.log_format {
        LogFormat::Human => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_ansi(false).boxed(),
    };
    let provider = match &outlet.collector {
        Some(collector) => Some(process::behind(|| collector.logger_provider(outlet.resource.clone()))?),
        None => None,
    };
    let records = provider.as_ref().map(|provider| {
        OpenTelemetryTracingBridge::new(provider).with_filter(FilterFn::new(|meta| forwarded(meta.target())))
    });
    let (filter, handle) = reload::Layer::new(filter(config.log_level));
    let _ = tracing_subscriber::registry().with(filter).with(lines).with(records).try_init();
    let now = Now { all: config.log_level, modules: BTreeMap::new() };
    Ok(Guard { provider, _writer: guard, levels: Levels { handle, now: Arc::new(Mutex::new(now)) } })
}

fn threshold(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Error | LogLevel::Critical => LevelFilter::ERROR,
    }
}

fn filter(level: LogLevel) -> EnvFilter {
    EnvFilter::builder().with_default_directive(threshold(level).into()).from_env_lossy()
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

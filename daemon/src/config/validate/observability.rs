//! Checks of the event bus and of everything that listens to it.

use std::path::PathBuf;

use clap::ArgMatches;

use super::{Environment, is_explicit, ranges, variable};
use crate::config::Notice;
use crate::config::endpoint::{is_wildcard, overlap};
use crate::config::error::ConfigError;
use crate::config::flags::{Flags, LookupHashLogFlags, ObservabilityFlags, TraceFlags};
use crate::config::types::{Listen, LogLevel, LookupHashLogConfig, ObservabilityConfig, TraceConfig};

/// Longest queue of the event bus; an event takes a few hundred bytes.
const MAX_QUEUED_EVENTS: i64 = 1 << 24;

/// Most series of one metric; a histogram's takes a few hundred bytes, and a scrape shows all of them.
const MAX_SERIES: i64 = 1 << 20;

pub(super) fn observability(
    flags: &Flags,
    matches: &ArgMatches,
    environment: Environment<'_>,
    http: &Listen,
    notices: &mut Vec<Notice>,
) -> Result<ObservabilityConfig, ConfigError> {
    let given = &flags.observability;
    let enabled = !given.disable_observability;
    let metrics = enabled && !given.disable_metrics;
    let otlp_endpoint = otlp_endpoint(given)?;
    let prometheus = prometheus(given, matches)?;
    let interval = ranges::positive_seconds("--extra-logging-interval", given.extra_logging_interval)?;
    if given.enable_extra_logging && !enabled {
        let line = "these lines are made from events; drop one of the two";
        return Err(ConfigError::conflict("--enable-extra-logging and --disable-observability", line));
    }
    for (flag, given) in
        [("--enable-tracing", given.enable_tracing), ("--trace-level", flags.trace.trace_level.is_some())]
    {
        if given && !enabled {
            let line = "both are made from events; drop one of the two";
            return Err(ConfigError::conflict(format!("{flag} and --disable-observability"), line));
        }
    }
    Ok(ObservabilityConfig {
        instance_id: flags.server.instance_id.clone(),
        log_level: log_level(environment)?,
        enabled,
        metrics,
        logging: enabled && !given.disable_logging,
        tracing: enabled && given.enable_tracing,
        extra_logging: given.enable_extra_logging.then_some(interval),
        otlp_endpoint,
        event_bus_queue_size: ranges::count(
            "--event-bus-queue-size",
            given.event_bus_queue_size,
            MAX_QUEUED_EVENTS,
        )?,
        prometheus: if metrics { apart_from_http(prometheus, http, notices)? } else { None },
        metrics_sample_rate: ranges::fraction("--metrics-sample-rate", given.metrics_sample_rate)?,
        metrics_compat: given.metrics_compat,
        metrics_max_series: ranges::count("--metrics-max-series", given.metrics_max_series, MAX_SERIES)?,
        log_format: given.log_format,
        // It lives of events.
        lookup_hash_log: lookup_hash_log(&flags.lookup_hash_log)?.filter(|_| enabled),
        trace: trace(&flags.trace, notices),
    })
}

/// The peer quietly takes a bad name for INFO, and the debug lines somebody waits for never come.
fn log_level(environment: Environment<'_>) -> Result<LogLevel, ConfigError> {
    const NAME: &str = "LMCACHE_LOG_LEVEL";
    let Some(value) = variable(environment, NAME)? else { return Ok(LogLevel::Info) };
    LogLevel::from_name(&value).ok_or_else(|| {
        let allowed = "must be DEBUG, INFO, WARNING, ERROR or CRITICAL".to_owned();
        ConfigError::Environment { name: NAME, value, allowed }
    })
}

/// An endpoint without scheme gets `http://`: OTLP exporters take `host:4317`, and so does the peer's.
fn otlp_endpoint(flags: &ObservabilityFlags) -> Result<Option<String>, ConfigError> {
    let Some(text) = flags.otlp_endpoint.as_deref().filter(|text| !text.is_empty()) else {
        if flags.enable_tracing {
            let line = "spans can only go to a collector, add --otlp-endpoint http://HOST:4317";
            return Err(ConfigError::conflict("--enable-tracing", line));
        }
        return Ok(None);
    };
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    if rest.is_none_or(|rest| {
        rest.starts_with(['/', ':']) || rest.is_empty() || rest.contains(char::is_whitespace)
    }) {
        return Err(ConfigError::value(
            "--otlp-endpoint",
            text,
            "must be a URL such as http://localhost:4317",
        ));
    }
    Ok(Some(url))
}

fn prometheus(flags: &ObservabilityFlags, matches: &ArgMatches) -> Result<Listen, ConfigError> {
    Ok(Listen {
        host: ranges::host("--prometheus-host", &flags.prometheus_host)?,
        port: ranges::port("--prometheus-port", flags.prometheus_port)?,
        port_is_explicit: is_explicit(matches, "prometheus_port"),
    })
}

/// The peer never opens the Prometheus port, so command lines exist where both ports are equal. The admin API has the
/// same page: where it covers the address, nothing is lost.
fn apart_from_http(
    prometheus: Listen,
    http: &Listen,
    notices: &mut Vec<Notice>,
) -> Result<Option<Listen>, ConfigError> {
    if !overlap((&prometheus.host, prometheus.port), (&http.host, http.port)) {
        return Ok(Some(prometheus));
    }
    if is_wildcard(&prometheus.host) && !is_wildcard(&http.host) {
        let line = format!("port {} is the admin API's as well, take another for one of them", http.port);
        return Err(ConfigError::conflict("--prometheus-port and --http-port", line));
    }
    notices.push(Notice {
        flag: "--prometheus-port",
        line: format!(
            "--prometheus-port {} is the admin API's port, which serves /metrics itself",
            prometheus.port
        ),
    });
    Ok(None)
}

fn lookup_hash_log(flags: &LookupHashLogFlags) -> Result<Option<LookupHashLogConfig>, ConfigError> {
    let interval = flags.lookup_hash_log_rotation_interval;
    let config = LookupHashLogConfig {
        dir: PathBuf::from(&flags.lookup_hash_log_dir),
        rotation_interval: ranges::positive_seconds("--lookup-hash-log-rotation-interval", interval as f64)?,
        rotation_max_bytes: ranges::bytes(
            "--lookup-hash-log-rotation-max-size",
            flags.lookup_hash_log_rotation_max_size,
        )?,
        max_files: ranges::count("--lookup-hash-log-max-files", flags.lookup_hash_log_max_files, 1 << 20)?,
    };
    Ok(Some(config).filter(|_| !flags.lookup_hash_log_dir.is_empty()))
}

fn trace(flags: &TraceFlags, notices: &mut Vec<Notice>) -> Option<TraceConfig> {
    let output = flags.trace_output.as_ref().filter(|path| !path.is_empty()).map(PathBuf::from);
    if flags.trace_level.is_none() && output.is_some() {
        notices.push(Notice {
            flag: "--trace-output",
            line: "--trace-output records nothing without --trace-level".to_owned(),
        });
    }
    flags.trace_level.map(|level| TraceConfig { level, output, args: flags.trace_args })
}

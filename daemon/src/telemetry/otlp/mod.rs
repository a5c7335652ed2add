//! Everything that goes to an OTLP collector.
//!
//! One runtime with one thread of its own (`lmcached-otlp`) carries all of it, so that a slow collector costs the daemon's
//! requests nothing. Queues are bounded and what finds them full is counted.

mod collector;
mod gate;
mod logs;
mod metrics;
mod spans;

pub use collector::{Collector, CollectorError};
pub(super) use metrics::{Export, push};

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::health::{Health, Signal};

/// Counts an export and says at first, and then ever more rarely, that exports fail.
fn report(health: &Health, signal: Signal, endpoint: &str, failure: Option<String>) {
    let worth_a_line = health.exported(signal, failure.is_none());
    match failure {
        Some(reason) if worth_a_line => tracing::warn!(
            target: "lmcached::otlp",
            signal = signal.name(),
            endpoint,
            reason,
            "the OTLP collector takes nothing; requests are not affected, what it misses is counted in lmcached_otlp_exports_total and lmcached_otlp_dropped_total"
        ),
        None if worth_a_line => {
            tracing::info!(target: "lmcached::otlp", signal = signal.name(), endpoint, "the OTLP collector takes exports again");
        }
        _ => {}
    }
}

/// Ends a push task: it exports once more, and is given up after `limit`.
pub(super) fn finish(
    collector: &Arc<Collector>,
    stop: &watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
    limit: Duration,
) {
    stop.send_replace(true);
    let runtime = collector.runtime().clone();
    // On a thread that is no runtime's: waiting is allowed there only.
    let waiting = std::thread::spawn(move || {
        let _ = runtime.block_on(async { tokio::time::timeout(limit, task).await });
    });
    let _ = waiting.join();
}

//! How the telemetry itself is doing: numbers that its own parts count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is sent to a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Metrics.
    Metrics,
    /// Spans.
    Traces,
    /// Log records.
    Logs,
}

impl Signal {
    /// All of them.
    pub const ALL: [Signal; 3] = [Signal::Metrics, Signal::Traces, Signal::Logs];

    /// The label.
    pub fn name(self) -> &'static str {
        match self {
            Signal::Metrics => "metrics",
            Signal::Traces => "traces",
            Signal::Logs => "logs",
        }
    }
}

#[derive(Debug, Default)]
struct PerSignal {
    exported: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

/// The counters.
#[derive(Debug, Default)]
pub struct Health {
    signals: [PerSignal; 3],
    log_lines_dropped: std::sync::OnceLock<LostLines>,
    /// Spans that have begun and not ended.
    pub spans_open: AtomicU64,
    /// Spans whose end never came.
    pub spans_unfinished: AtomicU64,
}

/// Where the log writer counts the lines it lost.
struct LostLines(Box<dyn Fn() -> u64 + Send + Sync>);

impl std::fmt::Debug for LostLines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LostLines({})", self.0())
    }
}

impl Health {
    /// No exports yet.
    pub fn new() -> Arc<Health> {
        Arc::default()
    }

    /// An export has ended. `true` if the outcome is another than before and worth a line.
    pub fn exported(&self, signal: Signal, worked: bool) -> bool {
        let counters = &self.signals[signal as usize];
        let (counter, other) = if worked {
            (&counters.exported, &counters.failed)
        } else {
            (&counters.failed, &counters.exported)
        };
        let before = counter.fetch_add(1, Ordering::Relaxed);
        // Failures are worth a line at first and then ever more rarely; success only after failures.
        if worked { before == 0 && other.load(Ordering::Relaxed) > 0 } else { (before + 1).is_power_of_two() }
    }

    /// Something found its queue full.
    pub fn dropped(&self, signal: Signal) {
        self.signals[signal as usize].dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Successful exports, failed ones, dropped items.
    pub fn of(&self, signal: Signal) -> (u64, u64, u64) {
        let counters = &self.signals[signal as usize];
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&counters.exported), load(&counters.failed), load(&counters.dropped))
    }

    /// Tells where lost log lines are counted. Only the first call counts.
    pub fn count_lost_lines(&self, lost: impl Fn() -> u64 + Send + Sync + 'static) {
        let _ = self.log_lines_dropped.set(LostLines(Box::new(lost)));
    }

    /// Log lines lost so far.
    pub fn lost_lines(&self) -> u64 {
        self.log_lines_dropped.get().map_or(0, |lost| lost.0())
    }
}

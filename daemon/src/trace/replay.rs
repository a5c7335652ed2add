//! A recording against this daemon's own storage code, without a worker: L1 and, where configured, the L2 controllers.
//!
//! One call after the other, in the recorded order. Payloads are whatever the fresh pool holds. What runs beside the calls in
//! the daemon is made part of them, so that the same recording gives the same hits and misses each time: the evictor runs
//! after every change, and a store to L2 has ended before the next call begins. Neither counts as the call's time. Timeouts
//! of what nobody finishes run on the recording's clock. That holds if L2 is the same each time: begin with an empty one.

mod prefetch;
mod report;
mod store;

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use thiserror::Error;

use super::decode::Decoder;
use super::info::{Info, info};
use super::operation::Operation;
use super::reader::{Item, ReadError, TraceReader};
use crate::config::{Config, EvictionConfig, EvictionPolicy, L2Config, L2PrefetchPolicy, L2StorePolicy};
use crate::l1::OpenError;
use crate::l2::control::TierError;

use report::Collector;
pub use report::{OpStats, Outcomes, Report};
use store::Store;

/// How fast a recording is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// As it was recorded; a machine that is slower lags behind.
    Recorded,
    /// So many times as fast; above 0.
    Scaled(f64),
    /// Without pauses.
    AsFastAsPossible,
}

/// What a recording is replayed against, and how.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    /// How fast.
    pub speed: Speed,
    /// Bytes of the pool, which is real memory. `None`: as many as the recording daemon had.
    pub l1_bytes: Option<u64>,
    /// What leaves a full pool.
    pub eviction: EvictionConfig,
    /// The colder tiers. They should be empty at the start: what they hold counts as found.
    pub l2: L2Config,
    /// How long a lease may last, by the recording's clock. Recordings of this daemon end every lease; LMCache's may not.
    pub read_ttl: Duration,
    /// How long a reservation may last, by the recording's clock.
    pub write_ttl: Duration,
}

impl Default for ReplayOptions {
    fn default() -> ReplayOptions {
        ReplayOptions {
            speed: Speed::Recorded,
            l1_bytes: None,
            eviction: EvictionConfig { policy: EvictionPolicy::Lru, trigger_watermark: 0.8, ratio: 0.2 },
            l2: L2Config {
                adapters: Vec::new(),
                store_policy: L2StorePolicy::Default,
                prefetch_policy: L2PrefetchPolicy::Default,
                prefetch_max_in_flight: const { NonZeroUsize::new(8).expect("not 0") },
                prefetch_deadline: Duration::from_secs(30),
                store_max_bytes_in_flight: const { NonZeroU64::new(256 << 20).expect("not 0") },
            },
            read_ttl: Duration::from_secs(300),
            write_ttl: Duration::from_secs(600),
        }
    }
}

impl ReplayOptions {
    /// The storage layer of a daemon with this configuration, at recorded speed.
    pub fn like(config: &Config) -> ReplayOptions {
        ReplayOptions {
            l1_bytes: config.l1.size_bytes.map(Into::into),
            eviction: config.eviction,
            l2: config.l2.clone(),
            write_ttl: config.liveness.write_ttl,
            ..ReplayOptions::default()
        }
    }
}

/// Why a recording cannot be replayed. Each is one line.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// The file.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It holds something else.
    #[error("the trace is of level {level:?}, and only storage traces can be replayed")]
    Level {
        /// What it holds.
        level: String,
    },
    /// The pool's size is not known.
    #[error("the trace does not say how large the pool was; give its size")]
    Size,
    /// The speed makes no sense.
    #[error("a replay can be scaled by a number above 0, not by {0}")]
    Scale(f64),
    /// The pool.
    #[error(transparent)]
    L1(#[from] OpenError),
    /// No memory left for the pool.
    #[error("no memory for a pool of {bytes} bytes: {source}; replay with a smaller one")]
    Memory {
        /// Its size.
        bytes: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// An L2 tier.
    #[error(transparent)]
    Tier(#[from] TierError),
    /// Threads.
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
}

/// Replays a recording. `progress` is called with the records done and all of them, before the first and after each.
///
/// Blocks its thread; from a runtime, call it by `spawn_blocking`.
///
/// # Errors
/// See [`ReplayError`]. Records that cannot be replayed are counted in the report instead.
pub fn replay(
    path: &Path,
    options: &ReplayOptions,
    mut progress: impl FnMut(u64, u64),
) -> Result<Report, ReplayError> {
    // Once through the file first: its number of records, and whether it is a recording at all.
    let trace = info(path)?;
    if trace.header.level != "storage" {
        return Err(ReplayError::Level { level: super::text::plain(&trace.header.level) });
    }
    if let Speed::Scaled(factor) = options.speed
        && !(factor.is_finite() && factor > 0.0)
    {
        return Err(ReplayError::Scale(factor));
    }
    let bytes = options.l1_bytes.or_else(|| recorded_bytes(&trace)).ok_or(ReplayError::Size)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .thread_name("lmcached-replay")
        .build()
        .map_err(ReplayError::Runtime)?;
    let result = runtime.block_on(async {
        let mut store = Store::open(options, bytes)?;
        let run = Run { path, trace: &trace, options };
        let collector = run.drive(&mut store, &mut progress).await?;
        store.close().await;
        Ok(collector.finish(&trace, options, bytes, &store))
    });
    runtime.shutdown_background();
    result
}

/// The pool of the recording daemon.
fn recorded_bytes(trace: &Info) -> Option<u64> {
    let config: Value = serde_json::from_str(&trace.header.config_json).ok()?;
    config["l1_manager_config"]["memory_config"]["size_in_bytes"].as_u64().filter(|bytes| *bytes > 0)
}

struct Run<'a> {
    path: &'a Path,
    trace: &'a Info,
    options: &'a ReplayOptions,
}

impl Run<'_> {
    async fn drive(
        &self,
        store: &mut Store,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<Collector, ReplayError> {
        let total = self.trace.records + self.trace.malformed;
        let (mut reader, mut decoder) = (TraceReader::open(self.path)?, Decoder::default());
        let mut collector = Collector::new();
        let mut done = 0;
        progress(done, total);
        while let Some(item) = reader.next_item()? {
            match item {
                Item::Malformed { at, error } => collector.malformed(at, &error),
                Item::Record(record) => match Operation::from_qualname(record.qualname) {
                    None => collector.skipped(record.qualname),
                    Some(operation) => match decoder.decode(operation, record.args) {
                        Err(error) => collector.failed(operation, &error.to_string()),
                        Ok(call) => {
                            self.wait_for(record.t_mono, collector.started()).await;
                            store.advance(record.t_mono);
                            let before = Instant::now();
                            let result = store.execute(call).await;
                            collector.called(operation, before.elapsed(), result);
                            collector.settled(store.settle().await);
                        }
                    },
                },
            }
            done += 1;
            progress(done, total);
        }
        Ok(collector)
    }

    /// Until a record of that time is due.
    async fn wait_for(&self, t_mono: f64, started: Instant) {
        let factor = match self.options.speed {
            Speed::AsFastAsPossible => return,
            Speed::Recorded => 1.0,
            Speed::Scaled(factor) => factor,
        };
        // A time that no clock can hold is a damaged one.
        let Ok(due) = Duration::try_from_secs_f64(t_mono / factor) else { return };
        tokio::time::sleep(due.saturating_sub(started.elapsed())).await;
    }
}

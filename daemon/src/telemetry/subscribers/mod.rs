//! Consumers of events that make metrics, log lines and spans: one file for each group.
//!
//! Each owns its state, keeps it bounded, and sees nothing but events.

mod blocks;
mod failures;
mod housekeeping;
mod l1;
mod l1_lifecycle;
mod l2;
mod lines;
mod lookup;
pub(super) mod lookup_hashes;
mod pending;
mod real_reuse;
mod span_parts;
mod statistics;
mod storage;
mod throughput;
pub(super) mod tracing_spans;
mod transfers;

use std::sync::Arc;
use std::time::Duration;

use super::sample::Sampler;
use super::series::Store;
use crate::events::Subscriber;

/// The subscribers that make metrics.
pub(super) fn metrics(store: &Arc<Store>, sample_rate: f64) -> Vec<Box<dyn Subscriber>> {
    let sampler = Sampler::new(sample_rate);
    let store = || store.clone();
    vec![
        Box::new(storage::StorageMetrics::new(store())),
        Box::new(l1::L1Metrics::new(store())),
        Box::new(l1_lifecycle::L1Lifecycle::new(store(), sampler)),
        Box::new(real_reuse::RealReuse::new(store(), sampler)),
        Box::new(l2::L2Metrics::new(store())),
        Box::new(throughput::L2Throughput::new(store(), sampler)),
        Box::new(throughput::L0L1Throughput::new(store(), sampler)),
        Box::new(failures::FailureMetrics::new(store())),
        Box::new(lookup::LookupMetrics::new(store())),
        Box::new(transfers::TransferMetrics::new(store())),
        Box::new(blocks::L0Lifecycle::new(store(), sample_rate)),
        Box::new(housekeeping::Housekeeping::new(store())),
    ]
}

/// The subscriber that writes the documented log lines.
pub(super) fn logging() -> Box<dyn Subscriber> {
    Box::new(lines::Lines::default())
}

/// The subscriber that writes throughput and pool use at intervals.
pub(super) fn statistics(every: Duration) -> Box<dyn Subscriber> {
    Box::new(statistics::Statistics::new(every))
}

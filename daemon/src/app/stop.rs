//! What an orderly end waits for.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::{Engine, L2};
use crate::events::Drain;
use crate::l2::adapter::L2Adapter as _;
use crate::telemetry::Telemetry;

/// Before an ordered end: what was stored goes to the tiers, and those who hold something get to read it. New stores are
/// refused already.
pub(super) async fn empty(engine: &Arc<Engine>, limit: Duration) {
    let began = std::time::Instant::now();
    let until = began + limit;
    if let Some(l2) = engine.l2() {
        let left = l2.opened.stores.flush(limit).await;
        tracing::info!(left, "drain: the stores to L2 are done");
    }
    let waiting = engine.clone();
    let unheld = tokio::task::spawn_blocking(move || waiting.l1().wait_unheld(until)).await;
    let l1 = engine.l1().stats();
    if unheld.is_ok_and(|unheld| unheld) {
        tracing::info!(took_s = began.elapsed().as_secs_f64(), "drain: nobody holds anything any more");
    } else {
        tracing::warn!(
            leases = l1.leases,
            pins = l1.pins,
            limit_s = limit.as_secs_f64(),
            "drain: the time is over and requests still hold objects; they lose them now and recompute"
        );
    }
}

/// Lets the stores under way finish: L1 keeps their objects, but only this daemon knows that the tiers lack them.
pub(super) async fn flush_tiers(l2: &L2, limit: Duration) {
    let left = l2.opened.stores.flush(limit).await;
    if left > 0 {
        tracing::warn!(
            objects = left,
            "objects were not stored in L2 before --drain-seconds were over; L1 keeps them"
        );
    }
    for attached in &*l2.opened.tiers.all() {
        attached.tier.close().await;
    }
}

/// Delivers the events that are queued, then sends the last numbers; both have limits.
pub(super) async fn last_words(events: Option<Drain>, telemetry: Arc<Telemetry>) {
    let last = tokio::task::spawn_blocking(move || {
        drop(events);
        telemetry.shutdown();
    });
    if let Err(error) = last.await {
        tracing::error!(%error, "the last events were lost to a panic; this is a bug in lmcached, please report it");
    }
}

//! What scrapers see.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use prometheus::{Encoder, GaugeVec, IntCounterVec, Opts, Registry, TextEncoder};

use crate::engine::{Engine, OpOutcome};
use crate::server::{BadMessage, Server};

/// The Prometheus text page.
///
/// # Errors
/// Only if a metric is declared twice, which a test would show.
pub fn exposition(engine: &Engine, server: &Server) -> Result<String, prometheus::Error> {
    let registry = Registry::new();
    let counter = |name: &str, help: &str, rows: &[(&[&str], u64)], labels: &[&str]| {
        let family = IntCounterVec::new(Opts::new(name, help), labels)?;
        for (values, value) in rows {
            family.with_label_values(values).inc_by(*value);
        }
        registry.register(Box::new(family))
    };
    let gauge = |name: &str, help: &str, value: f64| {
        let family = GaugeVec::new(Opts::new(name, help), &[])?;
        family.with_label_values::<&str>(&[]).set(value);
        registry.register(Box::new(family))
    };

    let requests = IntCounterVec::new(
        Opts::new("lmcached_requests_total", "Requests by operation and what came of them."),
        &["operation", "outcome"],
    )?;
    for (operation, outcome, count) in engine.stats().requests() {
        let outcome = match outcome {
            OpOutcome::Ok => "ok",
            OpOutcome::Refused(reason) => reason.name(),
        };
        requests.with_label_values(&[operation.name(), outcome]).inc_by(count);
    }
    registry.register(Box::new(requests))?;

    let stats = engine.stats();
    let l1 = engine.l1().stats();
    let bad_messages = |reasons: &[BadMessage]| {
        server
            .stats()
            .bad_messages()
            .filter(|(reason, _)| reasons.contains(reason))
            .map(|(_, count)| count)
            .sum()
    };
    for (name, help, value) in [
        (
            "lmcache_mp_lookup_requested_tokens_total",
            "Tokens that lookups asked for, whole chunks only.",
            stats.requested_tokens.load(Ordering::Relaxed),
        ),
        (
            "lmcache_mp_lookup_hit_tokens_total",
            "Tokens that lookups found.",
            stats.hit_tokens.load(Ordering::Relaxed),
        ),
        (
            "lmcached_stored_tokens_total",
            "Tokens stored by workers.",
            stats.stored_tokens.load(Ordering::Relaxed),
        ),
        (
            "lmcached_retrieved_tokens_total",
            "Tokens retrieved by workers.",
            stats.retrieved_tokens.load(Ordering::Relaxed),
        ),
        ("lmcache_mp_l1_evicted_keys_total", "Objects evicted by the eviction policy.", l1.totals.evicted),
        ("lmcached_l1_evicted_bytes_total", "Bytes evicted by the eviction policy.", l1.totals.evicted_bytes),
        (
            "lmcached_l1_replaced_objects_total",
            "Objects replaced because they had another layout.",
            l1.totals.replaced,
        ),
        (
            "lmcached_l1_quarantined_total",
            "Reservations taken from workers that were late, reaped or unregistered.",
            l1.totals.quarantined,
        ),
        (
            "lmcached_l1_full_total",
            "Allocations that failed although everything evictable was evicted.",
            l1.totals.full,
        ),
        (
            "lmcached_malformed_messages_total",
            "Messages that are no LMCache request.",
            bad_messages(&[
                BadMessage::TooShort,
                BadMessage::OverlongId,
                BadMessage::Operation,
                BadMessage::Control,
            ]),
        ),
        (
            "lmcached_unknown_operations_total",
            "Requests of operations that are not served.",
            bad_messages(&[BadMessage::Unserved, BadMessage::Unknown]),
        ),
        (
            "lmcached_peers_refused_total",
            "Connections refused or ended by the daemon.",
            server.stats().ended().map(|(_, count)| count).sum(),
        ),
        (
            "lmcached_workers_reaped_total",
            "Workers forgotten because they were silent.",
            stats.reaped.load(Ordering::Relaxed),
        ),
        (
            "lmcached_leases_expired_total",
            "Lookup leases ended because their connection was gone.",
            stats.leases_expired.load(Ordering::Relaxed),
        ),
    ] {
        counter(name, help, &[(&[], value)], &[])?;
    }
    for (name, help, value) in [
        ("lmcache_mp_l1_memory_usage_bytes", "Bytes that objects take in L1.", l1.used as f64),
        (
            "lmcache_mp_l1_usage_ratio",
            "Share of L1 that objects take.",
            l1.used as f64 / (l1.capacity.max(1)) as f64,
        ),
        ("lmcached_l1_capacity_bytes", "Bytes of the L1 pool.", l1.capacity as f64),
        (
            "lmcached_l1_reserved_bytes",
            "Bytes of the L1 pool that are real memory by now.",
            l1.frontier as f64,
        ),
        ("lmcached_l1_objects", "Readable objects in L1.", l1.objects as f64),
        ("lmcached_l1_writing_objects", "Objects that workers are writing.", l1.writing as f64),
        (
            "lmcached_l1_quarantined_objects",
            "Slots kept from everybody until their worker is gone.",
            l1.quarantined as f64,
        ),
        ("lmcached_l1_leases", "Lookup leases.", l1.leases as f64),
        ("lmcached_l1_pins", "Slots that transfers are touching.", l1.pins as f64),
        ("lmcached_connections", "Open client connections.", server.connections() as f64),
        ("lmcached_queued_bytes", "Bytes queued for and from clients.", server.queued_bytes() as f64),
    ] {
        gauge(name, help, value)?;
    }
    let mut page = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut page)?;
    String::from_utf8(page).map_err(|error| prometheus::Error::Msg(error.to_string()))
}

//! Our own read-only pages: workers, sessions, locks, queues.

use serde_json::{Value, json};
use warp::http::StatusCode;

use super::answer::{Answer, json_answer};
use super::call::Call;
use crate::server::{BadMessage, Ended};

/// Sessions of one page if nobody says otherwise.
const SESSIONS: usize = 500;

pub(super) fn workers(call: &Call) -> Answer {
    json_answer(StatusCode::OK, &call.admin.engine.workers_page())
}

pub(super) fn sessions(call: &Call) -> Answer {
    match call.number("limit", SESSIONS, 1..=10_000) {
        Ok(limit) => json_answer(StatusCode::OK, &call.admin.engine.sessions_page(limit)),
        Err(answer) => answer,
    }
}

pub(super) fn locks(call: &Call) -> Answer {
    json_answer(StatusCode::OK, &call.admin.engine.locks_page())
}

/// Everything that waits somewhere, and everything that was lost because it waited too long.
pub(super) fn queue(call: &Call) -> Answer {
    let admin = &call.admin;
    let bus = admin.bus.status();
    let stats = admin.server.stats();
    let l2 = admin.engine.l2().map(|l2| {
        let tiers: Vec<Value> = l2
            .opened
            .tiers
            .all()
            .iter()
            .map(|attached| {
                let in_flight = attached.in_flight();
                json!({
                    "index": attached.id.index,
                    "name": attached.tier.label(),
                    "stores": in_flight.stores,
                    "loads": in_flight.loads,
                    "load_bytes": in_flight.load_bytes,
                    "draining": attached.is_draining(),
                })
            })
            .collect();
        json!({
            "waiting_store_objects": l2.opened.stores.waiting(),
            "prefetch_jobs": l2.opened.loader.jobs(),
            "tiers": tiers,
        })
    });
    let refused: Vec<Value> = stats
        .bad_messages()
        .map(|(reason, count): (BadMessage, u64)| json!({"reason": reason.name(), "count": count}))
        .collect();
    let ended: Vec<Value> = stats
        .ended()
        .map(|(reason, count): (Ended, u64)| json!({"reason": reason.name(), "count": count}))
        .collect();
    let page = json!({
        "event_bus": {
            "enabled": admin.bus.enabled(),
            "depth": bus.queue_depth,
            "capacity": admin.event_capacity,
            "lag_seconds": bus.drain_lag_seconds,
            "published": bus.published,
            "dropped": bus.dropped,
            "subscriber_exceptions":
                bus.exceptions.iter().map(|(name, count)| json!({"subscriber": name, "count": count})).collect::<Vec<_>>(),
        },
        "ring": admin.engine.ring_status(),
        "wire": {
            "connections": admin.server.connections(),
            "executing": admin.server.executing(),
            "queued_bytes": admin.server.queued_bytes(),
            "bad_messages": refused,
            "connections_ended": ended,
        },
        "l2": l2,
        "event_streams": {
            "open": admin.events.open(),
            "cut_off": admin.events.cut_off(),
        },
    });
    json_answer(StatusCode::OK, &page)
}

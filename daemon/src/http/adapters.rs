//! `/lmcached/adapters`: tiers that are added, drained and removed while requests go on.

use std::time::Duration;

use serde_json::{Value, json};
use warp::http::StatusCode;

use super::answer::{Answer, detail, json_answer};
use super::call::{Call, Later, later};
use super::{Admin, config_page};
use crate::config;
use crate::l2::adapter::L2Adapter as _;
use crate::l2::control::InFlight;
use crate::l2::registry;

/// Tiers at the same time. A lookup asks each of them.
const MAX_TIERS: usize = 16;
/// How long a removal waits for what is under way.
const QUIET: Duration = Duration::from_secs(30);

/// Whether other daemons use a tier's storage, by its index.
pub(super) fn is_shared(admin: &Admin, index: u32) -> bool {
    admin.shared_tiers.lock().contains(&index)
}

/// `GET /lmcached/adapters`: as in `/status`.
pub(super) fn list(call: &Call) -> Answer {
    let rows = call.admin.engine.l2().map(|l2| l2.opened.tiers.status()).unwrap_or_default();
    json_answer(StatusCode::OK, &json!({"adapters": rows}))
}

/// `POST /lmcached/adapters` with the JSON of one `--l2-adapter`.
///
/// An adapter opens files and devices with the daemon's rights. Who reaches the loopback address is anybody on the machine:
/// so this one needs a token even there.
pub(super) fn add(call: Call) -> Later {
    later(async move {
        let admin = call.admin.clone();
        if !admin.guard.has_token() {
            let line = "an adapter opens files and devices as the daemon's user: start lmcached with --http-token-file to allow it";
            return detail(StatusCode::FORBIDDEN, line.into());
        }
        let _turn = admin.turn.lock().await;
        let Some(l2) = admin.engine.l2() else {
            return detail(StatusCode::SERVICE_UNAVAILABLE, "the daemon has no L2".into());
        };
        if l2.opened.tiers.all().len() >= MAX_TIERS {
            return detail(StatusCode::CONFLICT, format!("{MAX_TIERS} adapters are in use already"));
        }
        let adapter = match config::l2_adapter(&call.body) {
            Ok(adapter) => adapter,
            Err(line) => return detail(StatusCode::BAD_REQUEST, line),
        };
        let plan = match registry::plan(l2.opened.tiers.all().len() + 1, &adapter) {
            Ok(plan) => plan,
            Err(error) => return detail(StatusCode::BAD_REQUEST, error.to_string()),
        };
        // Opening looks at files; counting, which it starts, needs the runtime, and these threads have it.
        let opened = match tokio::task::spawn_blocking(move || plan.open()).await {
            Ok(Ok(tier)) => tier,
            Ok(Err(trouble)) => {
                let line = format!("{trouble}; {}", trouble.advice());
                return detail(StatusCode::CONFLICT, line);
            }
            Err(panic) => return detail(StatusCode::INTERNAL_SERVER_ERROR, panic.to_string()),
        };
        let attached = l2.opened.tiers.add(opened);
        let index = attached.id.index;
        if adapter.shared {
            admin.shared_tiers.lock().insert(index);
        }
        tracing::warn!(target: "lmcached::audit", tier = attached.tier.label(), index, "L2 adapter added over HTTP; it is gone at the next start unless --l2-adapter names it, too");
        let answer =
            json!({"index": index, "name": attached.tier.label(), "config": config_page::adapter(&adapter)});
        json_answer(StatusCode::CREATED, &answer)
    })
}

fn index(call: &Call) -> Result<u32, Answer> {
    let text = call.args.first().map_or("", String::as_str);
    text.parse().map_err(|_| unknown())
}

fn unknown() -> Answer {
    detail(StatusCode::NOT_FOUND, "no adapter of that index; GET /lmcached/adapters lists them".into())
}

fn left(in_flight: InFlight) -> Value {
    json!({"stores": in_flight.stores, "loads": in_flight.loads})
}

/// `POST /lmcached/adapters/{index}/drain`: nothing new goes to it.
pub(super) fn drain(call: &Call) -> Answer {
    let index = match index(call) {
        Ok(index) => index,
        Err(answer) => return answer,
    };
    let tier = call.admin.engine.l2().and_then(|l2| {
        l2.opened.tiers.drain(index);
        l2.opened.tiers.get(index)
    });
    let Some(tier) = tier else { return unknown() };
    tracing::warn!(target: "lmcached::audit", tier = tier.tier.label(), index, "L2 adapter drains: told over HTTP");
    json_answer(
        StatusCode::OK,
        &json!({"index": index, "state": "draining", "in_flight": left(tier.in_flight())}),
    )
}

/// `DELETE /lmcached/adapters/{index}`: drains it, waits for what is under way, and lets it go. What it has stored stays
/// where it is.
pub(super) fn remove(call: Call) -> Later {
    later(async move {
        let index = match index(&call) {
            Ok(index) => index,
            Err(answer) => return answer,
        };
        let removed = call.admin.engine.l2().and_then(|l2| l2.opened.tiers.remove(index));
        let Some(tier) = removed else { return unknown() };
        tracing::warn!(target: "lmcached::audit", tier = tier.tier.label(), index, "L2 adapter removed over HTTP");
        call.admin.shared_tiers.lock().remove(&index);
        let in_flight = tier.quiet(QUIET).await;
        if in_flight == InFlight::default() {
            tier.tier.close().await;
        } else {
            // Closing is for the end of the last request; the process's end does the rest.
            tracing::warn!(
                tier = tier.tier.label(),
                stores = in_flight.stores,
                loads = in_flight.loads,
                "the removed adapter is still busy and stays open until the daemon ends"
            );
        }
        json_answer(
            StatusCode::OK,
            &json!({"index": index, "state": "removed", "in_flight": left(in_flight)}),
        )
    })
}

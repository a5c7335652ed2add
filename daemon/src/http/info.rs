//! What the daemon is, and whether it lives and may get traffic.

use lmcache_proto::wire::LMCACHE_RELEASE;
use serde_json::{Value, json};
use warp::http::StatusCode;

use super::answer::{Answer, answer, json_answer};
use super::call::Call;

/// The document behind `/openapi.json`.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

/// Ready for traffic.
pub(super) fn healthcheck(call: &Call) -> Answer {
    readiness(call, "healthy", "unhealthy")
}

/// The same in the words of Kubernetes.
pub(super) fn readyz(call: &Call) -> Answer {
    readiness(call, "ready", "not ready")
}

fn readiness(call: &Call, good: &str, bad: &str) -> Answer {
    match call.admin.not_ready() {
        None => json_answer(StatusCode::OK, &json!({"status": good})),
        Some(reason) => {
            json_answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": bad, "reason": reason}))
        }
    }
}

/// The runtime runs and nobody holds the index for ever: what the watchdog asks, too.
pub(super) fn livez(call: &Call) -> Answer {
    let _ = call.admin.engine.l1().stats();
    json_answer(StatusCode::OK, &json!({"status": "alive"}))
}

/// LMCache's release that is spoken, and ours.
pub(super) fn version(_: &Call) -> Answer {
    text(&format!("{LMCACHE_RELEASE}-lmcached{}", env!("CARGO_PKG_VERSION")))
}

/// LMCache's release that is spoken.
pub(super) fn lmc_version(_: &Call) -> Answer {
    text(LMCACHE_RELEASE)
}

/// The commit that the build was told of.
pub(super) fn commit_id(_: &Call) -> Answer {
    text(option_env!("LMCACHED_COMMIT").unwrap_or("unknown"))
}

/// A bare JSON string, as the peer has it.
fn text(value: &str) -> Answer {
    json_answer(StatusCode::OK, &Value::from(value))
}

/// This API, described.
pub(super) fn openapi(_: &Call) -> Answer {
    answer(StatusCode::OK, "application/json", OPENAPI)
}

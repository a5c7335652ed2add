//! `/cache/prefetches`: loads a prompt from the tiers into L1 before anybody asks for it.

use serde::Deserialize;
use serde_json::json;
use warp::http::StatusCode;

use super::answer::{Answer, detail, json_answer};
use super::call::Call;
use crate::engine::{WarmError, WarmState};

#[derive(Deserialize)]
struct Body {
    model_name: String,
    world_size: u32,
    token_ids: Vec<u32>,
    #[serde(default)]
    cache_salt: String,
    #[serde(default = "l2")]
    source_tier: String,
    #[serde(default = "l1")]
    target_tier: String,
}

fn l1() -> String {
    "l1".into()
}

fn l2() -> String {
    "l2".into()
}

pub(super) fn submit(call: &Call) -> Answer {
    let body: Body = match call.json() {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    if (body.source_tier.as_str(), body.target_tier.as_str()) != ("l2", "l1") {
        return detail(StatusCode::BAD_REQUEST, "only from l2 to l1".into());
    }
    match call.admin.engine.warm(&body.model_name, body.world_size, &body.token_ids, &body.cache_salt) {
        Ok(begun) => {
            tracing::info!(target: "lmcached::audit", model = body.model_name, chunks = begun.chunks, "prefetch begun over HTTP");
            let answer = match begun.id {
                Some(id) => json!({"request_id": id, "chunks": begun.chunks, "status": "submitted"}),
                None => json!({"chunks": 0, "status": "noop"}),
            };
            json_answer(StatusCode::ACCEPTED, &answer)
        }
        Err(WarmError::Invalid(line)) => detail(StatusCode::BAD_REQUEST, line),
        // 503 with the peer; but trying again does not help.
        Err(error @ WarmError::UnknownModel) => detail(StatusCode::NOT_FOUND, error.to_string()),
        Err(WarmError::Unavailable(line)) => detail(StatusCode::SERVICE_UNAVAILABLE, line),
    }
}

pub(super) fn state(call: &Call) -> Answer {
    let id = call.args.first().map_or("", String::as_str);
    match call.admin.engine.warm_state(id) {
        None => detail(StatusCode::NOT_FOUND, "no such prefetch: told of before, or never submitted".into()),
        Some(WarmState::Pending) => {
            json_answer(StatusCode::OK, &json!({"request_id": id, "status": "pending"}))
        }
        Some(WarmState::Completed { found, total }) => {
            let answer =
                json!({"request_id": id, "status": "completed", "found_keys": found, "total_keys": total});
            json_answer(StatusCode::OK, &answer)
        }
    }
}

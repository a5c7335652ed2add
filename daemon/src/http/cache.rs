//! `POST /cache/…`.

use serde::Deserialize;
use serde_json::{Value, json};
use warp::http::StatusCode;

use super::Admin;
use super::answer::{Answer, detail, json_answer};
use crate::device::checksum::{ChecksumError, Checksums};

/// Most blocks of one checksum request: a worker has some ten thousands, and each is read and hashed.
const MAX_BLOCKS: usize = 1 << 16;

#[derive(Deserialize)]
struct ClearBody {
    #[serde(default = "l1")]
    tier: String,
    #[serde(default)]
    force: bool,
}

fn l1() -> String {
    "l1".into()
}

pub(super) fn clear(admin: &Admin, body: &[u8]) -> Answer {
    let body = if body.is_empty() { br#"{}"# } else { body };
    let body: ClearBody = match serde_json::from_slice(body) {
        Ok(body) => body,
        Err(error) => return detail(StatusCode::BAD_REQUEST, error.to_string()),
    };
    if body.tier != "l1" {
        return detail(StatusCode::BAD_REQUEST, format!("tier {:?} cannot be cleared; only l1", body.tier));
    }
    let dropped = admin.engine.clear(body.force);
    tracing::info!(target: "lmcached::audit", force = body.force, dropped, "cache cleared over HTTP");
    json_answer(StatusCode::OK, &json!({"status": "ok", "cleared": {"tier": "l1"}}))
}

#[derive(Deserialize)]
struct ChecksumBody {
    #[serde(default)]
    block_ids: Vec<u64>,
    /// Blocks per chunk.
    #[serde(default)]
    chunk_size: i64,
    #[serde(default)]
    instance_id: u64,
    #[serde(default)]
    layerwise: bool,
}

pub(super) fn checksums(admin: &Admin, body: &[u8]) -> Answer {
    let body: ChecksumBody = match serde_json::from_slice(body) {
        Ok(body) => body,
        Err(error) => return detail(StatusCode::BAD_REQUEST, error.to_string()),
    };
    if body.block_ids.len() > MAX_BLOCKS {
        return detail(StatusCode::BAD_REQUEST, format!("more than {MAX_BLOCKS} block_ids"));
    }
    let Some(registration) = admin.engine.registration(body.instance_id) else {
        return detail(StatusCode::NOT_FOUND, format!("instance_id {} not registered", body.instance_id));
    };
    let chunk_size = usize::try_from(body.chunk_size).unwrap_or(0);
    let digests = match registration.checksums(&body.block_ids, chunk_size, body.layerwise) {
        Ok(digests) => digests,
        Err(error @ ChecksumError::BlockAxis(_)) => {
            return detail(StatusCode::NOT_IMPLEMENTED, error.to_string());
        }
        Err(error @ ChecksumError::Copy(_)) => {
            return detail(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
        }
        Err(error) => return detail(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let chunk_checksums = match digests {
        Checksums::Aggregated(chunks) => json!(chunks),
        Checksums::Layerwise(layers) => {
            let named = layers
                .into_iter()
                .enumerate()
                .map(|(layer, chunks)| (format!("layer_{layer}"), json!(chunks)));
            Value::Object(named.collect())
        }
    };
    let answer = json!({
        "status": "success",
        "chunk_size": chunk_size,
        "num_chunks": body.block_ids.len().div_ceil(chunk_size.max(1)),
        "chunk_checksums": chunk_checksums,
        "layerwise": body.layerwise,
    });
    json_answer(StatusCode::OK, &answer)
}

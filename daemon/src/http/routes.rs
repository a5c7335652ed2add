//! The routes, in the shapes of LMCache 0.5.6.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use warp::http::{Response, StatusCode};
use warp::{Filter, Rejection, Reply};

use super::{Admin, page};
use crate::device::checksum::{ChecksumError, Checksums};
use crate::telemetry;

/// Largest request body.
const MAX_BODY: u64 = 4 << 20;

type Answer = Response<Bytes>;

fn with(admin: &Arc<Admin>) -> impl Filter<Extract = (Arc<Admin>,), Error = Infallible> + Clone + use<> {
    let admin = admin.clone();
    warp::any().map(move || admin.clone())
}

fn answer(status: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    if let Ok(value) = content_type.parse() {
        response.headers_mut().insert("content-type", value);
    }
    response
}

fn json_answer(status: StatusCode, body: &Value) -> Answer {
    answer(status, "application/json", body.to_string())
}

/// An error in the peer's shape.
fn detail(status: StatusCode, detail: String) -> Answer {
    json_answer(status, &json!({"detail": detail}))
}

/// Everything.
pub(super) fn admin(admin: Arc<Admin>) -> impl Filter<Extract = (impl Reply,), Error = Rejection> + Clone {
    let root = warp::path::end().and(warp::get()).and(warp::header::optional::<String>("accept")).map(
        |accept: Option<String>| {
            if page::wants_page(accept.as_deref()) {
                return page::page();
            }
            json_answer(StatusCode::OK, &json!({"status": "ok", "service": "LMCache HTTP API"}))
        },
    );
    let data = warp::path!("page" / "data")
        .and(warp::get())
        .and(warp::query::<DataQuery>())
        .and(with(&admin))
        .then(|query: DataQuery, admin: Arc<Admin>| async move {
            // Fifteen minutes are half a megabyte of JSON: not on an I/O thread.
            let work = tokio::task::spawn_blocking(move || {
                json_answer(StatusCode::OK, &admin.history.data(&*admin, query.since))
            });
            work.await.unwrap_or_else(|error| detail(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
        });
    let health = warp::path!("healthcheck")
        .and(warp::get())
        .and(with(&admin))
        .map(|admin: Arc<Admin>| healthcheck(&admin));
    let status = warp::path!("status").and(warp::get()).and(with(&admin)).map(|admin: Arc<Admin>| {
        let mut status = admin.engine.status();
        status["hash_algorithm"] = json!(admin.hash_algorithm);
        status["connections"] = json!(admin.server.connections());
        json_answer(StatusCode::OK, &status)
    });
    let clear = warp::path!("cache" / "clear")
        .and(warp::post())
        .and(
            warp::body::content_length_limit(MAX_BODY)
                .and(warp::body::bytes())
                .or(warp::any().map(Bytes::new))
                .unify(),
        )
        .and(with(&admin))
        .map(|body: Bytes, admin: Arc<Admin>| clear(&admin, &body));
    let checksums = warp::path!("cache" / "checksums")
        .and(warp::post())
        .and(warp::body::content_length_limit(MAX_BODY))
        .and(warp::body::bytes())
        .and(with(&admin))
        .then(|body: Bytes, admin: Arc<Admin>| async move {
            // Reads and hashes megabytes: not on an I/O thread.
            let work = tokio::task::spawn_blocking(move || checksums(&admin, &body));
            work.await.unwrap_or_else(|error| detail(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
        });
    root.or(data)
        .unify()
        .or(health)
        .unify()
        .or(status)
        .unify()
        .or(clear)
        .unify()
        .or(checksums)
        .unify()
        .or(metrics(admin))
        .unify()
}

/// `/metrics` alone.
pub(super) fn metrics(admin: Arc<Admin>) -> impl Filter<Extract = (Answer,), Error = Rejection> + Clone {
    warp::path!("metrics").and(warp::get()).and(with(&admin)).map(|admin: Arc<Admin>| {
        match telemetry::exposition(&admin.engine, &admin.server) {
            Ok(page) => answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page),
            Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
        }
    })
}

fn healthcheck(admin: &Admin) -> Answer {
    match admin.not_ready() {
        None => json_answer(StatusCode::OK, &json!({"status": "healthy"})),
        Some(reason) => {
            json_answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "unhealthy", "reason": reason}))
        }
    }
}

#[derive(Deserialize)]
struct DataQuery {
    /// Time of the newest point that the page has.
    since: Option<u64>,
}

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

fn clear(admin: &Admin, body: &[u8]) -> Answer {
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

fn checksums(admin: &Admin, body: &[u8]) -> Answer {
    let body: ChecksumBody = match serde_json::from_slice(body) {
        Ok(body) => body,
        Err(error) => return detail(StatusCode::BAD_REQUEST, error.to_string()),
    };
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

//! The routes, in the shapes of LMCache 0.5.6.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use warp::http::{Response, StatusCode};
use warp::{Filter, Rejection, Reply};

use super::Admin;
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

/// Everything.
pub(super) fn admin(admin: Arc<Admin>) -> impl Filter<Extract = (impl Reply,), Error = Rejection> + Clone {
    let root = warp::path::end()
        .and(warp::get())
        .map(|| json_answer(StatusCode::OK, &json!({"status": "ok", "service": "LMCache HTTP API"})));
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
    root.or(health).unify().or(status).unify().or(clear).unify().or(metrics(admin)).unify()
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
        Err(error) => return json_answer(StatusCode::BAD_REQUEST, &json!({"detail": error.to_string()})),
    };
    if body.tier != "l1" {
        let detail = format!("tier {:?} cannot be cleared; only l1", body.tier);
        return json_answer(StatusCode::BAD_REQUEST, &json!({"detail": detail}));
    }
    let dropped = admin.engine.clear(body.force);
    tracing::info!(target: "lmcached::audit", force = body.force, dropped, "cache cleared over HTTP");
    json_answer(StatusCode::OK, &json!({"status": "ok", "cleared": {"tier": "l1"}}))
}

//! Which path leads where, as in LMCache 0.5.6.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use warp::http::StatusCode;
use warp::{Filter, Rejection, Reply};

use super::answer::{Answer, answer, detail, json_answer};
use super::body::body;
use super::{Admin, cache, page, quota, status};
use crate::telemetry;

pub(super) fn with(
    admin: &Arc<Admin>,
) -> impl Filter<Extract = (Arc<Admin>,), Error = Infallible> + Clone + use<> {
    let admin = admin.clone();
    warp::any().map(move || admin.clone())
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
    let status = warp::path!("status")
        .and(warp::get())
        .and(with(&admin))
        .map(|admin: Arc<Admin>| json_answer(StatusCode::OK, &status::page(&admin)));
    let clear = warp::path!("cache" / "clear")
        .and(warp::post())
        .and(body())
        .and(with(&admin))
        .then(|body, admin| in_turn(admin, body, cache::clear));
    let checksums = warp::path!("cache" / "checksums")
        .and(warp::post())
        .and(body())
        .and(with(&admin))
        .then(|body, admin| in_turn(admin, body, cache::checksums));
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
        .or(quota::routes(admin.clone()))
        .unify()
        .or(metrics(admin))
        .unify()
}

/// `/metrics` alone.
pub(super) fn metrics(admin: Arc<Admin>) -> impl Filter<Extract = (Answer,), Error = Rejection> + Clone {
    warp::path!("metrics").and(warp::get()).and(with(&admin)).then(|admin: Arc<Admin>| async move {
        // Not on an I/O thread: it waits for the bus, and may have many lines to write.
        let scrape = tokio::task::spawn_blocking(move || admin.telemetry.scrape());
        match scrape.await {
            Ok(page) => answer(StatusCode::OK, telemetry::CONTENT_TYPE, page),
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

/// Runs what walks the cache or reads megabytes: not on an I/O thread, and one at a time, so that the admin API never
/// takes the compute threads from workers.
async fn in_turn(
    admin: Arc<Admin>,
    body: Result<Bytes, Answer>,
    work: fn(&Admin, &[u8]) -> Answer,
) -> Answer {
    let body = match body {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let _turn = admin.turn.lock().await;
    let running = admin.clone();
    let work = tokio::task::spawn_blocking(move || work(&running, &body));
    work.await.unwrap_or_else(|error| detail(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

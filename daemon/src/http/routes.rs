//! Which path leads where. One table, so that nothing is served that is not in it, and the OpenAPI document can be held
//! against it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use warp::http::{HeaderMap, Method, StatusCode, header};
use warp::reply::Response;
use warp::{Filter, Rejection, Reply, Stream};

use super::answer::{Answer, answer, detail, json_answer};
use super::call::{Call, Route, Work};
use super::guard::{self, Refused};
use super::{
    Admin, adapters, body, cache, config_page, drain, events, info, loglevel, objects, own, page, prefetches,
    quota, status, threads, upgrade,
};
use crate::telemetry;

const fn get(path: &'static str, work: Work) -> Route {
    Route { method: Method::GET, path, work }
}

const fn post(path: &'static str, work: Work) -> Route {
    Route { method: Method::POST, path, work }
}

const fn put(path: &'static str, work: Work) -> Route {
    Route { method: Method::PUT, path, work }
}

const fn delete(path: &'static str, work: Work) -> Route {
    Route { method: Method::DELETE, path, work }
}

/// Everything that is served. Those of LMCache 0.5.6 first, then our own.
pub(super) static ROUTES: &[Route] = &[
    get("/", Work::Quick(root)),
    get("/healthcheck", Work::Quick(info::healthcheck)),
    get("/status", Work::Blocking(|call| json_answer(StatusCode::OK, &status::page(&call.admin)))),
    get("/metrics", Work::Blocking(metrics_page)),
    get("/config", Work::Quick(config_page::config)),
    get("/config/adapters", Work::Quick(config_page::adapters)),
    get("/version", Work::Quick(info::version)),
    get("/lmc_version", Work::Quick(info::lmc_version)),
    get("/commit_id", Work::Quick(info::commit_id)),
    get("/cache/objects", Work::Later(objects::list)),
    delete("/cache/objects", Work::Later(objects::delete)),
    post("/cache/prefetches", Work::InTurn(prefetches::submit)),
    get("/cache/prefetches/{request_id}", Work::Quick(prefetches::state)),
    post("/cache/clear", Work::InTurn(|call| cache::clear(&call.admin, &call.body))),
    post("/cache/checksums", Work::InTurn(|call| cache::checksums(&call.admin, &call.body))),
    get("/quota", Work::Blocking(quota::list)),
    get("/quota/{cache_salt}", Work::Blocking(quota::get)),
    put("/quota/{cache_salt}", Work::Blocking(quota::set)),
    delete("/quota/{cache_salt}", Work::Blocking(quota::delete)),
    get("/loglevel", Work::Quick(loglevel::get_or_set)),
    get("/threads", Work::Blocking(threads::threads)),
    get("/periodic-threads", Work::Quick(threads::periodic)),
    get("/periodic-threads/{name}", Work::Quick(threads::periodic_one)),
    get("/periodic-threads-health", Work::Quick(threads::periodic_health)),
    get("/livez", Work::Quick(info::livez)),
    get("/readyz", Work::Quick(info::readyz)),
    get("/openapi.json", Work::Quick(info::openapi)),
    get("/page/data", Work::Blocking(page_data)),
    get("/lmcached/workers", Work::Blocking(own::workers)),
    get("/lmcached/sessions", Work::Blocking(own::sessions)),
    get("/lmcached/locks", Work::Blocking(own::locks)),
    get("/lmcached/queue", Work::Blocking(own::queue)),
    get("/lmcached/events", Work::Later(events::stream)),
    get("/lmcached/adapters", Work::Quick(adapters::list)),
    post("/lmcached/adapters", Work::Later(adapters::add)),
    post("/lmcached/adapters/{index}/drain", Work::Quick(adapters::drain)),
    delete("/lmcached/adapters/{index}", Work::Later(adapters::remove)),
    post("/lmcached/drain", Work::Quick(drain::begin)),
    post("/lmcached/upgrade", Work::Later(upgrade::begin)),
];

fn with(admin: &Arc<Admin>) -> impl Filter<Extract = (Arc<Admin>,), Error = Infallible> + Clone + use<> {
    let admin = admin.clone();
    warp::any().map(move || admin.clone())
}

/// Everything, behind the guard.
pub(super) fn admin(admin: Arc<Admin>) -> impl Filter<Extract = (impl Reply,), Error = Rejection> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let dispatch = warp::method()
        .and(warp::path::full())
        .and(warp::header::headers_cloned())
        .and(query)
        .and(warp::body::stream())
        .and(with(&admin))
        .then(|method, path: warp::path::FullPath, headers, query: String, body, admin| async move {
            dispatch(method, path.as_str(), &headers, &query, body, admin).await
        });
    guard::guard(admin).and(dispatch).recover(refused)
}

/// The guard's rejections become answers; there are no others.
async fn refused(rejection: Rejection) -> Result<Answer, Rejection> {
    match rejection.find::<Refused>() {
        Some(refused) => Ok(refused.answer()),
        None => Err(rejection),
    }
}

/// `/metrics` alone, for the Prometheus port.
pub(super) fn metrics(admin: Arc<Admin>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    warp::path!("metrics")
        .and(warp::get())
        .and(with(&admin))
        .then(|admin: Arc<Admin>| async move { Work::Blocking(metrics_page).run(Call::new(admin)).await })
}

async fn dispatch<B: bytes::Buf, E: std::fmt::Display>(
    method: Method,
    path: &str,
    headers: &HeaderMap,
    query: &str,
    body: impl Stream<Item = Result<B, E>>,
    admin: Arc<Admin>,
) -> Response {
    if percent_encoding::percent_decode_str(path).decode_utf8().is_err() {
        return detail(StatusCode::BAD_REQUEST, "the path is not UTF-8".into()).into_response();
    }
    let mut allowed: Vec<&str> = Vec::new();
    for route in ROUTES {
        let Some(args) = route.matches(path) else { continue };
        if route.method != method {
            allowed.push(route.method.as_str());
            continue;
        }
        let body = if method == Method::GET {
            Bytes::new()
        } else {
            match body::read(headers, body, admin.max_body, &admin.http).await {
                Ok(body) => body,
                Err(answer) => return answer.into_response(),
            }
        };
        let query: HashMap<String, String> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).map(str::to_owned);
        return route.work.run(Call { admin, args, query, accept, body }).await;
    }
    if allowed.is_empty() {
        return detail(StatusCode::NOT_FOUND, "Not Found".into()).into_response();
    }
    let mut answer = detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed".into());
    if let Ok(allowed) = allowed.join(", ").parse() {
        answer.headers_mut().insert(header::ALLOW, allowed);
    }
    answer.into_response()
}

fn root(call: &Call) -> Answer {
    if page::wants_page(call.accept.as_deref()) {
        return page::page();
    }
    json_answer(StatusCode::OK, &json!({"status": "ok", "service": "LMCache HTTP API"}))
}

/// Fifteen minutes are half a megabyte of JSON.
fn page_data(call: &Call) -> Answer {
    let since = match call.query.get("since").map(|since| since.parse::<u64>()) {
        None => None,
        Some(Ok(since)) => Some(since),
        Some(Err(_)) => {
            return detail(StatusCode::BAD_REQUEST, "since must be the time of a point".into());
        }
    };
    json_answer(StatusCode::OK, &call.admin.history.data(&*call.admin, since))
}

/// It waits for the bus, and may have many lines to write.
fn metrics_page(call: &Call) -> Answer {
    answer(StatusCode::OK, telemetry::CONTENT_TYPE, call.admin.telemetry.scrape())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_openapi_document_has_every_route_and_no_other() {
        let document: Value = serde_json::from_str(info::OPENAPI).expect("JSON");
        let paths = document["paths"].as_object().expect("paths");
        let methods = |item: &Value| item.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
        let described: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, item)| {
                methods(item).into_iter().map(move |method| (method.to_uppercase(), path.clone()))
            })
            .collect();
        let served: BTreeSet<(String, String)> =
            ROUTES.iter().map(|route| (route.method.to_string(), route.path.to_owned())).collect();
        assert_eq!(described, served);
        for (path, item) in paths {
            for (method, operation) in item.as_object().expect("an object") {
                let named: BTreeSet<&str> = operation["parameters"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|parameter| parameter["in"] == "path")
                    .filter_map(|parameter| parameter["name"].as_str())
                    .collect();
                let places: BTreeSet<&str> = path
                    .split('/')
                    .filter_map(|part| part.strip_prefix('{').and_then(|part| part.strip_suffix('}')))
                    .collect();
                assert_eq!(named, places, "{method} {path}");
                assert!(
                    operation["responses"].as_object().is_some_and(|all| !all.is_empty()),
                    "{method} {path}"
                );
            }
        }
    }
}

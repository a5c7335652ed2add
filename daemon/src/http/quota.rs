//! `/quota`, as in LMCache 0.5.6: `_default` stands for the empty salt, and a GB has 1024³ bytes.
#![expect(clippy::result_large_err, reason = "an answer is sent at once, whichever way it is returned")]

use std::sync::Arc;

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};
use warp::http::StatusCode;
use warp::{Filter, Rejection};

use super::Admin;
use super::answer::{Answer, detail, json_answer};
use super::body::body;
use super::routes::with;
use crate::quota::QuotaError;

/// What a path says for the empty salt.
const DEFAULT: &str = "_default";
/// Bytes of a GB.
const GB: f64 = (1u64 << 30) as f64;

/// Everything below `/quota`.
pub(super) fn routes(admin: Arc<Admin>) -> impl Filter<Extract = (Answer,), Error = Rejection> + Clone {
    let set = warp::path!("quota" / String).and(warp::put()).and(body()).and(with(&admin)).then(
        |path: String, body, admin| async move {
            let body: bytes::Bytes = match body {
                Ok(body) => body,
                Err(answer) => return answer,
            };
            aside(admin, move |admin| salt(&path).and_then(|salt| set(admin, &salt, &body))).await
        },
    );
    let get = warp::path!("quota" / String)
        .and(warp::get())
        .and(with(&admin))
        .then(|path: String, admin| aside(admin, move |admin| Ok(get(admin, &salt(&path)?))));
    let delete = warp::path!("quota" / String)
        .and(warp::delete())
        .and(with(&admin))
        .then(|path: String, admin| aside(admin, move |admin| delete(admin, &salt(&path)?)));
    let list = warp::path!("quota")
        .and(warp::get())
        .and(with(&admin))
        .then(|admin| aside(admin, |admin| Ok(list(admin))));
    set.or(get).unify().or(delete).unify().or(list).unify()
}

/// Runs what writes a file or evicts: not on an I/O thread.
async fn aside(
    admin: Arc<Admin>,
    work: impl FnOnce(&Admin) -> Result<Answer, Answer> + Send + 'static,
) -> Answer {
    let work = tokio::task::spawn_blocking(move || work(&admin).unwrap_or_else(|refusal| refusal));
    work.await.unwrap_or_else(|error| detail(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn refuse(status: StatusCode, why: impl ToString) -> Answer {
    json_answer(status, &json!({"error": why.to_string()}))
}

/// The salt that a path segment means.
fn salt(segment: &str) -> Result<String, Answer> {
    let decoded = percent_decode_str(segment)
        .decode_utf8()
        .map_err(|_| refuse(StatusCode::BAD_REQUEST, "cache_salt is not UTF-8"))?;
    Ok(if decoded == DEFAULT { String::new() } else { decoded.into_owned() })
}

fn named(salt: &str) -> &str {
    if salt.is_empty() { DEFAULT } else { salt }
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / GB
}

/// `limit_gb` of a body. What Python makes a float of is taken, as in the peer.
fn limit_gb(body: &[u8]) -> Result<f64, &'static str> {
    let body: Value = serde_json::from_slice(body).map_err(|_| "invalid JSON body")?;
    let limit = match body.as_object().and_then(|body| body.get("limit_gb")) {
        None => return Err("body must be {'limit_gb': <float>}"),
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(Value::Bool(flag)) => Some(f64::from(u8::from(*flag))),
        Some(_) => None,
    };
    match limit.ok_or("limit_gb must be numeric")? {
        limit if !limit.is_finite() => Err("limit_gb must be finite"),
        limit if limit < 0.0 => Err("limit_gb must be non-negative"),
        limit => Ok(limit),
    }
}

fn failed(error: &QuotaError) -> Answer {
    let status = match error {
        QuotaError::Salt | QuotaError::TooMany => StatusCode::BAD_REQUEST,
        QuotaError::Persist { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    };
    refuse(status, error)
}

fn set(admin: &Admin, salt: &str, body: &[u8]) -> Result<Answer, Answer> {
    let limit_gb = limit_gb(body).map_err(|why| refuse(StatusCode::BAD_REQUEST, why))?;
    // Beyond 2^64 bytes it is no limit either way: the cast stops there.
    let limit = (limit_gb * GB) as u64;
    let before = admin.engine.set_quota(salt, limit).map_err(|error| failed(&error))?;
    tracing::info!(target: "lmcached::audit", salt = named(salt), limit, before, "quota set over HTTP");
    Ok(json_answer(StatusCode::OK, &json!({"cache_salt": named(salt), "limit_gb": limit_gb, "status": "ok"})))
}

fn get(admin: &Admin, salt: &str) -> Answer {
    let limit = admin.engine.quota(salt);
    let answer = json!({
        "cache_salt": named(salt),
        "limit_gb": gb(limit.unwrap_or(0)),
        "current_usage_gb": gb(admin.engine.salt_usage(salt).bytes()),
        "exists": limit.is_some(),
    });
    json_answer(StatusCode::OK, &answer)
}

fn delete(admin: &Admin, salt: &str) -> Result<Answer, Answer> {
    let before = admin.engine.remove_quota(salt).map_err(|error| failed(&error))?;
    tracing::info!(target: "lmcached::audit", salt = named(salt), before, "quota deleted over HTTP");
    let status = if before.is_some() { "removed" } else { "not_found" };
    Ok(json_answer(StatusCode::OK, &json!({"cache_salt": named(salt), "status": status})))
}

fn list(admin: &Admin) -> Answer {
    let users: Map<String, Value> = admin
        .engine
        .quotas()
        .iter()
        .map(|quota| {
            let usage = admin.engine.salt_usage(&quota.salt).bytes();
            let row = json!({"limit_gb": gb(quota.limit), "current_usage_gb": gb(usage)});
            (named(&quota.salt).to_owned(), row)
        })
        .collect();
    json_answer(StatusCode::OK, &json!({"users": users}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_read_as_the_peer_reads_them() {
        for (body, limit) in [
            (r#"{"limit_gb": 1.5}"#, Ok(1.5)),
            (r#"{"limit_gb": 0, "more": 1}"#, Ok(0.0)),
            (r#"{"limit_gb": " 2e3 "}"#, Ok(2000.0)),
            (r#"{"limit_gb": true}"#, Ok(1.0)),
            ("", Err("invalid JSON body")),
            (r#"{"limit_gb": NaN}"#, Err("invalid JSON body")),
            ("[1]", Err("body must be {'limit_gb': <float>}")),
            ("{}", Err("body must be {'limit_gb': <float>}")),
            (r#"{"limit_gb": null}"#, Err("limit_gb must be numeric")),
            (r#"{"limit_gb": "a lot"}"#, Err("limit_gb must be numeric")),
            (r#"{"limit_gb": [1]}"#, Err("limit_gb must be numeric")),
            (r#"{"limit_gb": "nan"}"#, Err("limit_gb must be finite")),
            (r#"{"limit_gb": "-inf"}"#, Err("limit_gb must be finite")),
            (r#"{"limit_gb": -0.1}"#, Err("limit_gb must be non-negative")),
        ] {
            assert_eq!(limit_gb(body.as_bytes()), limit, "{body}");
        }
    }

    #[test]
    fn path_segments_are_decoded() {
        assert_eq!(salt("_default").expect("a salt"), "");
        assert_eq!(salt("user%2042%25").expect("a salt"), "user 42%");
        assert_eq!(salt("caf%C3%A9").expect("a salt"), "café");
        assert_eq!(salt("%ff").expect_err("not UTF-8").status(), StatusCode::BAD_REQUEST);
    }
}

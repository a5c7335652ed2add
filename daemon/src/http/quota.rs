//! `/quota`, as in LMCache 0.5.6: `_default` stands for the empty salt, and a GB has 1024³ bytes.
//!
//! Nothing of it runs on an I/O thread: it writes a file, evicts, or adds up.

use serde_json::{Map, Value, json};
use warp::http::StatusCode;

use super::answer::{Answer, json_answer};
use super::call::Call;
use crate::quota::QuotaError;

/// What a path says for the empty salt.
const DEFAULT: &str = "_default";
/// Bytes of a GB.
const GB: f64 = (1u64 << 30) as f64;

fn refuse(status: StatusCode, why: impl ToString) -> Answer {
    json_answer(status, &json!({"error": why.to_string()}))
}

/// The salt that the path means.
fn salt(call: &Call) -> &str {
    call.args.first().map(String::as_str).filter(|salt| *salt != DEFAULT).unwrap_or("")
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

pub(super) fn set(call: &Call) -> Answer {
    let salt = salt(call);
    let limit_gb = match limit_gb(&call.body) {
        Ok(limit) => limit,
        Err(why) => return refuse(StatusCode::BAD_REQUEST, why),
    };
    // Beyond 2^64 bytes it is no limit either way: the cast stops there.
    let limit = (limit_gb * GB) as u64;
    let before = match call.admin.engine.set_quota(salt, limit) {
        Ok(before) => before,
        Err(error) => return failed(&error),
    };
    tracing::info!(target: "lmcached::audit", salt = named(salt), limit, before, "quota set over HTTP");
    json_answer(StatusCode::OK, &json!({"cache_salt": named(salt), "limit_gb": limit_gb, "status": "ok"}))
}

pub(super) fn get(call: &Call) -> Answer {
    let (salt, engine) = (salt(call), &call.admin.engine);
    let limit = engine.quota(salt);
    let answer = json!({
        "cache_salt": named(salt),
        "limit_gb": gb(limit.unwrap_or(0)),
        "current_usage_gb": gb(engine.salt_usage(salt).bytes()),
        "exists": limit.is_some(),
    });
    json_answer(StatusCode::OK, &answer)
}

pub(super) fn delete(call: &Call) -> Answer {
    let salt = salt(call);
    let before = match call.admin.engine.remove_quota(salt) {
        Ok(before) => before,
        Err(error) => return failed(&error),
    };
    tracing::info!(target: "lmcached::audit", salt = named(salt), before, "quota deleted over HTTP");
    let status = if before.is_some() { "removed" } else { "not_found" };
    json_answer(StatusCode::OK, &json!({"cache_salt": named(salt), "status": status}))
}

pub(super) fn list(call: &Call) -> Answer {
    let engine = &call.admin.engine;
    let row = |quota: &crate::quota::Quota| {
        let usage = engine.salt_usage(&quota.salt).bytes();
        let row = json!({"limit_gb": gb(quota.limit), "current_usage_gb": gb(usage)});
        (named(&quota.salt).to_owned(), row)
    };
    let users: Map<String, Value> = engine.quotas().iter().map(row).collect();
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
}

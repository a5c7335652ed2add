//! Answers in the peer's shapes.

use bytes::Bytes;
use serde_json::{Value, json};
use warp::http::{Response, StatusCode};

pub(super) type Answer = Response<Bytes>;

pub(super) fn answer(status: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    if let Ok(value) = content_type.parse() {
        response.headers_mut().insert("content-type", value);
    }
    response
}

pub(super) fn json_answer(status: StatusCode, body: &Value) -> Answer {
    answer(status, "application/json", body.to_string())
}

/// An error.
pub(super) fn detail(status: StatusCode, detail: String) -> Answer {
    json_answer(status, &json!({"detail": detail}))
}

//! The live page: one document without anything from outside, and the numbers it draws.
//!
//! * `page.html`, `page.css`, `charts.js`, `page.js`: the document, put together when the daemon is built;
//! * `exposition`, `wanted`, `sample`: from the text of `/metrics` to the numbers that are kept;
//! * `latency`: percentiles;
//! * `alerts`: what is wrong, in words.

pub(super) mod alerts;
pub(super) mod exposition;
pub(super) mod latency;
pub(super) mod sample;
pub(super) mod wanted;

use bytes::Bytes;
use warp::http::{HeaderValue, Response};

const HTML: &str = include_str!("page.html");
const CSS: &str = include_str!("page.css");
const CHARTS: &str = include_str!("charts.js");
const SCRIPT: &str = include_str!("page.js");

/// Whether whoever asks is a browser: they name HTML in their `Accept`, clients of the API do not.
pub(super) fn wants_page(accept: Option<&str>) -> bool {
    accept.is_some_and(|accept| {
        accept
            .split(',')
            .any(|range| range.split(';').next().is_some_and(|range| range.trim() == "text/html"))
    })
}

/// The page. Only its own style and script run, and they can only reach the daemon they came from: whatever a model's
/// name says, it stays a name.
pub(super) fn page() -> Response<Bytes> {
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    let document = HTML
        .replace("{{nonce}}", &nonce)
        .replace("{{style}}", CSS)
        .replace("{{charts}}", CHARTS)
        .replace("{{script}}", SCRIPT);
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut response = Response::new(Bytes::from(document));
    let headers = response.headers_mut();
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        // The nonce must not be used twice.
        ("cache-control", "no-store"),
        ("vary", "accept"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let policy = HeaderValue::from_str(&policy).expect("the policy is plain ASCII");
    headers.insert("content-security-policy", policy);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_and_nobody_else_get_the_page() {
        assert!(wants_page(Some("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")));
        assert!(wants_page(Some("application/json, text/html;q=0.5")));
        for other in [None, Some("*/*"), Some("application/json"), Some("text/htmlx"), Some("")] {
            assert!(!wants_page(other), "{other:?}");
        }
    }

    #[test]
    fn the_document_is_whole_and_needs_nothing_from_outside() {
        let response = page();
        let document = std::str::from_utf8(response.body()).expect("UTF-8");
        assert!(!document.contains("{{"), "every placeholder is filled");
        for outside in ["src=\"http", "href=\"http", "src=\"//", "@import", "url(http"] {
            assert!(!document.contains(outside), "{outside}");
        }
        // No way from a string to markup or to code.
        for sink in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"]
        {
            assert!(!document.contains(sink), "{sink}");
        }
        let policy = response.headers()["content-security-policy"].to_str().expect("text");
        let nonce = policy.split("'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).expect("a nonce");
        assert_eq!(document.matches(&format!("nonce=\"{nonce}\"")).count(), 3);
        assert_ne!(page().headers()["content-security-policy"], policy, "another nonce each time");
    }
}

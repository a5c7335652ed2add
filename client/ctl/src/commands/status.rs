//! `ping`, `status`, `config`, `clear`.

use std::time::Instant;

use serde_json::{Value, json};

use crate::error::CtlError;
use crate::http::Daemon;
use crate::show;

/// Whether the daemon should get traffic.
pub(super) fn ping(daemon: &Daemon, json: bool) -> Result<(), CtlError> {
    let began = Instant::now();
    let (status, health) = daemon.probe("/healthcheck")?;
    let millis = began.elapsed().as_secs_f64() * 1e3;
    let Some(word) = health["status"].as_str() else {
        return Err(CtlError::Unreachable {
            url: daemon.url().to_owned(),
            why: format!("what answers there is no lmcached (HTTP {status})"),
        });
    };
    let ready = status == 200;
    let document = json!({
        "ready": ready,
        "status": word,
        "reason": health["reason"],
        "round_trip_ms": (millis * 1000.0).round() / 1000.0,
    });
    show::document(json, &document, |_| {
        if ready { format!("OK, {millis:.2} ms") } else { format!("not ready, {millis:.2} ms") }
    })?;
    if ready {
        return Ok(());
    }
    let reason = health["reason"].as_str().unwrap_or(word);
    Err(CtlError::Refused(format!("the daemon is not ready: {reason}")))
}

/// The daemon in a few lines.
pub(super) fn status(daemon: &Daemon, json: bool) -> Result<(), CtlError> {
    let status = daemon.get("/status")?;
    show::document(json, &status, |status| {
        let storage = &status["storage_manager"];
        let l1 = &storage["l1_manager"];
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        let used = number(&l1["memory_used_bytes"]);
        let workers = number(&status["worker_liveness"]["tracked_instances"]);
        let mut text = show::pairs(&[
            ("daemon", daemon.url().to_owned()),
            ("healthy", show::name(&status["is_healthy"])),
            (
                "L1",
                format!(
                    "{} of {} ({})",
                    show::bytes(&l1["memory_used_bytes"]),
                    show::bytes(&l1["memory_configured_bytes"]),
                    show::percent(used, number(&l1["memory_configured_bytes"]))
                ),
            ),
            ("reserved", show::bytes(&l1["memory_total_bytes"])),
            ("objects", show::name(&l1["total_object_count"])),
            ("leases, pins", format!("{}, {}", l1["read_locked_count"], l1["pinned_count"])),
            ("eviction", show::name(&storage["eviction_controller"]["eviction_policy"])),
            ("chunk size", show::name(&status["chunk_size"])),
            ("hash", show::name(&status["hash_algorithm"])),
            ("workers", format!("{workers}")),
            ("sessions", show::name(&status["active_sessions"])),
            ("connections", show::name(&status["connections"])),
        ]);
        let tiers = super::adapters::rows(&storage["l2_adapters"]);
        if !tiers.is_empty() {
            text.push('\n');
            text.push_str(&show::table(&super::adapters::HEAD, &tiers));
        }
        text
    })
}

/// What the daemon was told.
pub(super) fn config(daemon: &Daemon, json: bool) -> Result<(), CtlError> {
    let config = daemon.get("/config")?;
    show::document(json, &config, |config| {
        let mut rows = Vec::new();
        flatten("", config, &mut rows);
        let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
        rows.iter().map(|(key, value)| format!("{key:<width$}  {value}\n")).collect()
    })
}

/// A line for each leaf.
fn flatten(path: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let dot = if path.is_empty() { "" } else { "." };
                flatten(&format!("{path}{dot}{key}"), value, rows);
            }
        }
        Value::Array(values) if values.iter().any(Value::is_object) => {
            for (at, value) in values.iter().enumerate() {
                flatten(&format!("{path}[{at}]"), value, rows);
            }
        }
        other => rows.push((path.to_owned(), other.to_string())),
    }
}

/// Drops the objects of L1.
pub(super) fn clear(daemon: &Daemon, force: bool, json: bool) -> Result<(), CtlError> {
    let answer = daemon.send("POST", "/cache/clear", &json!({"tier": "l1", "force": force}))?;
    show::document(json, &answer, |_| "L1 cleared".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_becomes_one_line_for_each_value() {
        let mut rows = Vec::new();
        flatten("", &json!({"a": {"b": 1, "c": []}, "d": [{"e": null}]}), &mut rows);
        let lines: Vec<String> = rows.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(lines, ["a.b=1", "a.c=[]", "d[0].e=null"]);
    }
}

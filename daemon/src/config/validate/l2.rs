//! Checks of the L2 tiers: what all types have in common. The keys of one type are for its adapter to check.
//!
//! No line here repeats a value of the JSON: it may be a password.

use clap::ValueEnum;
use serde_json::{Map, Value};

use super::ranges;
use crate::config::error::ConfigError;
use crate::config::flags::L2Flags;
use crate::config::types::{EvictionConfig, EvictionPolicy, L2Adapter, L2Config};
use crate::l2::registry;

/// Loads at the same time at most: each holds a staging area in the pool.
const MAX_IN_FLIGHT: i64 = 65_536;

pub(super) fn l2(flags: &L2Flags) -> Result<L2Config, ConfigError> {
    let adapters = flags.l2_adapter.iter().enumerate().map(|(index, json)| adapter(index + 1, json));
    Ok(L2Config {
        adapters: adapters.collect::<Result<_, _>>()?,
        store_policy: flags.l2_store_policy,
        prefetch_policy: flags.l2_prefetch_policy,
        prefetch_max_in_flight: ranges::count(
            "--l2-prefetch-max-in-flight",
            flags.l2_prefetch_max_in_flight,
            MAX_IN_FLIGHT,
        )?,
        prefetch_deadline: ranges::positive_seconds(
            "--l2-prefetch-deadline-seconds",
            flags.l2_prefetch_deadline_seconds,
        )?,
        store_max_bytes_in_flight: ranges::bytes(
            "--l2-store-max-bytes-in-flight",
            flags.l2_store_max_bytes_in_flight,
        )?,
    })
}

fn adapter(number: usize, json: &str) -> Result<L2Adapter, ConfigError> {
    let wrong = |line: String| ConfigError::conflict(format!("--l2-adapter number {number}"), line);
    let adapter = one_adapter(json.as_bytes()).map_err(wrong)?;
    // The keys of its type, too, so that a mistake in them is an error of the command line.
    registry::plan(number, &adapter).map_err(|error| wrong(error.to_string()))?;
    Ok(adapter)
}

/// One tier's JSON, but for the keys of its type.
///
/// # Errors
/// One line that repeats no value.
pub(in crate::config) fn one_adapter(json: &[u8]) -> Result<L2Adapter, String> {
    let value: Value = serde_json::from_slice(json)
        .map_err(|error| format!("not JSON at line {} column {}", error.line(), error.column()))?;
    let Value::Object(mut settings) = value else {
        return Err("must be a JSON object such as {\"type\":\"fs\",\"base_path\":\"/data\"}".to_owned());
    };
    let adapter = read_adapter(&mut settings)?;
    Ok(L2Adapter { settings, ..adapter })
}

/// Takes what all types have in common out of `settings`.
fn read_adapter(settings: &mut Map<String, Value>) -> Result<L2Adapter, String> {
    let kind = take_text(settings, "type")?.ok_or("needs a \"type\"")?;
    registry::is_served(&kind).map_err(|error| error.to_string())?;
    let affinity_tag = take_text(settings, "affinity_tag")?.unwrap_or_else(|| "_default".to_owned());
    let adapter = L2Adapter {
        kind,
        affinity_tag,
        shared: take_bool(settings, "shared")?.unwrap_or(false),
        persist: take_bool(settings, "persist_enabled")?.unwrap_or(true),
        eviction: take(settings, "eviction").map(|value| eviction(&value)).transpose()?,
        settings: Map::new(),
    };
    if settings.get("serde").is_some_and(|serde| !serde.is_null() && !serde["type"].is_string()) {
        return Err("\"serde\" must be an object with a \"type\"".to_owned());
    }
    Ok(adapter)
}

/// `null` stands for an absent key, as in the peer.
fn take(settings: &mut Map<String, Value>, key: &str) -> Option<Value> {
    settings.remove(key).filter(|value| !value.is_null())
}

fn take_text(settings: &mut Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match take(settings, key) {
        None => Ok(None),
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(Some(text)),
        Some(_) => Err(format!("{key:?} must be a string that is not empty")),
    }
}

fn take_bool(settings: &mut Map<String, Value>, key: &str) -> Result<Option<bool>, String> {
    match take(settings, key) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(value)),
        Some(_) => Err(format!("{key:?} must be true or false")),
    }
}

fn eviction(value: &Value) -> Result<EvictionConfig, String> {
    let fraction = |key: &str, default: f64| match &value[key] {
        Value::Null => Ok(default),
        number => number
            .as_f64()
            .filter(|part| *part > 0.0 && *part <= 1.0)
            .ok_or_else(|| format!("\"eviction\".{key:?} must be above 0 and at most 1")),
    };
    let policy =
        value["eviction_policy"].as_str().and_then(|name| EvictionPolicy::from_str(name, false).ok());
    Ok(EvictionConfig {
        policy: policy.ok_or("\"eviction\".\"eviction_policy\" must be LRU, ARC, IsolatedLRU or noop")?,
        trigger_watermark: fraction("trigger_watermark", 0.8)?,
        ratio: fraction("eviction_ratio", 0.2)?,
    })
}

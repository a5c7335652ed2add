//! The storage layer's configuration as LMCache's header has it: the same keys, the same spelling of JSON, so that the same
//! flags give the same digest.

use std::fmt::Write;

use clap::ValueEnum;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::config::{Config, EvictionConfig};

/// LMCache's default, which its flag for it only changes there: a lease lasts as long as its request here.
const READ_TTL_SECONDS: u64 = 300;
/// The same for the interval of its notifier.
const NOTIFIER_INTERVAL_MS: u64 = 5;

/// The JSON text of the configuration, with a pool of `pool_bytes`. What adapters are set to is left out, as it may be
/// passwords; LMCache writes their Python names there.
pub fn storage_config(config: &Config, pool_bytes: u64) -> String {
    let eviction = eviction(config, &config.eviction);
    let l1 = json!({
        "eviction": eviction.clone(),
        "gds_l1_config": null,
        "memory_config": {
            "align_bytes": config.l1.align_bytes,
            "devdax_path": null,
            "devdax_size_in_bytes": 0,
            "init_size_in_bytes": pool_bytes,
            "shm_name": config.l1.pool_name,
            "size_in_bytes": pool_bytes,
            "use_hugepages": config.l1.use_hugepages,
            "use_lazy": false,
        },
        "read_ttl_seconds": READ_TTL_SECONDS,
        "tag": "_default",
        "write_ttl_seconds": config.liveness.write_ttl.as_secs(),
    });
    let adapter =
        |adapter: &crate::config::L2Adapter| json!({"type": adapter.kind, "shared": adapter.shared});
    let name = |value: Option<clap::builder::PossibleValue>| {
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    };
    python_json(&json!({
        "eviction_config": eviction,
        "l1_manager_config": l1.clone(),
        "l1_manager_configs": [l1],
        "l2_adapter_config": {"adapters": config.l2.adapters.iter().map(adapter).collect::<Vec<_>>()},
        "periodic_notifier_interval_ms": NOTIFIER_INTERVAL_MS,
        "prefetch_max_in_flight": config.l2.prefetch_max_in_flight,
        "prefetch_policy": name(config.l2.prefetch_policy.to_possible_value()),
        "store_policy": name(config.l2.store_policy.to_possible_value()),
    }))
}

fn eviction(config: &Config, eviction: &EvictionConfig) -> Value {
    let extra = config.observability.extra_logging;
    json!({
        "eviction_policy": eviction.policy.name(),
        "eviction_ratio": eviction.ratio,
        "extra_logging_enabled": extra.is_some(),
        "extra_logging_interval": extra.map_or(10.0, |interval| interval.as_secs_f64()),
        "trigger_watermark": eviction.trigger_watermark,
    })
}

/// SHA-256 of a text, in hex.
pub fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// JSON as Python's `json.dumps(…, sort_keys=True)` spells it.
fn python_json(value: &Value) -> String {
    let mut text = String::new();
    append(&mut text, value);
    text
}

fn append(out: &mut String, value: &Value) {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            let _ = write!(out, "{value}");
        }
        Value::String(text) => append_text(out, text),
        Value::Array(items) => {
            out.push('[');
            for (position, item) in items.iter().enumerate() {
                out.push_str(if position == 0 { "" } else { ", " });
                append(out, item);
            }
            out.push(']');
        }
        Value::Object(map) => {
            // Whether the map is sorted is a feature of serde_json that any crate may switch.
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_by_key(|(key, _)| key.as_str());
            out.push('{');
            for (position, (key, item)) in pairs.into_iter().enumerate() {
                out.push_str(if position == 0 { "" } else { ", " });
                append_text(out, key);
                out.push_str(": ");
                append(out, item);
            }
            out.push('}');
        }
    }
}

/// Python writes everything outside ASCII as UTF-16 escapes.
fn append_text(out: &mut String, text: &str) {
    let quoted = Value::from(text).to_string();
    for c in quoted.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server of LMCache 0.5.6 wrote for these flags.
    #[test]
    fn the_same_flags_give_lmcache_s_own_text() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/storage-trace.lct");
        let reader = super::super::TraceReader::open(path.as_ref()).expect("the vector");
        let flags = ["lmcached", "--l1-size-gb", "2", "--shm-name", "tr1"].map(std::ffi::OsString::from);
        let mut config = crate::config::parse(flags).expect("flags").config;
        // There the pool's name is the flag's; here it has a prefix that workers of several daemons tell apart.
        config.l1.pool_name = "tr1".into();
        let ours = storage_config(&config, 2 << 30);
        assert_eq!(ours, reader.header().config_json);
        assert_eq!(digest(&ours), reader.header().config_digest);
    }

    #[test]
    fn text_is_escaped_as_python_does() {
        let value = json!({"ü": ["\u{1F600}", "a\"b\\\n"], "a": 0.5});
        assert_eq!(python_json(&value), r#"{"a": 0.5, "\u00fc": ["\ud83d\ude00", "a\"b\\\n"]}"#);
    }
}

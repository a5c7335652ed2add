//! The adapters that are served, and what to use instead of those that are not.
//!
//! To add one: write its file with a `recipe`, and add one line to [`KINDS`].
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use super::adapter::L2Adapter;
use super::aesgcm::{AesGcm, Keys};
use super::breaker::BreakerConfig;
use super::error::Trouble;
use super::ledger::{Bounds, Ledger};
use super::settings::{Settings, SettingsError, gib};
use super::tier::{Limits, Tier};
use crate::config;
use crate::quota::Quotas;

/// Reads an adapter's own keys; the second argument is the deadline of a request without payload.
type ReadRecipe = fn(&mut Settings, Duration) -> Result<Recipe, SettingsError>;

/// Deadline of a request without payload.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// One line for each type.
const KINDS: &[(&str, ReadRecipe)] = &[
    ("fault_inject", super::fault_inject::recipe),
    ("fs", super::fs::recipe),
    ("fs_native", super::fs::recipe_native),
    ("mock", super::mock::recipe),
    ("raw_block", super::raw_block::recipe),
    #[cfg(feature = "l2-redis")]
    ("resp", super::redis::recipe_resp),
    #[cfg(feature = "l2-s3")]
    ("s3", super::s3::recipe),
    #[cfg(feature = "l2-redis")]
    ("valkey", super::redis::recipe_valkey),
];

/// Types of LMCache 0.5.6 that this daemon does not serve, and what serves instead.
const REFUSED: &[(&str, &str)] = &[
    ("aerospike", "use valkey, which also expires by ttl_seconds"),
    ("bigtable", "use s3, through an S3-compatible endpoint"),
    ("dax", "give the device to L1, or use raw_block or an fs on a DAX file system"),
    ("hf3fs", "mount 3FS through its FUSE client and use fs; the file names are the same"),
    ("hfbucket", "use s3 with the bucket's S3-compatible endpoint"),
    ("mooncake_store", "use valkey in cluster mode, or fs on a shared file system"),
    ("native_plugin", "C++ plugins have another ABI; use one of the adapters that are served"),
    ("nixl_native", "use fs; directories without shard_dirs have the same file names"),
    ("nixl_store", "use raw_block for one local device or fs for files"),
    ("nixl_store_dynamic", "use fs; the file names are the same"),
    ("p2p", "let the daemons share a valkey cluster, an s3 bucket or an fs directory"),
    ("plugin", "Python plugins have another ABI; use one of the adapters that are served"),
    ("sagemaker-hyperpod", "use s3 or valkey"),
];

/// Whether and when what the store holds is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// A listing is cheap: always.
    Always,
    /// A listing is many requests: only when there is a limit to keep, the store's or its salts'.
    WithCapacity,
}

/// Opens a store. Fails only for what the operator must mend first; a server that is down is no reason.
pub type Open = Box<dyn FnOnce() -> Result<Arc<dyn L2Adapter>, Trouble> + Send>;

/// What an adapter's keys say.
pub struct Recipe {
    /// Opens it.
    pub open: Open,
    /// When to count.
    pub counting: Counting,
    /// The adapter's own limit, if it has one beside `max_capacity_gb`.
    pub capacity: Option<u64>,
    /// Transfers at the same time that the store gains from. More wait, with their deadlines not running yet.
    pub transfers: usize,
}

impl Recipe {
    /// Without a limit of its own.
    pub fn new(counting: Counting, transfers: usize, open: Open) -> Recipe {
        Recipe { open, counting, capacity: None, transfers }
    }
}

/// A checked configuration of one tier, ready to be opened.
pub struct Plan {
    label: String,
    recipe: Recipe,
    bounds: Bounds,
    keys: Option<Keys>,
    limits: Limits,
    quotas: Arc<Quotas>,
    /// Keys of the JSON that mean nothing to this adapter.
    pub unknown: Vec<String>,
}

/// Reads one adapter's configuration. `number` is its position on the command line, from 1.
///
/// # Errors
/// One line for the operator, without values of the JSON.
pub fn plan(number: usize, config: &config::L2Adapter) -> Result<Plan, SettingsError> {
    let mut settings = Settings::new(config.settings.clone());
    let read = find(&config.kind)?;
    let keys = settings.object("serde")?.map(Keys::read).transpose()?;
    let capacity = settings.number("max_capacity_gb")?.map(gib).filter(|bytes| *bytes > 0);
    let breaker = settings.object("breaker")?;
    let request_timeout = settings.seconds("request_timeout")?.unwrap_or(REQUEST_TIMEOUT);
    let recipe = read(&mut settings, request_timeout)?;
    let capacity = capacity.into_iter().chain(recipe.capacity).min();
    Ok(Plan {
        label: format!("{}#{number}", config.kind),
        bounds: Bounds { capacity, eviction: config.eviction },
        keys,
        limits: Limits {
            request_timeout,
            transfers: recipe.transfers,
            breaker: BreakerConfig::read(breaker, request_timeout)?,
        },
        recipe,
        quotas: Arc::default(),
        unknown: settings.left(),
    })
}

/// The recipe of an adapter inside another.
pub(super) fn recipe_of(mut settings: Settings, request_timeout: Duration) -> Result<Recipe, SettingsError> {
    let kind = settings.required("type")?;
    settings.ignore(&["persist_enabled", "shared", "affinity_tag", "eviction"]);
    let recipe = find(&kind)?(&mut settings, request_timeout)?;
    match settings.left().first() {
        Some(key) => Err(SettingsError(format!("\"inner\" has no key {key:?}; common keys go outside"))),
        None => Ok(recipe),
    }
}

/// Whether a type is served; if not, why, and what to use instead.
///
/// # Errors
/// One line for the operator. It repeats the type only if that is a known one.
pub fn is_served(kind: &str) -> Result<(), SettingsError> {
    find(kind).map(drop)
}

fn find(kind: &str) -> Result<ReadRecipe, SettingsError> {
    if let Some((_, read)) = KINDS.iter().find(|(name, _)| *name == kind) {
        return Ok(*read);
    }
    if let Some((name, instead)) = REFUSED.iter().find(|(name, _)| *name == kind) {
        return Err(SettingsError(format!("type {name:?} is not served by this daemon: {instead}")));
    }
    if cfg!(not(all(feature = "l2-redis", feature = "l2-s3"))) && ["resp", "valkey", "s3"].contains(&kind) {
        return Err(SettingsError(
            "this build has no Redis or S3 client: build it with the l2-redis and l2-s3 features".into(),
        ));
    }
    let names: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
    Err(SettingsError(format!("\"type\" must be one of {}", names.join(", "))))
}

/// The TLS of all clients: `ring`, which needs a C compiler and nothing else.
#[cfg(any(feature = "l2-redis", feature = "l2-s3"))]
pub(super) fn install_tls() {
    // An error means that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl Plan {
    /// How log lines will call the tier.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// With the limits of the salts, which matter to `IsolatedLRU`. Without them it knows none.
    #[must_use]
    pub fn with_quotas(self, quotas: &Arc<Quotas>) -> Plan {
        Plan { quotas: quotas.clone(), ..self }
    }

    /// Opens the tier. To be called inside a tokio runtime: counting starts in the background.
    ///
    /// # Errors
    /// Something that the operator must mend first, such as a directory that cannot be made.
    pub fn open(self) -> Result<Arc<Tier>, Trouble> {
        for key in &self.unknown {
            tracing::warn!(tier = %self.label, "the key {key:?} means nothing to this adapter and is ignored; is it misspelt?");
        }
        let adapter = (self.recipe.open)()?;
        let bounded = self.bounds.capacity.is_some() || self.bounds.is_isolated();
        let adapter = if self.recipe.counting == Counting::Always || bounded {
            Ledger::open(self.label.clone(), adapter, self.bounds, self.quotas) as Arc<dyn L2Adapter>
        } else {
            adapter
        };
        let adapter = match self.keys {
            Some(keys) => Arc::new(AesGcm::new(adapter, keys)) as Arc<dyn L2Adapter>,
            None => adapter,
        };
        Ok(Tier::new(self.label, adapter, self.limits))
    }
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan").field("label", &self.label).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn plan_of(json: &Value) -> Result<Plan, SettingsError> {
        let mut settings = json.as_object().expect("an object").clone();
        let kind = settings.remove("type").and_then(|kind| kind.as_str().map(str::to_owned)).expect("a type");
        let config = config::L2Adapter {
            kind,
            affinity_tag: "_default".into(),
            shared: false,
            persist: true,
            eviction: None,
            settings,
        };
        plan(1, &config)
    }

    #[test]
    fn every_type_of_the_peer_is_served_or_refused_with_advice() {
        let peers = [
            "aerospike",
            "bigtable",
            "dax",
            "fault_inject",
            "fs",
            "fs_native",
            "hf3fs",
            "hfbucket",
            "mock",
            "mooncake_store",
            "native_plugin",
            "nixl_native",
            "nixl_store",
            "nixl_store_dynamic",
            "p2p",
            "plugin",
            "raw_block",
            "resp",
            "s3",
            "sagemaker-hyperpod",
            "valkey",
        ];
        let mut known: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
        known.extend(REFUSED.iter().map(|(name, _)| *name));
        known.sort_unstable();
        assert_eq!(known, peers);
        for (name, instead) in REFUSED {
            let line = is_served(name).expect_err("refused").to_string();
            assert!(line.contains(name) && line.contains(instead), "{line}");
        }
        let line = is_served("hunter2").expect_err("unknown").to_string();
        assert!(line.contains("valkey") && !line.contains("hunter2"), "{line}");
    }

    #[test]
    fn wrong_keys_end_the_start_with_a_line_that_names_them() {
        let resp = |extra: Value| {
            let mut json = json!({"type": "resp", "host": "h", "port": 1, "password": "hunter2"});
            json.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
            json
        };
        let cases = [
            (json!({"type": "fs"}), "base_path"),
            (json!({"type": "fs", "base_path": "/x", "relative_tmp_dir": "../y"}), "relative_tmp_dir"),
            (json!({"type": "fs", "base_path": "/x", "relative_tmp_dir": "/y"}), "relative_tmp_dir"),
            (json!({"type": "fs", "base_path": "/x", "io_engine": "aio"}), "io_engine"),
            (json!({"type": "fs", "base_path": "/x", "serde": {"type": "fp8"}}), "aesgcm"),
            (json!({"type": "fs", "base_path": "/x", "serde": {"type": "aesgcm"}}), "master_key_path"),
            (resp(json!({"port": 0})), "port"),
            (resp(json!({"key_prefix": "a@b"})), "key_prefix"),
            (resp(json!({"ttl_seconds": 0})), "ttl_seconds"),
            (resp(json!({"request_timeout": 0})), "request_timeout"),
            (resp(json!({"max_capacity_gb": -1})), "max_capacity_gb"),
            (resp(json!({"breaker": {"failure": 3}})), "failure"),
            (json!({"type": "valkey", "startup_nodes": "h"}), "startup_nodes"),
            (json!({"type": "s3", "s3_region": "r", "s3_endpoint": "host"}), "s3_bucket"),
            (
                json!({"type": "s3", "s3_region": "r", "s3_endpoint": "b.h", "aws_access_key_id": "i"}),
                "together",
            ),
            (json!({"type": "raw_block", "device_path": "/x", "slot_bytes": 5000}), "slot_bytes"),
            (
                json!({"type": "raw_block", "device_path": "/x", "slot_bytes": 4096, "fdp_enabled": true}),
                "fdp_enabled",
            ),
            (json!({"type": "mock", "max_size_gb": 0, "mock_bandwidth_gb": 1}), "max_size_gb"),
            (json!({"type": "fault_inject"}), "inner"),
            (json!({"type": "fault_inject", "inner": {"type": "p2p"}}), "p2p"),
            (json!({"type": "fault_inject", "inner": {"type": "mock"}, "gap_indices": [1]}), "rate"),
        ];
        for (json, named) in cases {
            let line = plan_of(&json).expect_err("wrong").to_string();
            assert!(line.contains(named) && !line.contains("hunter2"), "{json}: {line}");
        }
    }

    #[test]
    fn the_peers_own_examples_are_taken_and_unknown_keys_are_told() {
        let fs = json!({"type": "fs_native", "base_path": "/x", "num_workers": 4, "relative_tmp_dir": "",
                        "use_odirect": true, "read_ahead_size": 4096, "max_capacity_gb": 0});
        assert!(plan_of(&fs).expect("taken").unknown.is_empty());
        let raw = json!({"type": "raw_block", "device_path": "/dev/x", "slot_bytes": 1 << 20, "capacity_bytes": 0,
                         "block_align": 4096, "header_bytes": 4096, "meta_total_bytes": 268_435_456, "meta_magic": "LMCIDX01",
                         "io_engine": "io_uring", "use_uring_cmd": false, "fdp_enabled": false, "num_load_workers": 4});
        assert!(plan_of(&raw).expect("taken").unknown.is_empty());
        let s3 = json!({"type": "s3", "s3_endpoint": "s3://b.s3.us-east-1.amazonaws.com", "s3_region": "us-east-1",
                        "s3_num_io_threads": 64, "s3_prefer_http2": true, "s3_enable_s3express": false, "disable_tls": false});
        assert!(plan_of(&s3).expect("taken").unknown.is_empty());
        let typo = json!({"type": "resp", "host": "h", "port": 1, "pasword": "hunter2"});
        assert_eq!(plan_of(&typo).expect("taken").unknown, ["pasword"]);
    }
}

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
    /// A listing is many requests: only when there is a limit to keep.
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

    /// Opens the tier. To be called inside a tokio runtime: counting starts in the background.
    ///
    /// # Errors
    /// Something that the operator must mend first, such as a directory that cannot be made.
    pub fn open(self) -> Result<Arc<Tier>, Trouble> {
        for key in &self.unknown {
            tracing::warn!(tier = %self.label, "the key {key:?} means nothing to this adapter and is ignored; is it misspelt?");
        }
        let adapter = (self.recipe.open)()?;
        let adapter = if self.recipe.counting == Counting::Always || self.bounds.capacity.is_some() {
            Ledger::open(self.label.clone(), adapter, self.bounds) as Arc<dyn L2Adapter>
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

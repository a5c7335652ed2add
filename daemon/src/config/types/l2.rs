//! The checked configuration of the colder tiers.

use std::collections::BTreeSet;
use std::fmt;
use std::num::{NonZeroU64, NonZeroUsize};
use std::time::Duration;

use clap::ValueEnum;

use super::EvictionConfig;

/// The colder tiers.
#[derive(Debug, Clone, PartialEq)]
pub struct L2Config {
    /// In the order of the command line, which is the order they are asked in.
    pub adapters: Vec<L2Adapter>,
    /// What happens to an object in L1 once L2 has it.
    pub store_policy: L2StorePolicy,
    /// What happens to an object from L2 once it has been read.
    pub prefetch_policy: L2PrefetchPolicy,
    /// Lookups that may load from L2 at the same time. Default: 8.
    pub prefetch_max_in_flight: NonZeroUsize,
    /// Time after which a lookup is answered with what has arrived. Default: 30 s.
    pub prefetch_deadline: Duration,
    /// Bytes of L1 that stores may hold at the same time. Default: 256 MiB.
    pub store_max_bytes_in_flight: NonZeroU64,
}

/// One `--l2-adapter`. Its `Debug` hides the values of `settings`: they may be passwords.
#[derive(Clone, PartialEq)]
pub struct L2Adapter {
    /// The peer's name of the type, such as `fs` or `resp`.
    pub kind: String,
    /// L1 this tier belongs to. Default: `_default`.
    pub affinity_tag: String,
    /// Other daemons use the same storage. Default: false.
    pub shared: bool,
    /// Objects in the tier outlive the daemon. Default: true.
    pub persist: bool,
    /// What leaves the tier; `None`: nothing does.
    pub eviction: Option<EvictionConfig>,
    /// The keys of this type and of its `serde`, unchecked: the adapter knows them.
    pub settings: serde_json::Map<String, serde_json::Value>,
}

impl fmt::Debug for L2Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("L2Adapter")
            .field("kind", &self.kind)
            .field("affinity_tag", &self.affinity_tag)
            .field("shared", &self.shared)
            .field("persist", &self.persist)
            .field("eviction", &self.eviction)
            .field("settings", &self.settings.keys().collect::<BTreeSet<_>>())
            .finish()
    }
}

/// What happens to an object in L1 once L2 has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum L2StorePolicy {
    /// Every tier gets it and L1 keeps it.
    #[value(name = "default")]
    Default,
    /// L1 gives it up.
    #[value(name = "skip_l1")]
    SkipL1,
}

/// What happens to an object from L2 once it has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum L2PrefetchPolicy {
    /// L1 gives it up again.
    #[value(name = "default")]
    Default,
    /// L1 keeps it.
    #[value(name = "retain")]
    Retain,
}

//! Flags of the L2 tiers.

use clap::Args;

use crate::config::types::{L2PrefetchPolicy, L2StorePolicy};

#[derive(Debug, Args)]
#[command(next_help_heading = "Honoured: L2 tiers")]
pub(crate) struct L2Flags {
    /// One L2 tier: a JSON object with "type" and the keys of that type; repeatable, first is asked first
    #[arg(long, value_name = "JSON")]
    pub(crate) l2_adapter: Vec<String>,

    /// What happens to an object in L1 once L2 has it
    #[arg(long, value_enum, default_value_t = L2StorePolicy::Default, value_name = "POLICY")]
    pub(crate) l2_store_policy: L2StorePolicy,

    /// What happens to an object loaded from L2 once it has been read
    #[arg(long, value_enum, default_value_t = L2PrefetchPolicy::Default, value_name = "POLICY")]
    pub(crate) l2_prefetch_policy: L2PrefetchPolicy,

    /// Lookups that may load from L2 at the same time
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub(crate) l2_prefetch_max_in_flight: i64,

    /// Time after which a lookup that waits for L2 is answered with what has arrived
    #[arg(long, default_value_t = 30.0, value_name = "SECONDS")]
    pub(crate) l2_prefetch_deadline_seconds: f64,

    /// Bytes of L1 that stores to L2 may hold at the same time
    #[arg(long, default_value_t = 256 << 20, value_name = "BYTES")]
    pub(crate) l2_store_max_bytes_in_flight: i64,
}

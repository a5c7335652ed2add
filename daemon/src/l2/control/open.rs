//! Opens the configured tiers, and the controllers over them.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::super::error::Trouble;
use super::super::registry;
use super::super::settings::SettingsError;
use super::attached::Tiers;
use super::loader::Loader;
use super::store::{StoreConfig, StoreController};
use crate::config::{L2Config, L2PrefetchPolicy, L2StorePolicy};
use crate::events::Bus;
use crate::l1::L1;
use crate::quota::Quotas;

/// A tier that could not be opened. A server that is down is no reason: its breaker opens, and it is probed.
#[derive(Debug, Error)]
pub enum TierError {
    /// Its configuration.
    #[error("--l2-adapter number {number}: {source}")]
    Settings {
        /// Position on the command line, from 1.
        number: usize,
        /// What is wrong.
        source: SettingsError,
    },
    /// Its place.
    #[error("L2 tier {label}: {source}; {}", .source.advice())]
    Open {
        /// How log lines call it.
        label: String,
        /// What is wrong.
        source: Trouble,
    },
}

/// The tiers and their controllers.
#[derive(Debug)]
pub struct Opened {
    /// The tiers.
    pub tiers: Arc<Tiers>,
    /// From them into L1.
    pub loader: Arc<Loader>,
    /// From L1 to them.
    pub stores: StoreController,
    /// Time after which a lookup is answered with what has arrived.
    pub deadline: Duration,
}

/// Opens them, on the current runtime.
///
/// # Errors
/// What the operator must mend first.
pub fn open(
    config: &L2Config,
    l1: &Arc<L1>,
    bus: &Arc<Bus>,
    quotas: &Arc<Quotas>,
) -> Result<Opened, TierError> {
    let tiers = Arc::new(Tiers::default());
    for (number, adapter) in (1..).zip(&config.adapters) {
        let plan =
            registry::plan(number, adapter).map_err(|source| TierError::Settings { number, source })?;
        let label = plan.label().to_owned();
        let tier = plan.with_quotas(quotas).open();
        let tier = tier.map_err(|source| TierError::Open { label: label.clone(), source })?;
        let attached = tiers.add(tier);
        tracing::info!(tier = label, index = attached.id.index, "L2 tier in use");
    }
    let temporary = config.prefetch_policy == L2PrefetchPolicy::Default;
    let max_in_flight = config.prefetch_max_in_flight.get();
    let loader = Loader::new(l1.clone(), tiers.clone(), bus.clone(), max_in_flight, temporary);
    let store = StoreConfig {
        max_bytes_in_flight: config.store_max_bytes_in_flight.get(),
        skip_l1: config.store_policy == L2StorePolicy::SkipL1,
    };
    let stores = StoreController::start(l1.clone(), tiers.clone(), bus.clone(), store);
    Ok(Opened { tiers, loader, stores, deadline: config.prefetch_deadline })
}

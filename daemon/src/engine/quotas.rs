//! Quotas as operators change and see them: the table, and what follows from a change.

use std::sync::Arc;

use super::Engine;
use crate::l2::adapter::L2Adapter;
use crate::quota::{Quota, QuotaError};

/// What the objects of a salt take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaltUsage {
    /// Bytes of L1.
    pub l1: u64,
    /// Bytes of each tier that counts them, with the tier's label.
    pub tiers: Vec<(String, u64)>,
}

impl SaltUsage {
    /// One number for both: 0.5.6 adds up the tiers and knows no quotas for L1. Where nothing of L1 is in a tier, L1 says
    /// more.
    pub fn bytes(&self) -> u64 {
        self.l1.max(self.tiers.iter().map(|(_, bytes)| bytes).sum())
    }
}

impl Engine {
    /// A salt's limit, if it has one.
    pub fn quota(&self, salt: &str) -> Option<u64> {
        self.quotas.limit(salt)
    }

    /// All quotas, by salt.
    pub fn quotas(&self) -> Vec<Quota> {
        self.quotas.all()
    }

    /// Limits a salt. Returns the limit that it had. L1 holds no more when this returns, but for what is held; the tiers
    /// follow in the background. Writes a file.
    ///
    /// # Errors
    /// See [`crate::quota::Quotas::set`].
    pub fn set_quota(&self, salt: &str, limit: u64) -> Result<Option<u64>, QuotaError> {
        let before = self.quotas.set(salt, limit)?;
        self.quotas_changed(salt);
        Ok(before)
    }

    /// Takes a salt's limit away. Returns it. Writes a file.
    ///
    /// # Errors
    /// See [`crate::quota::Quotas::remove`].
    pub fn remove_quota(&self, salt: &str) -> Result<Option<u64>, QuotaError> {
        let before = self.quotas.remove(salt)?;
        self.quotas_changed(salt);
        Ok(before)
    }

    fn quotas_changed(&self, salt: &str) {
        self.l1.trim_to_quota(salt);
        self.after_change();
        self.tiers().iter().for_each(|attached| attached.tier.quotas_changed());
    }

    /// What the objects of a salt take.
    pub fn salt_usage(&self, salt: &str) -> SaltUsage {
        let tiers = self.tiers();
        let tiers = tiers.iter().map(|at| (at.tier.label().to_owned(), at.tier.bytes_of_salt(salt)));
        SaltUsage { l1: self.l1.bytes_of_salt(salt), tiers: tiers.collect() }
    }

    fn tiers(&self) -> Arc<[Arc<crate::l2::control::Attached>]> {
        self.l2.as_ref().map_or_else(|| Arc::from([]), |l2| l2.opened.tiers.all())
    }
}

//! What salts take of the pool, and keeping them within their quotas.
//!
//! A reservation looks at the quota itself (`hold`); what is here is for quotas that were changed, and for objects that were
//! held when their salt should have given them up.
#![forbid(unsafe_code)]

use super::index::Index;
use super::lock::Lock;
use super::{L1, SLICE};

impl<K: Lock<Index>> L1<K> {
    /// Bytes of the pool that the objects of a salt take: readable ones, and those being written or still held.
    pub fn bytes_of_salt(&self, salt: &str) -> u64 {
        let index = self.index.lock();
        index.names.find(salt).map_or(0, |salt| index.bytes_of(salt))
    }

    /// Evicts a salt's own objects until it is within its quota, or until the rest of them is held. Returns the bytes evicted.
    /// To be called after every change of its quota.
    pub fn trim_to_quota(&self, salt: &str) -> u64 {
        let mut freed = 0;
        loop {
            let index = &mut *self.index.lock();
            // Read anew for each slice: it may have been changed again.
            let limit = self.quotas.limit(salt);
            let Some(id) = index.names.find(salt) else { return freed };
            index.set_quota(id, limit.is_some());
            let over = index.bytes_of(id).saturating_sub(limit.unwrap_or(u64::MAX));
            let slice = index.evict_of(id, over, SLICE, &self.table);
            freed += slice;
            if slice == 0 {
                return freed;
            }
        }
    }

    /// [`L1::trim_to_quota`] for all salts that have one.
    pub fn trim_to_quotas(&self) -> u64 {
        self.quotas.all().iter().map(|quota| self.trim_to_quota(&quota.salt)).sum()
    }
}

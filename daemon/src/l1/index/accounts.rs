//! What each salt takes, and how a salt with a quota stays within it.
#![forbid(unsafe_code)]

use lmcache_proto::shm::ObjectState;

use super::super::names::NameId;
use super::super::pool::Table;
use super::{Index, Key, ReserveError};

/// Objects that may be evicted for one reservation beyond those that it brings. A bound, because the lock is held meanwhile;
/// only a salt whose quota has just been cut has more, and that is trimmed at once in slices.
const EVICT_FOR_QUOTA: usize = 4096;

/// Of one salt, by its id.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    /// Bytes of the pool that its objects take: readable ones, those being written, and those that only wait for their
    /// holders.
    bytes: u64,
    /// Whether it has a quota, for the order of eviction. The table of quotas decides; this follows it.
    quota: bool,
}

/// All of them. An id is another name's when its last object has gone; its bytes are 0 then.
#[derive(Debug, Default)]
pub(super) struct Accounts(Vec<Account>);

impl Accounts {
    fn of(&mut self, salt: NameId) -> &mut Account {
        let at = salt.0 as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, Account::default());
        }
        &mut self.0[at]
    }

    pub(super) fn add(&mut self, salt: NameId, bytes: u64) {
        self.of(salt).bytes += bytes;
    }

    pub(super) fn sub(&mut self, salt: NameId, bytes: u64) {
        self.of(salt).bytes -= bytes;
    }

    fn bytes(&self, salt: NameId) -> u64 {
        self.0.get(salt.0 as usize).map_or(0, |account| account.bytes)
    }

    pub(super) fn has_quota(&self, salt: NameId) -> bool {
        self.0.get(salt.0 as usize).is_some_and(|account| account.quota)
    }
}

impl Index {
    /// Bytes of the pool that a salt's objects take.
    pub(in crate::l1) fn bytes_of(&self, salt: NameId) -> u64 {
        self.accounts.bytes(salt)
    }

    /// Notes whether a salt has a quota.
    pub(in crate::l1) fn set_quota(&mut self, salt: NameId, quota: bool) {
        if self.accounts.has_quota(salt) != quota {
            self.accounts.of(salt).quota = quota;
            self.policy.set_quota(salt, quota);
        }
    }

    /// Makes room for `bytes` more of a salt within its limit, out of its own objects, oldest first. Evicts nothing if that
    /// is not enough.
    ///
    /// Those of `keys` that are there in this `shape` (layout, length) stay: a prompt must not lose its head to its own tail.
    pub(in crate::l1) fn fit_into_quota(
        &mut self,
        (salt, limit): (NameId, u64),
        bytes: u64,
        keys: impl Iterator<Item = Key>,
        shape: (u64, u64),
        table: &Table,
    ) -> Result<(), ReserveError> {
        let over = self.accounts.bytes(salt).saturating_add(bytes).saturating_sub(limit);
        if over == 0 {
            return Ok(());
        }
        let mut kept = 0;
        for key in keys {
            if self.is_wanted(&key, shape.0, shape.1) {
                continue;
            }
            let Some(&index) = self.map.get(&key) else { continue };
            let entry = &self.entries[index as usize];
            if entry.state == ObjectState::Committed && !entry.is_held() {
                let subject = self.subject(index);
                kept += subject.bytes;
                self.policy.remove(&subject);
                self.policy.insert(&subject);
            }
        }
        if self.policy.evictable_of(salt).saturating_sub(kept) < over {
            return Err(ReserveError::OverQuota);
        }
        let most = EVICT_FOR_QUOTA + (bytes / self.allocator.footprint(1)) as usize;
        if self.evict_of(salt, over, most, table) < over { Err(ReserveError::OverQuota) } else { Ok(()) }
    }

    /// Evicts a salt's own objects until `want` bytes are free, at most `most` of them. Returns the bytes evicted.
    pub(in crate::l1) fn evict_of(&mut self, salt: NameId, want: u64, most: usize, table: &Table) -> u64 {
        let mut freed = 0;
        for _ in 0..most {
            if freed >= want {
                break;
            }
            let Some(index) = self.policy.victim_of(salt) else { break };
            freed += self.evict_object(index, table);
        }
        freed
    }
}

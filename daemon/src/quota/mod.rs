//! Quotas: how many bytes the objects of a cache salt may take, in L1 and in each tier that asks for it.
//!
//! This is the one place that knows the limits. L1 and the tiers ask when a limit decides something; they keep no copy.
//!
//! * this file: the table;
//! * `file`: how it outlives the daemon.
//!
//! Locks: `changes` puts changes in order and is held while the file is written; `limits` is held for one map operation and
//! is a leaf, so it may be taken under any other lock. A change is in force when it is on the disk, never before.
#![forbid(unsafe_code)]

mod file;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lmcache_proto::wire::validate_salt;
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;
use thiserror::Error;

use file::StateFile;

/// Most quotas. Each is a few series of every scrape, and a row of the file.
pub const MAX_QUOTAS: usize = 1024;

/// Why a quota was not changed.
#[derive(Debug, Error)]
pub enum QuotaError {
    /// No request can have this salt.
    #[error("no request has this cache_salt: it may have 128 characters, and none of @, /, \\ and NUL")]
    Salt,
    /// The table is full.
    #[error("there are {MAX_QUOTAS} quotas already; delete one first")]
    TooMany,
    /// The file was not written.
    #[error(
        "the quota is not changed, because {path} cannot be written: {source}; make --state-dir writable and try again",
        path = .path.display()
    )]
    Persist {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A salt's limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The salt; empty for requests without one.
    pub salt: Arc<str>,
    /// Bytes that its objects may take.
    pub limit: u64,
}

type Limits = FxHashMap<Arc<str>, u64>;

/// The table.
#[derive(Debug)]
pub struct Quotas {
    limits: RwLock<Limits>,
    changes: Mutex<()>,
    file: Option<StateFile>,
    /// Whether the table has everything that was ever set: `false` after a file that could not be read.
    complete: bool,
}

impl Default for Quotas {
    /// An empty table that is forgotten with the process.
    fn default() -> Quotas {
        Quotas::new(Limits::default(), None, true)
    }
}

impl Quotas {
    fn new(limits: Limits, file: Option<StateFile>, complete: bool) -> Quotas {
        Quotas { limits: RwLock::new(limits), changes: Mutex::new(()), file, complete }
    }

    /// The table that an earlier daemon left in `state_dir`. A file that cannot be read is put aside and told; the daemon
    /// starts all the same, without quotas. Without a directory nothing is kept.
    pub fn open(state_dir: Option<&Path>) -> Quotas {
        let Some(dir) = state_dir else { return Quotas::default() };
        let file = StateFile::in_dir(dir);
        match file.read() {
            Ok(limits) => {
                if !limits.is_empty() {
                    tracing::info!(quotas = limits.len(), file = %file.path().display(), "quotas of the earlier daemon are in force");
                }
                Quotas::new(limits, Some(file), true)
            }
            Err(error) => {
                let aside = match file.put_aside() {
                    Ok(aside) => format!("it is kept as {}", aside.display()),
                    Err(error) => {
                        format!("it could not be renamed ({error}) and the next change replaces it")
                    }
                };
                tracing::error!(
                    file = %file.path().display(),
                    "the quotas cannot be read: {error}; {aside}. The daemon starts without quotas: no salt is limited, \
                     and no tier drops salts for want of a quota before the next start. Set the quotas again (PUT /quota/…)"
                );
                Quotas::new(Limits::default(), Some(file), false)
            }
        }
    }

    /// Bytes that the objects of a salt may take; `None`: it has no quota.
    pub fn limit(&self, salt: &str) -> Option<u64> {
        self.limits.read().get(salt).copied()
    }

    /// The limit of a salt in a tier with IsolatedLRU, by 0.5.6's rule: a salt without a quota has no place there.
    ///
    /// The rule holds while there are quotas, and while this table is known to be all of them. A daemon that starts with no
    /// quotas, or with a file that it cannot read, must not empty a store that it may share with others.
    pub fn tier_limit(&self, salt: &str) -> Option<u64> {
        let limits = self.limits.read();
        let others = (self.complete && !limits.is_empty()).then_some(0);
        limits.get(salt).copied().or(others)
    }

    /// Sets a salt's limit. Returns the one that it had. Writes a file: not for the runtime's own threads.
    ///
    /// # Errors
    /// A salt that cannot be, a full table, or a file that cannot be written; then nothing has changed.
    pub fn set(&self, salt: &str, limit: u64) -> Result<Option<u64>, QuotaError> {
        validate_salt(salt).map_err(|_| QuotaError::Salt)?;
        let _changes = self.changes.lock();
        let mut limits = self.limits.read().clone();
        if !limits.contains_key(salt) && limits.len() >= MAX_QUOTAS {
            return Err(QuotaError::TooMany);
        }
        let before = limits.insert(salt.into(), limit);
        self.put(limits)?;
        Ok(before)
    }

    /// Takes a salt's limit away. Returns it. Writes a file: not for the runtime's own threads.
    ///
    /// # Errors
    /// A file that cannot be written; then nothing has changed.
    pub fn remove(&self, salt: &str) -> Result<Option<u64>, QuotaError> {
        let _changes = self.changes.lock();
        let mut limits = self.limits.read().clone();
        let Some(before) = limits.remove(salt) else { return Ok(None) };
        self.put(limits)?;
        Ok(Some(before))
    }

    /// To be called with `changes` held.
    fn put(&self, limits: Limits) -> Result<(), QuotaError> {
        if let Some(file) = &self.file {
            let path = || file.path().to_owned();
            file.write(&limits).map_err(|source| QuotaError::Persist { path: path(), source })?;
        }
        *self.limits.write() = limits;
        Ok(())
    }

    /// All quotas, by salt.
    pub fn all(&self) -> Vec<Quota> {
        let quota = |(salt, limit): (&Arc<str>, &u64)| Quota { salt: salt.clone(), limit: *limit };
        let mut all: Vec<Quota> = self.limits.read().iter().map(quota).collect();
        all.sort_unstable_by(|one, other| one.salt.cmp(&other.salt));
        all
    }
}

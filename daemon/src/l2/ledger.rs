//! What a store holds, as far as this daemon knows: bytes, least recently used order, and the limit.
//!
//! A store that ran into its deadline and succeeded all the same is not in the book until the next start.
//!
//! What was there at the start is counted in the background from the adapter's own listing; a directory with a million
//! entries delays nobody. Until that is done nothing is evicted. In a store that several daemons write, each knows its own
//! writes and what was there when it started.
//!
//! With `IsolatedLRU` every salt has its own order and its limit from the table of quotas; `book` has the rules.
#![forbid(unsafe_code)]

mod book;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, StreamExt};
use lmcache_proto::object_key::ObjectKey;
use parking_lot::Mutex;

use super::adapter::{BoxFuture, L2Adapter, ListPage, LoadOutcome, Presence, Stored, Usage};
use super::error::{LoadError, StoreError, Trouble};
use super::memory::{SourceBuf, TargetBuf};
use crate::config::{EvictionConfig, EvictionPolicy};
use crate::log_limit::LogLimit;
use crate::quota::Quotas;
use book::{Book, Marks, Slim};

/// Objects a listing asks for at a time. Large, because a page of a directory costs a walk over all of it.
const PAGE: usize = 100_000;
/// Deletes at the same time while evicting.
const DELETES: usize = 8;
/// Objects that one round of eviction removes at most; another follows while the store is above a mark.
const ROUND: usize = 10_000;

/// The limits of one tier.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Bytes that it may hold.
    pub capacity: Option<u64>,
    /// What leaves when it fills.
    pub eviction: Option<EvictionConfig>,
}

impl Bounds {
    /// Whether each salt has its own order and limit.
    pub fn is_isolated(&self) -> bool {
        self.eviction.is_some_and(|eviction| eviction.policy == EvictionPolicy::IsolatedLru)
    }

    fn marks(&self) -> Option<Marks> {
        let eviction = self.eviction.filter(|eviction| eviction.policy != EvictionPolicy::Noop)?;
        let EvictionConfig { trigger_watermark: watermark, ratio, .. } = eviction;
        Some(Marks { capacity: self.capacity, watermark, ratio })
    }
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    label: String,
    inner: Arc<dyn L2Adapter>,
    bounds: Bounds,
    book: Mutex<Book>,
    evicting: AtomicBool,
    quotas: Arc<Quotas>,
    /// For the line about salts without quota.
    dropped: LogLimit,
    me: Weak<Ledger>,
}

impl Ledger {
    /// Wraps `inner` and starts to count what it holds.
    pub fn open(
        label: String,
        inner: Arc<dyn L2Adapter>,
        bounds: Bounds,
        quotas: Arc<Quotas>,
    ) -> Arc<Ledger> {
        // A device has its own limit.
        let capacity = bounds.capacity.into_iter().chain(inner.usage().capacity).min();
        let bounds = Bounds { capacity, ..bounds };
        if bounds.is_isolated() && quotas.all().is_empty() {
            tracing::warn!(
                tier = %label,
                "IsolatedLRU without quotas: only max_capacity_gb limits this tier. From the first quota on (PUT /quota/…), \
                 objects of salts without one are dropped from it, as LMCache 0.5.6 does"
            );
        }
        let ledger = Arc::new_cyclic(|me| Ledger {
            label,
            inner,
            book: Mutex::new(Book::new(bounds.is_isolated())),
            bounds,
            evicting: AtomicBool::new(false),
            quotas,
            dropped: LogLimit::default(),
            me: me.clone(),
        });
        tokio::spawn(count(ledger.me.clone()));
        ledger
    }

    /// Takes room for an object to be written.
    fn reserve(&self, bytes: u64) -> Result<(), StoreError> {
        let mut book = self.book.lock();
        let taken = book.bytes() + book.reserved;
        match self.bounds.capacity {
            Some(capacity) if taken + bytes > capacity => Err(StoreError::Full(format!(
                "{taken} of {capacity} bytes are taken, {bytes} more do not fit"
            ))),
            _ => {
                book.reserved += bytes;
                Ok(())
            }
        }
    }

    /// Starts a round of eviction if the store is above its mark, or `salt` above its own; `None` looks at all salts.
    fn evict_if_needed(&self, salt: Option<&str>) {
        let Some(marks) = self.bounds.marks() else { return };
        if !self.book.lock().is_above(&marks, salt, |salt| self.quotas.tier_limit(salt)) {
            return;
        }
        // One round at a time; AcqRel so that a round sees the book as the last one left it.
        if !self.evicting.swap(true, Ordering::AcqRel) {
            tokio::spawn(evict(self.me.clone()));
        }
    }

    fn victims(&self) -> Vec<ObjectKey> {
        let Some(marks) = self.bounds.marks() else { return Vec::new() };
        let victims = self.book.lock().victims(&marks, ROUND, |salt| self.quotas.tier_limit(salt));
        if let Some(salt) = victims.dropped
            && let Some(suppressed) = self.dropped.pass()
        {
            tracing::warn!(
                tier = %self.label,
                %salt,
                suppressed,
                "dropping the objects of a cache salt that has no quota, or one of 0, as IsolatedLRU says; give it a quota \
                 (PUT /quota/<salt>) to keep them here"
            );
        }
        victims.keys
    }
}

async fn evict(ledger: Weak<Ledger>) {
    let Some(ledger) = ledger.upgrade() else { return };
    let victims = ledger.victims();
    let count = victims.len();
    let mut failed = None;
    {
        let ledger = &ledger;
        let mut deletes = stream::iter(victims)
            .map(|key| async move {
                let result = ledger.inner.delete(&key).await;
                (key, result)
            })
            .buffer_unordered(DELETES);
        while let Some((key, result)) = deletes.next().await {
            match result {
                Ok(_) => ledger.book.lock().gone(&key),
                Err(trouble) => failed = Some(trouble),
            }
        }
    }
    ledger.evicting.store(false, Ordering::Release);
    match failed {
        Some(trouble) => tracing::warn!(
            tier = %ledger.label,
            "evicting {count} objects: some could not be deleted ({trouble}); stores are refused when the tier is full; {}",
            trouble.advice()
        ),
        None => {
            tracing::debug!(tier = %ledger.label, count, "evicted");
            // What came meanwhile, or did not fit into the round. It ends: each round leaves less above the marks.
            ledger.evict_if_needed(None);
        }
    }
}

/// Counts what is there, until it has worked once.
async fn count(ledger: Weak<Ledger>) {
    let mut wait = Duration::from_secs(1);
    loop {
        let (Some(inner), Some(label)) =
            (ledger.upgrade().map(|l| l.inner.clone()), ledger.upgrade().map(|l| l.label.clone()))
        else {
            return;
        };
        match list_all(&inner, &ledger).await {
            Ok(mut found) => {
                let Some(ledger) = ledger.upgrade() else { return };
                // Newest first: each goes behind those that are there.
                found.sort_unstable_by_key(|(_, _, modified)| std::cmp::Reverse(*modified));
                for (slim, bytes, _) in &found {
                    // One lock each: requests come in between.
                    ledger.book.lock().counted(&slim.key(), *bytes);
                }
                ledger.book.lock().count_is_done();
                let usage = ledger.usage();
                tracing::info!(tier = %label, objects = usage.objects, bytes = usage.bytes, "counted what the tier holds");
                ledger.evict_if_needed(None);
                return;
            }
            Err(trouble) => {
                tracing::warn!(tier = %label, "cannot count what the tier holds ({trouble}); nothing is evicted until it works, next try in {wait:?}");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(60));
            }
        }
    }
}

type Found = (Slim, u64, Option<SystemTime>);

async fn list_all(inner: &Arc<dyn L2Adapter>, ledger: &Weak<Ledger>) -> Result<Vec<Found>, Trouble> {
    let mut found = Vec::new();
    let mut from: Option<String> = None;
    loop {
        let page = inner.list(from.as_deref(), PAGE).await?;
        let Some(ledger) = ledger.upgrade() else { return Ok(found) };
        let mut book = ledger.book.lock();
        found.extend(page.objects.iter().map(|o| (book.slim(&o.key), o.bytes, o.modified)));
        drop(book);
        match page.next {
            Some(next) => from = Some(next),
            None => return Ok(found),
        }
    }
}

impl L2Adapter for Ledger {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn lookup<'a>(&'a self, keys: &'a [ObjectKey]) -> BoxFuture<'a, Result<Vec<Presence>, Trouble>> {
        self.inner.lookup(keys)
    }

    fn load<'a>(&'a self, key: &'a ObjectKey, target: TargetBuf) -> BoxFuture<'a, LoadOutcome> {
        Box::pin(async move {
            let outcome = self.inner.load(key, target).await;
            let mut book = self.book.lock();
            let slim = book.slim(key);
            match outcome.result {
                Ok(()) => {
                    book.used(&slim);
                }
                Err(LoadError::NotFound) => book.gone(key),
                Err(_) => {}
            }
            drop(book);
            outcome
        })
    }

    fn store<'a>(
        &'a self,
        key: &'a ObjectKey,
        source: SourceBuf,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        Box::pin(async move {
            let bytes = source.len() as u64;
            if let Err(full) = self.reserve(bytes) {
                self.evict_if_needed(Some(&key.cache_salt));
                return Err(full);
            }
            // Gives the room back however this ends, a dropped future included.
            let room = Room { ledger: self, bytes };
            let result = self.inner.store(key, source).await;
            drop(room);
            if let Ok(stored) = &result {
                self.book.lock().stored(key, stored.bytes);
            }
            self.evict_if_needed(Some(&key.cache_salt));
            result
        })
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<bool, Trouble>> {
        Box::pin(async move {
            let result = self.inner.delete(key).await;
            if result.is_ok() {
                self.book.lock().gone(key);
            }
            result
        })
    }

    fn list<'a>(&'a self, from: Option<&'a str>, limit: usize) -> BoxFuture<'a, Result<ListPage, Trouble>> {
        self.inner.list(from, limit)
    }

    fn usage(&self) -> Usage {
        let book = self.book.lock();
        Usage {
            bytes: book.bytes(),
            objects: book.objects(),
            capacity: self.bounds.capacity,
            counted: book.is_counted(),
        }
    }

    fn bytes_of_salt(&self, salt: &str) -> u64 {
        self.book.lock().bytes_of_salt(salt)
    }

    fn quotas_changed(&self) {
        if self.bounds.is_isolated() {
            self.evict_if_needed(None);
        }
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), Trouble>> {
        self.inner.ping()
    }

    fn describe(&self) -> serde_json::Map<String, serde_json::Value> {
        self.inner.describe()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

struct Room<'a> {
    ledger: &'a Ledger,
    bytes: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.ledger.book.lock().reserved -= self.bytes;
    }
}

#[cfg(test)]
mod tests;

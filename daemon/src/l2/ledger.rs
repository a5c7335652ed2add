//! What a store holds, as far as this daemon knows: bytes, least recently used order, and the limit.
//!
//! A store that ran into its deadline and succeeded all the same is not in the book until the next start.
//!
//! What was there at the start is counted in the background from the adapter's own listing; a directory with a million
//! entries delays nobody. Until that is done nothing is evicted. In a store that several daemons write, each knows its own
//! writes and what was there when it started.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, StreamExt};
use lmcache_proto::hash::ChunkHash;
use lmcache_proto::object_key::ObjectKey;
use lru::LruCache;
use parking_lot::Mutex;

use super::adapter::{BoxFuture, L2Adapter, ListPage, LoadOutcome, Presence, Stored, Usage};
use super::error::{LoadError, StoreError, Trouble};
use super::memory::{SourceBuf, TargetBuf};
use crate::config::{EvictionConfig, EvictionPolicy};

/// Objects a listing asks for at a time. Large, because a page of a directory costs a walk over all of it.
const PAGE: usize = 100_000;
/// Deletes at the same time while evicting.
const DELETES: usize = 8;
/// Names in use beyond which unused ones are dropped.
const NAMES: usize = 1024;

/// The limits of one tier.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Bytes that it may hold.
    pub capacity: Option<u64>,
    /// What leaves when it fills.
    pub eviction: Option<EvictionConfig>,
}

impl Bounds {
    /// Bytes above which to evict, and the share of the bytes in use that one round removes.
    fn trigger(&self) -> Option<(u64, f64)> {
        let eviction = self.eviction.as_ref().filter(|e| e.policy != EvictionPolicy::Noop)?;
        Some(((self.capacity? as f64 * eviction.trigger_watermark) as u64, eviction.ratio))
    }
}

/// A key with its names shared: a third of the memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Slim {
    hash: ChunkHash,
    rank: u32,
    group: u32,
    model: Arc<str>,
    salt: Arc<str>,
}

impl Slim {
    fn key(&self) -> ObjectKey {
        ObjectKey {
            chunk_hash: self.hash,
            model_name: self.model.to_string(),
            kv_rank: self.rank,
            object_group_id: self.group,
            cache_salt: self.salt.to_string(),
        }
    }
}

#[derive(Debug)]
struct Book {
    /// Bytes of each object, least recently used last.
    objects: LruCache<Slim, u64>,
    bytes: u64,
    bytes_by_salt: HashMap<Arc<str>, u64>,
    /// Bytes being written.
    reserved: u64,
    names: HashSet<Arc<str>>,
    /// Deleted while the first count runs: its listing may still show them. `None` afterwards.
    deleted: Option<HashSet<Slim>>,
}

impl Book {
    fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        if self.names.len() >= NAMES {
            self.names.retain(|name| Arc::strong_count(name) > 1);
        }
        let name: Arc<str> = name.into();
        self.names.insert(name.clone());
        name
    }

    fn slim(&mut self, key: &ObjectKey) -> Slim {
        Slim {
            hash: key.chunk_hash,
            rank: key.kv_rank,
            group: key.object_group_id,
            model: self.name(&key.model_name),
            salt: self.name(&key.cache_salt),
        }
    }

    fn credit(&mut self, slim: &Slim, bytes: u64) {
        self.bytes += bytes;
        *self.bytes_by_salt.entry(slim.salt.clone()).or_default() += bytes;
    }

    fn debit(&mut self, slim: &Slim, bytes: u64) {
        self.bytes -= bytes;
        if let Some(sum) = self.bytes_by_salt.get_mut(&slim.salt) {
            *sum -= bytes;
            if *sum == 0 {
                self.bytes_by_salt.remove(&slim.salt);
            }
        }
    }

    fn stored(&mut self, key: &ObjectKey, bytes: u64) {
        let slim = self.slim(key);
        if let Some(deleted) = &mut self.deleted {
            deleted.remove(&slim);
        }
        if let Some(before) = self.objects.put(slim.clone(), bytes) {
            self.debit(&slim, before);
        }
        self.credit(&slim, bytes);
    }

    fn gone(&mut self, key: &ObjectKey) {
        let slim = self.slim(key);
        if let Some(before) = self.objects.pop(&slim) {
            self.debit(&slim, before);
        }
        if let Some(deleted) = &mut self.deleted {
            deleted.insert(slim);
        }
    }

    /// An object that was there at the start. It was used before all that is known already.
    fn counted(&mut self, key: &ObjectKey, bytes: u64) {
        let slim = self.slim(key);
        if self.deleted.as_ref().is_some_and(|deleted| deleted.contains(&slim))
            || self.objects.contains(&slim)
        {
            return;
        }
        self.objects.put(slim.clone(), bytes);
        self.objects.demote(&slim);
        self.credit(&slim, bytes);
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
    me: Weak<Ledger>,
}

impl Ledger {
    /// Wraps `inner` and starts to count what it holds.
    pub fn open(label: String, inner: Arc<dyn L2Adapter>, bounds: Bounds) -> Arc<Ledger> {
        let book = Book {
            objects: LruCache::unbounded(),
            bytes: 0,
            bytes_by_salt: HashMap::new(),
            reserved: 0,
            names: HashSet::new(),
            deleted: Some(HashSet::new()),
        };
        let evicting = AtomicBool::new(false);
        // A device has its own limit.
        let capacity = bounds.capacity.into_iter().chain(inner.usage().capacity).min();
        let bounds = Bounds { capacity, ..bounds };
        let ledger = Arc::new_cyclic(|me| Ledger {
            label,
            inner,
            bounds,
            book: Mutex::new(book),
            evicting,
            me: me.clone(),
        });
        tokio::spawn(count(ledger.me.clone()));
        ledger
    }

    /// Bytes of the objects of each salt.
    pub fn bytes_by_salt(&self) -> Vec<(Arc<str>, u64)> {
        self.book.lock().bytes_by_salt.iter().map(|(salt, bytes)| (salt.clone(), *bytes)).collect()
    }

    /// Takes room for an object to be written.
    fn reserve(&self, bytes: u64) -> Result<(), StoreError> {
        let mut book = self.book.lock();
        let taken = book.bytes + book.reserved;
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

    fn evict_if_needed(&self) {
        let Some((trigger, _)) = self.bounds.trigger() else { return };
        {
            let book = self.book.lock();
            if book.deleted.is_some() || book.bytes < trigger {
                return;
            }
        }
        // One round at a time; AcqRel so that a round sees the book as the last one left it.
        if !self.evicting.swap(true, Ordering::AcqRel) {
            tokio::spawn(evict(self.me.clone()));
        }
    }

    /// The least recently used objects, enough for one round.
    fn victims(&self) -> Vec<ObjectKey> {
        let Some((trigger, ratio)) = self.bounds.trigger() else { return Vec::new() };
        let book = self.book.lock();
        let mut want = (book.bytes as f64 * ratio) as u64;
        // Enough to end below the mark even when several daemons' worth of objects were found at the start.
        want = want.max(book.bytes.saturating_sub(trigger));
        let mut victims = Vec::new();
        for (slim, bytes) in book.objects.iter().rev() {
            if want == 0 {
                break;
            }
            want = want.saturating_sub((*bytes).max(1));
            victims.push(slim.key());
        }
        victims
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
    match failed {
        Some(trouble) => tracing::warn!(
            tier = %ledger.label,
            "evicting {count} objects: some could not be deleted ({trouble}); stores are refused when the tier is full; {}",
            trouble.advice()
        ),
        None => tracing::debug!(tier = %ledger.label, count, "evicted"),
    }
    ledger.evicting.store(false, Ordering::Release);
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
                ledger.book.lock().deleted = None;
                let usage = ledger.usage();
                tracing::info!(tier = %label, objects = usage.objects, bytes = usage.bytes, "counted what the tier holds");
                ledger.evict_if_needed();
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
                    book.objects.promote(&slim);
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
                self.evict_if_needed();
                return Err(full);
            }
            // Gives the room back however this ends, a dropped future included.
            let room = Room { ledger: self, bytes };
            let result = self.inner.store(key, source).await;
            drop(room);
            if let Ok(stored) = &result {
                self.book.lock().stored(key, stored.bytes);
            }
            self.evict_if_needed();
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
            bytes: book.bytes,
            objects: book.objects.len() as u64,
            capacity: self.bounds.capacity,
            counted: book.deleted.is_none(),
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

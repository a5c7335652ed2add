//! One configured tier: an adapter with its deadlines, its breaker and its counters. What the controllers talk to.
//!
//! * Every call ends by its deadline. Memory of a load that did not end by then stays guarded (see `memory`).
//! * A value of the wrong size or with the wrong checksum is deleted here, whatever the adapter.
//! * While the breaker is open, calls are refused without touching the store.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use lmcache_proto::object_key::ObjectKey;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use super::adapter::{BoxFuture, L2Adapter, ListPage, LoadOutcome, Presence, Stored, Usage};
use super::breaker::{Breaker, BreakerConfig, Position};
use super::error::{LoadError, StoreError, Trouble};
use super::memory::{SourceBuf, TargetBuf};

/// Slowest transfer that is still worth waiting for, bytes a second: added to a deadline for each byte.
const SLOWEST: f64 = (16 << 20) as f64;
/// Transfers slower than this count as slow calls.
const SLOW: f64 = (64 << 20) as f64;
/// Failures are logged at most this often; the rest are counted in the next line.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Keys looked up.
    pub lookup_keys: AtomicU64,
    /// Objects asked for.
    pub loads: AtomicU64,
    /// Objects that were not loaded because the store could not be used.
    pub load_failures: AtomicU64,
    /// Objects offered.
    pub stores: AtomicU64,
    /// Objects that were not stored.
    pub store_failures: AtomicU64,
    /// Calls that ran into their deadline.
    pub timeouts: AtomicU64,
    /// Values of the wrong size.
    pub wrong_size: AtomicU64,
    /// Values with the wrong checksum.
    pub damaged: AtomicU64,
}

fn bump(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// How long and how much at a time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Deadline of a request without payload.
    pub request_timeout: Duration,
    /// Loads and stores at the same time.
    pub transfers: usize,
    /// When to stop asking.
    pub breaker: BreakerConfig,
}

/// See the module.
#[derive(Debug)]
pub struct Tier {
    label: String,
    inner: Arc<dyn L2Adapter>,
    request_timeout: Duration,
    /// Transfers wait here before their deadlines run: a store that is busy is not a store that hangs.
    transfers: Semaphore,
    breaker: Breaker,
    counters: Counters,
    /// When the last failure was logged, and how many were not since.
    logged: Mutex<(Option<Instant>, u64)>,
    me: Weak<Tier>,
}

impl Tier {
    /// `label` is how log lines call it.
    pub fn new(label: String, inner: Arc<dyn L2Adapter>, limits: Limits) -> Arc<Tier> {
        Arc::new_cyclic(|me| Tier {
            label,
            inner,
            request_timeout: limits.request_timeout,
            transfers: Semaphore::new(limits.transfers),
            breaker: Breaker::new(limits.breaker, Instant::now()),
            counters: Counters::default(),
            logged: Mutex::new((None, 0)),
            me: me.clone(),
        })
    }

    /// How log lines call it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Its breaker.
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Its counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What `/status` shows of it.
    pub fn status(&self) -> Value {
        let breaker = self.breaker.status();
        let usage = self.inner.usage();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        let mut status = self.inner.describe();
        let common = json!({
            "name": self.label,
            "type": self.inner.kind(),
            "is_healthy": breaker.position == Position::Closed,
            "breaker": {
                "position": breaker.position.name(),
                "failures_in_a_row": breaker.failures_in_a_row,
                "opened": breaker.opened,
                "refused": breaker.refused,
                "probes": breaker.probes,
                "last_error": breaker.last_error,
            },
            "usage": {
                "bytes": usage.bytes,
                "objects": usage.objects,
                "capacity_bytes": usage.capacity,
                "counted": usage.counted,
            },
            "lookup_keys": count(&counters.lookup_keys),
            "loads": count(&counters.loads),
            "load_failures": count(&counters.load_failures),
            "stores": count(&counters.stores),
            "store_failures": count(&counters.store_failures),
            "timeouts": count(&counters.timeouts),
            "wrong_size": count(&counters.wrong_size),
            "damaged": count(&counters.damaged),
        });
        if let Value::Object(common) = common {
            status.extend(common);
        }
        Value::Object(status)
    }

    fn deadline(&self, bytes: usize) -> Duration {
        self.request_timeout + Duration::from_secs_f64(bytes as f64 / SLOWEST)
    }

    /// Waits for its turn; refused if the breaker is open by then.
    async fn turn(&self) -> Result<SemaphorePermit<'_>, Trouble> {
        if let Some(refused) = self.refused() {
            return Err(refused);
        }
        let permit = self.transfers.acquire().await.expect("never closed");
        // It may have opened meanwhile.
        self.refused().map_or(Ok(permit), Err)
    }

    fn refused(&self) -> Option<Trouble> {
        self.breaker.admit().err().map(Trouble::Unavailable)
    }

    /// Waits for a call at most until its deadline.
    async fn limited<T>(&self, bytes: usize, call: impl Future<Output = T>) -> Result<T, Trouble> {
        let limit = self.deadline(bytes);
        timeout(limit, call).await.map_err(|_| {
            bump(&self.counters.timeouts, 1);
            Trouble::Timeout(limit)
        })
    }

    /// Tells the breaker how a call went.
    fn judge(&self, doing: &str, trouble: Option<&Trouble>, started: Instant, bytes: usize) {
        let took = started.elapsed();
        let slow = self.breaker.config().slow + Duration::from_secs_f64(bytes as f64 / SLOW);
        let opened = match trouble {
            Some(trouble) => {
                self.log_failure(doing, trouble);
                self.breaker.failed(format!("{doing}: {trouble}"), Instant::now())
            }
            None if took > slow => {
                self.breaker.failed(format!("{doing} took {took:.1?}, slow is {slow:.1?}"), Instant::now())
            }
            None => {
                self.breaker.succeeded();
                None
            }
        };
        if let Some(delay) = opened {
            self.opened(trouble, delay);
        }
    }

    fn opened(&self, trouble: Option<&Trouble>, delay: Duration) {
        let status = self.breaker.status();
        tracing::warn!(
            tier = %self.label,
            last_error = status.last_error.as_deref().unwrap_or_default(),
            "{} calls in a row failed or were slow: the tier is left out of lookups and stores until a probe is \
             answered (the first in {delay:?}); until then requests are served from L1 and the other tiers; {}",
            status.failures_in_a_row,
            trouble.map_or("check the load of the store", Trouble::advice),
        );
        let me = self.me.clone();
        tokio::spawn(probe(me, delay));
    }

    fn log_failure(&self, doing: &str, error: &dyn std::fmt::Display) {
        let mut logged = self.logged.lock();
        let now = Instant::now();
        if logged.0.is_some_and(|last| now.duration_since(last) < LOG_EVERY) {
            logged.1 += 1;
            return;
        }
        let unlogged = std::mem::take(&mut logged.1);
        logged.0 = Some(now);
        tracing::warn!(tier = %self.label, unlogged, "{doing} failed: {error}");
    }

    fn log_load(&self, key: &ObjectKey, error: &LoadError) {
        let line = format!("{error}; {}", error.advice());
        self.log_failure(&format!("loading {}", key.native_key()), &line);
    }

    async fn judge_load(&self, key: &ObjectKey, outcome: &LoadOutcome, started: Instant, bytes: usize) {
        bump(&self.counters.loads, 1);
        let trouble = match &outcome.result {
            Err(LoadError::Store(trouble)) => {
                bump(&self.counters.load_failures, 1);
                Some(trouble)
            }
            _ => None,
        };
        self.judge("a load", trouble, started, bytes);
        let Err(error) = &outcome.result else { return };
        match error {
            LoadError::WrongSize { .. } => bump(&self.counters.wrong_size, 1),
            LoadError::Damaged(_) => bump(&self.counters.damaged, 1),
            LoadError::NotFound | LoadError::Store(_) => return,
        }
        self.log_load(key, error);
        if let Err(trouble) = self.delete(key).await {
            self.log_failure(&format!("deleting the bad value {}", key.native_key()), &trouble);
        }
    }

    fn judge_store(
        &self,
        key: &ObjectKey,
        result: &Result<Stored, StoreError>,
        started: Instant,
        bytes: usize,
    ) {
        bump(&self.counters.stores, 1);
        let Err(error) = result else { return self.judge("a store", None, started, bytes) };
        bump(&self.counters.store_failures, 1);
        match error {
            // A store that may not be written may well be read.
            StoreError::Store(trouble) if !matches!(trouble, Trouble::Denied(_)) => {
                self.judge("a store", Some(trouble), started, bytes);
            }
            error => {
                let line = format!("{error}; {}", error.advice());
                self.log_failure(&format!("storing {}", key.native_key()), &line);
            }
        }
    }
}

/// Probes until one is answered or the tier is gone.
async fn probe(tier: Weak<Tier>, mut delay: Duration) {
    loop {
        tokio::time::sleep(delay).await;
        let Some(tier) = tier.upgrade() else { return };
        tier.breaker.probing();
        let answer = tier.limited(0, tier.inner.ping()).await.and_then(|answer| answer);
        match answer {
            Ok(()) => {
                tier.breaker.close(Instant::now());
                tracing::info!(tier = %tier.label, "a probe was answered: the tier is back in use");
                return;
            }
            Err(trouble) => {
                delay = tier.breaker.reopen(trouble.to_string());
                tracing::debug!(tier = %tier.label, %trouble, "probe failed, the next in {delay:?}");
            }
        }
    }
}

impl L2Adapter for Tier {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn lookup<'a>(&'a self, keys: &'a [ObjectKey]) -> BoxFuture<'a, Result<Vec<Presence>, Trouble>> {
        Box::pin(async move {
            if let Some(refused) = self.refused() {
                return Err(refused);
            }
            bump(&self.counters.lookup_keys, keys.len() as u64);
            let started = Instant::now();
            let result = self.limited(0, self.inner.lookup(keys)).await.and_then(|result| result);
            self.judge("a lookup", result.as_ref().err(), started, 0);
            result
        })
    }

    fn load<'a>(&'a self, key: &'a ObjectKey, target: TargetBuf) -> BoxFuture<'a, LoadOutcome> {
        Box::pin(async move {
            let turn = match self.turn().await {
                Ok(turn) => turn,
                Err(refused) => return LoadOutcome::failed(refused, target),
            };
            let (started, bytes) = (Instant::now(), target.len());
            let outcome = match self.limited(bytes, self.inner.load(key, target)).await {
                Ok(outcome) => outcome,
                Err(timeout) => LoadOutcome::abandoned(timeout),
            };
            drop(turn);
            self.judge_load(key, &outcome, started, bytes).await;
            outcome
        })
    }

    fn store<'a>(
        &'a self,
        key: &'a ObjectKey,
        source: SourceBuf,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        Box::pin(async move {
            let _turn = self.turn().await?;
            let (started, bytes) = (Instant::now(), source.len());
            let result = match self.limited(bytes, self.inner.store(key, source)).await {
                Ok(result) => result,
                Err(timeout) => Err(timeout.into()),
            };
            self.judge_store(key, &result, started, bytes);
            result
        })
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<bool, Trouble>> {
        Box::pin(async move {
            if let Some(refused) = self.refused() {
                return Err(refused);
            }
            let started = Instant::now();
            let result = self.limited(0, self.inner.delete(key)).await.and_then(|result| result);
            match &result {
                Err(Trouble::Denied(_)) => {}
                result => self.judge("a delete", result.as_ref().err(), started, 0),
            }
            result
        })
    }

    fn list<'a>(&'a self, from: Option<&'a str>, limit: usize) -> BoxFuture<'a, Result<ListPage, Trouble>> {
        Box::pin(async move {
            if let Some(refused) = self.refused() {
                return Err(refused);
            }
            // A listing is a big request by nature: its time says nothing about the store's health, its failure does.
            let started = Instant::now();
            let result = self.limited(0, self.inner.list(from, limit)).await.and_then(|result| result);
            if let Err(trouble) = &result {
                self.judge("a listing", Some(trouble), started, 0);
            }
            result
        })
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn bytes_of_salt(&self, salt: &str) -> u64 {
        self.inner.bytes_of_salt(salt)
    }

    fn quotas_changed(&self) {
        self.inner.quotas_changed();
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), Trouble>> {
        Box::pin(async move { self.limited(0, self.inner.ping()).await.and_then(|answer| answer) })
    }

    fn describe(&self) -> Map<String, Value> {
        self.inner.describe()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

#[cfg(test)]
mod tests;

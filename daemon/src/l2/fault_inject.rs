//! Faults on purpose, around another adapter. For tests and drills.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use lmcache_proto::object_key::ObjectKey;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::adapter::{BoxFuture, L2Adapter, ListPage, LoadOutcome, Presence, Stored, Usage};
use super::error::{LoadError, StoreError, Trouble};
use super::memory::{SourceBuf, TargetBuf};
use super::registry::{self, Recipe};
use super::settings::{Settings, SettingsError};

/// What happens to every call, until it is changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It fails.
    Fail(Trouble),
    /// It takes this long before it starts.
    Delay(Duration),
    /// It never ends.
    Hang,
    /// Loads find a value of the wrong size.
    WrongSize,
    /// Loads find a value with the wrong checksum.
    Damage,
    /// Stores find no room.
    Full,
}

/// The wrapper; clones share the fault.
#[derive(Clone, Debug)]
pub struct FaultInject {
    inner: Arc<dyn L2Adapter>,
    fault: Arc<Mutex<Fault>>,
    /// Part of the keys whose loads fail, in millionths, and the seed that chooses them.
    rate: u64,
    seed: u64,
}

/// Reads `{"type":"fault_inject","inner":{…},"rate":…,"seed":…,"fault":…,"delay_seconds":…}`.
pub(super) fn recipe(settings: &mut Settings, timeout: Duration) -> Result<Recipe, SettingsError> {
    let inner = settings.object("inner")?;
    let inner = inner.ok_or_else(|| SettingsError("needs \"inner\", the adapter to wrap".into()))?;
    for positions in ["gap_indices", "gap_tail_ratios"] {
        if !settings.numbers(positions)?.is_empty() {
            let line = "chooses by position in a batch; objects are loaded one by one here: use \"rate\" and \"seed\"";
            return Err(SettingsError(format!("{positions:?} {line}")));
        }
    }
    let rate = settings.number("rate")?.unwrap_or(0.0);
    if rate > 1.0 {
        return Err(SettingsError("\"rate\" must be from 0 to 1".into()));
    }
    let seed = settings.count("seed", 0..=u64::MAX)?.unwrap_or(0);
    let delay = settings.seconds("delay_seconds")?;
    let injected = || "injected".to_owned();
    let fault = match (settings.text("fault")?.as_deref(), delay) {
        (None, None) => Fault::None,
        (None, Some(delay)) => Fault::Delay(delay),
        (Some("unavailable"), None) => Fault::Fail(Trouble::Unavailable(injected())),
        (Some("denied"), None) => Fault::Fail(Trouble::Denied(injected())),
        (Some("hang"), None) => Fault::Hang,
        (Some("wrong_size"), None) => Fault::WrongSize,
        (Some("damage"), None) => Fault::Damage,
        (Some("full"), None) => Fault::Full,
        _ => {
            let line = "\"fault\" must be unavailable, denied, hang, wrong_size, damage or full, without delay_seconds";
            return Err(SettingsError(line.into()));
        }
    };
    let inner = registry::recipe_of(inner, timeout)?;
    let open = inner.open;
    let wrapped = move || {
        let inner = open()?;
        tracing::warn!(
            inner = inner.kind(),
            "fault_inject is on: this tier fails on purpose; for tests only"
        );
        let rate = (rate * 1e6) as u64;
        Ok(Arc::new(FaultInject { inner, fault: Arc::new(Mutex::new(fault)), rate, seed })
            as Arc<dyn L2Adapter>)
    };
    Ok(Recipe { open: Box::new(wrapped), ..inner })
}

impl FaultInject {
    /// Around `inner`, without a fault yet.
    pub fn new(inner: Arc<dyn L2Adapter>) -> FaultInject {
        FaultInject { inner, fault: Arc::new(Mutex::new(Fault::None)), rate: 0, seed: 0 }
    }

    /// Changes what happens from now on.
    pub fn set(&self, fault: Fault) {
        *self.fault.lock() = fault;
    }

    /// The fault of this call, after its delay.
    async fn meet(&self) -> Result<Fault, Trouble> {
        let fault = self.fault.lock().clone();
        match fault {
            Fault::Fail(trouble) => Err(trouble),
            Fault::Hang => std::future::pending().await,
            Fault::Delay(delay) => {
                tokio::time::sleep(delay).await;
                Ok(Fault::None)
            }
            other => Ok(other),
        }
    }

    fn drops(&self, key: &ObjectKey) -> bool {
        xxh3_64_with_seed(key.native_key().as_bytes(), self.seed) % 1_000_000 < self.rate
    }
}

impl L2Adapter for FaultInject {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn lookup<'a>(&'a self, keys: &'a [ObjectKey]) -> BoxFuture<'a, Result<Vec<Presence>, Trouble>> {
        Box::pin(async move {
            self.meet().await?;
            self.inner.lookup(keys).await
        })
    }

    fn load<'a>(&'a self, key: &'a ObjectKey, target: TargetBuf) -> BoxFuture<'a, LoadOutcome> {
        Box::pin(async move {
            let bytes = target.len() as u64;
            match self.meet().await {
                Err(trouble) => LoadOutcome::failed(trouble, target),
                Ok(Fault::WrongSize) => {
                    LoadOutcome::failed(LoadError::WrongSize { expected: bytes, found: bytes / 2 }, target)
                }
                Ok(Fault::Damage) => LoadOutcome::failed(LoadError::Damaged("injected".into()), target),
                Ok(_) if self.drops(key) => {
                    LoadOutcome::failed(Trouble::Unavailable("injected".into()), target)
                }
                Ok(_) => self.inner.load(key, target).await,
            }
        })
    }

    fn store<'a>(
        &'a self,
        key: &'a ObjectKey,
        source: SourceBuf,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        Box::pin(async move {
            match self.meet().await? {
                Fault::Full => Err(StoreError::Full("injected".into())),
                _ => self.inner.store(key, source).await,
            }
        })
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<bool, Trouble>> {
        Box::pin(async move {
            self.meet().await?;
            self.inner.delete(key).await
        })
    }

    fn list<'a>(&'a self, from: Option<&'a str>, limit: usize) -> BoxFuture<'a, Result<ListPage, Trouble>> {
        Box::pin(async move {
            self.meet().await?;
            self.inner.list(from, limit).await
        })
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), Trouble>> {
        Box::pin(async move {
            self.meet().await?;
            self.inner.ping().await
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

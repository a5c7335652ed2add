//! A store in the daemon's own memory, for tests and dry runs.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lmcache_proto::object_key::ObjectKey;
use parking_lot::Mutex;

use super::adapter::{BoxFuture, L2Adapter, ListPage, Listed, LoadOutcome, Presence, Stored};
use super::checksum::Checksum;
use super::error::{LoadError, StoreError, Trouble};
use super::memory::{SourceBuf, TargetBuf};
use super::registry::{Counting, Recipe};
use super::settings::{Settings, SettingsError, gib};

/// Bytes and, unless a peer wrote them, their checksum.
type Value = (Arc<[u8]>, Option<Checksum>);

/// Values under their native keys.
#[derive(Debug, Default)]
pub struct Mock {
    values: Mutex<BTreeMap<String, Value>>,
    bytes_per_second: Option<f64>,
}

/// Reads `{"type":"mock","max_size_gb":…,"mock_bandwidth_gb":…}`.
pub(super) fn recipe(settings: &mut Settings, _timeout: Duration) -> Result<Recipe, SettingsError> {
    let positive = |key: &str, number: Option<f64>| {
        number.filter(|n| *n > 0.0).ok_or_else(|| SettingsError(format!("{key:?} must be a number above 0")))
    };
    let size = positive("max_size_gb", settings.number("max_size_gb")?)?;
    let bandwidth = positive("mock_bandwidth_gb", settings.number("mock_bandwidth_gb")?)?;
    let mock = Mock { bytes_per_second: Some(gib(bandwidth) as f64), ..Mock::default() };
    Ok(Recipe {
        capacity: Some(gib(size)),
        ..Recipe::new(Counting::Always, 64, Box::new(move || Ok(Arc::new(mock) as Arc<dyn L2Adapter>)))
    })
}

impl Mock {
    /// Puts bytes under a key without a checksum, as a peer would.
    pub fn plant(&self, key: &ObjectKey, bytes: &[u8]) {
        self.values.lock().insert(key.native_key(), (bytes.into(), None));
    }

    /// Replaces a value's bytes and keeps its checksum.
    pub fn damage(&self, key: &ObjectKey, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some((bytes, _)) = self.values.lock().get_mut(&key.native_key()) {
            let mut changed = bytes.to_vec();
            change(&mut changed);
            *bytes = changed.into();
        }
    }

    async fn pace(&self, bytes: u64) {
        if let Some(rate) = self.bytes_per_second {
            tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / rate)).await;
        }
    }
}

impl L2Adapter for Mock {
    fn kind(&self) -> &'static str {
        "mock"
    }

    fn lookup<'a>(&'a self, keys: &'a [ObjectKey]) -> BoxFuture<'a, Result<Vec<Presence>, Trouble>> {
        let values = self.values.lock();
        let presence = |key: &ObjectKey| match values.get(&key.native_key()) {
            Some((bytes, _)) => Presence::Present { bytes: Some(bytes.len() as u64) },
            None => Presence::Absent,
        };
        let found = keys.iter().map(presence).collect();
        Box::pin(async { Ok(found) })
    }

    fn load<'a>(&'a self, key: &'a ObjectKey, mut target: TargetBuf) -> BoxFuture<'a, LoadOutcome> {
        Box::pin(async move {
            let value = self.values.lock().get(&key.native_key()).cloned();
            let Some((bytes, sum)) = value else { return LoadOutcome::failed(LoadError::NotFound, target) };
            if bytes.len() != target.len() {
                let error = LoadError::WrongSize { expected: target.len() as u64, found: bytes.len() as u64 };
                return LoadOutcome::failed(error, target);
            }
            self.pace(bytes.len() as u64).await;
            target.write_at(0, &bytes);
            match sum.map(|sum| (sum, Checksum::of_target(key, &target))) {
                Some((expected, found)) if expected != found => {
                    LoadOutcome::failed(LoadError::checksum(expected, found), target)
                }
                _ => LoadOutcome::loaded(target),
            }
        })
    }

    fn store<'a>(
        &'a self,
        key: &'a ObjectKey,
        source: SourceBuf,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        Box::pin(async move {
            self.pace(source.len() as u64).await;
            let sum = Checksum::of_source(key, &source);
            let bytes = source.len() as u64;
            self.values.lock().insert(key.native_key(), (source.to_vec().into(), Some(sum)));
            Ok(Stored { bytes, written: true })
        })
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<bool, Trouble>> {
        let existed = self.values.lock().remove(&key.native_key()).is_some();
        Box::pin(async move { Ok(existed) })
    }

    fn list<'a>(&'a self, from: Option<&'a str>, limit: usize) -> BoxFuture<'a, Result<ListPage, Trouble>> {
        let values = self.values.lock();
        let mut page = ListPage::default();
        for (name, (bytes, _)) in values.range(from.unwrap_or_default().to_owned()..) {
            if page.objects.len() == limit {
                page.next = Some(name.clone());
                break;
            }
            if let Some(key) = ObjectKey::from_native_key(name) {
                page.objects.push(Listed { key, bytes: bytes.len() as u64, modified: None });
            }
        }
        Box::pin(async { Ok(page) })
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), Trouble>> {
        Box::pin(async { Ok(()) })
    }
}

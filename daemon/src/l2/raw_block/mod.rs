//! `raw_block`: one preallocated file or block device, cut into slots, with an index of its own.
//!
//! The order of writes makes it safe against a crash at any instruction: bytes of a free slot, then its record; a record is
//! cleared before its slot is used again. Against power failures without `fsync` the checksums do: a record whose bytes did
//! not make it to the device is found out when it is loaded. The format is this daemon's own; the keys of the JSON are the
//! peer's where they mean the same.
#![forbid(unsafe_code)]

mod device;
#[cfg(feature = "fuzzing")]
pub(super) mod fuzzing;
mod index;
mod layout;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lmcache_proto::object_key::ObjectKey;
use rustix::fs::{FlockOperation, flock};
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::adapter::{BoxFuture, L2Adapter, ListPage, Listed, LoadOutcome, Presence, Stored, Usage};
use super::checksum::Checksum;
use super::error::{LoadError, StoreError, Trouble};
use super::io::{Choice, Engine};
use super::memory::{SourceBuf, TargetBuf};
use super::registry::{Counting, Recipe};
use super::settings::{Settings, SettingsError};
use device::Device;
use index::Index;
use layout::{BLOCK, LONGEST_KEY, Layout, PER_BLOCK, Record};

/// Locks over the blocks of the index: writes of one block go one after the other, so that the last is the newest.
const STRIPES: usize = 64;

/// The adapter.
#[derive(Debug)]
pub struct RawBlock {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    layout: Layout,
    index: Index,
    engine: Engine,
    file: Arc<File>,
    stripes: Vec<Mutex<()>>,
    fsync: bool,
    direct: bool,
}

/// Reads `{"type":"raw_block","device_path":…,"slot_bytes":…}`.
pub(super) fn recipe(settings: &mut Settings, _timeout: Duration) -> Result<Recipe, SettingsError> {
    let path = PathBuf::from(settings.required("device_path")?);
    let whole_blocks = |key: &str, bytes: u64| {
        if bytes.is_multiple_of(BLOCK) {
            Ok(bytes)
        } else {
            Err(SettingsError(format!("{key:?} must be a multiple of {BLOCK}")))
        }
    };
    let slot_bytes = settings.count("slot_bytes", BLOCK..=1 << 40)?;
    let slot_bytes =
        whole_blocks("slot_bytes", slot_bytes.ok_or_else(|| SettingsError("needs \"slot_bytes\"".into()))?)?;
    let capacity = settings.count("capacity_bytes", 0..=1 << 60)?.filter(|bytes| *bytes > 0);
    if settings.count("block_align", 1..=BLOCK)?.is_some_and(|align| !align.is_power_of_two()) {
        return Err(SettingsError("\"block_align\" must be a power of two; 4096 is used".into()));
    }
    let direct = settings.flag("use_odirect", true)?;
    let fsync = settings.flag("fsync", false)?;
    let format = settings.flag("format", false)?;
    let keep = settings.flag("load_checkpoint_on_init", true)?;
    let (choice, depth) = super::fs::read_engine(settings)?;
    let mut workers = 0;
    for (key, default) in [("num_store_workers", 2), ("num_lookup_workers", 1), ("num_load_workers", 4)] {
        workers += settings.count(key, 1..=256)?.unwrap_or(default) as usize;
    }
    let transfers = if choice == Choice::Threads { workers } else { depth as usize };
    let hardware = "it drives NVMe devices directly; use io_engine io_uring on the block device";
    for key in ["use_uring_cmd", "fdp_enabled", "fdp_placement_ids", "meta_checkpoint_placement_id"] {
        settings.refuse(key, hardware)?;
    }
    settings.refuse("per_tp_device_paths", "give each device an adapter of its own")?;
    // Of the peer's own format, or without meaning here.
    settings.ignore(&[
        "header_bytes",
        "meta_total_bytes",
        "meta_magic",
        "meta_version",
        "meta_checkpoint_interval_sec",
        "meta_idle_quiet_ms",
        "meta_enable_periodic",
        "meta_verify_on_load",
        "enable_zero_copy",
        "max_data_transfer_size",
        "fdp_data_placement_policy",
        "fdp_slot_reuse_policy",
    ]);
    let open = move || {
        let engine = Engine::new(choice, workers, depth)?;
        let device = Device::open(&path, capacity, slot_bytes, direct, format || !keep)?;
        let (index, stale) = Index::new(device.layout, device.records.into_iter());
        tracing::info!(path = %path.display(), objects = index.objects(), slots = device.layout.slots, engine = engine.name(), "opened");
        let inner = Arc::new(Inner {
            path,
            layout: device.layout,
            index,
            engine,
            file: Arc::new(device.file),
            stripes: std::iter::repeat_with(Mutex::default).take(STRIPES).collect(),
            fsync,
            direct: device.direct,
        });
        let clearing = inner.clone();
        tokio::spawn(async move {
            for slot in stale {
                let _ = clearing.clear(slot).await;
            }
        });
        Ok(Arc::new(RawBlock { inner }) as Arc<dyn L2Adapter>)
    };
    Ok(Recipe::new(Counting::Always, transfers, Box::new(open)))
}

impl Inner {
    /// Bytes as the device takes them.
    fn for_device(&self, source: &SourceBuf) -> SourceBuf {
        if self.direct { source.for_direct_io(BLOCK as usize) } else { source.clone() }
    }

    /// Writes the index block of `slot` as it is in memory.
    async fn write_record(&self, slot: u32) -> io::Result<()> {
        let block = slot / PER_BLOCK as u32;
        let _turn = self.stripes[block as usize % STRIPES].lock().await;
        // Read under the lock: whoever writes last writes the newest.
        let bytes = SourceBuf::copy_of(&self.index.block(block));
        self.engine.write(&self.file, Layout::index_offset(block), bytes).await
    }

    /// Clears the record of a slot that has lost its key, and frees it.
    async fn clear(&self, slot: u32) -> io::Result<()> {
        // A record that cannot be cleared would come back after a restart under bytes that may be another object's by
        // then. The slot stays out of use.
        self.write_record(slot).await?;
        self.index.cleared(slot);
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        if !self.fsync {
            return Ok(());
        }
        let file = self.file.clone();
        self.engine.run(move || file.sync_data()).await
    }

    async fn store(
        self: Arc<Inner>,
        key: String,
        sum: Checksum,
        source: SourceBuf,
    ) -> Result<Stored, StoreError> {
        let length = source.len() as u64;
        let Some(slot) = self.index.take() else {
            return Err(StoreError::Full(format!("all {} slots are taken", self.layout.slots)));
        };
        let doing =
            |error: &io::Error| StoreError::from_io(&format!("writing {}", self.path.display()), error);
        let bytes = {
            let inner = self.clone();
            self.engine.run(move || inner.for_device(&source)).await
        };
        let written = self.engine.write(&self.file, self.layout.slot_offset(slot), bytes).await;
        if let Err(error) = async { written.and(self.sync().await) }.await {
            self.index.put_back(slot);
            return Err(doing(&error));
        }
        self.index.enter(slot, Record { sequence: 0, length, sum, key });
        if let Err(error) = self.write_record(slot).await {
            self.index.forget(slot);
            let _ = self.clear(slot).await;
            return Err(doing(&error));
        }
        if let Some(before) = self.index.publish(slot)
            && let Err(error) = self.clear(before).await
        {
            // The object is stored all the same: its record is the newer one.
            tracing::warn!(path = %self.path.display(), %error, "a record could not be cleared; its slot is out of use until the next start");
        }
        self.sync().await.map_err(|error| doing(&error))?;
        Ok(Stored { bytes: self.layout.slot_bytes, written: true })
    }
}

fn gone() -> Trouble {
    Trouble::Unavailable("the daemon is shutting down".into())
}

impl L2Adapter for RawBlock {
    fn kind(&self) -> &'static str {
        "raw_block"
    }

    fn lookup<'a>(&'a self, keys: &'a [ObjectKey]) -> BoxFuture<'a, Result<Vec<Presence>, Trouble>> {
        let presence = |key: &ObjectKey| match self.inner.index.length(&key.native_key()) {
            Some(length) => Presence::Present { bytes: Some(length) },
            None => Presence::Absent,
        };
        let found = keys.iter().map(presence).collect();
        Box::pin(async { Ok(found) })
    }

    fn load<'a>(&'a self, key: &'a ObjectKey, mut target: TargetBuf) -> BoxFuture<'a, LoadOutcome> {
        Box::pin(async move {
            let inner = &self.inner;
            let Some(reading) = inner.index.read(&key.native_key()) else {
                return LoadOutcome::failed(LoadError::NotFound, target);
            };
            let expected = target.len() as u64;
            if reading.record.length != expected {
                return LoadOutcome::failed(
                    LoadError::WrongSize { expected, found: reading.record.length },
                    target,
                );
            }
            let offset = inner.layout.slot_offset(reading.slot);
            let bounced = inner.direct && !target.is_aligned(BLOCK as usize);
            let (read, buffer) = if bounced {
                let bounce = TargetBuf::with_len(target.len().next_multiple_of(BLOCK as usize));
                let (read, bounce) = inner.engine.read(&inner.file, offset, bounce).await;
                (read, Some(bounce))
            } else {
                let (read, back) = inner.engine.read(&inner.file, offset, target).await;
                target = back;
                (read, None)
            };
            let (key, path, sum) = (key.clone(), inner.path.clone(), reading.record.sum);
            inner
                .engine
                .run(move || {
                    let error = match read {
                        Err(error) => Trouble::from_io(&format!("reading {}", path.display()), &error).into(),
                        Ok(read) if (read as u64) < expected => {
                            LoadError::WrongSize { expected, found: read as u64 }
                        }
                        Ok(_) => {
                            if let Some(bounce) = &buffer {
                                target.fill_from(bounce);
                            }
                            let found = Checksum::of_target(&key, &target);
                            if found == sum {
                                return LoadOutcome::loaded(target);
                            }
                            LoadError::checksum(sum, found)
                        }
                    };
                    LoadOutcome::failed(error, target)
                })
                .await
        })
    }

    fn store<'a>(
        &'a self,
        key: &'a ObjectKey,
        source: SourceBuf,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        let (inner, key) = (self.inner.clone(), key.clone());
        Box::pin(async move {
            let (bytes, limit) = (source.len() as u64, inner.layout.slot_bytes);
            if bytes > limit {
                return Err(StoreError::TooLarge { bytes, limit });
            }
            let name = key.native_key();
            if name.len() > LONGEST_KEY {
                return Err(StoreError::BadKey(format!("{name}: more than {LONGEST_KEY} bytes")));
            }
            // A task of its own: a caller that gives up must not leave the slot between two steps.
            let store = tokio::spawn(async move {
                let (sum, source) =
                    inner.engine.run(move || (Checksum::of_source(&key, &source), source)).await;
                inner.store(name, sum, source).await
            });
            store.await.unwrap_or_else(|_| Err(gone().into()))
        })
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<bool, Trouble>> {
        let (inner, name) = (self.inner.clone(), key.native_key());
        let delete = tokio::spawn(async move {
            let Some(slot) = inner.index.remove(&name) else { return Ok(false) };
            match inner.clear(slot).await {
                Ok(()) => Ok(true),
                Err(error) => Err(Trouble::from_io(&format!("writing {}", inner.path.display()), &error)),
            }
        });
        Box::pin(async move { delete.await.unwrap_or_else(|_| Err(gone())) })
    }

    fn list<'a>(&'a self, from: Option<&'a str>, limit: usize) -> BoxFuture<'a, Result<ListPage, Trouble>> {
        let (keys, next) = self.inner.index.list(from.unwrap_or_default(), limit);
        let bytes = self.inner.layout.slot_bytes;
        let objects = keys
            .iter()
            .filter_map(|key| ObjectKey::from_native_key(key))
            .map(|key| Listed { key, bytes, modified: None })
            .collect();
        Box::pin(async { Ok(ListPage { objects, next }) })
    }

    fn usage(&self) -> Usage {
        let (layout, objects) = (&self.inner.layout, self.inner.index.objects());
        Usage {
            bytes: objects * layout.slot_bytes,
            objects,
            capacity: Some(u64::from(layout.slots) * layout.slot_bytes),
            counted: true,
        }
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), Trouble>> {
        let inner = self.inner.clone();
        Box::pin(async move {
            let (read, _) = inner.engine.read(&inner.file, 0, TargetBuf::with_len(BLOCK as usize)).await;
            match read {
                Ok(_) => Ok(()),
                Err(error) => Err(Trouble::from_io(&format!("reading {}", inner.path.display()), &error)),
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        let file = self.inner.file.clone();
        Box::pin(self.inner.engine.run(move || {
            let _ = file.sync_data();
            // For the next daemon, which may start before this one's last task has ended.
            let _ = flock(&*file, FlockOperation::Unlock);
        }))
    }

    fn describe(&self) -> Map<String, Value> {
        let inner = &self.inner;
        let mut map = Map::new();
        map.insert("device_path".into(), inner.path.display().to_string().into());
        map.insert("slot_bytes".into(), inner.layout.slot_bytes.into());
        map.insert("slots".into(), inner.layout.slots.into());
        map.insert("use_odirect".into(), inner.direct.into());
        map.insert("io_engine".into(), inner.engine.name().into());
        map
    }
}

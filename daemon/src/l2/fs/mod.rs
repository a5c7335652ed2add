//! `fs` and `fs_native`: one file for each object, in one directory, under the peer's names.
//!
//! A file holds the object's bytes and nothing else. It is written under a temporary name, gets its checksum, and is then
//! renamed: under its own name it is whole, whatever instruction the daemon died at. The names can be shared with LMCache
//! servers, in the same directory and at the same time.
#![forbid(unsafe_code)]

mod sidecar;
mod temp;

use std::collections::BinaryHeap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::future::try_join_all;
use lmcache_proto::object_key::ObjectKey;
use serde_json::{Map, Value};

use super::adapter::{BoxFuture, L2Adapter, ListPage, Listed, LoadOutcome, Presence, Stored};
use super::checksum::Checksum;
use super::error::{LoadError, StoreError, Trouble};
use super::io::{Choice, Engine, read_at, write_at};
use super::memory::{SourceBuf, TargetBuf};
use super::registry::{Counting, Recipe};
use super::settings::{Settings, SettingsError};
use crate::failpoint;
use sidecar::Sidecar;
#[cfg(feature = "fuzzing")]
pub(super) use sidecar::fuzz_crc_line;
use temp::Temp;

/// Block of direct I/O: no file system that matters wants more, and the pool's objects start on pages.
const BLOCK: usize = 4096;
/// Keys that one thread looks up.
const LOOKUP_SLICE: usize = 64;

#[derive(Debug)]
struct Options {
    base: PathBuf,
    temp_dir: PathBuf,
    direct: bool,
    /// `fs_native` with direct I/O pads files to whole blocks.
    padded: bool,
    fsync: bool,
    /// Set when the file system has refused an extended attribute.
    no_xattr: AtomicBool,
}

/// The adapter.
#[derive(Debug)]
pub struct Fs {
    kind: &'static str,
    options: Arc<Options>,
    engine: Arc<Engine>,
}

/// Reads `{"type":"fs","base_path":…}`.
pub(super) fn recipe(settings: &mut Settings, timeout: Duration) -> Result<Recipe, SettingsError> {
    read_recipe("fs", settings, timeout)
}

/// Reads `{"type":"fs_native","base_path":…}`.
pub(super) fn recipe_native(settings: &mut Settings, timeout: Duration) -> Result<Recipe, SettingsError> {
    read_recipe("fs_native", settings, timeout)
}

/// Reads `io_engine` and `queue_depth`, the same in every adapter that has files.
pub(super) fn read_engine(settings: &mut Settings) -> Result<(Choice, u32), SettingsError> {
    let choice = match settings.text("io_engine")?.as_deref() {
        None | Some("auto") => Choice::Auto,
        Some("posix" | "threads") => Choice::Threads,
        Some("io_uring") => Choice::Uring,
        Some(_) => return Err(SettingsError("\"io_engine\" must be auto, posix or io_uring".into())),
    };
    Ok((choice, settings.count("iouring_queue_depth", 1..=4096)?.unwrap_or(64) as u32))
}

fn read_recipe(
    kind: &'static str,
    settings: &mut Settings,
    _timeout: Duration,
) -> Result<Recipe, SettingsError> {
    let base = PathBuf::from(settings.required("base_path")?);
    let temp_dir = match settings.text("relative_tmp_dir")? {
        None => base.clone(),
        Some(relative) => {
            let relative = PathBuf::from(relative);
            if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
                return Err(SettingsError("\"relative_tmp_dir\" must stay below base_path".into()));
            }
            base.join(relative)
        }
    };
    let direct = settings.flag("use_odirect", false)?;
    let fsync = settings.flag("fsync", false)?;
    let workers = settings.count("num_workers", 1..=256)?.unwrap_or(8) as usize;
    let (choice, depth) = read_engine(settings)?;
    // Objects are read whole, in one go: there is nothing to read ahead of.
    settings.ignore(&["read_ahead_size"]);
    let options = Options {
        base,
        temp_dir,
        direct,
        padded: direct && kind == "fs_native",
        fsync,
        no_xattr: AtomicBool::new(false),
    };
    let open =
        move || Ok(Fs::open(kind, options, Engine::new(choice, workers, depth)?)? as Arc<dyn L2Adapter>);
    let transfers = if choice == Choice::Threads { workers } else { depth as usize };
    Ok(Recipe::new(Counting::Always, transfers, Box::new(open)))
}

impl Fs {
    fn open(kind: &'static str, options: Options, engine: Engine) -> Result<Arc<Fs>, Trouble> {
        for dir in [&options.base, &options.temp_dir] {
            fs::create_dir_all(dir).map_err(|error| {
                Trouble::from_io(&format!("making the directory {}", dir.display()), &error)
            })?;
        }
        // Now rather than at the first store in the middle of the night. A directory that may only be read is fine.
        match Temp::create(&options.temp_dir, false) {
            Ok(temp) => drop(temp),
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                tracing::info!(path = %options.base.display(), "the directory is read-only: objects are loaded, stores fail");
            }
            Err(error) => {
                let doing = format!("writing to {}", options.temp_dir.display());
                match Trouble::from_io(&doing, &error) {
                    denied @ Trouble::Denied(_) => return Err(denied),
                    // A full disk can be read, and may get room.
                    trouble => tracing::warn!(%trouble, "stores will fail until this is mended"),
                }
            }
        }
        let fs = Arc::new(Fs { kind, options: Arc::new(options), engine: Arc::new(engine) });
        // In the background: a directory may have a million entries.
        tokio::spawn(clean(fs.engine.clone(), fs.options.temp_dir.clone()));
        Ok(fs)
    }
}

/// Removes what writers that died have left. More than once, because the kernel may hold a dead writer's lock a little
/// longer, until the last transfer of its ring is over.
async fn clean(engine: Arc<Engine>, dir: PathBuf) {
    for wait in [0, 1, 10, 60].map(Duration::from_secs) {
        tokio::time::sleep(wait).await;
        let cleaned = dir.clone();
        let (removed, busy) = engine.run(move || temp::remove_abandoned(&cleaned)).await;
        if removed > 0 {
            tracing::info!(path = %dir.display(), removed, "removed half-written files of daemons that are gone");
        }
        if busy == 0 {
            return;
        }
    }
}

impl Options {
    fn path(&self, key: &ObjectKey) -> PathBuf {
        self.base.join(key.fs_filename())
    }

    fn direct_for(&self, aligned: bool) -> bool {
        self.direct && aligned
    }
}

/// A file that has been opened for a load and is known to have the right size.
struct Found {
    file: Arc<File>,
    sum: Option<Checksum>,
}

fn open_file(path: &Path, direct: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    if direct {
        match options.clone().custom_flags(libc::O_DIRECT).open(path) {
            // Not every file system can.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            result => return result,
        }
    }
    options.open(path)
}

fn find(options: &Options, key: &ObjectKey, target: &mut TargetBuf) -> Result<Found, LoadError> {
    let path = options.path(key);
    let trouble = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename => LoadError::NotFound,
        _ => LoadError::Store(Trouble::from_io(&format!("reading {}", path.display()), &error)),
    };
    let file = open_file(&path, options.direct_for(target.is_aligned(BLOCK))).map_err(trouble)?;
    let meta = file.metadata().map_err(trouble)?;
    if !meta.is_file() {
        return Err(Trouble::Unexpected(format!("{} is not a file", path.display())).into());
    }
    let (expected, found) = (target.len() as u64, meta.len());
    if found != expected && !(options.padded && found == expected.next_multiple_of(BLOCK as u64)) {
        return Err(LoadError::WrongSize { expected, found });
    }
    let sum = sidecar::read(&file, &meta, &path);
    Ok(Found { file: Arc::new(file), sum })
}

/// What the read bytes are worth.
fn check(key: &ObjectKey, target: TargetBuf, read: io::Result<usize>, sum: Option<Checksum>) -> LoadOutcome {
    let error = match read {
        Err(error) => Trouble::from_io(&format!("reading {}", key.fs_filename()), &error).into(),
        Ok(read) if read != target.len() => {
            LoadError::WrongSize { expected: target.len() as u64, found: read as u64 }
        }
        Ok(_) => match sum.map(|sum| (sum, Checksum::of_target(key, &target))) {
            Some((expected, found)) if expected != found => LoadError::checksum(expected, found),
            _ => return LoadOutcome::loaded(target),
        },
    };
    LoadOutcome::failed(error, target)
}

/// A store on its way: the temporary file is open, nothing is written yet.
struct Pending {
    temp: Temp,
    path: PathBuf,
    sidecar: Sidecar,
    bytes: u64,
}

/// `Err(Ok(_))`: the same object is there already.
fn prepare(
    options: &Options,
    key: &ObjectKey,
    source: &SourceBuf,
    sum: Checksum,
    bytes: u64,
) -> Result<Pending, Result<Stored, StoreError>> {
    let path = options.path(key);
    if let Ok(file) = File::open(&path)
        && let Ok(meta) = file.metadata()
        && meta.len() == bytes
        && sidecar::read(&file, &meta, &path).is_none_or(|there| there == sum)
    {
        return Err(Ok(Stored { bytes, written: false }));
    }
    let direct = options.direct_for(super::io::aligned(source.as_ptr(), source.len(), BLOCK));
    let temp = Temp::create(&options.temp_dir, direct)
        .map_err(|error| Err(StoreError::from_io(&format!("making {}", path.display()), &error)))?;
    Ok(Pending { temp, path, sidecar: Sidecar(sum), bytes })
}

fn commit(options: &Options, pending: Pending, written: io::Result<()>) -> Result<Stored, StoreError> {
    failpoint::hit("l2.fs.written");
    let Pending { mut temp, path, sidecar, bytes } = pending;
    let result = written
        .and_then(|()| sidecar.write(temp.file(), &path, &options.no_xattr, &options.temp_dir))
        .and_then(|()| if options.fsync { temp.file().sync_all() } else { Ok(()) })
        .and_then(|()| temp.rename(&path))
        .and_then(|()| if options.fsync { File::open(&options.base)?.sync_all() } else { Ok(()) });
    match result {
        Ok(()) => Ok(Stored { bytes, written: true }),
        Err(error) => Err(StoreError::from_io(&format!("writing {}", path.display()), &error)),
    }
}

/// The bytes that go into the file.
fn file_bytes(options: &Options, source: &SourceBuf) -> SourceBuf {
    if options.padded { source.for_direct_io(BLOCK) } else { source.clone() }
}

impl L2Adapter for Fs {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn lookup<'a>(&'a self, keys: &'a [ObjectKey]) -> BoxFuture<'a, Result<Vec<Presence>, Trouble>> {
        let slices = keys.chunks(LOOKUP_SLICE).map(|slice| {
            let padded = self.options.padded;
            let paths: Vec<PathBuf> = slice.iter().map(|key| self.options.path(key)).collect();
            let look = move || {
                paths
                    .iter()
                    .map(|path| match fs::metadata(path) {
                        Ok(meta) if meta.is_file() => {
                            Ok(Presence::Present { bytes: (!padded).then_some(meta.len()) })
                        }
                        Ok(_) => Ok(Presence::Absent),
                        Err(error) => match error.kind() {
                            io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename => Ok(Presence::Absent),
                            _ => Err(Trouble::from_io(&format!("looking at {}", path.display()), &error)),
                        },
                    })
                    .collect::<Result<Vec<_>, _>>()
            };
            self.engine.run(look)
        });
        let slices: Vec<_> = slices.collect();
        Box::pin(async move { Ok(try_join_all(slices).await?.concat()) })
    }

    fn load<'a>(&'a self, key: &'a ObjectKey, mut target: TargetBuf) -> BoxFuture<'a, LoadOutcome> {
        let (options, key) = (self.options.clone(), key.clone());
        Box::pin(async move {
            if !self.engine.is_async() {
                return self
                    .engine
                    .run(move || match find(&options, &key, &mut target) {
                        Ok(Found { file, sum }) => {
                            let read = read_at(&file, 0, &mut target);
                            check(&key, target, read, sum)
                        }
                        Err(error) => LoadOutcome::failed(error, target),
                    })
                    .await;
            }
            let looked_up = key.clone();
            let (found, target) =
                self.engine.run(move || (find(&options, &looked_up, &mut target), target)).await;
            match found {
                Ok(Found { file, sum }) => {
                    let (read, target) = self.engine.read(&file, 0, target).await;
                    self.engine
                        .run(move || {
                            // Closing may block too.
                            drop(file);
                            check(&key, target, read, sum)
                        })
                        .await
                }
                Err(error) => LoadOutcome::failed(error, target),
            }
        })
    }

    fn store<'a>(
        &'a self,
        key: &'a ObjectKey,
        source: SourceBuf,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        let (options, engine, key) = (self.options.clone(), self.engine.clone(), key.clone());
        // A task of its own: a caller that gives up must not leave the file between two steps.
        let store = tokio::spawn(async move {
            let prepared = {
                let options = options.clone();
                let is_async = engine.is_async();
                engine
                    .run(move || {
                        let sum = Checksum::of_source(&key, &source);
                        let source = file_bytes(&options, &source);
                        let pending = prepare(&options, &key, &source, sum, source.len() as u64)?;
                        if is_async {
                            return Ok((pending, source));
                        }
                        let written = write_at(pending.temp.file(), 0, &source);
                        Err(commit(&options, pending, written))
                    })
                    .await
            };
            match prepared {
                Ok((pending, source)) => {
                    let written = engine.write(pending.temp.file(), 0, source).await;
                    engine.run(move || commit(&options, pending, written)).await
                }
                Err(done) => done,
            }
        });
        Box::pin(async move {
            store
                .await
                .unwrap_or_else(|_| Err(Trouble::Unavailable("the daemon is shutting down".into()).into()))
        })
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<bool, Trouble>> {
        let path = self.options.path(key);
        Box::pin(self.engine.run(move || {
            let removed = fs::remove_file(&path);
            sidecar::remove(&path);
            match removed {
                Ok(()) => Ok(true),
                Err(error) => match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename => Ok(false),
                    _ => Err(Trouble::from_io(&format!("deleting {}", path.display()), &error)),
                },
            }
        }))
    }

    fn list<'a>(&'a self, from: Option<&'a str>, limit: usize) -> BoxFuture<'a, Result<ListPage, Trouble>> {
        let (base, from) = (self.options.base.clone(), from.map(str::to_owned));
        Box::pin(self.engine.run(move || {
            list(&base, from.as_deref(), limit)
                .map_err(|error| Trouble::from_io(&format!("listing {}", base.display()), &error))
        }))
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), Trouble>> {
        let base = self.options.base.clone();
        Box::pin(self.engine.run(
            move || match fs::read_dir(&base).and_then(|mut dir| dir.next().transpose()) {
                Ok(_) => Ok(()),
                Err(error) => Err(Trouble::from_io(&format!("listing {}", base.display()), &error)),
            },
        ))
    }

    fn describe(&self) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("base_path".into(), self.options.base.display().to_string().into());
        map.insert("use_odirect".into(), self.options.direct.into());
        map.insert("io_engine".into(), self.engine.name().into());
        map
    }
}

/// A walk over the whole directory that keeps the `limit` first names behind `from`: needs no state between pages, and
/// files that come or go meanwhile shift nothing.
fn list(base: &Path, from: Option<&str>, limit: usize) -> io::Result<ListPage> {
    let mut first: BinaryHeap<String> = BinaryHeap::new();
    let mut more = false;
    for entry in fs::read_dir(base)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        if from.is_some_and(|from| name.as_str() <= from) || !name.ends_with(".data") {
            continue;
        }
        first.push(name);
        if first.len() > limit {
            more = true;
            first.pop();
        }
    }
    let names = first.into_sorted_vec();
    let next = names.last().filter(|_| more).cloned();
    let objects = names.iter().filter_map(|name| {
        let key = ObjectKey::from_fs_filename(name)?;
        let meta = fs::metadata(base.join(name)).ok().filter(fs::Metadata::is_file)?;
        Some(Listed { key, bytes: meta.len(), modified: meta.modified().ok() })
    });
    Ok(ListPage { objects: objects.collect(), next })
}

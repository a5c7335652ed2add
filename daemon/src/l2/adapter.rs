//! What every store can do.
#![forbid(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::SystemTime;

use futures_util::stream::{self, Stream, StreamExt};
use lmcache_proto::object_key::ObjectKey;

use super::error::{LoadError, StoreError, Trouble};
use super::memory::{SourceBuf, TargetBuf};

/// A future that a trait object can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Outcomes as they come, each with the position of its request.
pub type BoxStream<'a, T> = Pin<Box<dyn Stream<Item = (usize, T)> + Send + 'a>>;

/// Operations of one batch that run at the same time, where the adapter has no better idea.
const BATCH: usize = 32;

/// What a lookup knows of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Not there.
    Absent,
    /// There; with its size where the store tells it for free.
    Present {
        /// Bytes of the object.
        bytes: Option<u64>,
    },
}

impl Presence {
    /// Whether the key is there.
    pub fn is_present(self) -> bool {
        matches!(self, Presence::Present { .. })
    }
}

/// One object to load.
#[derive(Debug)]
pub struct Load {
    /// Its key.
    pub key: ObjectKey,
    /// Where it goes; as long as the object must be.
    pub target: TargetBuf,
}

/// How one load ended.
#[derive(Debug)]
pub struct LoadOutcome {
    /// `Ok`: the whole object is in the target.
    pub result: Result<(), LoadError>,
    /// The target, once nothing writes to it any more. Always there after `Ok`. `None` after an error means that
    /// somebody may still write: the memory's guard is dropped when that is over.
    pub target: Option<TargetBuf>,
}

impl LoadOutcome {
    /// The object is in `target`.
    pub fn loaded(target: TargetBuf) -> LoadOutcome {
        LoadOutcome { result: Ok(()), target: Some(target) }
    }

    /// It is not, and nothing writes to `target`.
    pub fn failed(error: impl Into<LoadError>, target: TargetBuf) -> LoadOutcome {
        LoadOutcome { result: Err(error.into()), target: Some(target) }
    }

    /// It is not, and the operation keeps the target until it really ends.
    pub fn abandoned(error: impl Into<LoadError>) -> LoadOutcome {
        LoadOutcome { result: Err(error.into()), target: None }
    }
}

/// How a store ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Bytes that the value takes in the store.
    pub bytes: u64,
    /// `false`: the same value was there already and nothing was written.
    pub written: bool,
}

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: ObjectKey,
    /// Bytes that it takes in the store.
    pub bytes: u64,
    /// When it was written, where the store knows.
    pub modified: Option<SystemTime>,
}

/// A page of a listing. Values that are no objects of ours are left out, so a page may be empty and not the last. An object
/// that is there all the time is listed at least once; twice happens.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// In no particular order.
    pub objects: Vec<Listed>,
    /// Where the next page starts; `None` after the last.
    pub next: Option<String>,
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of the values that this daemon knows of.
    pub bytes: u64,
    /// Their number.
    pub objects: u64,
    /// Bytes that it may hold; `None`: nobody set a limit.
    pub capacity: Option<u64>,
    /// Whether what was there at the start has been counted.
    pub counted: bool,
}

/// A store for objects that do not fit in memory.
///
/// Every future may be dropped at any time; memory stays guarded until nothing uses it (see `memory`). No method blocks
/// the thread that polls it.
pub trait L2Adapter: fmt::Debug + Send + Sync + 'static {
    /// The peer's name of the type.
    fn kind(&self) -> &'static str;

    /// Which of `keys` are there, in their order.
    fn lookup<'a>(&'a self, keys: &'a [ObjectKey]) -> BoxFuture<'a, Result<Vec<Presence>, Trouble>>;

    /// Loads one object into `target`, all of it or not at all.
    fn load<'a>(&'a self, key: &'a ObjectKey, target: TargetBuf) -> BoxFuture<'a, LoadOutcome>;

    /// Stores one object. When two are stored under one key, a load finds one of them whole.
    fn store<'a>(
        &'a self,
        key: &'a ObjectKey,
        source: SourceBuf,
    ) -> BoxFuture<'a, Result<Stored, StoreError>>;

    /// Removes an object and its side-car; whether it was there.
    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<bool, Trouble>>;

    /// About `limit` objects, from where an earlier page ended.
    fn list<'a>(&'a self, from: Option<&'a str>, limit: usize) -> BoxFuture<'a, Result<ListPage, Trouble>>;

    /// What the store holds, as far as it is known without asking.
    fn usage(&self) -> Usage {
        Usage::default()
    }

    /// Bytes of a salt's objects, as far as it is known without asking.
    fn bytes_of_salt(&self, _salt: &str) -> u64 {
        0
    }

    /// Quotas have changed; whoever evicts by them looks again. To be called inside a tokio runtime.
    fn quotas_changed(&self) {}

    /// Whether the store answers, cheaply.
    fn ping(&self) -> BoxFuture<'_, Result<(), Trouble>>;

    /// Loads many objects; their outcomes come as they land. Dropping the stream gives up on the rest.
    fn load_many(&self, loads: Vec<Load>) -> BoxStream<'_, LoadOutcome> {
        Box::pin(
            stream::iter(loads.into_iter().enumerate())
                .map(move |(position, Load { key, target })| async move {
                    (position, self.load(&key, target).await)
                })
                .buffer_unordered(BATCH),
        )
    }

    /// Stores many objects; their outcomes come as they land.
    fn store_many(&self, stores: Vec<(ObjectKey, SourceBuf)>) -> BoxStream<'_, Result<Stored, StoreError>> {
        Box::pin(
            stream::iter(stores.into_iter().enumerate())
                .map(move |(position, (key, source))| async move {
                    (position, self.store(&key, source).await)
                })
                .buffer_unordered(BATCH),
        )
    }

    /// What `/status` shows beside the common part. No secrets.
    fn describe(&self) -> serde_json::Map<String, serde_json::Value> {
        serde_json::Map::new()
    }

    /// Ends background work; called once, after the last request.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

//! Registered workers, and what their models' objects look like.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lmcache_proto::layout::ObjectLayout;
use lmcache_proto::wire::RegisterKvCache;
use parking_lot::RwLock;
use rustc_hash::FxHashMap;

use crate::device::Registration;

/// Most workers at once; their ids come from the wire.
const MAX_INSTANCES: usize = 4096;

/// How a worker's KV reaches the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Mode {
    /// The worker copies.
    EngineDriven,
    /// The daemon copies.
    LmcacheDriven,
}

/// One object group of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GroupShape {
    /// Layout of its objects.
    pub(super) layout: ObjectLayout,
    /// Attention window in chunks; `None` is full attention.
    pub(super) window: Option<u64>,
    /// A connector's private group.
    pub(super) aux: bool,
}

/// What the modes need of a worker.
#[derive(Debug)]
pub(super) enum Kind {
    /// The worker maps the pool.
    EngineDriven {
        /// Engine block size in tokens, for status.
        block_size: u64,
        /// K and V in one plane: says the shape of a slot.
        single_plane: bool,
    },
    /// The daemon maps the worker's memory.
    LmcacheDriven {
        /// As the worker announced it, to tell a repeated registration from a new one.
        payload: Box<RegisterKvCache>,
        /// The mapped memory and its layout. The last user unmaps it.
        registration: Arc<Registration>,
    },
}

/// A registered worker.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) id: u64,
    pub(super) model: String,
    pub(super) world_size: u32,
    pub(super) groups: Arc<[GroupShape]>,
    pub(super) kind: Kind,
    seen: AtomicU64,
    pinged: AtomicBool,
}

impl Instance {
    pub(super) fn new(
        id: u64,
        model: &str,
        world_size: u32,
        groups: Vec<GroupShape>,
        kind: Kind,
        now: Duration,
    ) -> Instance {
        Instance {
            id,
            model: model.to_owned(),
            world_size,
            groups: groups.into(),
            kind,
            seen: AtomicU64::new(now.as_millis() as u64),
            pinged: AtomicBool::new(false),
        }
    }

    pub(super) fn mode(&self) -> Mode {
        match self.kind {
            Kind::EngineDriven { .. } => Mode::EngineDriven,
            Kind::LmcacheDriven { .. } => Mode::LmcacheDriven,
        }
    }

    fn same_shape(&self, other: &Instance) -> bool {
        let same_kind = match (&self.kind, &other.kind) {
            (Kind::EngineDriven { .. }, Kind::EngineDriven { .. }) => true,
            (Kind::LmcacheDriven { payload: a, .. }, Kind::LmcacheDriven { payload: b, .. }) => a == b,
            _ => false,
        };
        same_kind
            && (&self.model, self.world_size, &self.groups) == (&other.model, other.world_size, &other.groups)
    }
}

/// What a registration did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Registered {
    New,
    /// Known with the same shape: only its liveness is refreshed.
    Refreshed,
    /// Known with another shape: replaced.
    Replaced,
}

/// By model name, then world size: a borrowed name finds its entry.
type ModelGroups = FxHashMap<String, FxHashMap<u32, (Arc<[GroupShape]>, usize)>>;

/// The registered workers.
#[derive(Debug, Default)]
pub(super) struct Instances {
    map: RwLock<FxHashMap<(u64, Mode), Arc<Instance>>>,
    /// Shape of each (model, world)'s objects, the newest registration's, with its number of workers.
    models: RwLock<ModelGroups>,
}

impl Instances {
    pub(super) fn get(&self, id: u64, mode: Mode) -> Option<Arc<Instance>> {
        self.map.read().get(&(id, mode)).cloned()
    }

    pub(super) fn is_known(&self, id: u64) -> bool {
        let map = self.map.read();
        map.contains_key(&(id, Mode::EngineDriven)) || map.contains_key(&(id, Mode::LmcacheDriven))
    }

    pub(super) fn all(&self) -> Vec<Arc<Instance>> {
        self.map.read().values().cloned().collect()
    }

    /// Object groups of a model, empty when no worker of it is registered.
    pub(super) fn groups(&self, model: &str, world_size: u32) -> Arc<[GroupShape]> {
        let models = self.models.read();
        let entry = models.get(model).and_then(|worlds| worlds.get(&world_size));
        entry.map_or_else(|| Arc::from([]), |entry| entry.0.clone())
    }

    /// Adds a worker. `None` when too many are registered.
    pub(super) fn register(&self, instance: Instance) -> Option<Registered> {
        let mut map = self.map.write();
        let key = (instance.id, instance.mode());
        let outcome = match map.get(&key) {
            Some(known) if known.same_shape(&instance) => {
                known.seen.store(instance.seen.load(Ordering::Relaxed), Ordering::Relaxed);
                return Some(Registered::Refreshed);
            }
            Some(_) => Registered::Replaced,
            None if map.len() >= MAX_INSTANCES => return None,
            None => Registered::New,
        };
        let mut models = self.models.write();
        if let Some(old) = map.remove(&key) {
            release_model(&mut models, &old);
        }
        let worlds = models.entry(instance.model.clone()).or_default();
        let entry = worlds.entry(instance.world_size).or_insert_with(|| (instance.groups.clone(), 0));
        entry.0 = instance.groups.clone();
        entry.1 += 1;
        map.insert(key, Arc::new(instance));
        Some(outcome)
    }

    /// Removes a worker.
    pub(super) fn remove(&self, id: u64, mode: Mode) -> Option<Arc<Instance>> {
        let removed = self.map.write().remove(&(id, mode))?;
        release_model(&mut self.models.write(), &removed);
        Some(removed)
    }

    /// The worker has been heard; `ping` proves that it will be heard again.
    pub(super) fn touch(&self, id: u64, now: Duration, ping: bool) {
        let map = self.map.read();
        for mode in [Mode::EngineDriven, Mode::LmcacheDriven] {
            if let Some(instance) = map.get(&(id, mode)) {
                instance.seen.store(now.as_millis() as u64, Ordering::Relaxed);
                if ping {
                    instance.pinged.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    /// Removes workers that have been silent for too long, and returns them with their silence.
    pub(super) fn reap(
        &self,
        now: Duration,
        timeout: Duration,
        grace: Duration,
    ) -> Vec<(Arc<Instance>, Duration)> {
        if timeout.is_zero() {
            return Vec::new();
        }
        let silent: Vec<_> = self
            .all()
            .into_iter()
            .filter_map(|instance| {
                let silence =
                    now.saturating_sub(Duration::from_millis(instance.seen.load(Ordering::Relaxed)));
                let limit = if instance.pinged.load(Ordering::Relaxed) { timeout } else { grace };
                (silence > limit).then_some((instance, silence))
            })
            .collect();
        silent
            .into_iter()
            .filter(|(instance, _)| self.remove(instance.id, instance.mode()).is_some())
            .collect()
    }

    /// When the engine's clock stands at `started.elapsed()`.
    pub(super) fn now(started: Instant) -> Duration {
        started.elapsed()
    }
}

fn release_model(models: &mut ModelGroups, instance: &Instance) {
    let Some(worlds) = models.get_mut(&instance.model) else { return };
    if let Some(entry) = worlds.get_mut(&instance.world_size) {
        entry.1 -= 1;
        if entry.1 == 0 {
            worlds.remove(&instance.world_size);
        }
    }
    if worlds.is_empty() {
        models.remove(&instance.model);
    }
}

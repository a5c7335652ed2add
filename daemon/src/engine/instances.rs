//! Registered workers, and what their models' objects look like.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use lmcache_proto::layout::{ObjectLayout, Region};
use lmcache_proto::wire::{DeviceDescriptor, RegisterKvCache};
use parking_lot::RwLock;
use rustc_hash::FxHashMap;

use super::Refusal;
use crate::device::Registration;
use crate::events::Worker;
pub(super) use crate::roster::Mode;
use crate::tenants::TenantId;

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
        /// The mapped memory and its layout. The last user unmaps it. Empty until a worker that an earlier daemon knew
        /// is heard.
        registration: OnceLock<Arc<Registration>>,
    },
}

/// A registered worker.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) id: u64,
    pub(super) model: Arc<str>,
    pub(super) world_size: u32,
    pub(super) groups: Arc<[GroupShape]>,
    pub(super) kind: Kind,
    /// As its events name it.
    pub(super) worker: Arc<Worker>,
    /// Whose worker it is.
    pub(super) owner: Option<TenantId>,
    /// Copies of the daemon's for it that are under way.
    pub(super) copies: AtomicUsize,
    seen: AtomicU64,
    pinged: AtomicBool,
}

impl Instance {
    pub(super) fn new(
        id: u64,
        model: &str,
        world_size: u32,
        groups: Vec<GroupShape>,
        (kind, device): (Kind, &str),
        now: Duration,
    ) -> Instance {
        let model: Arc<str> = model.into();
        let worker = Arc::new(Worker { engine_id: id, device: device.into(), model: model.clone() });
        Instance {
            id,
            model,
            world_size,
            groups: groups.into(),
            kind,
            worker,
            owner: None,
            copies: AtomicUsize::new(0),
            seen: AtomicU64::new(now.as_millis() as u64),
            pinged: AtomicBool::new(false),
        }
    }

    /// The same worker, of a tenant.
    pub(super) fn of(self, owner: Option<TenantId>) -> Instance {
        Instance { owner, ..self }
    }

    /// The same worker as one that an earlier daemon has registered. Its pings were answered before, so it is expected to be
    /// heard soon.
    pub(super) fn expected(self) -> Instance {
        self.pinged.store(true, Ordering::Relaxed);
        self
    }

    pub(super) fn mode(&self) -> Mode {
        match self.kind {
            Kind::EngineDriven { .. } => Mode::EngineDriven,
            Kind::LmcacheDriven { .. } => Mode::LmcacheDriven,
        }
    }

    /// It is no worker any more: its memory is closed as soon as no copy is under way. Transfers of its may still hold it.
    fn close(&self, dead: bool) {
        if let Kind::LmcacheDriven { registration, .. } = &self.kind
            && let Some(registration) = registration.get()
        {
            registration.close(dead);
        }
    }

    /// Whether its device takes nothing of it any more.
    pub(super) fn is_lost(&self) -> bool {
        match &self.kind {
            Kind::LmcacheDriven { registration, .. } => {
                registration.get().is_some_and(|registration| registration.is_lost())
            }
            Kind::EngineDriven { .. } => false,
        }
    }

    /// Whether its device says how long a copy took.
    pub(super) fn measures_itself(&self) -> bool {
        *self.worker.device != *"cpu"
    }

    /// How long it has been silent at `now`, and whether it pings.
    pub(super) fn heard(&self, now: Duration) -> (Duration, bool) {
        let seen = Duration::from_millis(self.seen.load(Ordering::Relaxed));
        (now.saturating_sub(seen), self.pinged.load(Ordering::Relaxed))
    }

    /// Bytes that it takes here: what the worker has sent is kept, and what was made of it has as many tensors.
    fn bytes(&self) -> usize {
        let tensors: usize = match &self.kind {
            Kind::EngineDriven { .. } => 0,
            Kind::LmcacheDriven { payload, .. } => payload.kv_cache.iter().map(descriptor_bytes).sum(),
        };
        size_of::<Instance>() + self.model.len() + self.groups.len() * size_of::<GroupShape>() + tensors
    }

    fn same_shape(&self, other: &Instance) -> bool {
        let same_kind = match (&self.kind, &other.kind) {
            (Kind::EngineDriven { .. }, Kind::EngineDriven { .. }) => true,
            // The names may be the same and the memory another: a new engine that took the old one's segment names.
            (
                Kind::LmcacheDriven { payload: a, registration: mine },
                Kind::LmcacheDriven { payload: b, registration: theirs },
            ) => {
                a == b && mine.get().zip(theirs.get()).is_some_and(|(mine, theirs)| mine.same_memory(theirs))
            }
            _ => false,
        };
        same_kind
            && self.owner == other.owner
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

/// What a lookup must find of one object group of a model.
#[derive(Clone, Debug)]
pub(super) struct GroupRow {
    /// The object group.
    pub(super) group: u32,
    /// Attention window in chunks; `None` is full attention.
    pub(super) window: Option<u64>,
    /// Layouts that its objects may have.
    pub(super) layouts: Arc<[u64]>,
    /// The newest of them, and the bytes of such an object: what is asked of L2.
    pub(super) layout: u64,
    pub(super) object_bytes: u64,
    /// The same in full.
    pub(super) object: ObjectLayout,
}

/// The shapes that a model's workers have registered for one world size.
#[derive(Debug)]
struct Shapes {
    /// With their numbers of workers; the newest registration's last.
    shapes: Vec<(Arc<[GroupShape]>, usize)>,
    /// The newest shape's groups, with the layouts of all shapes: a lookup does not say whose it is, and an object that
    /// does not fit the asking worker is a miss when it retrieves.
    rows: Arc<[GroupRow]>,
}

impl Shapes {
    fn add(&mut self, groups: &Arc<[GroupShape]>) {
        let known = self.shapes.iter().position(|(shape, _)| shape == groups);
        let (shape, count) = known.map_or((groups.clone(), 0), |at| self.shapes.remove(at));
        self.shapes.push((shape, count + 1));
        self.rows = self.fold();
    }

    fn remove(&mut self, groups: &Arc<[GroupShape]>) {
        if let Some(at) = self.shapes.iter().position(|(shape, _)| shape == groups) {
            self.shapes[at].1 -= 1;
            if self.shapes[at].1 == 0 {
                self.shapes.remove(at);
            }
        }
        self.rows = self.fold();
    }

    fn fold(&self) -> Arc<[GroupRow]> {
        let Some((newest, _)) = self.shapes.last() else { return Arc::from([]) };
        let row = |(group, shape): (usize, &GroupShape)| {
            let mut layouts: Vec<u64> = self
                .shapes
                .iter()
                .filter_map(|(groups, _)| groups.get(group))
                .map(|shape| shape.layout.fingerprint())
                .collect();
            layouts.sort_unstable();
            layouts.dedup();
            GroupRow {
                group: group as u32,
                window: shape.window,
                layouts: layouts.into(),
                layout: shape.layout.fingerprint(),
                object_bytes: shape.layout.bytes(),
                object: shape.layout.clone(),
            }
        };
        // A connector's private groups are not part of the standard lookup.
        newest.iter().enumerate().filter(|(_, shape)| !shape.aux).map(row).collect()
    }
}

/// By model name, then world size: a borrowed name finds its entry.
type ModelShapes = FxHashMap<Arc<str>, FxHashMap<u32, Shapes>>;

/// Bytes of a tensor's descriptor, and of what is made of it.
fn descriptor_bytes(descriptor: &DeviceDescriptor) -> usize {
    let (name, metadata) = match descriptor {
        DeviceDescriptor::CpuShm { shm_name, metadata, .. } => (shm_name.len(), metadata),
        DeviceDescriptor::Cuda { handle, metadata, .. } => (handle.len(), metadata),
        DeviceDescriptor::CudaRaw { ipc_handle, metadata, .. } => (ipc_handle.len(), metadata),
        // No worker is registered with them.
        DeviceDescriptor::CudaVmm { .. } | DeviceDescriptor::Unsupported { .. } => return 0,
    };
    let text = name + metadata.dtype.len() + metadata.device_uuid.len();
    2 * size_of::<DeviceDescriptor>()
        + text
        + 2 * size_of::<u64>() * (metadata.shape.len() + metadata.stride.len())
}

/// The registered workers: at most so many, whose registrations take at most so many bytes. Their ids come from the wire.
#[derive(Debug)]
pub(super) struct Instances {
    limit: usize,
    budget: usize,
    /// Changed under the lock of `map`.
    bytes: AtomicUsize,
    map: RwLock<FxHashMap<(u64, Mode), Arc<Instance>>>,
    models: RwLock<ModelShapes>,
}

impl Instances {
    pub(super) fn new(limit: usize, budget: usize) -> Instances {
        Instances {
            limit,
            budget,
            bytes: AtomicUsize::new(0),
            map: RwLock::default(),
            models: RwLock::default(),
        }
    }

    /// Bytes that the registrations take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn get(&self, id: u64, mode: Mode) -> Option<Arc<Instance>> {
        self.map.read().get(&(id, mode)).cloned()
    }

    pub(super) fn is_known(&self, id: u64) -> bool {
        let map = self.map.read();
        map.contains_key(&(id, Mode::EngineDriven)) || map.contains_key(&(id, Mode::LmcacheDriven))
    }

    pub(super) fn len(&self) -> usize {
        self.map.read().len()
    }

    pub(super) fn all(&self) -> Vec<Arc<Instance>> {
        self.map.read().values().cloned().collect()
    }

    /// What a lookup for a model must find, empty when no worker of it is registered.
    pub(super) fn rows(&self, model: &str, world_size: u32) -> Arc<[GroupRow]> {
        let models = self.models.read();
        let shapes = models.get(model).and_then(|worlds| worlds.get(&world_size));
        shapes.map_or_else(|| Arc::from([]), |shapes| shapes.rows.clone())
    }

    /// What a chunk of a model consists of, in the newest registration's shape.
    pub(super) fn regions(&self, model: &str, world_size: u32) -> Arc<[Region]> {
        let models = self.models.read();
        let shapes = models.get(model).and_then(|worlds| worlds.get(&world_size));
        let newest = shapes.and_then(|shapes| shapes.shapes.last());
        let groups = newest.iter().flat_map(|(groups, _)| groups.iter());
        groups.flat_map(|shape| shape.layout.regions().iter().copied()).collect()
    }

    /// The model's name as its events carry it.
    pub(super) fn shared_model(&self, model: &str) -> Arc<str> {
        self.models.read().get_key_value(model).map_or_else(|| model.into(), |(name, _)| name.clone())
    }

    /// Adds a worker. `None` when too many are registered, or their registrations take too many bytes.
    pub(super) fn register(&self, instance: Instance) -> Option<Registered> {
        let mut map = self.map.write();
        let key = (instance.id, instance.mode());
        let outcome = match map.get(&key) {
            // The one whose device has given it up would be forgotten right after, and what was opened anew with it.
            Some(known) if known.same_shape(&instance) && !known.is_lost() => {
                known.seen.store(instance.seen.load(Ordering::Relaxed), Ordering::Relaxed);
                return Some(Registered::Refreshed);
            }
            Some(_) => Registered::Replaced,
            None if map.len() >= self.limit => return None,
            None => Registered::New,
        };
        let replaced = map.get(&key).map_or(0, |known| known.bytes());
        let bytes = self.bytes.load(Ordering::Relaxed) - replaced + instance.bytes();
        if bytes > self.budget {
            return None;
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        let mut models = self.models.write();
        if let Some(old) = map.remove(&key) {
            release_model(&mut models, &old);
            old.close(false);
        }
        let worlds = models.entry(instance.model.clone()).or_default();
        let shapes = worlds
            .entry(instance.world_size)
            .or_insert_with(|| Shapes { shapes: Vec::new(), rows: Arc::from([]) });
        shapes.add(&instance.groups);
        map.insert(key, Arc::new(instance));
        Some(outcome)
    }

    /// Removes a worker.
    pub(super) fn remove(&self, id: u64, mode: Mode) -> Option<Arc<Instance>> {
        self.remove_if((id, mode), false, |_| true)
    }

    /// Removes a worker whose process is dead.
    pub(super) fn remove_dead(&self, id: u64, mode: Mode) -> Option<Arc<Instance>> {
        self.remove_if((id, mode), true, |_| true)
    }

    /// Removes this very worker, and not one that has registered in its place.
    pub(super) fn remove_this(&self, instance: &Instance) -> bool {
        let is_it = |known: &Arc<Instance>| std::ptr::eq(&**known, instance);
        self.remove_if((instance.id, instance.mode()), false, is_it).is_some()
    }

    /// Removes a worker that no request is using; none can begin to once it is removed.
    pub(super) fn remove_unused(&self, id: u64, mode: Mode) -> Option<Arc<Instance>> {
        // Requests clone it under the lock that this holds, and keep the clone until they are done.
        self.remove_if((id, mode), false, |instance| Arc::strong_count(instance) == 1)
    }

    fn remove_if(
        &self,
        key: (u64, Mode),
        dead: bool,
        still: impl FnOnce(&Arc<Instance>) -> bool,
    ) -> Option<Arc<Instance>> {
        let mut map = self.map.write();
        map.get(&key).filter(|instance| still(instance))?;
        let removed = map.remove(&key)?;
        self.bytes.fetch_sub(removed.bytes(), Ordering::Relaxed);
        release_model(&mut self.models.write(), &removed);
        removed.close(dead);
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
        let silence = |instance: &Instance| {
            now.saturating_sub(Duration::from_millis(instance.seen.load(Ordering::Relaxed)))
        };
        let is_silent = |instance: &Instance| {
            silence(instance) > if instance.pinged.load(Ordering::Relaxed) { timeout } else { grace }
        };
        let suspects: Vec<_> = self.all().into_iter().filter(|instance| is_silent(instance)).collect();
        suspects
            .into_iter()
            .filter_map(|suspect| {
                // Judged again under the lock: it may have spoken, or registered anew, in between.
                let still = |now: &Arc<Instance>| Arc::ptr_eq(now, &suspect) && is_silent(now);
                let removed = self.remove_if((suspect.id, suspect.mode()), true, still)?;
                let silent = silence(&removed);
                Some((removed, silent))
            })
            .collect()
    }

    /// When the engine's clock stands at `started.elapsed()`.
    pub(super) fn now(started: Instant) -> Duration {
        started.elapsed()
    }
}

/// The refusal of a worker for which there is no room.
pub(super) fn full() -> (Refusal, String) {
    (
        Refusal::Limit,
        "--max-registered-workers are registered, or they take --max-registration-bytes".to_owned(),
    )
}

fn release_model(models: &mut ModelShapes, instance: &Instance) {
    let Some(worlds) = models.get_mut(&instance.model) else { return };
    if let Some(shapes) = worlds.get_mut(&instance.world_size) {
        shapes.remove(&instance.groups);
        if shapes.shapes.is_empty() {
            worlds.remove(&instance.world_size);
        }
    }
    if worlds.is_empty() {
        models.remove(&instance.model);
    }
}

#[cfg(test)]
mod tests {
    use lmcache_proto::layout::{Dtype, Region};

    use super::*;

    fn groups(width: u64) -> Vec<GroupShape> {
        let region = Region { planes: 2, layers: 2, slots: 16, width, dtype: Dtype::Float16 };
        let layout = ObjectLayout::new(vec![region]).expect("a layout");
        vec![GroupShape { layout, window: None, aux: false }]
    }

    fn worker(id: u64, width: u64) -> Instance {
        let kind = Kind::EngineDriven { block_size: 16, single_plane: false };
        Instance::new(id, "m", 1, groups(width), (kind, "cpu"), Duration::ZERO)
    }

    #[test]
    fn a_lookup_accepts_the_layouts_of_all_workers_of_a_model() {
        let instances = Instances::new(10, 1 << 20);
        let layouts = || instances.rows("m", 1).first().map_or(0, |row| row.layouts.len());
        instances.register(worker(1, 8));
        instances.register(worker(2, 16));
        instances.register(worker(3, 16));
        assert_eq!((layouts(), instances.rows("m", 2).len()), (2, 0));
        instances.remove(1, Mode::EngineDriven);
        assert_eq!(layouts(), 1, "the reconfigured model's old objects are misses");
        instances.remove(2, Mode::EngineDriven);
        assert_eq!(layouts(), 1, "worker 3 still has that shape");
        instances.remove(3, Mode::EngineDriven);
        assert_eq!(instances.rows("m", 1).len(), 0);
    }

    #[test]
    fn who_registers_anew_is_not_reaped_for_an_old_silence() {
        let instances = Instances::new(10, 1 << 20);
        instances.register(worker(1, 8));
        let (timeout, late) = (Duration::from_secs(1), Duration::from_secs(10));
        instances.register(Instance { seen: AtomicU64::new(10_000), ..worker(1, 16) });
        assert!(instances.reap(late, timeout, timeout).is_empty());
        assert_eq!(instances.reap(late * 2, timeout, timeout).len(), 1);
        assert!(!instances.is_known(1));
    }

    #[test]
    fn registrations_have_a_bound_in_number_and_in_bytes() {
        let two = Instances::new(2, 1 << 20);
        assert_eq!(two.register(worker(1, 8)), Some(Registered::New));
        assert_eq!(two.register(worker(2, 8)), Some(Registered::New));
        assert_eq!(two.register(worker(3, 8)), None);
        assert_eq!(two.register(worker(2, 16)), Some(Registered::Replaced), "it takes its own place");
        two.remove(1, Mode::EngineDriven);
        assert_eq!(two.register(worker(3, 8)), Some(Registered::New));

        let each = worker(1, 8).bytes();
        let small = Instances::new(100, 2 * each + each / 2);
        assert_eq!(small.register(worker(1, 8)), Some(Registered::New));
        assert_eq!(small.register(worker(1, 16)), Some(Registered::Replaced));
        assert_eq!(small.register(worker(2, 8)), Some(Registered::New));
        assert_eq!((small.register(worker(3, 8)), small.bytes()), (None, 2 * each));
        small.remove(2, Mode::EngineDriven);
        assert_eq!((small.register(worker(3, 8)), small.bytes()), (Some(Registered::New), 2 * each));
        small.remove(1, Mode::EngineDriven);
        small.remove(3, Mode::EngineDriven);
        assert_eq!(small.bytes(), 0);
    }
}

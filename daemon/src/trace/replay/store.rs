//! The storage layer under a replay, and who holds what of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lmcache_proto::hash::ChunkHash;
use lmcache_proto::layout::ObjectLayout;
use rustc_hash::FxHashMap;

use super::super::decode::{Call, TraceKey};
use super::report::Outcomes;
use super::{ReplayError, ReplayOptions};
use crate::config::{EvictionConfig, EvictionPolicy};
use crate::events::{Bus, SessionId};
use crate::l1::{L1, L1Config, ObjectId, Pin, Pinned, PolicyKind};
use crate::l2::adapter::L2Adapter as _;
use crate::l2::control::{self, Batch, Opened};
use crate::quota::Quotas;

/// Longest wait for what is on its way to L2.
const SETTLE: Duration = Duration::from_secs(60);

/// Objects being written, or leased, that may be noted for their timeout beyond those that are.
const SLACK: usize = 4096;

/// Reads open at a time, and models, ranks and groups that are told apart; real recordings have a handful of each.
const MAX_NAMED: usize = 1 << 16;

/// Why a call could not be made; for the report.
pub(super) type Problem = &'static str;

/// The storage layer.
pub(super) struct Store {
    pub(super) l1: Arc<L1>,
    pub(super) l2: Option<Opened>,
    pub(super) outcomes: Outcomes,
    pub(super) session: SessionId,
    eviction: EvictionConfig,
    writes: Holds<Write>,
    leases: Holds<Lease>,
    /// Newest layout of the objects of a model, rank and group.
    layouts: FxHashMap<(Arc<str>, u32, u32), u64>,
    /// Reads begun and not ended: `None` where an object was missing.
    reads: FxHashMap<Vec<TraceKey>, VecDeque<Option<Vec<Pinned>>>>,
    /// Whether anything went to L2 since the last wait.
    unsettled: bool,
}

#[derive(Clone, Copy)]
struct Write {
    pin: Pin,
    layout: u64,
    bytes: u64,
}

#[derive(Clone, Copy)]
struct Lease {
    object: ObjectId,
    readers: u32,
}

/// Holds on objects, oldest first for each, that end after a time.
struct Holds<T> {
    held: FxHashMap<TraceKey, VecDeque<(u64, T)>>,
    /// When each was taken, on the recording's clock; some are gone by now.
    order: VecDeque<(f64, u64, TraceKey)>,
    live: usize,
    next: u64,
    ttl: f64,
    now: f64,
}

impl<T: Copy> Holds<T> {
    fn new(ttl: Duration) -> Holds<T> {
        let (held, order) = (FxHashMap::default(), VecDeque::new());
        Holds { held, order, live: 0, next: 0, ttl: ttl.as_secs_f64(), now: 0.0 }
    }

    fn add(&mut self, key: TraceKey, hold: T) {
        self.held.entry(key.clone()).or_default().push_back((self.next, hold));
        self.order.push_back((self.now, self.next, key));
        self.next += 1;
        self.live += 1;
        if self.order.len() > 2 * self.live + SLACK {
            let held = &self.held;
            self.order.retain(|(_, number, key)| {
                // The numbers of one object's holds rise.
                held.get(key)
                    .is_some_and(|holds| holds.binary_search_by_key(number, |(other, _)| *other).is_ok())
            });
        }
    }

    fn oldest(&mut self, key: &TraceKey) -> Option<&mut T> {
        self.held.get_mut(key)?.front_mut().map(|(_, hold)| hold)
    }

    fn take(&mut self, key: &TraceKey) -> Option<T> {
        let holds = self.held.get_mut(key)?;
        let (_, hold) = holds.pop_front()?;
        if holds.is_empty() {
            self.held.remove(key);
        }
        self.live -= 1;
        Some(hold)
    }

    /// Moves the clock, which never goes back; what is older than its time goes.
    fn advance(&mut self, now: f64) -> Vec<T> {
        self.now = self.now.max(now);
        let mut gone = Vec::new();
        while let Some((at, number, _)) = self.order.front()
            && at + self.ttl <= self.now
        {
            let number = *number;
            if let Some((.., key)) = self.order.pop_front()
                && self.held.get(&key).and_then(VecDeque::front).is_some_and(|(first, _)| *first == number)
            {
                gone.extend(self.take(&key));
            }
        }
        gone
    }

    fn drain(&mut self) -> Vec<T> {
        self.order.clear();
        self.live = 0;
        self.held.drain().flat_map(|(_, holds)| holds).map(|(_, hold)| hold).collect()
    }
}

/// Model and salt.
type Names = (Arc<str>, Arc<str>);

/// Model and salt of all keys, or nothing if they are not of one.
fn names(keys: &[TraceKey]) -> Result<Option<Names>, Problem> {
    let Some(first) = keys.first() else { return Ok(None) };
    if keys.iter().all(|key| (&key.model, &key.salt) == (&first.model, &first.salt)) {
        Ok(Some((first.model.clone(), first.salt.clone())))
    } else {
        Err("one call names objects of several models or salts")
    }
}

fn cells(keys: &[TraceKey]) -> impl Iterator<Item = (ChunkHash, u32, u32)> + Clone + '_ {
    keys.iter().map(|key| (key.hash, key.rank, key.group))
}

impl Store {
    /// A fresh pool of `bytes`, and the configured tiers, on the current runtime.
    pub(super) fn open(options: &ReplayOptions, bytes: u64) -> Result<Store, ReplayError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // A recording says nothing of them.
        let quotas: Arc<Quotas> = Arc::default();
        let (l1, _) = L1::open(&L1Config {
            policy: match options.eviction.policy {
                EvictionPolicy::Lru => PolicyKind::Lru,
                EvictionPolicy::Arc => PolicyKind::Arc,
                EvictionPolicy::IsolatedLru => PolicyKind::IsolatedLru,
                EvictionPolicy::Noop => PolicyKind::Noop,
            },
            fresh: true,
            quotas: quotas.clone(),
            ..L1Config::new(format!("lmcached_replay_{}_{number}", std::process::id()), bytes)
        })?;
        // Nobody else opens it, and without names a replay that is killed leaves nothing behind.
        l1.discard();
        l1.reserve_memory().map_err(|source| ReplayError::Memory { bytes, source })?;
        let l1 = Arc::new(l1);
        let l2 = match options.l2.adapters.is_empty() {
            true => None,
            false => Some(control::open(&options.l2, &l1, &Bus::disabled(), &quotas)?),
        };
        Ok(Store {
            l1,
            l2,
            outcomes: Outcomes::default(),
            session: "replay".into(),
            eviction: options.eviction,
            writes: Holds::new(options.write_ttl),
            leases: Holds::new(options.read_ttl),
            layouts: FxHashMap::default(),
            reads: FxHashMap::default(),
            unsettled: false,
        })
    }

    /// The recording's clock moves; what nobody has finished in time goes.
    pub(super) fn advance(&mut self, now: f64) {
        let writes = self.writes.advance(now);
        let leases = self.leases.advance(now);
        self.outcomes.expired += (writes.len() + leases.len()) as u64;
        self.l1.abort(writes.iter().map(|write| &write.pin));
        self.l1.end_leases(leases.iter().rev().map(|lease| lease.object));
    }

    /// Makes one call.
    pub(super) async fn execute(&mut self, call: Call) -> Result<(), Problem> {
        match call {
            Call::ReserveWrite { keys, layout } => self.reserve(&keys, &layout),
            Call::FinishWrite { keys } => self.finish_write(&keys),
            Call::SubmitPrefetch(prefetch) => self.prefetch(prefetch).await,
            Call::FinishRead { keys, read_locks } => {
                self.finish_read(&keys, read_locks);
                Ok(())
            }
            Call::EnterRead { keys } => self.enter(keys),
            Call::ExitRead { keys } => self.exit(&keys),
        }
    }

    fn reserve(&mut self, keys: &[TraceKey], layout: &ObjectLayout) -> Result<(), Problem> {
        let Some((model, salt)) = names(keys)? else { return Ok(()) };
        self.learn(keys, layout);
        let (shape, bytes) = (layout.fingerprint(), layout.bytes());
        match self.l1.reserve(&model, &salt, cells(keys), shape, bytes, None) {
            Ok(reserved) => {
                self.outcomes.reserved += reserved.len() as u64;
                self.outcomes.already_there += (keys.len() - reserved.len()) as u64;
                for object in reserved {
                    let write = Write { pin: object.pin, layout: shape, bytes };
                    self.writes.add(keys[object.position].clone(), write);
                }
            }
            // As in the daemon, all or nothing.
            Err(_) => self.outcomes.refused += keys.len() as u64,
        }
        Ok(())
    }

    /// Remembers what the objects of a model are.
    pub(super) fn learn(&mut self, keys: &[TraceKey], layout: &ObjectLayout) {
        let layout = layout.fingerprint();
        // Neighbours are mostly of one group.
        for alike in keys.chunk_by(|a, b| (&a.model, a.rank, a.group) == (&b.model, b.rank, b.group)) {
            if self.layouts.len() >= MAX_NAMED {
                self.layouts.clear();
            }
            self.layouts.insert((alike[0].model.clone(), alike[0].rank, alike[0].group), layout);
        }
    }

    fn finish_write(&mut self, keys: &[TraceKey]) -> Result<(), Problem> {
        let Some((model, salt)) = names(keys)? else { return Ok(()) };
        let writes: Vec<(&TraceKey, Write)> =
            keys.iter().filter_map(|key| Some((key, self.writes.take(key)?))).collect();
        self.outcomes.not_reserved += (keys.len() - writes.len()) as u64;
        let pins: Vec<Pin> = writes.iter().map(|(_, write)| write.pin).collect();
        let done = self.l1.commit(&pins);
        let written: Vec<_> =
            writes.into_iter().zip(done).filter(|(_, done)| *done).map(|(w, _)| w).collect();
        self.outcomes.written += written.len() as u64;
        if let Some(l2) = &self.l2 {
            for alike in written.chunk_by(|a, b| (a.1.layout, a.1.bytes) == (b.1.layout, b.1.bytes)) {
                let cells = alike.iter().map(|(key, _)| (key.hash, key.rank, key.group)).collect();
                let Write { layout, bytes, .. } = alike[0].1;
                let (model, salt) = (model.clone(), salt.clone());
                l2.stores.submit(Batch { model, salt, cells, layout, object_bytes: bytes });
                self.unsettled = true;
            }
        }
        Ok(())
    }

    /// Notes what a lookup has leased.
    pub(super) fn leased(&mut self, key: TraceKey, object: ObjectId, readers: u32) {
        self.leases.add(key, Lease { object, readers });
    }

    /// `locks` readers are done with each object. The leases of one object are like each other: the oldest goes first.
    fn finish_read(&mut self, keys: &[TraceKey], locks: u32) {
        let mut ended = Vec::new();
        for key in keys {
            let mut left = locks;
            while left > 0
                && let Some(lease) = self.leases.oldest(key)
            {
                let taken = lease.readers.min(left);
                lease.readers -= taken;
                left -= taken;
                if lease.readers == 0 {
                    ended.extend(self.leases.take(key).map(|lease| lease.object));
                }
            }
            if left < locks {
                self.outcomes.released += 1;
            } else {
                self.outcomes.not_leased += 1;
            }
        }
        self.l1.end_leases(ended.into_iter().rev());
    }

    fn enter(&mut self, keys: Vec<TraceKey>) -> Result<(), Problem> {
        let Some((model, salt)) = names(&keys)? else { return Ok(()) };
        if self.reads.len() >= MAX_NAMED {
            return Err("too many reads are open");
        }
        let pinned = self.pin(&model, &salt, &keys);
        match &pinned {
            Some(_) => self.outcomes.read += keys.len() as u64,
            None => self.outcomes.unreadable += keys.len() as u64,
        }
        self.reads.entry(keys).or_default().push_back(pinned);
        Ok(())
    }

    /// Pins all of `keys`, or none. One read may be of several object groups, each with a layout of its own.
    fn pin(&self, model: &str, salt: &str, keys: &[TraceKey]) -> Option<Vec<Pinned>> {
        let mut by_layout: BTreeMap<u64, Vec<(ChunkHash, u32, u32)>> = BTreeMap::new();
        for (key, cell) in keys.iter().zip(cells(keys)) {
            by_layout
                .entry(*self.layouts.get(&(key.model.clone(), key.rank, key.group))?)
                .or_default()
                .push(cell);
        }
        let mut pinned = Vec::with_capacity(keys.len());
        for (layout, cells) in by_layout {
            match self.l1.pin_read(model, salt, cells.iter().copied(), layout, None) {
                Ok(more) => pinned.extend(more),
                Err(_) => {
                    self.l1.unpin(pinned.iter().map(|object: &Pinned| &object.pin));
                    return None;
                }
            }
        }
        Some(pinned)
    }

    fn exit(&mut self, keys: &[TraceKey]) -> Result<(), Problem> {
        if keys.is_empty() {
            return Ok(());
        }
        let open = self.reads.get_mut(keys).ok_or("a read ends that has not begun")?;
        let pinned = open.pop_front();
        if open.is_empty() {
            self.reads.remove(keys);
        }
        match pinned.flatten() {
            Some(pinned) => self.l1.unpin(pinned.iter().map(|object| &object.pin)),
            // The caller gives up its leases itself when it could not read.
            None => self.finish_read(keys, 1),
        }
        Ok(())
    }

    /// What runs beside the calls in the daemon: the evictor, and the stores to L2. Returns how long that took.
    pub(super) async fn settle(&mut self) -> Duration {
        let before = Instant::now();
        if std::mem::take(&mut self.unsettled)
            && let Some(l2) = &self.l2
        {
            self.outcomes.unsettled += l2.stores.flush(SETTLE).await as u64;
        }
        self.l1.evict_above(self.eviction.trigger_watermark, self.eviction.ratio);
        self.outcomes.removed += self.l1.take_removed().len() as u64;
        before.elapsed()
    }

    /// Lets go of everything, and closes the tiers.
    pub(super) async fn close(&mut self) {
        let (writes, leases) = (self.writes.drain(), self.leases.drain());
        self.outcomes.left_open += (writes.len() + leases.len()) as u64;
        self.l1.abort(writes.iter().map(|write| &write.pin));
        self.l1.end_leases(leases.iter().map(|lease| lease.object));
        for pinned in self.reads.drain().flat_map(|(_, open)| open).flatten() {
            self.l1.unpin(pinned.iter().map(|object| &object.pin));
        }
        self.settle().await;
        if let Some(l2) = &self.l2 {
            for attached in &*l2.tiers.all() {
                attached.tier.close().await;
            }
        }
    }
}

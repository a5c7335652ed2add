//! Sends what workers have stored to the tiers, after the commit and beside the requests.
//!
//! What waits is only named, not pinned: an object that is evicted before its turn is lost to the tiers, and L1 never fills
//! with objects that wait for a slow store. Bytes in flight are bounded. A failed store is tried again after a pause, its
//! pin given back meanwhile.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use lmcache_proto::hash::ChunkHash;
use lmcache_proto::object_key::ObjectKey;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::super::adapter::L2Adapter;
use super::super::error::StoreError;
use super::super::memory::SourceBuf;
use super::Pinned;
use super::attached::{Attached, Tiers};
use crate::events::{Bus, Cell, During, Event, Keys, ReadFailure, SaltCounts};
use crate::l1::{L1, ObjectId};

/// Unit of the bytes in flight, so that their count fits a semaphore.
const UNIT: u64 = 4096;
/// Objects of one task.
const TASK_OBJECTS: usize = 256;
/// Objects that may wait for their turn; what comes on top is not stored.
const MAX_WAITING: usize = 1 << 20;
/// Times that an object is offered to a tier.
const ATTEMPTS: u32 = 6;
/// Pause before the second attempt; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Numbers that the controller works by.
#[derive(Clone, Copy, Debug)]
pub struct StoreConfig {
    /// Bytes of L1 that stores may pin at a time.
    pub max_bytes_in_flight: u64,
    /// Whether L1 gives an object up once a tier has it and no other will be offered it again.
    pub skip_l1: bool,
}

/// Newly committed objects of one request and shape.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Model.
    pub model: Arc<str>,
    /// Salt.
    pub salt: Arc<str>,
    /// Hash, rank and group of each.
    pub cells: Vec<(ChunkHash, u32, u32)>,
    /// Layout of all.
    pub layout: u64,
    /// Bytes of each.
    pub object_bytes: u64,
}

/// A batch with its history.
#[derive(Debug)]
struct Waiting {
    batch: Batch,
    /// The tiers that still lack it; `None`: all.
    only: Option<Vec<u32>>,
    attempt: u32,
}

#[derive(Debug)]
struct State {
    l1: Arc<L1>,
    tiers: Arc<Tiers>,
    bus: Arc<Bus>,
    config: StoreConfig,
    queue: Mutex<VecDeque<Waiting>>,
    /// Objects waiting, pauses between attempts included.
    waiting: AtomicUsize,
    /// Tasks running.
    running: AtomicUsize,
    bytes: Arc<Semaphore>,
    wake: Notify,
    idle: Notify,
}

/// The controller; cheap to share. It works as long as its runtime does.
#[derive(Clone, Debug)]
pub struct StoreController {
    state: Arc<State>,
}

impl StoreController {
    /// Starts it on the current runtime.
    pub fn start(l1: Arc<L1>, tiers: Arc<Tiers>, bus: Arc<Bus>, config: StoreConfig) -> StoreController {
        let units = (config.max_bytes_in_flight / UNIT).clamp(1, u64::from(u32::MAX)) as usize;
        let state = Arc::new(State {
            l1,
            tiers,
            bus,
            config,
            queue: Mutex::default(),
            waiting: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            bytes: Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))),
            wake: Notify::new(),
            idle: Notify::new(),
        });
        tokio::spawn(run(state.clone()));
        StoreController { state }
    }

    /// Objects have become readable. Never waits.
    pub fn submit(&self, batch: Batch) {
        let state = &self.state;
        if batch.cells.is_empty() || state.tiers.all().is_empty() {
            return;
        }
        if state.waiting.load(Ordering::Relaxed) + batch.cells.len() > MAX_WAITING {
            for attached in &*state.tiers.all() {
                state.tell_failed(attached, &batch.salt, batch.cells.len() as u64);
            }
            return;
        }
        state.push(Waiting { batch, only: None, attempt: 1 });
    }

    /// Objects that wait for their turn.
    pub fn waiting(&self) -> usize {
        self.state.waiting.load(Ordering::Relaxed)
    }

    /// Waits until everything is stored or given up, at most `limit`. Returns the objects that still waited.
    pub async fn flush(&self, limit: Duration) -> usize {
        let state = &self.state;
        let all_done = async {
            loop {
                let idle = state.idle.notified();
                tokio::pin!(idle);
                idle.as_mut().enable();
                if state.waiting.load(Ordering::SeqCst) == 0 && state.running.load(Ordering::SeqCst) == 0 {
                    return;
                }
                idle.await;
            }
        };
        let _ = tokio::time::timeout(limit, all_done).await;
        self.waiting()
    }
}

/// Takes batches in order and gives their objects out in tasks, as bytes become free.
async fn run(state: Arc<State>) {
    loop {
        let next = state.queue.lock().pop_front();
        let Some(waiting) = next else {
            state.wake.notified().await;
            continue;
        };
        let each = waiting.batch.object_bytes.max(1);
        let budget = state.config.max_bytes_in_flight;
        let objects = ((budget / each).max(1) as usize).min(TASK_OBJECTS);
        for cells in waiting.batch.cells.chunks(objects) {
            let units = (cells.len() as u64 * each).div_ceil(UNIT).min(budget / UNIT).max(1);
            let permit = state
                .bytes
                .clone()
                .acquire_many_owned(units as u32)
                .await
                .expect("the semaphore is never closed");
            let part = Waiting {
                batch: Batch { cells: cells.to_vec(), ..waiting.batch.clone() },
                only: waiting.only.clone(),
                attempt: waiting.attempt,
            };
            state.running.fetch_add(1, Ordering::SeqCst);
            state.waiting.fetch_sub(cells.len(), Ordering::SeqCst);
            tokio::spawn(task(state.clone(), part, permit));
        }
    }
}

/// Stores the objects of one task in all tiers.
async fn task(state: Arc<State>, part: Waiting, permit: OwnedSemaphorePermit) {
    let mut objects = state.intact(state.pin(&part.batch), &part.batch.model).await;
    let tiers: Vec<Arc<Attached>> = state
        .tiers
        .all()
        .iter()
        .filter(|attached| !attached.is_draining())
        .filter(|attached| part.only.as_ref().is_none_or(|only| only.contains(&attached.id.index)))
        .cloned()
        .collect();
    let results = futures_util::future::join_all(
        tiers.iter().map(|attached| store_in(&state, attached, &part.batch.salt, &objects)),
    )
    .await;
    // Objects that some tier may take later, with those tiers.
    let mut again: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    let mut kept_by = vec![0; objects.len()];
    for (attached, fates) in tiers.iter().zip(&results) {
        for (at, fate) in fates.iter().enumerate() {
            match fate {
                Fate::Stored => kept_by[at] += 1,
                Fate::Later => again.entry(at).or_default().push(attached.id.index),
                Fate::Failed => {}
            }
        }
    }
    // Some tier has it, and none will be offered it again.
    let done: Vec<ObjectId> = objects
        .iter()
        .enumerate()
        .filter(|(at, _)| kept_by[*at] > 0 && !again.contains_key(at))
        .map(|(_, object)| object.pinned.pin.object)
        .collect();
    let cells = |at: &usize| objects[*at].cell;
    let mut by_tiers: BTreeMap<Vec<u32>, Vec<(ChunkHash, u32, u32)>> = BTreeMap::new();
    for (at, tiers) in &again {
        by_tiers.entry(tiers.clone()).or_default().push(cells(at));
    }
    objects.clear();
    drop(permit);
    if state.config.skip_l1 {
        // A tier that has answered may still be about to let the bytes go.
        state.l1.give_up(done.into_iter());
    }
    for (only, cells) in by_tiers {
        let batch = Batch { cells, ..part.batch.clone() };
        state.retry(Waiting { batch, only: Some(only), attempt: part.attempt }, &tiers);
    }
    state.running.fetch_sub(1, Ordering::SeqCst);
    state.idle.notify_waiters();
}

/// An object that is being stored.
struct Object {
    cell: (ChunkHash, u32, u32),
    pinned: crate::l1::Pinned,
    key: ObjectKey,
    source: SourceBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stored,
    /// Not now.
    Later,
    /// Never.
    Failed,
}

async fn store_in(
    state: &Arc<State>,
    attached: &Arc<Attached>,
    salt: &Arc<str>,
    objects: &[Object],
) -> Vec<Fate> {
    let mut fates = vec![Fate::Failed; objects.len()];
    if objects.is_empty() {
        return fates;
    }
    let task = attached.begin_store();
    let (keys, bytes) = (objects.len() as u64, objects.iter().map(|object| object.source.len() as u64).sum());
    let number = task.number;
    state.bus.publish(|| Event::L2StoreSubmitted {
        adapter: attached.id.clone(),
        task: number,
        keys,
        bytes,
        by_salt: counts(salt, keys),
    });
    let stores = objects.iter().map(|object| (object.key.clone(), object.source.clone())).collect();
    let mut outcomes = attached.tier.store_many(stores);
    let mut stored_bytes = 0;
    while let Some((at, outcome)) = outcomes.next().await {
        fates[at] = match outcome {
            Ok(_) => {
                stored_bytes += objects[at].source.len() as u64;
                Fate::Stored
            }
            Err(StoreError::Store(trouble)) if trouble.retryable() => Fate::Later,
            // Logged and counted by the tier.
            Err(_) => Fate::Failed,
        };
    }
    let succeeded = fates.iter().filter(|fate| **fate == Fate::Stored).count() as u64;
    // What is tried again has not failed yet.
    let failed = fates.iter().filter(|fate| **fate == Fate::Failed).count() as u64;
    state.bus.publish(|| Event::L2StoreCompleted {
        adapter: attached.id.clone(),
        task: number,
        bytes: stored_bytes,
        succeeded,
        failed,
        by_salt: counts(salt, succeeded),
    });
    if succeeded > 0 {
        state.bus.publish(|| Event::L2KeysStored { adapter: attached.id.clone(), keys: succeeded });
    }
    fates
}

fn counts(salt: &Arc<str>, keys: u64) -> SaltCounts {
    [(salt.clone(), keys)].into()
}

impl State {
    fn push(&self, waiting: Waiting) {
        self.waiting.fetch_add(waiting.batch.cells.len(), Ordering::SeqCst);
        self.queue.lock().push_back(waiting);
        self.wake.notify_one();
    }

    /// Pins the objects of a batch that are still there.
    fn pin(self: &Arc<State>, batch: &Batch) -> Vec<Object> {
        let mut objects = Vec::with_capacity(batch.cells.len());
        for cell in &batch.cells {
            let pinned =
                self.l1.pin_read(&batch.model, &batch.salt, std::iter::once(*cell), batch.layout, None);
            let Some(pinned) = pinned.ok().and_then(|pinned| pinned.first().copied()) else { continue };
            let guard = Pinned { l1: self.l1.clone(), pin: pinned.pin };
            let Some(slot) = self.l1.slot_ref(&pinned) else { continue };
            objects.push(Object {
                cell: *cell,
                pinned,
                key: ObjectKey {
                    chunk_hash: cell.0,
                    model_name: batch.model.to_string(),
                    kv_rank: cell.1,
                    object_group_id: cell.2,
                    cache_salt: batch.salt.to_string(),
                },
                source: SourceBuf::of_slot(slot, guard),
            });
        }
        let gone = (batch.cells.len() - objects.len()) as u64;
        if gone > 0 {
            let (during, reason) = (During::L2Store, ReadFailure::NotFound);
            self.bus.publish(|| Event::L1ReadFailed {
                during,
                reason,
                model: batch.model.clone(),
                keys: gone,
            });
        }
        if self.bus.enabled() && !objects.is_empty() {
            let cells = objects.iter().map(|object| {
                let (hash, rank, group) = object.cell;
                Cell { hash, rank, group }
            });
            let keys = Keys::new(batch.model.clone(), batch.salt.clone(), cells.collect());
            self.bus.publish(|| Event::L1ReadReserved { keys });
        }
        objects
    }

    /// Those whose bytes are what was committed: a tier would keep anything else under a good checksum of its own.
    async fn intact(self: &Arc<State>, objects: Vec<Object>, model: &Arc<str>) -> Vec<Object> {
        if !self.l1.checksums() {
            return objects;
        }
        let (asked, l1) = (objects.len(), self.l1.clone());
        let verified = tokio::task::spawn_blocking(move || {
            let verified = objects.into_iter().filter(|object| l1.verify(&object.pinned));
            verified.collect::<Vec<Object>>()
        });
        let verified = verified.await.unwrap_or_default();
        let damaged = (asked - verified.len()) as u64;
        if damaged > 0 {
            tracing::warn!(
                objects = damaged,
                "objects in the pool are not what was committed and do not go to the tiers; a worker writes where it should not"
            );
            let (during, reason, model) = (During::L2Store, ReadFailure::Damaged, model.clone());
            self.bus.publish(|| Event::L1ReadFailed { during, reason, model, keys: damaged });
        }
        verified
    }

    /// Offers a batch again after a pause, or gives it up.
    fn retry(self: &Arc<State>, waiting: Waiting, tiers: &[Arc<Attached>]) {
        let Waiting { batch, only, attempt } = waiting;
        if attempt >= ATTEMPTS {
            let objects = batch.cells.len() as u64;
            for attached in
                tiers.iter().filter(|tier| only.as_ref().is_some_and(|only| only.contains(&tier.id.index)))
            {
                tracing::warn!(
                    tier = attached.tier.label(),
                    objects,
                    "gave up storing after {ATTEMPTS} attempts; L1 has them until they are evicted"
                );
                self.tell_failed(attached, &batch.salt, objects);
            }
            return;
        }
        let objects = batch.cells.len();
        // Counted as waiting through the pause.
        self.waiting.fetch_add(objects, Ordering::SeqCst);
        let state = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(FIRST_PAUSE * 2u32.pow(attempt - 1)).await;
            state.push(Waiting { batch, only, attempt: attempt + 1 });
            state.waiting.fetch_sub(objects, Ordering::SeqCst);
        });
    }

    fn tell_failed(&self, attached: &Attached, salt: &Arc<str>, failed: u64) {
        self.bus.publish(|| Event::L2StoreCompleted {
            adapter: attached.id.clone(),
            task: 0,
            bytes: 0,
            succeeded: 0,
            failed,
            by_salt: counts(salt, 0),
        });
    }
}

//! Loads objects from the tiers into L1, once however many requests wait for them.
//!
//! Who wants an object first reserves its memory and loads it; who wants it meanwhile waits for that. A loaded object is
//! made readable with one lease for each of them, under one lock, so that none finds it gone. Whatever happens to a load
//! (an error, its request given up, its deadline), its reservation lives as long as anything may write to the memory, and
//! wakes the waiters when it goes.
#![forbid(unsafe_code)]

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use futures_util::stream::{self, FuturesUnordered, SelectAll};
use lmcache_proto::hash::ChunkHash;
use lmcache_proto::object_key::ObjectKey;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

use super::super::adapter::{L2Adapter, Load, LoadOutcome};
use super::super::error::LoadError;
use super::super::memory::TargetBuf;
use super::Leased;
use super::attached::{Attached, Task, Tiers};
use crate::events::{Bus, Event, PrefetchFailure, SessionId};
use crate::l1::{L1, Pin};

/// Keys of one lookup call: what a store answers quickly, and what a message may hold.
const LOOKUP_KEYS: usize = 4096;

/// An object, as the loader names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Want {
    /// Chunk hash.
    pub hash: ChunkHash,
    /// Model.
    pub model: Arc<str>,
    /// Salt.
    pub salt: Arc<str>,
    /// Packed rank.
    pub rank: u32,
    /// Object group.
    pub group: u32,
    /// Layout that it must have.
    pub layout: u64,
    /// Its bytes.
    pub bytes: u64,
}

impl Want {
    /// Its name in the stores.
    pub fn key(&self) -> ObjectKey {
        ObjectKey {
            chunk_hash: self.hash,
            model_name: self.model.to_string(),
            kv_rank: self.rank,
            object_group_id: self.group,
            cache_salt: self.salt.to_string(),
        }
    }
}

/// What came of one wanted object.
#[derive(Debug)]
pub enum Landed {
    /// It is in L1, with a lease for who asked; `true` if this request's load brought it.
    Here(Leased, bool),
    /// It is not.
    Failed(PrefetchFailure),
}

type Waiters = Vec<oneshot::Sender<Option<Leased>>>;

/// The loads under way.
#[derive(Debug)]
pub struct Loader {
    l1: Arc<L1>,
    tiers: Arc<Tiers>,
    bus: Arc<Bus>,
    /// Objects being loaded, and who waits for each beside the loader. Taken before L1's lock.
    loading: Mutex<FxHashMap<Want, Waiters>>,
    /// Requests that may load at a time.
    turns: Semaphore,
    /// Whether loaded objects go with their last reader.
    temporary: bool,
    jobs: AtomicU64,
}

/// Keeps a reservation while somebody may write to it; see the module.
struct Reservation {
    loader: Arc<Loader>,
    want: Want,
    pin: Option<Pin>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // Not committed: nobody writes any more, and there is nothing to read.
        if let Some(pin) = self.pin.take() {
            self.loader.l1.abort([pin].iter());
            self.loader.wake(&self.want, || None);
        }
    }
}

/// One more job while it lives.
#[derive(Debug)]
pub struct JobCount(Arc<Loader>);

impl Drop for JobCount {
    fn drop(&mut self) {
        self.0.jobs.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A load task of one tier, told of when it begins and when it is over, however it ends.
struct LoadTask {
    task: Task,
    attached: Arc<Attached>,
    bus: Arc<Bus>,
    session: SessionId,
}

impl LoadTask {
    fn begin(attached: &Arc<Attached>, bus: &Arc<Bus>, session: &SessionId, loads: &[Load]) -> LoadTask {
        let bytes = loads.iter().map(|load| load.target.len() as u64).sum();
        let task = attached.begin_load(bytes);
        let number = task.number;
        bus.publish(|| Event::L2LoadTaskSubmitted {
            session: session.clone(),
            adapter: attached.id.clone(),
            task: number,
            keys: loads.len() as u64,
            bytes,
        });
        LoadTask { task, attached: attached.clone(), bus: bus.clone(), session: session.clone() }
    }
}

impl Drop for LoadTask {
    fn drop(&mut self) {
        self.bus.publish(|| Event::L2LoadTaskCompleted {
            session: self.session.clone(),
            adapter: self.attached.id.clone(),
            task: self.task.number,
        });
    }
}

/// Who brings an object.
enum Start {
    /// It is there already.
    Here(Leased),
    /// Somebody else is loading it.
    Wait(oneshot::Receiver<Option<Leased>>),
    /// We do.
    Load(TargetBuf),
    Failed(PrefetchFailure),
}

impl Loader {
    /// Whether loaded objects stay in L1 after their last reader.
    pub fn keeps(&self) -> bool {
        !self.temporary
    }

    /// A loader for at most `max_in_flight` requests at a time.
    pub fn new(
        l1: Arc<L1>,
        tiers: Arc<Tiers>,
        bus: Arc<Bus>,
        max_in_flight: usize,
        temporary: bool,
    ) -> Arc<Loader> {
        Arc::new(Loader {
            l1,
            tiers,
            bus,
            loading: Mutex::default(),
            turns: Semaphore::new(max_in_flight.max(1)),
            temporary,
            jobs: AtomicU64::new(0),
        })
    }

    /// Requests that look or load now, or wait for their turn.
    pub fn jobs(&self) -> u64 {
        self.jobs.load(Ordering::Relaxed)
    }

    /// Counts a job while the value lives. `None`: there are `most` already.
    pub fn job(self: &Arc<Loader>, most: usize) -> Option<JobCount> {
        let one_more = |jobs: u64| (jobs < most as u64).then_some(jobs + 1);
        self.jobs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(JobCount(self.clone()))
    }

    /// Waits for a turn to look and load.
    pub async fn turn(&self) -> SemaphorePermit<'_> {
        self.turns.acquire().await.expect("the semaphore is never closed")
    }

    /// Asks all usable tiers at the same time. For each key the first tier, in their order, that has it; a tier that fails
    /// has nothing.
    pub async fn presence(&self, keys: &[ObjectKey]) -> Vec<Option<Arc<Attached>>> {
        let tiers = self.tiers.usable();
        let ask = async |attached: &Attached| {
            let mut has = Vec::with_capacity(keys.len());
            for keys in keys.chunks(LOOKUP_KEYS) {
                match attached.tier.lookup(keys).await {
                    Ok(found) => has.extend(found.iter().map(|presence| presence.is_present())),
                    // The tier has logged and counted it.
                    Err(_) => break,
                }
            }
            has
        };
        let answers: Vec<Vec<bool>> =
            futures_util::future::join_all(tiers.iter().map(|attached| ask(attached))).await;
        let first = |key: usize| {
            let has = |answer: &Vec<bool>| answer.get(key).copied().unwrap_or(false);
            answers.iter().position(has).map(|position| tiers[position].clone())
        };
        (0..keys.len()).map(first).collect()
    }

    /// Brings the wanted objects into L1, each from its tier; the first are worth most. `landed` is called with the position
    /// of each as its fate is known. Dropping the future gives up on the rest.
    pub async fn load(
        self: &Arc<Loader>,
        session: &SessionId,
        wants: &[(Want, Arc<Attached>)],
        mut landed: impl FnMut(usize, Landed),
    ) {
        let mut waiting = FuturesUnordered::new();
        let mut groups: Vec<(Arc<Attached>, Vec<usize>, Vec<Load>)> = Vec::new();
        let mut full = false;
        for (position, (want, attached)) in wants.iter().enumerate() {
            let start = if full { Start::Failed(PrefetchFailure::L1Oom) } else { self.start(want) };
            match start {
                Start::Here(leased) => landed(position, Landed::Here(leased, false)),
                Start::Failed(reason) => {
                    // What comes later in the prompt is worth less: it gets no memory either.
                    full |= reason == PrefetchFailure::L1Oom;
                    landed(position, Landed::Failed(reason));
                }
                Start::Wait(answer) => waiting.push(async move { (position, answer.await.ok().flatten()) }),
                Start::Load(target) => {
                    let load = Load { key: want.key(), target };
                    match groups.iter_mut().find(|(tier, ..)| tier.id == attached.id) {
                        Some((_, positions, loads)) => {
                            positions.push(position);
                            loads.push(load);
                        }
                        None => groups.push((attached.clone(), vec![position], vec![load])),
                    }
                }
            }
        }
        let tiers: Vec<Arc<Attached>> = groups.iter().map(|(attached, ..)| attached.clone()).collect();
        let mut running = SelectAll::new();
        for (attached, (_, positions, loads)) in tiers.iter().zip(groups) {
            let task = LoadTask::begin(attached, &self.bus, session, &loads);
            let outcomes = attached.tier.load_many(loads);
            let loader = &**self;
            running.push(Box::pin(stream::unfold((outcomes, positions, task), async move |mut state| {
                let (at, outcome) = state.0.next().await?;
                Some(((state.1[at], loader.land(outcome).await), state))
            })));
        }
        loop {
            tokio::select! {
                Some((position, leased)) = waiting.next(), if !waiting.is_empty() => {
                    let found = leased.map(|leased| Landed::Here(leased, false));
                    landed(position, found.unwrap_or(Landed::Failed(PrefetchFailure::NotFound)));
                }
                Some((position, outcome)) = running.next(), if !running.is_empty() => {
                    landed(position, outcome);
                }
                else => return,
            }
        }
    }

    /// Decides who brings an object, and reserves its memory if we do.
    fn start(self: &Arc<Loader>, want: &Want) -> Start {
        match self.loading.lock().entry(want.clone()) {
            Entry::Occupied(mut waiters) => {
                let (sender, receiver) = oneshot::channel();
                waiters.get_mut().push(sender);
                return Start::Wait(receiver);
            }
            Entry::Vacant(entry) => entry.insert(Vec::new()),
        };
        let cell = (want.hash, want.rank, want.group);
        let cells = std::iter::once(cell);
        let reserved = self.l1.reserve(&want.model, &want.salt, cells, want.layout, want.bytes, None);
        if let Ok([reserved]) = reserved.as_deref() {
            // From here on the reservation answers the waiters, whatever happens.
            let reservation =
                Reservation { loader: self.clone(), want: want.clone(), pin: Some(reserved.pin) };
            return match self.l1.slot_mut(reserved) {
                Some(slot) => Start::Load(TargetBuf::of_slot(slot, reservation)),
                None => Start::Failed(PrefetchFailure::NotFound),
            };
        }
        let lease = || self.l1.lease_one(&want.model, &want.salt, cell, want.layout);
        let lease = || lease().map(|object| Leased::new(&self.l1, object));
        let start = match reserved {
            Err(_) => Start::Failed(PrefetchFailure::L1Oom),
            // There by now, or a worker is storing it.
            Ok(_) => lease().map_or(Start::Failed(PrefetchFailure::NotFound), Start::Here),
        };
        self.wake(want, lease);
        start
    }

    /// A load has ended.
    async fn land(&self, outcome: LoadOutcome) -> Landed {
        let reason = match outcome.result {
            Ok(()) => {
                let guard = outcome.target.map(TargetBuf::into_guard);
                let reservation = guard.and_then(|guard| guard.downcast::<Reservation>().ok());
                let leased = match reservation {
                    Some(reservation) => self.seal(*reservation).await.and_then(|sealed| self.commit(sealed)),
                    None => None,
                };
                return match leased {
                    Some(leased) => Landed::Here(leased, true),
                    None => Landed::Failed(PrefetchFailure::NotFound),
                };
            }
            Err(LoadError::WrongSize { .. } | LoadError::Damaged(_)) => PrefetchFailure::SerdeFailure,
            Err(LoadError::NotFound | LoadError::Store(_)) => PrefetchFailure::NotFound,
        };
        Landed::Failed(reason)
    }

    /// Gives a loaded object its checksum in L1, if it is to have one.
    async fn seal(&self, reservation: Reservation) -> Option<Reservation> {
        if !self.l1.checksums() {
            return Some(reservation);
        }
        let l1 = self.l1.clone();
        let sealed = tokio::task::spawn_blocking(move || {
            l1.seal(reservation.pin.as_slice());
            reservation
        });
        sealed.await.ok()
    }

    /// Makes a loaded object readable, with leases for the loader and for all who wait.
    fn commit(&self, mut reservation: Reservation) -> Option<Leased> {
        let pin = reservation.pin.take()?;
        // L1 under the lock of the waiters: who comes later finds the object there.
        let mut loading = self.loading.lock();
        let waiters = loading.remove(&reservation.want).unwrap_or_default();
        let object = self.l1.commit_leased(&pin, 1 + waiters.len() as u32, self.temporary);
        drop(loading);
        for waiter in waiters {
            // A waiter that is gone drops its lease.
            let _ = waiter.send(object.map(|object| Leased::new(&self.l1, object)));
        }
        object.map(|object| Leased::new(&self.l1, object))
    }

    /// Tells those who wait for an object how it went without a load.
    fn wake(&self, want: &Want, answer: impl Fn() -> Option<Leased>) {
        let waiters = self.loading.lock().remove(want).unwrap_or_default();
        for waiter in waiters {
            let _ = waiter.send(answer());
        }
    }
}

//! Lookups that L1 alone cannot answer: what it has is leased at once, the rest comes from the tiers, and the answer is what
//! is there when all has landed or the deadline is over.
//!
//! A job is a task of the runtime and holds no thread. It is given up when its request ends; everything it holds goes with
//! it, because everything is in values that end their hold when they are dropped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lmcache_proto::hash::Chain;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::Engine;
use super::instances::GroupRow;
use super::leases::CELL_BYTES;
use crate::events::{Cell, During, Event, Keys, PrefetchFailure, SaltCounts, SessionId};
use crate::l1::{Hit, L1, LeasedCell, ObjectId, Row, first_needed, longest_prefix};
use crate::l2::control::{Attached, Landed, Loader, Opened, Want};

/// The colder tiers, as the engine uses them.
#[derive(Debug)]
pub struct L2 {
    /// The tiers and their controllers.
    pub opened: Opened,
    /// Runs the jobs.
    pub runtime: Handle,
}

/// A lookup's job, as its session knows it. Dropping it gives the job up.
#[derive(Debug)]
pub(super) struct Job {
    /// Tells the lookups of one session apart.
    pub(super) number: u64,
    /// Bytes that it holds until it is over, and its lookup after that.
    pub(super) bytes: usize,
    /// Closed when the job is over.
    pub(super) done: watch::Receiver<()>,
    abort: AbortHandle,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

/// Why there is no job.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(super) enum NoJob {
    #[error("the daemon is stopping")]
    Stopping,
    #[error("{}", MANY)]
    TooMany,
    #[error("{}", FULL)]
    Full,
}

const MANY: &str = "--max-prefetch-jobs wait for L2 or load from it already";
const FULL: &str = "--max-session-bytes have no room for what it could load";

impl NoJob {
    /// The limit that is in the way.
    pub(super) fn limit(&self) -> Option<&'static str> {
        match self {
            NoJob::Stopping => None,
            NoJob::TooMany => Some(MANY),
            NoJob::Full => Some(FULL),
        }
    }
}

/// What a lookup asks for.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) request_id: Box<str>,
    pub(super) session: SessionId,
    pub(super) model: Arc<str>,
    pub(super) salt: Arc<str>,
    /// Its chunks.
    pub(super) chain: Chain,
    /// The token list as it came, for the KV event log; `None`: nothing of this lookup is told there.
    pub(super) tokens: Option<Box<[u8]>>,
    pub(super) rows: Vec<Row>,
    /// For each row, what its objects are now.
    pub(super) shapes: Vec<Shape>,
    pub(super) readers: u32,
}

/// The newest layout of a row's objects.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    layout: u64,
    bytes: u64,
}

impl Shape {
    pub(super) fn of(group: &GroupRow) -> Shape {
        Shape { layout: group.layout, bytes: group.object_bytes }
    }
}

/// Leases on cells, chunk-major; what is not taken ends with the value.
struct Held {
    l1: Arc<L1>,
    cells: Vec<Option<ObjectId>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.l1.end_leases(self.cells.iter().rev().flatten().copied());
    }
}

/// How far a job has come.
struct Progress {
    held: Held,
    /// Cells that L1 had from the start.
    from_l1: Vec<bool>,
    /// Cells that this job brought in; others wait for the same objects.
    brought: Vec<usize>,
    wanted: u64,
    loaded: u64,
    failed: BTreeMap<&'static str, (PrefetchFailure, u64)>,
}

/// What a job found, for its lookup.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) hit: Hit,
    /// Chunks that L1 alone could serve.
    pub(super) l1_chunks: u64,
    /// Objects of the hit that came from the tiers, with their chunks.
    pub(super) loaded: Vec<(usize, ObjectId)>,
}

impl Found {
    pub(super) fn l2_objects(&self) -> u64 {
        self.loaded.len() as u64
    }
}

impl Engine {
    /// Starts the job of a lookup. The caller puts it into the session and then opens the gate.
    pub(super) fn start_prefetch(&self, l2: &L2, ask: Ask) -> Result<(Job, oneshot::Sender<()>), NoJob> {
        // The job keeps the engine alive, which ends jobs when it drains.
        let engine = self.me.upgrade().ok_or(NoJob::Stopping)?;
        // From here on, and not from when the task begins: who asks faster than tasks begin must not get more.
        let count = l2.opened.loader.job(self.config.max_prefetch_jobs).ok_or(NoJob::TooMany)?;
        let bytes = ask.bytes();
        if !self.sessions.has_room_for(bytes) {
            return Err(NoJob::Full);
        }
        let cells = self.l1.lease_present(&ask.model, &ask.salt, &ask.chain.hashes, &ask.rows);
        let from_l1 = cells.iter().map(Option::is_some).collect();
        let progress = Progress {
            held: Held { l1: self.l1.clone(), cells },
            from_l1,
            brought: Vec::new(),
            wanted: 0,
            loaded: 0,
            failed: BTreeMap::new(),
        };
        let (done_sender, done) = watch::channel(());
        let (gate, opened) = oneshot::channel();
        let number = self.next_job.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let loader = l2.opened.loader.clone();
        let deadline = Instant::now() + l2.opened.deadline;
        let task = l2.runtime.spawn(async move {
            let _count = count;
            if opened.await.is_ok() {
                run(engine, loader, ask, progress, number, deadline).await;
            }
            drop(done_sender);
        });
        Ok((Job { number, bytes, done, abort: task.abort_handle() }, gate))
    }

    /// Gives a lookup its result, if its request still waits for it.
    fn finish_prefetch(&self, ask: &Ask, progress: Progress, number: u64, took: Duration) {
        let found = progress.found(ask);
        self.tell_finished(ask, &found, took);
        let mut found = Some(found);
        if let Some(session) = self.sessions.get(&ask.request_id) {
            let mut session = session.lock();
            session.touch();
            let job =
                |lookup: &super::leases::Lookup| lookup.job.as_ref().is_some_and(|job| job.number == number);
            if let Some(lookup) = session.lookups.iter_mut().find(|lookup| job(lookup))
                && let Some(found) = found.take()
            {
                lookup.resolve(found, ask.readers);
                self.sessions.charge(&mut session);
            }
        }
        if let Some(found) = found {
            if self.warm_done(ask, &found) {
                self.kept(ask, &found.loaded);
            } else {
                self.call_unwanted(ask, &found.hit);
            }
            self.l1.end_leases(found.hit.cells.iter().rev().map(|cell| cell.object));
        }
    }

    fn tell_finished(&self, ask: &Ask, found: &Found, took: Duration) {
        let total = (ask.chain.hashes.len() * ask.rows.len()) as u64;
        let (hits, from_l2) = (found.hit.cells.len() as u64, found.l2_objects());
        let failed = (ask.chain.hashes.len() as u64 - found.hit.chunks) * ask.rows.len() as u64;
        tracing::info!(
            request = &*ask.request_id,
            "Prefetch request completed (L1+L2): {hits}/{total} prefix hits ({} L1, {from_l2} L2) in {:.1} ms",
            hits - from_l2,
            took.as_secs_f64() * 1e3
        );
        if !self.bus.enabled() {
            return;
        }
        let cell = |cell: &LeasedCell| {
            let row = &ask.rows[cell.row as usize];
            Cell { hash: ask.chain.hashes[cell.chunk as usize], rank: row.rank, group: row.group }
        };
        let keys = Keys::new(ask.model.clone(), ask.salt.clone(), found.hit.cells.iter().map(cell).collect());
        if !keys.is_empty() {
            self.bus.publish(|| Event::L1ReadReserved { keys: keys.clone() });
        }
        self.bus.publish(|| Event::SmReadPrefetched { succeeded: keys, failed });
    }
}

async fn run(
    engine: Arc<Engine>,
    loader: Arc<Loader>,
    ask: Ask,
    mut progress: Progress,
    number: u64,
    deadline: Instant,
) {
    let started = Instant::now();
    if timeout_at(deadline, look_and_load(&engine, &loader, &ask, &mut progress)).await.is_err() {
        tracing::warn!(
            request = &*ask.request_id,
            wanted = progress.wanted,
            loaded = progress.loaded,
            "--l2-prefetch-deadline-seconds are over: the lookup is answered with what has arrived"
        );
    }
    progress.tell(&engine, &ask);
    if loader.keeps() {
        engine.kept(&ask, &progress.brought(&ask));
    }
    engine.finish_prefetch(&ask, progress, number, started.elapsed());
}

async fn look_and_load(engine: &Engine, loader: &Arc<Loader>, ask: &Ask, progress: &mut Progress) {
    let _turn = loader.turn().await;
    let missing: Vec<usize> =
        (0..progress.held.cells.len()).filter(|at| progress.held.cells[*at].is_none()).collect();
    let adapters = |tiers: usize| u32::try_from(tiers).unwrap_or(u32::MAX);
    let (session, by_salt) = (&ask.session, |keys: u64| -> SaltCounts { [(ask.salt.clone(), keys)].into() });
    let usable = engine.l2.as_ref().map_or(0, |l2| l2.opened.tiers.usable().len());
    engine.bus.publish(|| Event::L2PrefetchLookupSubmitted {
        session: session.clone(),
        keys: missing.len() as u64,
        adapters: adapters(usable),
        by_salt: by_salt(missing.len() as u64),
    });
    let keys: Vec<_> = missing.iter().map(|at| ask.want(*at).key()).collect();
    let mut in_tiers: Vec<Option<Arc<Attached>>> = vec![None; progress.held.cells.len()];
    for (at, tier) in missing.iter().zip(loader.presence(&keys).await) {
        in_tiers[*at] = tier;
    }
    drop(keys);
    let rows = ask.rows.len();
    let at = |chunk: u64, row: usize| chunk as usize * rows + row;
    let held = |at: usize| progress.held.cells[at].is_some();
    let best = longest_prefix(&ask.rows, ask.chain.hashes.len() as u64, |chunk, row| {
        held(at(chunk, row)) || in_tiers[at(chunk, row)].is_some()
    });
    let mut cells: Vec<usize> = Vec::new();
    let mut wants: Vec<(Want, Arc<Attached>)> = Vec::new();
    for chunk in 0..best {
        for (row, shape) in ask.rows.iter().enumerate() {
            let at = at(chunk, row);
            if chunk < first_needed(shape.window, best) || held(at) {
                continue;
            }
            if let Some(tier) = in_tiers[at].take() {
                cells.push(at);
                wants.push((ask.want(at), tier));
            }
        }
    }
    engine.bus.publish(|| Event::L2PrefetchLookupCompleted {
        session: session.clone(),
        prefix_hits: wants.len() as u64,
    });
    if wants.is_empty() {
        return;
    }
    progress.wanted = wants.len() as u64;
    let mut tiers: Vec<u32> = wants.iter().map(|(_, tier)| tier.id.index).collect();
    tiers.sort_unstable();
    tiers.dedup();
    engine.bus.publish(|| Event::L2PrefetchLoadSubmitted {
        session: session.clone(),
        keys: wants.len() as u64,
        adapters: adapters(tiers.len()),
        by_salt: by_salt(wants.len() as u64),
    });
    let landed = |position: usize, landed: Landed| match landed {
        Landed::Here(leased, ours) => {
            progress.held.cells[cells[position]] = leased.take();
            progress.loaded += 1;
            if ours {
                progress.brought.push(cells[position]);
                engine.bus.publish(|| {
                    let (want, _) = &wants[position];
                    let cell = Cell { hash: want.hash, rank: want.rank, group: want.group };
                    let keys = Keys::new(ask.model.clone(), ask.salt.clone(), [cell].into());
                    Event::L1WriteFinishedAndReadReserved { keys }
                });
            }
        }
        Landed::Failed(reason) => progress.failed.entry(reason.name()).or_insert((reason, 0)).1 += 1,
    };
    loader.load(session, &wants, landed).await;
    engine.after_change();
}

impl Ask {
    /// Bytes that a job for it takes.
    fn bytes(&self) -> usize {
        let tokens = self.tokens.as_ref().map_or(0, |tokens| tokens.len());
        let cells = self.chain.hashes.len() * self.rows.len();
        // What is found becomes the lookup's.
        tokens + size_of_val(&*self.chain.hashes) + cells * (CELL_BYTES + size_of::<Option<ObjectId>>())
    }

    /// The object of a cell.
    fn want(&self, at: usize) -> Want {
        let (chunk, row) = (at / self.rows.len(), at % self.rows.len());
        let shape = self.shapes[row];
        Want {
            hash: self.chain.hashes[chunk],
            model: self.model.clone(),
            salt: self.salt.clone(),
            rank: self.rows[row].rank,
            group: self.rows[row].group,
            layout: shape.layout,
            bytes: shape.bytes,
        }
    }
}

impl Progress {
    /// How the load went.
    fn tell(&self, engine: &Engine, ask: &Ask) {
        if self.wanted == 0 {
            return;
        }
        let loaded = self.loaded;
        engine.bus.publish(|| Event::L2PrefetchLoadCompleted {
            session: ask.session.clone(),
            loaded,
            failed: self.wanted - loaded,
            by_salt: [(ask.salt.clone(), loaded)].into(),
        });
        for (reason, keys) in self.failed.values() {
            let (reason, keys, model) = (*reason, *keys, ask.model.clone());
            if reason == PrefetchFailure::L1Oom {
                let (during, model) = (During::L2Prefetch, model.clone());
                engine.bus.publish(|| Event::L1AllocationFailed { during, model, keys });
            }
            engine.bus.publish(|| Event::L2PrefetchFailed { reason, model, keys });
        }
    }

    /// What this job brought in and still holds, with its chunks.
    fn brought(&self, ask: &Ask) -> Vec<(usize, ObjectId)> {
        let held = |at: &usize| Some((at / ask.rows.len(), self.held.cells[*at]?));
        self.brought.iter().filter_map(held).collect()
    }

    /// The longest hit of what is held now; the rest is let go.
    fn found(mut self, ask: &Ask) -> Found {
        let (rows, chunks) = (ask.rows.len(), ask.chain.hashes.len() as u64);
        let at = |chunk: u64, row: usize| chunk as usize * rows + row;
        let best = longest_prefix(&ask.rows, chunks, |chunk, row| self.held.cells[at(chunk, row)].is_some());
        let l1_chunks = longest_prefix(&ask.rows, best, |chunk, row| self.from_l1[at(chunk, row)]);
        let mut found = Found { hit: Hit { chunks: best, cells: Vec::new() }, l1_chunks, loaded: Vec::new() };
        for chunk in 0..best {
            for (row, shape) in ask.rows.iter().enumerate() {
                if chunk < first_needed(shape.window, best) {
                    continue;
                }
                if let Some(object) = self.held.cells[at(chunk, row)].take() {
                    if !self.from_l1[at(chunk, row)] {
                        found.loaded.push((chunk as usize, object));
                    }
                    found.hit.cells.push(LeasedCell { row: row as u32, chunk: chunk as u32, object });
                }
            }
        }
        found
    }
}

//! What the operations mean. The engine knows objects, workers and requests; it knows no sockets.
//!
//! One file per group of operations: `lookup`, `engine_driven`, `lmcache_driven`, `liveness`, `kv_events`,
//! `handover` (what goes on in another process), `management` and `look` (what operators ask), `warm` (prefetches that
//! operators ask for), `quotas`, `tenancy` (who may ask for what). State is owned in one place each: `client` (a connection),
//! `instances` (registered workers), `sessions` (requests, with their `prompt`s, `leases` and `prefetch` jobs), `transfers`
//! (slots that workers are touching), `copies` (what the daemon copies itself). `changes` is what follows when the cache
//! changes, `publish` what the events say, `calls` what a recording gets.
//!
//! Locks, outermost first: a session, then liveness or transfers, then the order lock of `changes`, then L1's index; the
//! others are leaves.
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod alone;
mod calls;
mod changes;
mod client;
mod copies;
mod engine_driven;
mod handover;
mod heartbeat;
mod instances;
mod kv_events;
mod leases;
mod liveness;
mod lmcache_driven;
mod look;
mod lookup;
mod management;
mod prefetch;
mod prompt;
mod publish;
mod quotas;
mod refusal;
mod returning;
mod ring;
mod sessions;
mod standstill;
mod stats;
mod tenancy;
mod transfers;
mod turns;
mod untold;
mod warm;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lmcache_proto::hash::{Chain, TokenHasher};
use lmcache_proto::wire::{CacheKey, Operation, Request, Response};
use parking_lot::Mutex;
use tokio::sync::oneshot;

pub use client::{Client, Origin};
pub use handover::EngineState;
pub use kv_events::{EventSource, KvEvents};
pub use prefetch::L2;
pub use quotas::SaltUsage;
pub use refusal::Refusal;
pub use stats::{OpOutcome, Stats};
pub use warm::{Begun, WarmError, WarmState};

use crate::device::cuda::Cuda;
use crate::events::{Bus, Event};
use crate::journal::Journal;
use crate::l1::{L1, Owner};
use crate::liveness_watch::DeathWatch;
use crate::quota::Quotas;
use crate::ring::RingHub;
use crate::roster::Roster;
use crate::tenants::Gate;
use client::CLIENT_PROMPT_BYTES;
use copies::UnderWay;
use heartbeat::Heartbeats;
use instances::Instances;
use liveness::Liveness;
use returning::Returning;
use sessions::Sessions;
use standstill::Looked;
use transfers::Transfers;
use turns::Turns;
use untold::Untold;
use warm::Warmed;

/// Why an operation was not done, and the detail for the log.
type Failure = (Refusal, String);

/// What comes of a request.
pub enum Outcome {
    /// The answer.
    Reply(Response),
    /// The answer comes later and holds nobody up.
    Later {
        /// Resolves to the answer.
        wait: Pin<Box<dyn Future<Output = Response> + Send>>,
        /// The answer if too many requests wait already.
        otherwise: Response,
    },
    /// The answer comes when a copy of the daemon's is over, and holds nobody up. It is counted by then; how many there may be
    /// is the engine's business.
    Pending(oneshot::Receiver<Response>),
    /// A stream of KV event batches.
    Stream(EventSource),
}

/// Numbers that the engine works by.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// How long a worker that has pinged may be silent; zero never reaps.
    pub reap_timeout: Duration,
    /// How long a worker that has never pinged may be silent.
    pub registration_grace: Duration,
    /// How long a request may be idle before its state goes.
    pub session_ttl: Duration,
    /// How long a worker may take to fill its slots.
    pub write_ttl: Duration,
    /// How long leases outlive their connection.
    pub lease_grace: Duration,
    /// Requests remembered at once.
    pub max_sessions: usize,
    /// Bytes that they may take.
    pub max_session_bytes: usize,
    /// Lookups and prefetches that wait for the tiers or load from them.
    pub max_prefetch_jobs: usize,
    /// Workers registered at once.
    pub max_workers: usize,
    /// Bytes that their registrations may take.
    pub max_registration_bytes: usize,
    /// Records in the KV event log; 0 turns it off.
    pub kv_event_log_size: usize,
    /// Bytes that they may take.
    pub kv_event_log_bytes: usize,
    /// Fill level that starts eviction.
    pub watermark: f64,
    /// Share of the bytes in use that an eviction frees.
    pub eviction_ratio: f64,
    /// Engine block that stands for absent data.
    pub null_block_id: u64,
    /// One object per attention window instead of one for all.
    pub separate_object_groups: bool,
    /// Whether `lmcache_driven` operations are served.
    pub lmcache_driven: bool,
    /// Whether `engine_driven` operations are served.
    pub engine_driven: bool,
    /// Pool name as workers open it.
    pub pool_name: String,
    /// Whether somebody wants an event with the hashes of every lookup.
    pub publish_lookups: bool,
    /// Whether somebody records the calls of the storage layer.
    pub publish_calls: bool,
}

/// What the engine works with.
#[derive(Debug)]
pub struct Parts {
    /// The memory underneath.
    pub l1: Arc<L1>,
    /// Pins that an earlier daemon's workers may still use.
    pub adopted: Vec<(Owner, crate::l1::Pin)>,
    /// Where events go.
    pub bus: Arc<Bus>,
    /// The workers' lanes.
    pub ring: Arc<RingHub>,
    /// Tells of processes that end.
    pub deaths: Arc<DeathWatch>,
    /// The colder tiers, if there are any.
    pub l2: Option<L2>,
    /// The limits of the salts; L1 and the tiers ask the same.
    pub quotas: Arc<Quotas>,
    /// Whose the salts are; `None`: everybody's.
    pub tenants: Option<Arc<Gate>>,
    /// Where registrations are kept for the next daemon.
    pub roster: Roster,
    /// Where requests under way are kept for the next daemon.
    pub journal: Journal,
    /// The GPUs; `None` serves none.
    pub cuda: Option<Arc<Cuda>>,
}

/// The engine.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    hasher: TokenHasher,
    l1: Arc<L1>,
    instances: Instances,
    /// Kept registrations, for the next daemon.
    roster: Roster,
    /// Requests under way, for the next daemon; and those of the earlier one.
    journal: Journal,
    /// Workers of the earlier daemon.
    returning: Returning,
    untold: Untold,
    heartbeats: Heartbeats,
    looked: Looked,
    turns: Turns,
    sessions: Sessions,
    transfers: Mutex<Transfers>,
    copies: UnderWay,
    liveness: Mutex<Liveness>,
    kv_events: Arc<KvEvents>,
    /// Order of the KV event log; see `changes`.
    order: Mutex<()>,
    bus: Arc<Bus>,
    ring: Arc<RingHub>,
    deaths: Arc<DeathWatch>,
    l2: Option<L2>,
    cuda: Option<Arc<Cuda>>,
    quotas: Arc<Quotas>,
    tenants: Option<Arc<Gate>>,
    next_job: AtomicU64,
    /// Prefetches that operators asked for. Taken outside L1's lock; no session is locked under it.
    warmed: Mutex<Warmed>,
    /// The daemon drains: what is there can be read, nothing comes.
    no_stores: AtomicBool,
    /// For what outlives a call: jobs and waits.
    me: Weak<Engine>,
    /// The empty salt.
    empty: Arc<str>,
    stats: Stats,
    started: Instant,
    /// Wakes the evictor after a commit took the pool over its watermark.
    pub(crate) evict: tokio::sync::Notify,
}

impl Engine {
    /// An engine over what it works with.
    pub fn new(config: EngineConfig, hasher: TokenHasher, parts: Parts) -> Arc<Engine> {
        let Parts { l1, adopted, bus, ring, deaths, l2, quotas, roster, journal, tenants, cuda } = parts;
        let engine = Arc::new_cyclic(|me: &Weak<Engine>| Engine {
            l2,
            cuda,
            quotas,
            tenants,
            next_job: AtomicU64::new(1),
            warmed: Mutex::default(),
            no_stores: AtomicBool::new(false),
            me: me.clone(),
            instances: Instances::new(config.max_workers, config.max_registration_bytes),
            roster,
            journal,
            returning: Returning::default(),
            untold: Untold::default(),
            heartbeats: Heartbeats::default(),
            looked: Looked::default(),
            turns: Turns::default(),
            sessions: Sessions::new(config.max_sessions, config.max_session_bytes),
            transfers: Mutex::new(Transfers::new(adopted)),
            copies: UnderWay::default(),
            liveness: Mutex::new(Liveness::default()),
            kv_events: Arc::new(KvEvents::new(config.kv_event_log_size, config.kv_event_log_bytes)),
            order: Mutex::new(()),
            bus,
            ring,
            deaths,
            empty: "".into(),
            stats: Stats::default(),
            started: Instant::now(),
            evict: tokio::sync::Notify::new(),
            config,
            hasher,
            l1,
        });
        if let Some(cuda) = &engine.cuda {
            let me = engine.me.clone();
            // Without an engine there are no workers.
            cuda.on_loss(move |worker, wait| me.upgrade().is_none_or(|engine| engine.is_lost(worker, wait)));
        }
        engine
    }

    /// Counters and rate-limited logs.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The memory underneath.
    pub fn l1(&self) -> &L1 {
        &self.l1
    }

    /// The colder tiers, if there are any.
    pub fn l2(&self) -> Option<&L2> {
        self.l2.as_ref()
    }

    /// Requests under way, as the next daemon will see them.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The configuration.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// The chunk hasher.
    pub fn hasher(&self) -> &TokenHasher {
        &self.hasher
    }

    /// Decodes and executes a request.
    pub fn handle<T: AsRef<[u8]>>(&self, client: &Client, operation: Operation, payload: &[T]) -> Outcome {
        // Requests with a key are ordered, so nobody waits for the memo. The others run beside them and do not take it: a
        // ping must not wait until a long key is decoded.
        let decoded = if operation.has_key() {
            Request::decode_with(operation, payload, &mut client.memo.lock())
        } else {
            Request::decode(operation, payload)
        };
        let request = match decoded {
            Ok(request) => request,
            Err(error) => {
                self.stats.refused(&client.peer, operation, Refusal::Undecodable, error);
                return self.refuse(operation, Refusal::Undecodable);
            }
        };
        let registers = registration_of(&request);
        let _turn = registers.or_else(|| unregistration_of(&request)).map(|instance| self.turns.of(instance));
        match self.execute(client, request) {
            Ok(outcome) => {
                if let Some(instance) = registers {
                    self.keep_registration(client, instance, operation, payload);
                }
                match outcome {
                    // It counts itself when it is over, which it may be.
                    Outcome::Pending(mut pending) => match pending.try_recv() {
                        Ok(response) => Outcome::Reply(response),
                        Err(_) => Outcome::Pending(pending),
                    },
                    outcome => {
                        self.stats.count(operation, OpOutcome::Ok);
                        outcome
                    }
                }
            }
            Err((reason, detail)) => {
                self.stats.refused(&client.peer, operation, reason, detail);
                self.refuse(operation, reason)
            }
        }
    }

    fn execute(&self, client: &Client, request: Request<'_>) -> Result<Outcome, Failure> {
        let reply = |response| Ok(Outcome::Reply(response));
        self.may_ask(client, &request)?;
        // Another tenant's worker has not come back with whoever pings for it.
        let instance = instance_of(&request);
        let speaks = instance.is_none_or(|instance| self.may_speak_for(client, instance));
        if speaks && self.journal.is_waiting() {
            self.find_owed(client, &request);
        }
        if let Some(instance) = instance.filter(|_| speaks) {
            if registration_of(&request).is_some() {
                self.registers_anew(client, instance, request.operation());
                self.speaks_for(client, instance);
            } else {
                self.returned(client, instance, matches!(request, Request::Ping { .. }));
            }
            self.heard(client, instance);
        }
        match request {
            Request::Ping { instance_id } => reply(Response::Flag(self.ping(client, instance_id))),
            Request::Noop => reply(Response::Text("OK")),
            Request::GetChunkSize => reply(Response::Count(self.hasher.chunk_size() as u64)),
            Request::GetExperimental => reply(Response::Names(self.capabilities())),
            Request::Lookup { key, .. } => {
                self.lookup(client, &key).map(|()| Outcome::Reply(Response::Nothing))
            }
            Request::QueryPrefetchStatus { request_id } => {
                reply(self.query_status(self.caller(client), request_id))
            }
            Request::WaitPrefetchStatus { request_id, timeout } => {
                Ok(self.wait_status(client, request_id, timeout))
            }
            Request::FreeLookupLocks { key, .. } => {
                self.free_lookup_locks(client, &key);
                reply(Response::Nothing)
            }
            Request::EndSession { request_id } => {
                self.end_session(client, request_id);
                reply(Response::Nothing)
            }
            Request::RegisterEngineDriven(payload) => {
                self.register_engine_driven(client, &payload).map(Outcome::Reply)
            }
            Request::UnregisterEngineDriven { instance_id } => {
                self.unregister_engine_driven(instance_id).map(|()| Outcome::Reply(Response::Nothing))
            }
            Request::PrepareStore { .. } | Request::Store { .. } if self.stores_stopped() => {
                Err((Refusal::Draining, "drained over the admin API".into()))
            }
            Request::PrepareStore { key, instance_id } => {
                self.prepare_store(client, &key, instance_id).map(Outcome::Reply)
            }
            Request::CommitStore { key, instance_id, data } => {
                self.commit_store(client, &key, instance_id, data).map(Outcome::Reply)
            }
            Request::PrepareRetrieve { key, instance_id } => {
                self.prepare_retrieve(client, &key, instance_id).map(Outcome::Reply)
            }
            Request::CommitRetrieve { key, instance_id } => {
                self.commit_retrieve(client, &key, instance_id).map(Outcome::Reply)
            }
            Request::RegisterKvCache(payload) => {
                self.register_kv_cache(client, payload).map(|()| Outcome::Reply(Response::Nothing))
            }
            Request::UnregisterKvCache { instance_id } => {
                self.unregister_kv_cache(instance_id).map(|()| Outcome::Reply(Response::Nothing))
            }
            Request::Store { key, instance_id, block_ids, event } => {
                self.store(client, &key, instance_id, block_ids, event)
            }
            Request::Retrieve { key, instance_id, block_ids, event, skip_first_n_tokens } => {
                self.retrieve(client, &key, instance_id, block_ids, (skip_first_n_tokens, event))
            }
            Request::Clear { force } => {
                self.clear(force);
                reply(Response::Nothing)
            }
            Request::ReportBlockAllocation { instance_id, model_name, records } => {
                self.bus.publish(|| Event::MpVllmBlockAllocation {
                    instance: instance_id,
                    model: self.instances.shared_model(model_name),
                    records: records.into(),
                });
                reply(Response::Nothing)
            }
            Request::SubscribeKvEvents { instance_id, model_name, cursor, max_events } => {
                let (Ok(cursor), 1..=1024) = (u64::try_from(cursor), max_events) else {
                    let detail = format!("cursor {cursor}, max_events {max_events} (1 to 1024)");
                    return Err((Refusal::BadValue, detail));
                };
                let source = self.kv_events.subscribe(instance_id, model_name, cursor, max_events as usize);
                Ok(Outcome::Stream(source))
            }
            Request::Authenticate { token } => self.authenticate(client, token).map(Outcome::Reply),
            Request::AttachRing { instance_id, process } => {
                self.attach_ring(client, instance_id, process.as_deref()).map(Outcome::Reply)
            }
        }
    }

    /// Chunks that `[start, end)` of the key's prompt covers, as `first..last`.
    ///
    /// # Errors
    /// A start that is not on a chunk border: the range would name other chunks than the client means.
    fn chunk_range(&self, key: &CacheKey<'_>) -> Result<std::ops::Range<usize>, Failure> {
        let chunk = self.hasher.chunk_size() as u64;
        if !key.start.is_multiple_of(chunk) {
            return Err((
                Refusal::BadValue,
                format!("start {} is not a multiple of the chunk size {chunk}", key.start),
            ));
        }
        let last = (key.end.min(key.tokens.len() as u64) / chunk) as usize;
        Ok(((key.start / chunk) as usize).min(last)..last)
    }

    /// The chain over the key's chunks `0..chunks`, from the request's session as far as it has it. A request without
    /// session (it has ended, or never looked up) is remembered by its connection: its commit follows its prepare.
    fn chain(&self, client: &Client, key: &CacheKey<'_>, chunks: usize) -> Result<Chain, Failure> {
        let chain = match self.sessions.get(key.request_id) {
            Some(session) => self.sessions.chain(&mut session.lock(), &self.hasher, &key.tokens, chunks),
            None => {
                let mut prompt = client.prompt.lock();
                let chain = prompt.chain(&self.hasher, &key.tokens, chunks);
                if prompt.bytes() > CLIENT_PROMPT_BYTES {
                    prompt.forget();
                }
                chain
            }
        };
        chain.map_err(|error| (Refusal::Undecodable, error.to_string()))
    }
}

/// The worker that a request registers.
fn registration_of(request: &Request<'_>) -> Option<u64> {
    match request {
        Request::RegisterEngineDriven(payload) => Some(payload.instance_id),
        Request::RegisterKvCache(payload) => Some(payload.instance_id),
        _ => None,
    }
}

/// The worker that a request unregisters.
fn unregistration_of(request: &Request<'_>) -> Option<u64> {
    match request {
        Request::UnregisterEngineDriven { instance_id } | Request::UnregisterKvCache { instance_id } => {
            Some(*instance_id)
        }
        _ => None,
    }
}

/// The worker that a request speaks for. `report_block_allocation` is the scheduler's and carries a pid instead.
fn instance_of(request: &Request<'_>) -> Option<u64> {
    match request {
        Request::Ping { instance_id } => *instance_id,
        Request::Store { instance_id, .. }
        | Request::Retrieve { instance_id, .. }
        | Request::UnregisterKvCache { instance_id }
        | Request::UnregisterEngineDriven { instance_id }
        | Request::PrepareStore { instance_id, .. }
        | Request::CommitStore { instance_id, .. }
        | Request::PrepareRetrieve { instance_id, .. }
        | Request::CommitRetrieve { instance_id, .. }
        | Request::AttachRing { instance_id, .. }
        | Request::SubscribeKvEvents { instance_id, .. } => Some(*instance_id),
        Request::RegisterEngineDriven(payload) => Some(payload.instance_id),
        Request::RegisterKvCache(payload) => Some(payload.instance_id),
        _ => None,
    }
}

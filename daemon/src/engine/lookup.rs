//! `lookup`, its status, and the end of what it holds.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lmcache_proto::hash::{Chain, ChunkHash};
use lmcache_proto::object_key::kv_rank;
use lmcache_proto::wire::{CacheKey, Response};

use super::leases::{CELL_BYTES, Lookup};
use super::prefetch::{Ask, Job, Shape};
use super::sessions::MAX_LOOKUPS;
use super::tenancy::Caller;
use super::{Client, Engine, Failure, Outcome, Refusal};
use crate::events::{Cell, Event, Keys, LookupEnd, SessionId};
use crate::failpoint;
use crate::l1::{Hit, LeasedCell, ObjectId, Row};

/// Cells that the end of a request touches on its own thread: about a millisecond.
const TOUCH_INLINE: usize = 8192;
/// Longest wait that a client may ask for.
const MAX_PATIENCE: Duration = Duration::from_secs(3600);

impl Engine {
    /// Leases the longest prefix of the prompt that can be served.
    pub(super) fn lookup(&self, client: &Client, key: &CacheKey<'_>) -> Result<(), Failure> {
        let chunk_size = self.hasher.chunk_size() as u64;
        let chunks = (key.end.min(key.tokens.len() as u64) / chunk_size) as usize;
        let opened = self
            .sessions
            .with(key.request_id, |session, new| {
                let chain = self.sessions.chain(session, &self.hasher, &key.tokens, chunks);
                chain.map(|chain| (chain, session.id.clone(), new))
            })
            .transpose()
            .map_err(|error| (Refusal::Undecodable, error.to_string()))?;
        // Without a session nobody would ever end the leases: the lookup misses.
        let Some((chain, session_id, new)) = opened else {
            let detail = format!("request {:?}: --max-sessions requests are in flight", key.request_id);
            return Err((Refusal::Limit, detail));
        };
        let (rows, shapes) = self.rows(key);
        self.tell_lookup(key, &session_id, &chain, new);
        self.call_submit(key, &session_id, &chain, &rows);
        // A client that names no readers is older than 0.5.6's lookup protocol: its leases would never end.
        let hit = if key.num_kv_readers == 0 {
            Hit::default()
        } else {
            self.l1.lookup(key.model_name, key.cache_salt, &chain.hashes, &rows)
        };
        let bytes = hit.cells.len() * CELL_BYTES + size_of_val(&*rows);
        let crowded = !self.sessions.has_room_for(bytes);
        let hit = if crowded {
            self.call_unleased(key, &chain.hashes, &rows, &hit);
            self.l1.end_leases(hit.cells.iter().rev().map(|cell| cell.object));
            Hit::default()
        } else {
            hit
        };
        self.stats.requested_tokens.fetch_add(chain.hashes.len() as u64 * chunk_size, Ordering::Relaxed);
        self.stats.hit_tokens.fetch_add(hit.chunks * chunk_size, Ordering::Relaxed);
        let names = (self.instances.shared_model(key.model_name), self.shared_salt(key.cache_salt));
        let incomplete = hit.chunks < chain.hashes.len() as u64 && !rows.is_empty();
        // Of what is limited, if something is: then L1 alone answers.
        let mut limited = crowded.then_some("--max-session-bytes are used up by the requests in flight");
        let started = match &self.l2 {
            Some(l2) if incomplete && key.num_kv_readers > 0 && !crowded && l2.opened.tiers.any_usable() => {
                let ask = Ask {
                    request_id: key.request_id.into(),
                    session: session_id.clone(),
                    model: names.0.clone(),
                    salt: names.1.clone(),
                    // What goes with its last reader is not told of.
                    tokens: (self.kv_events.enabled() && l2.opened.loader.keeps())
                        .then(|| key.tokens.bytes().into()),
                    chain: chain.clone(),
                    rows: rows.clone(),
                    shapes,
                    readers: key.num_kv_readers,
                };
                self.start_prefetch(l2, ask).inspect_err(|reason| limited = reason.limit()).ok()
            }
            _ => None,
        };
        if let Some((job, gate)) = started {
            // The job has leases of its own.
            self.l1.end_leases(hit.cells.iter().rev().map(|cell| cell.object));
            self.remember(client, key, names, rows, &chain, &Hit::default(), Some(job))?;
            let _ = gate.send(());
            return Ok(());
        }
        self.tell_prefetched(&names, &chain.hashes, &rows, &hit);
        self.remember(client, key, names, rows, &chain, &hit, None)?;
        match (key.num_kv_readers, limited) {
            (0, _) => Err((Refusal::BadValue, "num_kv_readers is 0".into())),
            (_, Some(limit)) => Err((Refusal::Limit, limit.into())),
            _ => Ok(()),
        }
    }

    /// Puts the lookup's leases, or its job, into its session.
    ///
    /// # Errors
    /// The session has no place for it; it holds nothing then.
    #[expect(clippy::too_many_arguments, reason = "the parts of one lookup")]
    fn remember(
        &self,
        client: &Client,
        key: &CacheKey<'_>,
        names: (Arc<str>, Arc<str>),
        rows: Vec<Row>,
        chain: &Chain,
        hit: &Hit,
        job: Option<Job>,
    ) -> Result<(), Failure> {
        let requested = chain.hashes.len() as u64;
        let mut lookup = Lookup::new(self.caller(client), names, rows, requested, hit, key.num_kv_readers);
        lookup.job = job;
        if !lookup.holds() && !self.sessions.has_room_for(lookup.bytes()) {
            // They are there for the order of eviction at the request's end.
            lookup.rows = Vec::new();
        }
        let mut lookup = Some(lookup);
        let mut replaced = Vec::new();
        let kept = self.sessions.with(key.request_id, |session, _| {
            // The same client looks up the same request again: the new result replaces the old one.
            let (lookups, hashes) = session.lookups_and_hashes();
            lookups.retain_mut(|old| {
                let same = old.caller.client == client.id;
                if same {
                    let mut leases = old.end_leases(0..u64::MAX);
                    self.call_released(old, hashes, &leases);
                    replaced.append(&mut leases);
                }
                !same
            });
            let others = session.lookups.len();
            let fits = || self.sessions.has_room_for(size_of::<Lookup>());
            let room = others == 0 || (others < MAX_LOOKUPS && fits());
            if room {
                session.lookups.extend(lookup.take());
            }
            session.touch();
            self.sessions.charge(session);
            room
        });
        self.l1.end_leases(replaced.iter().map(|ended| ended.cell.object));
        let why = match kept {
            Some(true) => return Ok(()),
            Some(false) => {
                format!("{MAX_LOOKUPS} connections have looked it up, or --max-session-bytes are used up")
            }
            // The session was ended meanwhile, and others have taken its place.
            None => "--max-sessions requests are in flight".to_owned(),
        };
        self.l1.end_leases(hit.cells.iter().rev().map(|cell| cell.object));
        Err((Refusal::Limit, format!("request {:?}: {why}", key.request_id)))
    }

    /// The rows that a lookup of `key` must find (object groups of the model, group-major, ranks within), and their shapes.
    pub(super) fn rows(&self, key: &CacheKey<'_>) -> (Vec<Row>, Vec<Shape>) {
        let groups = self.instances.rows(key.model_name, key.world_size);
        let ranks = match key.worker_id {
            Some(id) => id..id + 1,
            None => 0..key.world_size,
        };
        let row = |group: &super::instances::GroupRow, rank| Row {
            rank: kv_rank(key.world_size, rank),
            group: group.group,
            window: group.window,
            layouts: group.layouts.clone(),
        };
        let row = |group| ranks.clone().map(move |rank| (row(group, rank), Shape::of(group)));
        groups.iter().flat_map(row).unzip()
    }

    /// Chunks that the request's lookup found; nothing while it waits for L2. The first time it is told, the lookup counts
    /// as used.
    pub(super) fn query_status(&self, caller: Caller, request_id: &str) -> Response {
        // Unknown means 0, and final: the client's lookup has been executed before (order), so there is none.
        let Some(session) = self.sessions.get(request_id) else { return Response::Count(0) };
        let mut session = session.lock();
        session.touch();
        let id = session.id.clone();
        let is_connected = |client| self.liveness.lock().is_connected(client);
        let Some(lookup) = session.lookup_of(caller, is_connected) else { return Response::Count(0) };
        if lookup.job.is_some() {
            return Response::Nothing;
        }
        let hit = lookup.hit_chunks;
        self.consume(lookup, &id);
        Response::Count(hit)
    }

    /// The same, with patience: the answer comes when the lookup is done, or after `timeout` seconds.
    pub(super) fn wait_status(&self, client: &Client, request_id: &str, timeout: f64) -> Outcome {
        let caller = self.caller(client);
        let now = self.query_status(caller, request_id);
        let waits = (now == Response::Nothing).then(|| {
            let session = self.sessions.get(request_id)?;
            let mut session = session.lock();
            let is_connected = |client| self.liveness.lock().is_connected(client);
            let job = session.lookup_of(caller, is_connected)?.job.as_ref()?;
            Some((self.me.upgrade()?, job.done.clone()))
        });
        let Some(Some((engine, mut done))) = waits else {
            // Done between the two looks, or not known at all.
            let again = if now == Response::Nothing { self.query_status(caller, request_id) } else { now };
            return Outcome::Reply(again);
        };
        let request_id = request_id.to_owned();
        let patience = Duration::try_from_secs_f64(timeout).unwrap_or(MAX_PATIENCE).min(MAX_PATIENCE);
        let wait = async move {
            // An error means that the job is over, which is what we wait for.
            let _ = tokio::time::timeout(patience, done.changed()).await;
            engine.query_status(caller, &request_id)
        };
        Outcome::Later { wait: Box::pin(wait), otherwise: Response::Nothing }
    }

    /// The client knows the result now.
    fn consume(&self, lookup: &mut Lookup, session: &SessionId) {
        if std::mem::replace(&mut lookup.consumed, true) || !self.bus.enabled() {
            return;
        }
        let chunk = self.hasher.chunk_size() as u64;
        let end = LookupEnd {
            found_count: lookup.hit_chunks,
            requested_tokens: lookup.requested_chunks * chunk,
            hit_tokens: lookup.hit_chunks * chunk,
            l1_hit_tokens: lookup.l1_chunks * chunk,
            l2_hit_tokens: (lookup.hit_chunks - lookup.l1_chunks) * chunk,
            l1_hit_keys: lookup.hit_objects() - lookup.l2_objects,
            l2_hit_keys: lookup.l2_objects,
            early_exit_reason: lookup.early_exit.name(),
            model: lookup.model.clone(),
            salt: lookup.salt.clone(),
        };
        self.bus.publish(|| Event::MpLookupPrefetchEnd { session: session.clone(), end });
    }

    /// Ends the leases of the key's range: the engine has these tokens already.
    pub(super) fn free_lookup_locks(&self, client: &Client, key: &CacheKey<'_>) {
        let chunk = self.hasher.chunk_size() as u64;
        // The engine's own prefix cache ends anywhere: a chunk that it has in part is still to be retrieved, one that it
        // starts in was freed before.
        let range = key.start / chunk..key.end / chunk;
        let Some(session) = self.sessions.get(key.request_id) else { return };
        let mut ended: Vec<ObjectId> = Vec::new();
        {
            let mut session = session.lock();
            session.touch();
            let (id, hashes) = (session.id.clone(), session.known_hashes().to_vec());
            for lookup in session.lookups.iter_mut().filter(|lookup| lookup.caller.client == client.id) {
                if lookup.job.is_none() {
                    self.consume(lookup, &id);
                }
                let leases = lookup.end_leases(range.clone());
                self.call_released(lookup, &hashes, &leases);
                if self.bus.enabled() {
                    let cells: Vec<_> = leases.iter().map(|ended| ended.cell).collect();
                    let keys = keys_of(&lookup.model, &lookup.salt, &lookup.rows, &hashes, &cells);
                    self.read_finished(keys);
                }
                ended.extend(leases.iter().map(|ended| ended.cell.object));
            }
        }
        self.l1.end_leases(ended.into_iter());
    }

    /// The request is over: its leases end, pins of transfers that still run stay.
    pub(super) fn end_session(&self, client: &Client, request_id: &str) {
        failpoint::hit("engine.end_session");
        let (session, caller) = (self.sessions.get(request_id), self.caller(client));
        if let Some(session) = &session {
            let mut ended = Vec::new();
            let mut over: Option<Lookup> = None;
            let (hashes, id) = {
                let mut session = session.lock();
                let live = self.liveness.lock();
                for mut lookup in std::mem::take(&mut session.lookups) {
                    // Another live client may use the same request id; what belongs to a dead connection goes, unless that
                    // was another tenant's.
                    let left = !live.is_connected(lookup.caller.client);
                    let own = lookup.caller.client == caller.client;
                    if own || (left && lookup.caller.tenant == caller.tenant) {
                        let leases = lookup.end_leases(0..u64::MAX);
                        self.call_released(&lookup, session.known_hashes(), &leases);
                        ended.extend(leases.iter().map(|ended| ended.cell.object));
                        over = Some(lookup);
                    } else {
                        session.lookups.push(lookup);
                    }
                }
                let hashes = if over.is_some() { session.known_hashes().to_vec() } else { Vec::new() };
                (hashes, session.id.clone())
            };
            self.l1.end_leases(ended.into_iter());
            if let Some(lookup) = over {
                self.touch_prompt(lookup, hashes);
            }
            self.sessions.remove_unless(request_id, |session| !session.lookups.is_empty());
            self.bus.publish(|| Event::MpVllmEndSession { session: id.clone() });
            self.bus.publish(|| Event::MpRequestEnd { session: id });
        } else {
            self.bus.publish(|| Event::MpVllmEndSession { session: request_id.into() });
            self.bus.publish(|| Event::MpRequestEnd { session: request_id.into() });
        }
    }

    /// A prompt was used as a whole: its head must not be older than its tail, or eviction would take the head first.
    fn touch_prompt(&self, lookup: Lookup, hashes: Vec<ChunkHash>) {
        let (l1, bus, count) = (self.l1.clone(), self.bus.clone(), lookup.rows.len() * hashes.len());
        let touch = move || {
            let cells = || {
                let rows = &lookup.rows;
                hashes.iter().rev().flat_map(move |hash| rows.iter().map(|row| (*hash, row.rank, row.group)))
            };
            l1.touch(&lookup.model, &lookup.salt, cells());
            if bus.enabled() {
                let cells = cells().map(|(hash, rank, group)| Cell { hash, rank, group }).collect();
                let keys = Keys::new(lookup.model.clone(), lookup.salt.clone(), cells);
                bus.publish(|| Event::L1KeysAccessed { keys });
            }
        };
        // The end of a request is a short message and runs on the threads that read sockets; millions of cells must not.
        match self.l2() {
            Some(l2) if count > TOUCH_INLINE => drop(l2.runtime.spawn_blocking(touch)),
            _ => touch(),
        }
    }

    /// A request has begun, where this is its first lookup, and a lookup with it.
    fn tell_lookup(&self, key: &CacheKey<'_>, session: &SessionId, chain: &Chain, new: bool) {
        if !self.bus.enabled() {
            return;
        }
        if new {
            let traceparent = key.request_config("traceparent").map(Arc::from);
            self.bus.publish(|| Event::MpRequestStart { session: session.clone(), traceparent });
        }
        self.bus.publish(|| Event::MpLookupPrefetchStart { session: session.clone() });
        if self.config.publish_lookups {
            self.bus.publish(|| Event::MpLookup {
                session: session.clone(),
                model: self.instances.shared_model(key.model_name),
                hashes: chain.hashes.as_slice().into(),
                chunk_size: self.hasher.chunk_size() as u32,
                seq_len: key.tokens.len() as u64,
                regions: self.instances.regions(key.model_name, key.world_size),
            });
        }
    }

    /// What was found is leased, and that is all there is: without L2 a prefetch ends when it begins.
    fn tell_prefetched(&self, names: &(Arc<str>, Arc<str>), hashes: &[ChunkHash], rows: &[Row], hit: &Hit) {
        if !self.bus.enabled() || rows.is_empty() || hashes.is_empty() {
            return;
        }
        let keys = keys_of(&names.0, &names.1, rows, hashes, &hit.cells);
        if !keys.is_empty() {
            self.bus.publish(|| Event::L1ReadReserved { keys: keys.clone() });
        }
        let failed = (hashes.len() as u64 - hit.chunks) * rows.len() as u64;
        self.bus.publish(|| Event::SmReadPrefetched { succeeded: keys, failed });
    }
}

/// The keys of leased cells.
pub(super) fn keys_of(
    model: &Arc<str>,
    salt: &Arc<str>,
    rows: &[Row],
    hashes: &[ChunkHash],
    cells: &[LeasedCell],
) -> Keys {
    let cell = |cell: &LeasedCell| {
        let (hash, row) = (hashes.get(cell.chunk as usize)?, rows.get(cell.row as usize)?);
        Some(Cell { hash: *hash, rank: row.rank, group: row.group })
    };
    Keys::new(model.clone(), salt.clone(), cells.iter().filter_map(cell).collect())
}

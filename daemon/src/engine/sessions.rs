//! Requests in flight: their hashed prompts, and the leases that their lookups took.
//!
//! Only a lookup makes a session. A transfer without one (its request has ended, or never looked up) is served all the
//! same and leaves nothing behind. What all sessions remember together has a budget: over it, prompts are hashed anew each
//! time and lookups miss.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lmcache_proto::hash::{Chain, ChunkHash, TokenHasher};
use lmcache_proto::wire::{DecodeError, Tokens};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::leases::Lookup;
use super::prompt::Prompt;
use super::tenancy::Caller;

/// When the map is full: age from which idle sessions without leases are dropped, and how often that is tried.
const CROWDED_TTL: Duration = Duration::from_secs(10);
const CROWDED_EVERY: Duration = Duration::from_secs(1);

/// Most lookups of one request. Each is another connection's; an engine has one, or a handful.
pub(super) const MAX_LOOKUPS: usize = 64;

/// Sessions by request id.
#[derive(Debug)]
pub(super) struct Sessions {
    map: Mutex<FxHashMap<Arc<str>, Arc<Mutex<Session>>>>,
    limit: usize,
    used: AtomicUsize,
    budget: usize,
    crowded: Mutex<Option<Instant>>,
}

/// One request.
#[derive(Debug)]
pub(super) struct Session {
    /// The engine's id of the request.
    pub(super) id: Arc<str>,
    prompt: Prompt,
    pub(super) lookups: Vec<Lookup>,
    last_used: Instant,
    /// Taken out of the map: whoever still has it must look again.
    dead: bool,
    /// Bytes of the budget that it has.
    charged: usize,
}

impl Sessions {
    /// At most `limit` sessions, whose prompts and leased cells take at most `budget` bytes.
    pub(super) fn new(limit: usize, budget: usize) -> Sessions {
        Sessions {
            map: Mutex::new(FxHashMap::default()),
            limit,
            used: AtomicUsize::new(0),
            budget,
            crowded: Mutex::new(None),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.map.lock().len()
    }

    /// Bytes remembered.
    pub(super) fn bytes(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn get(&self, request_id: &str) -> Option<Arc<Mutex<Session>>> {
        self.map.lock().get(request_id).cloned()
    }

    /// Runs `work` on the request's session, made if there is none; says whether it was made. `None` at the limit.
    pub(super) fn with<R>(
        &self,
        request_id: &str,
        mut work: impl FnMut(&mut Session, bool) -> R,
    ) -> Option<R> {
        loop {
            let (session, new) = self.get_or_create(request_id)?;
            let mut session = session.lock();
            // Ended by another client between the two locks: what would be put into it now, nobody would find again.
            if !session.dead {
                return Some(work(&mut session, new));
            }
        }
    }

    fn get_or_create(&self, request_id: &str) -> Option<(Arc<Mutex<Session>>, bool)> {
        for attempt in 0..2 {
            let mut map = self.map.lock();
            if let Some(session) = map.get(request_id) {
                return Some((session.clone(), false));
            }
            if map.len() < self.limit {
                let id: Arc<str> = request_id.into();
                let session = Arc::new(Mutex::new(Session {
                    id: id.clone(),
                    prompt: Prompt::default(),
                    lookups: Vec::new(),
                    last_used: Instant::now(),
                    dead: false,
                    charged: 0,
                }));
                map.insert(id, session.clone());
                return Some((session, true));
            }
            drop(map);
            if attempt == 0 {
                self.make_room();
            }
        }
        None
    }

    /// Drops idle sessions without leases early; at most once a second, so that a flood does not walk the map each time.
    fn make_room(&self) {
        let mut last = self.crowded.lock();
        if last.is_none_or(|last| last.elapsed() >= CROWDED_EVERY) {
            *last = Some(Instant::now());
            self.expire(CROWDED_TTL);
        }
    }

    /// Takes the session out if `keep` says that nothing of it is needed.
    ///
    /// The session is locked before the map, here and everywhere: a long prompt is hashed under its session's lock, and
    /// nobody else's session must wait for that.
    pub(super) fn remove_unless(&self, request_id: &str, keep: impl Fn(&Session) -> bool) {
        let Some(shared) = self.get(request_id) else { return };
        let mut session = shared.lock();
        if session.dead || keep(&session) {
            return;
        }
        session.dead = true;
        self.used.fetch_sub(session.charged, Ordering::Relaxed);
        session.charged = 0;
        self.map.lock().remove(request_id);
    }

    /// All sessions now.
    pub(super) fn snapshot(&self) -> Vec<Arc<Mutex<Session>>> {
        self.map.lock().values().cloned().collect()
    }

    /// Removes sessions that were idle for `ttl` and hold no lease.
    pub(super) fn expire(&self, ttl: Duration) {
        let idle = |session: &Session| {
            session.last_used.elapsed() > ttl && !session.lookups.iter().any(Lookup::holds)
        };
        // Short holds: collect first, then remove one by one.
        for session in self.snapshot() {
            // Busy is not idle.
            let Some(id) = session.try_lock().and_then(|session| idle(&session).then(|| session.id.clone()))
            else {
                continue;
            };
            self.remove_unless(&id, |session| !idle(session));
        }
    }

    /// The chain over the first `chunks` chunks of `tokens`, and the memory for it accounted.
    pub(super) fn chain(
        &self,
        session: &mut Session,
        hasher: &TokenHasher,
        tokens: &Tokens<'_>,
        chunks: usize,
    ) -> Result<Chain, DecodeError> {
        session.last_used = Instant::now();
        let chain = session.prompt.chain(hasher, tokens, chunks);
        if chain.is_err() || !self.charge(session) {
            session.prompt.forget();
            self.charge(session);
        }
        chain
    }

    /// Whether a lookup may take this much more.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.used.load(Ordering::Relaxed).saturating_add(bytes) <= self.budget
    }

    /// Brings the session's share of the budget up to date. `false`: it grew, and there is not that much left.
    pub(super) fn charge(&self, session: &mut Session) -> bool {
        let lookups: usize = session.lookups.iter().map(Lookup::bytes).sum();
        let now = session.prompt.bytes() + lookups;
        let before = std::mem::replace(&mut session.charged, now);
        if now <= before {
            self.used.fetch_sub(before - now, Ordering::Relaxed);
            return true;
        }
        self.used.fetch_add(now - before, Ordering::Relaxed) + (now - before) <= self.budget
    }
}

impl Session {
    /// Notes that it is in use.
    pub(super) fn touch(&mut self) {
        self.last_used = Instant::now();
    }

    /// What another process needs to know of it; nothing of it is left here.
    pub(super) fn take(&mut self) -> (Prompt, Vec<Lookup>) {
        (std::mem::take(&mut self.prompt), std::mem::take(&mut self.lookups))
    }

    /// Becomes what it was in another process.
    pub(super) fn restore(&mut self, prompt: Prompt, lookups: Vec<Lookup>) {
        self.prompt = prompt;
        self.lookups = lookups;
        self.touch();
    }

    /// How long it has not been used.
    pub(super) fn idle(&self) -> Duration {
        self.last_used.elapsed()
    }

    /// The lookups, and the hashes known so far.
    pub(super) fn lookups_and_hashes(&mut self) -> (&mut Vec<Lookup>, &[ChunkHash]) {
        (&mut self.lookups, self.prompt.hashes())
    }

    /// Hashes known so far.
    pub(super) fn known_hashes(&self) -> &[ChunkHash] {
        self.prompt.hashes()
    }

    /// The lookup that a status query of `client` is about: its own, or else the newest of a connection that is gone (the
    /// client has come back on another one), never another tenant's.
    pub(super) fn lookup_of(
        &mut self,
        caller: Caller,
        is_connected: impl Fn(u64) -> bool,
    ) -> Option<&mut Lookup> {
        let own = self.lookups.iter().rposition(|lookup| lookup.caller.client == caller.client);
        let left =
            |lookup: &Lookup| lookup.caller.tenant == caller.tenant && !is_connected(lookup.caller.client);
        let at = own.or_else(|| self.lookups.iter().rposition(left))?;
        self.lookups.get_mut(at)
    }
}

#[cfg(test)]
mod tests {
    use lmcache_proto::hash::HashAlgorithm;
    use lmcache_proto::wire::{CacheKey, KeyBuilder};

    use super::*;
    use crate::l1::{Hit, LeasedCell, ObjectId, Row};

    fn hold(session: &mut Session) {
        let cell = LeasedCell { row: 0, chunk: 0, object: ObjectId { index: 0, generation: 1 } };
        let row = Row { rank: 0, group: 0, window: None, layouts: [1].into() };
        let hit = Hit { chunks: 1, cells: vec![cell] };
        session.lookups.push(Lookup::new(
            Caller { client: 1, tenant: None },
            ("m".into(), "".into()),
            vec![row],
            1,
            &hit,
            1,
        ));
    }

    #[test]
    fn a_full_map_drops_idle_sessions_but_none_that_holds() {
        let sessions = Sessions::new(2, 512 << 20);
        sessions.with("held", |session, _| hold(session)).expect("room");
        sessions.with("idle", |_, _| ()).expect("room");
        assert!(sessions.with("third", |_, _| ()).is_none(), "both are in use");
        for session in sessions.snapshot() {
            session.lock().last_used = Instant::now().checked_sub(CROWDED_TTL * 2).expect("uptime");
        }
        *sessions.crowded.lock() = None;
        assert_eq!(sessions.with("third", |_, new| new), Some(true));
        assert!(sessions.get("held").is_some() && sessions.get("idle").is_none());
    }

    #[test]
    fn prompts_over_the_budget_are_served_and_not_remembered() {
        let sessions = Sessions { budget: 4096, ..Sessions::new(10, 512 << 20) };
        let hasher = TokenHasher::new(HashAlgorithm::Blake3, 4, None);
        let tokens: Vec<u32> = (0..4000).collect();
        let frame = KeyBuilder::new("m", 1, "r", &tokens).frame(None, 0, 4000);
        let key = CacheKey::decode(&frame).expect("a key");
        let chain = |session: &mut Session, _| sessions.chain(session, &hasher, &key.tokens, 1000);
        let first = sessions.with("r", chain).expect("room").expect("tokens");
        assert_eq!((first.hashes.len(), sessions.bytes()), (1000, 0));
        let again = sessions.with("r", chain).expect("room").expect("tokens");
        assert_eq!(again.hashes, first.hashes);
    }

    #[test]
    fn memory_is_given_back_with_the_session() {
        let sessions = Sessions::new(10, 512 << 20);
        sessions.with("r", |session, _| {
            hold(session);
            sessions.charge(session)
        });
        assert!(sessions.bytes() > 0);
        sessions.remove_unless("r", |_| false);
        assert_eq!((sessions.bytes(), sessions.len()), (0, 0));
    }
}

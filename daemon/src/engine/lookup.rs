//! `lookup`, its status, and the end of what it holds.

use std::sync::atomic::Ordering;

use lmcache_proto::object_key::kv_rank;
use lmcache_proto::wire::{CacheKey, Response};

use super::sessions::Lookup;
use super::{Client, Engine, Refusal};
use crate::l1::{Hit, Row};

impl Engine {
    /// Leases the longest prefix of the prompt that can be served.
    pub(super) fn lookup(&self, client: &Client, key: &CacheKey<'_>) -> Result<(), (Refusal, String)> {
        let chunk_size = self.hasher.chunk_size() as u64;
        let chunks = (key.end.min(key.tokens.len() as u64) / chunk_size) as usize;
        let rows = self.rows(key);
        let (session, found_again) = self.sessions.get_or_create(key.request_id);
        let chain = session
            .lock()
            .chain(&self.hasher, &key.tokens, chunks)
            .map_err(|error| (Refusal::Undecodable, error.to_string()))?;
        // A client that names no readers is older than 0.5.6's lookup protocol, and a session over --max-sessions is
        // found by nobody again: in both cases nobody would ever end the leases, so the lookup misses.
        let hit = if key.num_kv_readers == 0 || !found_again {
            Hit::default()
        } else {
            self.l1.lookup(key.model_name, key.cache_salt, &chain.hashes, &rows)
        };
        self.stats.requested_tokens.fetch_add(chain.hashes.len() as u64 * chunk_size, Ordering::Relaxed);
        self.stats.hit_tokens.fetch_add(hit.chunks * chunk_size, Ordering::Relaxed);
        let lookup = Lookup::new(client.id, key.model_name, key.cache_salt, rows, &hit, key.num_kv_readers);
        let mut replaced = Vec::new();
        {
            let mut session = session.lock();
            // The same client looks up the same request again: the new result replaces the old one.
            session.lookups.retain_mut(|old| {
                let same = old.client == client.id;
                if same {
                    replaced.append(&mut old.end_leases(0..u64::MAX));
                }
                !same
            });
            session.lookups.push(lookup);
        }
        if !replaced.is_empty() {
            self.l1.end_leases(replaced.into_iter());
        }
        if key.num_kv_readers == 0 {
            return Err((Refusal::BadValue, "num_kv_readers is 0".into()));
        }
        Ok(())
    }

    /// The rows that a lookup of `key` must find: object groups of the model, group-major, ranks within.
    fn rows(&self, key: &CacheKey<'_>) -> Vec<Row> {
        let groups = self.instances.groups(key.model_name, key.world_size);
        let ranks = match key.worker_id {
            Some(id) => id..id + 1,
            None => 0..key.world_size,
        };
        groups
            .iter()
            .enumerate()
            // A connector's private groups are not part of the standard lookup.
            .filter(|(_, shape)| !shape.aux)
            .flat_map(|(group, shape)| {
                ranks.clone().map(move |rank| Row {
                    rank: kv_rank(key.world_size, rank),
                    group: group as u32,
                    window: shape.window,
                    layout: shape.layout.fingerprint(),
                })
            })
            .collect()
    }

    /// Chunks that the request's lookup found.
    pub(super) fn query_status(&self, client: &Client, request_id: &str) -> Response {
        let hit = self
            .sessions
            .get(request_id)
            .and_then(|session| session.lock().lookup_of(client.id).map(|lookup| lookup.hit_chunks));
        // Unknown means 0, and final: the client's lookup has been executed before (order), so there is none.
        Response::Count(hit.unwrap_or(0))
    }

    /// Ends the leases of the key's range: the engine has these tokens already.
    pub(super) fn free_lookup_locks(&self, client: &Client, key: &CacheKey<'_>) {
        let chunk = self.hasher.chunk_size() as u64;
        // Only whole chunks: the engine's own prefix cache ends anywhere.
        let range = key.start.div_ceil(chunk)..key.end / chunk;
        let Some(session) = self.sessions.get(key.request_id) else { return };
        let ended: Vec<_> = session
            .lock()
            .lookups
            .iter_mut()
            .filter(|lookup| lookup.client == client.id)
            .flat_map(|lookup| lookup.end_leases(range.clone()))
            .collect();
        self.l1.end_leases(ended.into_iter());
    }

    /// The request is over: its leases end, pins of transfers that still run stay.
    pub(super) fn end_session(&self, client: &Client, request_id: &str) {
        let Some(session) = self.sessions.get(request_id) else { return };
        let mut ended = Vec::new();
        let mut touch = None;
        {
            let mut session = session.lock();
            let live = self.liveness.lock();
            let mut kept = Vec::new();
            for mut lookup in std::mem::take(&mut session.lookups) {
                // Another live client may use the same request id; what belongs to a dead connection goes.
                if lookup.client == client.id || !live.is_connected(lookup.client) {
                    ended.append(&mut lookup.end_leases(0..u64::MAX));
                    touch = Some((lookup.model, lookup.salt, lookup.rows));
                } else {
                    kept.push(lookup);
                }
            }
            session.lookups = kept;
        }
        self.l1.end_leases(ended.into_iter());
        if let Some((model, salt, rows)) = touch {
            // Used as a whole: the head must not be older than the tail, or eviction would take the head first.
            let hashes = session.lock().known_hashes().to_vec();
            let keys: Vec<_> =
                hashes.iter().flat_map(|hash| rows.iter().map(|row| (*hash, row.rank, row.group))).collect();
            self.l1.touch(&model, &salt, keys.into_iter());
        }
        self.sessions.remove_unless(request_id, |session| !session.lookups.is_empty());
    }
}

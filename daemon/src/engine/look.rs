//! Who is here and who holds what, for operators. Copies under short locks, one session at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use lmcache_proto::object_key::ObjectKey;
use serde_json::{Value, json};

use super::Engine;
use super::instances::{Instances, Mode};
use super::transfers::{Direction, Transfer, TransferKey};
use crate::l1::Deleted;

/// What a page shows at most of one kind; it says how many there are in all.
const MAX_ROWS: usize = 10_000;

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::EngineDriven => "engine_driven",
            Mode::LmcacheDriven => "lmcache_driven",
        }
    }
}

impl Engine {
    /// From now on nothing new is stored. What is prepared may be committed, and everything can be read.
    pub fn stop_stores(&self) {
        self.no_stores.store(true, Ordering::Relaxed);
    }

    /// Whether stores are refused because the daemon drains.
    pub(super) fn stores_stopped(&self) -> bool {
        self.no_stores.load(Ordering::Relaxed)
    }

    /// Drops single objects from L1; see [`crate::l1::L1::delete`].
    pub fn delete(&self, keys: &[ObjectKey], force: bool) -> Deleted {
        let outcome = self.l1.delete(keys, force);
        self.after_change();
        outcome
    }

    /// The registered workers, by id.
    pub fn workers_page(&self) -> Value {
        let now = Instances::now(self.started);
        let mut instances = self.instances.all();
        instances.sort_by_key(|instance| instance.id);
        let lanes = self.ring.status().workers;
        let transfers = self.transfers.lock().counts();
        let rows: Vec<Value> = {
            let live = self.liveness.lock();
            let row = |instance: &Arc<super::instances::Instance>| {
                let (silence, pinged) = instance.heard(now);
                let (client, process) = live.of_worker(instance.id);
                json!({
                    "instance": instance.id,
                    "model": &*instance.model,
                    "world_size": instance.world_size,
                    "mode": instance.mode().name(),
                    "device": &*instance.worker.device,
                    "object_bytes": instance.groups.iter().map(|g| g.layout.bytes()).collect::<Vec<_>>(),
                    "silent_seconds": silence.as_secs_f64(),
                    "pings": pinged,
                    "connection": client,
                    "pid": process.map(|process| process.pid),
                    "transfers": transfers.get(&instance.id).copied().unwrap_or(0),
                    "lane": lanes.iter().find(|lane| lane.instance == instance.id).map(|lane| lane.lane),
                })
            };
            instances.iter().take(MAX_ROWS).map(row).collect()
        };
        json!({"total": instances.len(), "workers": rows})
    }

    /// The requests that are remembered, the longest idle first.
    pub fn sessions_page(&self, limit: usize) -> Value {
        let sessions = self.sessions.snapshot();
        let mut rows: Vec<(f64, Value)> = Vec::new();
        for session in &sessions {
            // A long prompt is hashed under its session's lock: a page does not wait for that.
            let Some(session) = session.try_lock() else { continue };
            let lookups: Vec<Value> = session
                .lookups
                .iter()
                .map(|lookup| {
                    json!({
                        "connection": lookup.caller.client,
                        "model": &*lookup.model,
                        "cache_salt": &*lookup.salt,
                        "requested_chunks": lookup.requested_chunks,
                        "hit_chunks": lookup.hit_chunks,
                        "waits_for_l2": lookup.job.is_some(),
                        "leases": lookup.leases_left(),
                        "told": lookup.consumed,
                    })
                })
                .collect();
            let idle = session.idle().as_secs_f64();
            rows.push((idle, json!({"request_id": &*session.id, "idle_seconds": idle, "lookups": lookups})));
        }
        rows.sort_by(|one, other| other.0.total_cmp(&one.0));
        let shown: Vec<Value> = rows.into_iter().take(limit.min(MAX_ROWS)).map(|(_, row)| row).collect();
        json!({"total": sessions.len(), "bytes": self.sessions.bytes(), "sessions": shown})
    }

    /// Who holds objects: leases of lookups, pins of transfers, and pins that an earlier daemon's workers left.
    pub fn locks_page(&self) -> Value {
        let mut leases = Vec::new();
        for session in self.sessions.snapshot() {
            let Some(session) = session.try_lock() else { continue };
            let live = self.liveness.lock();
            for lookup in session.lookups.iter().filter(|lookup| lookup.holds()) {
                leases.push(json!({
                    "request_id": &*session.id,
                    "connection": lookup.caller.client,
                    "connected": live.is_connected(lookup.caller.client),
                    "model": &*lookup.model,
                    "cache_salt": &*lookup.salt,
                    "objects": lookup.leases_left(),
                    "waits_for_l2": lookup.job.is_some(),
                    "age_seconds": lookup.since.elapsed().as_secs_f64(),
                }));
            }
        }
        let pin = |key: &TransferKey, transfer: &Transfer| {
            json!({
                "instance": key.instance,
                "direction": match key.direction {
                    Direction::Store => "store",
                    Direction::Retrieve => "retrieve",
                },
                "request_id": key.request_id(),
                "model": key.model(),
                "cache_salt": key.salt(),
                "connection": transfer.client,
                "pid": transfer.process.map(|process| process.pid),
                "objects": transfer.pins.len(),
                "bytes": transfer.pins.len() as u64 * transfer.object_bytes,
                "age_seconds": transfer.started.elapsed().as_secs_f64(),
                "quarantined": transfer.quarantined,
            })
        };
        let (pins, adopted) = {
            let transfers = self.transfers.lock();
            let pins: Vec<Value> = transfers.iter().map(|(key, transfer)| pin(key, transfer)).collect();
            (pins, transfers.adopted())
        };
        let adopted: Vec<Value> = adopted
            .into_iter()
            .map(|(owner, objects)| json!({"instance": owner.instance, "pid": owner.pid, "objects": objects}))
            .collect();
        let l1 = self.l1.stats();
        let oldest_first = |mut rows: Vec<Value>| {
            let age = |row: &Value| row["age_seconds"].as_f64().unwrap_or(0.0);
            rows.sort_by(|one, other| age(other).total_cmp(&age(one)));
            rows.truncate(MAX_ROWS);
            rows
        };
        json!({
            "leases_total": l1.leases,
            "pins_total": l1.pins,
            "leases": oldest_first(leases),
            "pins": oldest_first(pins),
            "pins_of_earlier_workers": adopted,
        })
    }
}

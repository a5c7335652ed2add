//! What the engine knows of requests under way, as plain data: another process goes on with it.
//!
//! Everything else is beside the pool already (objects, pins, registrations) or comes anew (counters, the KV event log, which
//! says by its incarnation that it is another one).
#![forbid(unsafe_code)]

use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};

use super::Engine;
use super::leases::Lookup;
use super::prompt::Prompt;
use super::transfers::{Direction, Transfer, TransferKey};
use crate::l1::ObjectId;

/// Requests and transfers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct EngineState {
    sessions: Vec<(String, Prompt, Vec<Lookup>)>,
    transfers: Vec<(TransferKey, Transfer)>,
    /// Until when workers certainly wait, in time of CLOCK_MONOTONIC, which both processes have.
    waiting: FxHashMap<u64, Duration>,
}

/// A moment as what lies between it and now: clocks of two processes have nothing else in common.
pub(super) mod age {
    use std::time::{Duration, Instant};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(in crate::engine) fn serialize<S: Serializer>(moment: &Instant, to: S) -> Result<S::Ok, S::Error> {
        moment.elapsed().serialize(to)
    }

    pub(in crate::engine) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Instant, D::Error> {
        let age = Duration::deserialize(from)?;
        Ok(Instant::now().checked_sub(age).unwrap_or_else(Instant::now))
    }
}

impl EngineState {
    /// Until when the workers whose memory the daemon copies certainly wait.
    pub fn waiting(&self) -> &FxHashMap<u64, Duration> {
        &self.waiting
    }

    /// Objects that workers are writing.
    pub fn writing(&self) -> FxHashSet<ObjectId> {
        let writes = |key: &TransferKey, transfer: &Transfer| {
            key.direction == Direction::Store && !transfer.quarantined
        };
        let stores = self.transfers.iter().filter(|(key, transfer)| writes(key, transfer));
        stores.flat_map(|(_, transfer)| &transfer.pins).map(|pin| pin.object).collect()
    }
}

impl Engine {
    /// Waits until no lookup waits for a tier any more, at most `limit`.
    pub async fn lookups_done(&self, limit: Duration) {
        let all = async {
            for session in self.sessions.snapshot() {
                let jobs: Vec<_> = {
                    let session = session.lock();
                    session
                        .lookups
                        .iter()
                        .filter_map(|lookup| lookup.job.as_ref())
                        .map(|job| job.done.clone())
                        .collect()
                };
                for mut job in jobs {
                    // An error is what it waits for: the sender has gone.
                    while job.changed().await.is_ok() {}
                }
            }
        };
        let _ = tokio::time::timeout(limit, all).await;
    }

    /// Takes out what is under way. Nothing is executed any more, and this engine is not used again.
    pub fn export(&self) -> EngineState {
        let sessions = self.sessions.snapshot().into_iter().map(|session| {
            let mut session = session.lock();
            let (prompt, lookups) = session.take();
            ((*session.id).to_owned(), prompt, lookups)
        });
        EngineState {
            sessions: sessions.collect(),
            transfers: self.transfers.lock().take_all(),
            waiting: self.untold.all().into_iter().collect(),
        }
    }

    /// Goes on with what another daemon had under way. To be called before the first request.
    pub fn import(&self, state: EngineState) {
        for (id, prompt, mut lookups) in state.sessions {
            for lookup in &mut lookups {
                lookup.lease_again(|objects| self.l1.lease_again(objects));
            }
            let mut parts = Some((prompt, lookups));
            let made = self.sessions.with(&id, |session, _| {
                if let Some((prompt, lookups)) = parts.take() {
                    session.restore(prompt, lookups);
                    self.sessions.charge(session);
                }
            });
            if made.is_none() {
                tracing::warn!(
                    request = id,
                    "no room for a request that was handed over; it goes on without its leases"
                );
            }
        }
        let mut transfers = self.transfers.lock();
        for (key, transfer) in state.transfers {
            let (instance, request) = (key.instance, key.request_id().to_owned());
            if !transfers.restore(key, transfer) {
                tracing::warn!(
                    instance,
                    request,
                    "a prepared transfer that was handed over has lost its slots; its commit will be refused"
                );
            }
        }
    }
}

//! What the engine knows of requests under way, as plain data: another process goes on with it.
//!
//! Everything else is beside the pool already (objects, pins, registrations) or comes anew (counters, the KV event log, which
//! says by its incarnation that it is another one).
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use lmcache_proto::hash::Chain;
use lmcache_proto::wire::Slot;
use rustc_hash::FxHashSet;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::Engine;
use super::leases::LookupState;
use super::transfers::TransferState;
use crate::l1::{ObjectId, Pin};

/// Requests and transfers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct EngineState {
    pub(super) sessions: Vec<SessionState>,
    pub(super) transfers: Vec<TransferState>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SessionState {
    id: String,
    tokens: ByteBuf,
    hashes: Vec<ByteBuf>,
    ends: Vec<u32>,
    lookups: Vec<LookupState>,
}

/// A pin, or an object with its record.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct PinState {
    index: u32,
    generation: u32,
    record: Option<u32>,
}

impl From<Pin> for PinState {
    fn from(pin: Pin) -> PinState {
        let ObjectId { index, generation } = pin.object;
        PinState { index, generation, record: pin.record() }
    }
}

impl From<PinState> for Pin {
    fn from(state: PinState) -> Pin {
        let PinState { index, generation, record } = state;
        Pin::of_record(ObjectId { index, generation }, record)
    }
}

/// A slot that a worker was told of.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SlotState {
    offset: u64,
    length: u64,
    shape: Vec<u64>,
    dtype: String,
}

impl From<Slot> for SlotState {
    fn from(Slot { offset, length, shape, dtype }: Slot) -> SlotState {
        SlotState { offset, length, shape, dtype }
    }
}

impl From<SlotState> for Slot {
    fn from(SlotState { offset, length, shape, dtype }: SlotState) -> Slot {
        Slot { offset, length, shape, dtype }
    }
}

/// When something of this age began.
pub(super) fn begun(age: Duration) -> Instant {
    Instant::now().checked_sub(age).unwrap_or_else(Instant::now)
}

impl EngineState {
    /// Objects that workers are writing.
    pub fn writing(&self) -> FxHashSet<ObjectId> {
        let stores = self.transfers.iter().filter(|transfer| transfer.is_writing());
        stores.flat_map(|transfer| transfer.pins()).map(|pin| pin.object).collect()
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

    /// What is under way. Nothing is executed any more, and this engine is not used again.
    pub fn export(&self) -> EngineState {
        let sessions = self.sessions.snapshot();
        let sessions = sessions.iter().map(|session| {
            let session = session.lock();
            let (tokens, chain) = session.prompt().parts();
            SessionState {
                id: (*session.id).to_owned(),
                tokens: ByteBuf::from(tokens),
                hashes: chain.hashes.iter().map(|hash| ByteBuf::from(hash.to_vec())).collect(),
                ends: chain.ends.clone(),
                lookups: session.lookups.iter().map(LookupState::of).collect(),
            }
        });
        EngineState { sessions: sessions.collect(), transfers: self.transfers.lock().export() }
    }

    /// Goes on with what another daemon had under way. To be called before the first request.
    pub fn import(&self, state: EngineState) {
        for SessionState { id, tokens, hashes, ends, lookups } in state.sessions {
            let hashes: Option<Vec<_>> = hashes.iter().map(|hash| hash[..].try_into().ok()).collect();
            let chain =
                hashes.filter(|hashes| hashes.len() == ends.len()).map(|hashes| Chain { hashes, ends });
            let lookups: Vec<_> = lookups
                .into_iter()
                .map(|lookup| lookup.restore(|objects| self.l1.lease_again(objects)))
                .collect();
            let mut parts = Some((tokens.into_vec(), chain.unwrap_or_default(), lookups));
            let made = self.sessions.with(&id, |session, _| {
                if let Some((tokens, chain, lookups)) = parts.take() {
                    session.restore(tokens, chain, lookups);
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
        self.transfers.lock().import(state.transfers);
    }
}

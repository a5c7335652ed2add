//! Events of requests and transfers. With observability off nothing of this is made.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use lmcache_proto::hash::ChunkHash;
use lmcache_proto::transfer_id::{TransferDirection, transfer_id};
use lmcache_proto::wire::CacheKey;

use super::Engine;
use super::instances::{Instance, Mode};
use super::transfers::Direction;
use crate::events::{Cell, Event, EvictionCause, Keys, SessionId, TransferEnd, TransferId, Worker};
use crate::l1::{RemovalCause, Removed};

/// What the events of one transfer share.
#[derive(Debug)]
pub(super) struct Told {
    session: SessionId,
    transfer: TransferId,
    worker: Arc<Worker>,
    direction: Direction,
    /// The number by which the worker's own records name the transfer.
    number: u64,
    /// When it was prepared.
    prepared: Instant,
    /// The worker has a lane, or its device measures: it says itself when it began to copy, so its start is told with its end.
    deferred: bool,
    /// How long the device was copying, if it measured that itself.
    device_time: OnceLock<Duration>,
    /// The objects it moves.
    pub(super) keys: Keys,
}

impl Told {
    /// The request.
    pub(super) fn session(&self) -> &SessionId {
        &self.session
    }

    /// The device has measured how long it copied: the transfer's start is told from that.
    pub(super) fn copied_in(&self, device_time: Option<Duration>) {
        if let Some(time) = device_time {
            // Told once, when the copy is over.
            let _ = self.device_time.set(time);
        }
    }
}

impl Engine {
    /// The request's id as its events carry it.
    pub(super) fn session_id(&self, request_id: &str) -> SessionId {
        let session = self.sessions.get(request_id);
        session.map_or_else(|| request_id.into(), |session| session.lock().id.clone())
    }

    pub(super) fn shared_salt(&self, salt: &str) -> Arc<str> {
        if salt.is_empty() { self.empty.clone() } else { salt.into() }
    }

    /// What a transfer's events will say. `None` with observability off.
    pub(super) fn told(
        &self,
        key: &CacheKey<'_>,
        worker: &Instance,
        direction: Direction,
        cells: impl Iterator<Item = (ChunkHash, u32, u32)>,
    ) -> Option<Arc<Told>> {
        if !self.bus.enabled() {
            return None;
        }
        let model =
            if *worker.model == *key.model_name { worker.model.clone() } else { key.model_name.into() };
        let way = match direction {
            Direction::Store => TransferDirection::Store,
            Direction::Retrieve => TransferDirection::Retrieve,
        };
        let number = transfer_id(key.request_id, key.start, key.end, way);
        let cells = cells.map(|(hash, rank, group)| Cell { hash, rank, group }).collect();
        Some(Arc::new(Told {
            session: self.session_id(key.request_id),
            transfer: event_id(number, worker.id),
            worker: worker.worker.clone(),
            direction,
            number,
            prepared: Instant::now(),
            device_time: OnceLock::new(),
            deferred: match worker.mode() {
                Mode::EngineDriven => self.ring.has_lane(worker.id),
                Mode::LmcacheDriven => worker.measures_itself(),
            },
            keys: Keys::new(model, self.shared_salt(key.cache_salt), cells),
        }))
    }

    /// A transfer was asked for, and has started.
    pub(super) fn transfer_submitted(&self, told: &Told) {
        let (session, transfer, worker) = (told.session.clone(), told.transfer, told.worker.clone());
        self.bus.publish(|| match told.direction {
            Direction::Store => Event::MpStoreSubmitted { session, transfer, worker },
            Direction::Retrieve => Event::MpRetrieveSubmitted { session, transfer, worker },
        });
    }

    /// It has started; if the worker says itself when, that comes with the end.
    pub(super) fn transfer_started(&self, told: &Told) {
        if !told.deferred {
            self.transfer_started_at(told, Instant::now());
        }
    }

    fn transfer_started_at(&self, told: &Told, at: Instant) {
        let (session, transfer, worker) = (told.session.clone(), told.transfer, told.worker.clone());
        self.bus.publish_at(at, || match told.direction {
            Direction::Store => Event::MpStoreStart { session, transfer, worker },
            Direction::Retrieve => Event::MpRetrieveStart { session, transfer, worker },
        });
    }

    /// A transfer has ended: `count` objects and `total_bytes` moved, which are `num_tokens` of the prompt. Zeros if it
    /// failed; the end is told all the same, so that nothing waits for it for ever.
    ///
    /// A worker with a lane has published its own times before it sent the commit that brought us here: they are told in
    /// place of ours. What it said of an earlier attempt at the same transfer is not about this one.
    pub(super) fn transfer_ended(&self, told: &Told, count: u64, total_bytes: u64, num_tokens: u64) {
        let mut end_at = Instant::now();
        if let Some(time) = told.device_time.get() {
            self.transfer_started_at(told, end_at.checked_sub(*time).unwrap_or(told.prepared));
        } else if told.deferred {
            let timing = self.ring.take_timing(told.worker.engine_id, told.number);
            let timing = timing.filter(|timing| timing.end >= told.prepared);
            let start_at = timing.map_or(told.prepared, |timing| timing.start);
            end_at = timing.map_or(end_at, |timing| timing.end);
            self.transfer_started_at(told, start_at);
        }
        let (session, transfer, worker) = (told.session.clone(), told.transfer, told.worker.clone());
        let end = TransferEnd { count, total_bytes, num_tokens, salt: told.keys.salt().clone() };
        self.bus.publish_at(end_at, || match told.direction {
            Direction::Store => Event::MpStoreEnd { session, transfer, worker, end },
            Direction::Retrieve => Event::MpRetrieveEnd { session, transfer, worker, end },
        });
    }

    /// Objects have become readable; `failed` others were lost on the way.
    pub(super) fn write_finished(&self, succeeded: Keys, failed: u64) {
        if !succeeded.is_empty() {
            self.bus.publish(|| Event::L1WriteFinished { keys: succeeded.clone() });
        }
        self.bus.publish(|| Event::SmWriteFinished { succeeded, failed });
    }

    /// Objects have been read by one reader, or let go unread.
    pub(super) fn read_finished(&self, keys: Keys) {
        if !keys.is_empty() {
            self.bus.publish(|| Event::L1ReadFinished { keys: keys.clone() });
            self.bus.publish(|| Event::SmReadPrefetchedFinished { succeeded: keys, failed: 0 });
        }
    }

    /// Objects have left L1: one event per model, salt and cause, in the order they went.
    pub(super) fn tell_removed(&self, removed: &[Removed]) {
        if !self.bus.enabled() {
            return;
        }
        let alike = |a: &Removed, b: &Removed| (&a.model, &a.salt, a.cause) == (&b.model, &b.salt, b.cause);
        for batch in removed.chunk_by(alike) {
            let cells = batch.iter().map(|gone| Cell { hash: gone.hash, rank: gone.rank, group: gone.group });
            let keys = Keys::new(batch[0].model.clone(), batch[0].salt.clone(), cells.collect());
            let cause = match batch[0].cause {
                RemovalCause::Policy => EvictionCause::Policy,
                RemovalCause::Cleared => EvictionCause::Cleared,
                RemovalCause::Replaced => EvictionCause::Replaced,
                RemovalCause::Temporary => EvictionCause::Temporary,
                RemovalCause::Damaged => EvictionCause::Damaged,
            };
            self.bus.publish(|| Event::L1KeysEvicted { keys, cause });
        }
    }
}

/// Tells the transfers of one worker apart, and those of several workers for one request: the ranks' numbers are equal.
fn event_id(number: u64, instance: u64) -> TransferId {
    // An odd constant, so that different workers stay different.
    TransferId(number ^ instance.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

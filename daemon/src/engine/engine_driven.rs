//! Transfers that the worker drives: it copies between its memory and the pool, between our prepare and its commit.

use std::sync::atomic::Ordering;
use std::time::Instant;

use lmcache_proto::layout::{Dtype, ObjectLayout, Region};
use lmcache_proto::object_key::kv_rank;
use lmcache_proto::wire::{
    CacheKey, PrepareRetrieveResponse, PrepareStoreResponse, RegisterEngineDrivenPayload,
    RegisterEngineDrivenResponse, Response, Slot, StoreContext, validate_model,
};

use super::instances::{GroupShape, Instance, Instances, Kind, Mode, Registered};
use super::publish::Told;
use super::transfers::{Direction, Transfer, TransferKey};
use super::{Client, Engine, Failure, Refusal, leases};
use crate::events::{During, Event, Keys, ReadFailure};
use crate::failpoint;
use crate::l1::{Cells, ObjectId, Owner, Pinned, ReserveError, Reserved};

impl Engine {
    /// Registers a worker and tells it where the pool is.
    pub(super) fn register_engine_driven(
        &self,
        client: &Client,
        payload: &RegisterEngineDrivenPayload,
    ) -> Result<Response, Failure> {
        let instance = self.engine_driven_instance(payload)?.of(self.tenant_of(client));
        let bytes = instance.groups[0].layout.bytes();
        let outcome = self.instances.register(instance).ok_or_else(super::instances::full)?;
        self.registered(client, payload.instance_id);
        if outcome == Registered::Replaced {
            // What it reserved had the old shape.
            self.forget_reservations(payload.instance_id);
        }
        if outcome != Registered::Refreshed {
            tracing::info!(
                instance = payload.instance_id,
                model = payload.model_name,
                world_size = payload.world_size,
                chunk_bytes = bytes,
                replaced = outcome == Registered::Replaced,
                "worker registered (engine-driven)"
            );
        }
        // The worker maps the pool by name in a moment.
        match self.l1.pool().segment().restore_name() {
            Ok(false) => {}
            Ok(true) => tracing::warn!(
                pool = self.config.pool_name,
                "the pool's name was gone or taken (a client unlinked it?); restored"
            ),
            Err(error) => {
                tracing::error!(pool = self.config.pool_name, %error, "the pool's name is gone and cannot be restored; workers that register now cannot map it")
            }
        }
        Ok(Response::Registered(RegisterEngineDrivenResponse {
            shm_name: self.config.pool_name.clone(),
            pool_size: self.l1.pool().segment().bytes(),
        }))
    }

    /// The worker that a registration describes.
    pub(super) fn engine_driven_instance(
        &self,
        payload: &RegisterEngineDrivenPayload,
    ) -> Result<Instance, Failure> {
        if !self.config.engine_driven {
            return Err((Refusal::Disabled, "engine-driven transfer".into()));
        }
        let dtype = Dtype::from_name(&payload.dtype_str)
            .ok_or_else(|| (Refusal::Layout, format!("dtype {:?}", payload.dtype_str)))?;
        let region = Region {
            planes: if payload.use_mla { 1 } else { 2 },
            layers: payload.num_layers,
            slots: payload.num_physical_slots.unwrap_or(self.hasher.chunk_size() as u64),
            width: payload.hidden_dim_size,
            dtype,
        };
        let layout = ObjectLayout::new(vec![region])
            .filter(|layout| layout.bytes() <= self.l1.pool().segment().bytes())
            .ok_or_else(|| {
                (Refusal::Layout, format!("object of {region:?} is empty or larger than the pool"))
            })?;
        if !(1..=255).contains(&payload.world_size) || validate_model(&payload.model_name).is_err() {
            return Err((
                Refusal::BadValue,
                format!("world size {}, model {:?}", payload.world_size, payload.model_name),
            ));
        }
        Ok(Instance::new(
            payload.instance_id,
            &payload.model_name,
            payload.world_size,
            vec![GroupShape { layout, window: None, aux: false }],
            (Kind::EngineDriven { block_size: payload.block_size, single_plane: payload.use_mla }, "cpu"),
            Instances::now(self.started),
        ))
    }

    /// Forgets a worker; what it has reserved is kept from everybody until it is certainly not writing any more.
    pub(super) fn unregister_engine_driven(&self, id: u64) -> Result<(), Failure> {
        failpoint::hit("engine.unregister");
        self.instances
            .remove(id, Mode::EngineDriven)
            .ok_or_else(|| (Refusal::UnknownInstance, format!("instance {id}")))?;
        self.forget_registration(id, Mode::EngineDriven);
        self.forget_reservations(id);
        self.worker_gone(id);
        tracing::info!(instance = id, "worker unregistered (engine-driven)");
        Ok(())
    }

    pub(super) fn forget_reservations(&self, id: u64) {
        let pins = self.transfers.lock().quarantine_instance(id);
        if !pins.is_empty() {
            tracing::warn!(
                instance = id,
                slots = pins.len(),
                "worker left reservations behind; they are in quarantine until it is gone"
            );
            self.l1.quarantine(pins.iter());
        }
    }

    fn engine_driven_worker(&self, id: u64) -> Result<std::sync::Arc<Instance>, Failure> {
        self.instances
            .get(id, Mode::EngineDriven)
            .ok_or_else(|| (Refusal::UnknownInstance, format!("instance {id}")))
    }

    /// Reserves slots for the chunks that are not cached.
    pub(super) fn prepare_store(
        &self,
        client: &Client,
        key: &CacheKey<'_>,
        id: u64,
    ) -> Result<Response, Failure> {
        let worker = self.engine_driven_worker(id)?;
        let (range, rank) = (self.chunk_range(key)?, rank_of(key)?);
        let hashes = &self.chain(client, key, range.end)?.hashes[range];
        let transfer_key = TransferKey::new(key, id, Direction::Store, hashes);
        if let Some(pending) = self.transfers.lock().get(&transfer_key) {
            return prepared_before(pending, key);
        }
        let layout = &worker.groups[0].layout;
        let cells = hashes.iter().map(|hash| (*hash, rank, 0));
        let reserved = self.reserve(key, &worker, cells, layout, Some(owner(client, id)))?;
        let slots: Vec<Slot> = reserved.iter().map(|object| slot(&worker, layout, object.offset)).collect();
        let chunk_indices: Vec<u64> = reserved.iter().map(|object| object.position as u64).collect();
        let response = PrepareStoreResponse {
            context: Some(StoreContext { slots: slots.clone(), chunk_indices: chunk_indices.clone() }),
        };
        if reserved.is_empty() {
            return Ok(Response::PrepareStore(response));
        }
        let cells = reserved.iter().map(|object| (hashes[object.position], rank, 0));
        let told = self.told(key, &worker, Direction::Store, cells);
        let transfer = Transfer {
            pins: reserved.iter().map(|object| object.pin).collect(),
            slots,
            chunk_indices,
            rank,
            layout: layout.fingerprint(),
            object_bytes: layout.bytes(),
            started: Instant::now(),
            client: client.id,
            process: client.process(),
            quarantined: false,
            told: told.clone(),
        };
        failpoint::hit("engine.store.reserved");
        let mut transfers = self.transfers.lock();
        if let Err(ours) = transfers.insert(transfer_key.clone(), transfer) {
            // The same worker has asked on another connection in the same moment; that one's slots stand.
            let answer = transfers.get(&transfer_key).map(|pending| prepared_before(pending, key));
            drop(transfers);
            self.l1.abort(ours.iter());
            return answer.unwrap_or_else(|| Err((Refusal::Internal, "a transfer vanished".to_owned())));
        }
        drop(transfers);
        if let Some(told) = told {
            self.bus.publish(|| Event::L1WriteReserved { keys: told.keys.clone() });
            self.transfer_submitted(&told);
            self.transfer_started(&told);
        }
        Ok(Response::PrepareStore(response))
    }

    /// Reserves objects for a worker's store, and tells what came of it.
    pub(super) fn reserve(
        &self,
        key: &CacheKey<'_>,
        worker: &Instance,
        cells: impl Cells,
        layout: &ObjectLayout,
        owner: Option<Owner>,
    ) -> Result<Vec<Reserved>, Failure> {
        let asked = cells.clone().count() as u64;
        let (model, salt) = (key.model_name, key.cache_salt);
        self.call_reserve(key, cells.clone(), layout);
        let reserved = self.l1.reserve(model, salt, cells, layout.fingerprint(), layout.bytes(), owner);
        self.after_change();
        let succeeded = reserved.as_ref().map_or(0, |reserved| reserved.len() as u64);
        self.bus.publish(|| Event::SmWriteReserved { succeeded, failed: asked - succeeded });
        reserved.map_err(|error| {
            let model = worker.worker.model.clone();
            self.bus.publish(|| Event::L1AllocationFailed { during: During::L1Store, model, keys: asked });
            match error {
                ReserveError::Full => {
                    let what = format!("{asked} objects of {} bytes", layout.bytes());
                    (Refusal::PoolFull, what)
                }
                ReserveError::OverQuota => (
                    Refusal::OverQuota,
                    format!("{asked} objects of {} bytes, cache salt {salt:?}", layout.bytes()),
                ),
                ReserveError::TableFull => (Refusal::TableFull, format!("{asked} objects")),
            }
        })
    }

    /// Makes the prepared slots readable.
    pub(super) fn commit_store(
        &self,
        client: &Client,
        key: &CacheKey<'_>,
        id: u64,
        data: &[u8],
    ) -> Result<Response, Failure> {
        if !data.is_empty() {
            return Err((Refusal::Pickle, format!("{} bytes of inline data", data.len())));
        }
        let range = self.chunk_range(key)?;
        let chain = self.chain(client, key, range.end)?;
        let hashes = &chain.hashes[range.clone()];
        let transfer_key = TransferKey::new(key, id, Direction::Store, hashes);
        let pending = self.transfers.lock().take(&transfer_key).ok_or_else(|| nothing_pending(id, key))?;
        let chunk_of =
            |at: usize| range.start + pending.chunk_indices.get(at).map_or(0, |index| *index as usize);
        self.call_finish_write(pending.told.as_deref());
        failpoint::hit("engine.store.commit");
        let done = self.commit_and_log(key, &chain, &pending.pins, chunk_of);
        let committed = done.iter().filter(|done| **done).count() as u64;
        let whole = committed == pending.pins.len() as u64;
        let tokens = committed * self.hasher.chunk_size() as u64;
        self.stats.stored_tokens.fetch_add(tokens, Ordering::Relaxed);
        let cells = done.iter().zip(&pending.chunk_indices).filter(|(done, _)| **done);
        let cells = cells.map(|(_, index)| (hashes[*index as usize], pending.rank, 0)).collect();
        self.offer(key, cells, pending.layout, pending.object_bytes);
        if let Some(told) = &pending.told {
            let bytes = committed * pending.object_bytes;
            self.tell_stored(key, told, &done, bytes, if whole { tokens } else { 0 });
        }
        self.after_change();
        if !whole {
            let detail = format!(
                "{committed} of {} slots of request {:?} were still reserved (--l1-write-ttl-seconds)",
                pending.pins.len(),
                key.request_id
            );
            return Err((Refusal::NothingPending, detail));
        }
        Ok(Response::Flag(true))
    }

    /// A store has ended; `done` says of each of its objects whether it is readable now.
    pub(super) fn tell_stored(
        &self,
        key: &CacheKey<'_>,
        told: &Told,
        done: &[bool],
        bytes: u64,
        tokens: u64,
    ) {
        let committed = done.iter().filter(|done| **done).count() as u64;
        let keys = if committed == done.len() as u64 {
            told.keys.clone()
        } else {
            let cells = told.keys.cells().iter().zip(done).filter(|(_, done)| **done);
            Keys::new(
                told.keys.model().clone(),
                told.keys.salt().clone(),
                cells.map(|(cell, _)| *cell).collect(),
            )
        };
        self.write_finished(keys, done.len() as u64 - committed);
        self.transfer_ended(told, committed, bytes, tokens);
        if key.worker_id == Some(0) && committed > 0 {
            let chunks = tokens / self.hasher.chunk_size() as u64;
            self.bus.publish(|| Event::MpTokens { session: told.session().clone(), chunks });
        }
    }

    /// Pins the chunks and tells the worker where they are.
    pub(super) fn prepare_retrieve(
        &self,
        client: &Client,
        key: &CacheKey<'_>,
        id: u64,
    ) -> Result<Response, Failure> {
        let worker = self.engine_driven_worker(id)?;
        let (range, rank) = (self.chunk_range(key)?, rank_of(key)?);
        let hashes = &self.chain(client, key, range.end)?.hashes[range.clone()];
        let transfer_key = TransferKey::new(key, id, Direction::Retrieve, hashes);
        let answer =
            |slots: Vec<Slot>| Response::PrepareRetrieve(PrepareRetrieveResponse { slots: Some(slots) });
        if let Some(pending) = self.transfers.lock().get(&transfer_key) {
            return Ok(answer(pending.slots.clone()));
        }
        let layout = &worker.groups[0].layout;
        let cells = hashes.iter().map(|hash| (*hash, rank, 0));
        let pinned = self.pin(key, &worker, cells.clone(), layout, Some(owner(client, id)))?;
        if pinned.is_empty() {
            return Err((Refusal::NotResident, format!("request {:?}, no whole chunk", key.request_id)));
        }
        let damaged = pinned.iter().filter(|object| !self.l1.verify(object)).count();
        if damaged > 0 {
            self.l1.unpin(pinned.iter().map(|object| &object.pin));
            return Err(self.damaged(key, &worker, damaged as u64));
        }
        let slots: Vec<Slot> = pinned.iter().map(|object| slot(&worker, layout, object.offset)).collect();
        let told = self.told(key, &worker, Direction::Retrieve, cells);
        let transfer = Transfer {
            pins: pinned.iter().map(|object| object.pin).collect(),
            slots: slots.clone(),
            chunk_indices: Vec::new(),
            rank,
            layout: layout.fingerprint(),
            object_bytes: layout.bytes(),
            started: Instant::now(),
            client: client.id,
            process: client.process(),
            quarantined: false,
            told: told.clone(),
        };
        failpoint::hit("engine.retrieve.pinned");
        let mut transfers = self.transfers.lock();
        if let Err(ours) = transfers.insert(transfer_key.clone(), transfer) {
            let slots = transfers.get(&transfer_key).map(|pending| pending.slots.clone());
            drop(transfers);
            self.l1.unpin(ours.iter());
            return slots.map(answer).ok_or_else(|| (Refusal::Internal, "a transfer vanished".to_owned()));
        }
        drop(transfers);
        if let Some(told) = told {
            self.transfer_submitted(&told);
            self.transfer_started(&told);
        }
        Ok(answer(slots))
    }

    /// Pins objects for a worker's retrieve, and tells if some are not there.
    pub(super) fn pin(
        &self,
        key: &CacheKey<'_>,
        worker: &Instance,
        cells: impl Cells,
        layout: &ObjectLayout,
        owner: Option<Owner>,
    ) -> Result<Vec<Pinned>, Failure> {
        let asked = cells.clone().count();
        self.l1.pin_read(key.model_name, key.cache_salt, cells, layout.fingerprint(), owner).map_err(|have| {
            let (model, keys) = (worker.worker.model.clone(), (asked - have) as u64);
            let (during, reason) = (During::L1Retrieve, ReadFailure::NotFound);
            self.bus.publish(|| Event::L1ReadFailed { during, reason, model, keys });
            let what = format!("request {:?}: {have} of {asked} objects are there", key.request_id);
            (Refusal::NotResident, what)
        })
    }

    /// Objects whose bytes have changed have left their keys: tells it.
    pub(super) fn damaged(&self, key: &CacheKey<'_>, worker: &Instance, keys: u64) -> Failure {
        self.flush_removed();
        let (during, reason, model) = (During::L1Retrieve, ReadFailure::Damaged, worker.worker.model.clone());
        self.bus.publish(|| Event::L1ReadFailed { during, reason, model, keys });
        (Refusal::Damaged, format!("request {:?}: {keys} objects", key.request_id))
    }

    /// The worker has its copy: ends the pins and the lease of this reader.
    pub(super) fn commit_retrieve(
        &self,
        client: &Client,
        key: &CacheKey<'_>,
        id: u64,
    ) -> Result<Response, Failure> {
        let range = self.chunk_range(key)?;
        let chain = self.chain(client, key, range.end)?;
        let hashes = &chain.hashes[range.clone()];
        let transfer_key = TransferKey::new(key, id, Direction::Retrieve, hashes);
        let pending = self.transfers.lock().take(&transfer_key).ok_or_else(|| nothing_pending(id, key))?;
        let objects = pending.pins.iter().zip(range.start as u32..).map(|(pin, chunk)| (chunk, pin.object));
        self.call_finish_read(pending.told.as_deref());
        failpoint::hit("engine.retrieve.commit");
        self.retrieved(key, id, objects);
        self.l1.unpin(pending.pins.iter());
        failpoint::hit("engine.retrieve.done");
        let count = pending.pins.len() as u64;
        let tokens = count * self.hasher.chunk_size() as u64;
        self.stats.retrieved_tokens.fetch_add(tokens, Ordering::Relaxed);
        if let Some(told) = &pending.told {
            self.read_finished(told.keys.clone());
            self.transfer_ended(told, count, count * pending.object_bytes, tokens);
        }
        Ok(Response::Flag(true))
    }

    /// Ends the lease that this reader had on each object (chunk of the prompt, object).
    pub(super) fn retrieved(
        &self,
        key: &CacheKey<'_>,
        instance: u64,
        objects: impl Iterator<Item = (u32, ObjectId)>,
    ) {
        if let Some(session) = self.sessions.get(key.request_id) {
            let ended = {
                let mut session = session.lock();
                session.touch();
                leases::retrieved(&mut session.lookups, instance, objects)
            };
            self.l1.end_leases(ended.into_iter().rev());
        }
    }
}

/// The answer to a prepare that has been made before and not been committed: the same slots, still its own.
fn prepared_before(pending: &Transfer, key: &CacheKey<'_>) -> Result<Response, Failure> {
    if pending.quarantined {
        return Err((Refusal::Quarantined, format!("request {:?}", key.request_id)));
    }
    let context = StoreContext { slots: pending.slots.clone(), chunk_indices: pending.chunk_indices.clone() };
    Ok(Response::PrepareStore(PrepareStoreResponse { context: Some(context) }))
}

fn nothing_pending(instance: u64, key: &CacheKey<'_>) -> Failure {
    (Refusal::NothingPending, format!("instance {instance}, request {:?}", key.request_id))
}

/// The packed rank of a worker's key.
pub(super) fn rank_of(key: &CacheKey<'_>) -> Result<u32, Failure> {
    let id = key.worker_id.ok_or_else(|| (Refusal::BadValue, "a transfer needs a worker_id".to_owned()))?;
    Ok(kv_rank(key.world_size, id))
}

fn owner(client: &Client, instance: u64) -> Owner {
    let (pid, start_time) = client.process().map_or((0, 0), |process| (process.pid, process.start_time));
    Owner { instance, pid, start_time }
}

fn slot(worker: &Instance, layout: &ObjectLayout, offset: u64) -> Slot {
    let region = layout.regions()[0];
    let mut shape = vec![region.layers, region.slots, region.width];
    if matches!(worker.kind, Kind::EngineDriven { single_plane: false, .. }) {
        shape.insert(0, region.planes);
    }
    Slot { offset, length: layout.bytes(), shape, dtype: region.dtype.name().to_owned() }
}

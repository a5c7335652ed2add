//! Transfers that the worker drives: it copies between its memory and the pool, between our prepare and its commit.

use std::sync::atomic::Ordering;
use std::time::Instant;

use lmcache_proto::layout::{Dtype, ObjectLayout, Region};
use lmcache_proto::object_key::kv_rank;
use lmcache_proto::transfer_id::{TransferDirection, transfer_id};
use lmcache_proto::wire::{
    CacheKey, PrepareRetrieveResponse, PrepareStoreResponse, RegisterEngineDrivenPayload,
    RegisterEngineDrivenResponse, Response, Slot, StoreContext,
};

use super::instances::{GroupShape, Instance, Instances, Kind, Mode, Registered};
use super::transfers::{Direction, Transfer, TransferKey};
use super::{Client, Engine, Refusal};
use crate::events::TransferId;
use crate::l1::{Owner, ReserveError};

impl Engine {
    /// Registers a worker and tells it where the pool is.
    pub(super) fn register_engine_driven(
        &self,
        payload: &RegisterEngineDrivenPayload,
    ) -> Result<Response, (Refusal, String)> {
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
        if !(1..=255).contains(&payload.world_size) || payload.model_name.contains('@') {
            return Err((
                Refusal::BadValue,
                format!("world size {}, model {:?}", payload.world_size, payload.model_name),
            ));
        }
        let bytes = layout.bytes();
        let instance = Instance::new(
            payload.instance_id,
            &payload.model_name,
            payload.world_size,
            vec![GroupShape { layout, window: None, aux: false }],
            Kind::EngineDriven { block_size: payload.block_size, single_plane: payload.use_mla },
            Instances::now(self.started),
        );
        let outcome = self
            .instances
            .register(instance)
            .ok_or_else(|| (Refusal::BadValue, "too many workers are registered".to_owned()))?;
        self.registered(payload.instance_id);
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

    /// Forgets a worker; what it has reserved is kept from everybody until it is certainly not writing any more.
    pub(super) fn unregister_engine_driven(&self, id: u64) -> Result<(), (Refusal, String)> {
        self.instances
            .remove(id, Mode::EngineDriven)
            .ok_or_else(|| (Refusal::UnknownInstance, format!("instance {id}")))?;
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

    fn engine_driven_worker(&self, id: u64) -> Result<std::sync::Arc<Instance>, (Refusal, String)> {
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
    ) -> Result<Response, (Refusal, String)> {
        let worker = self.engine_driven_worker(id)?;
        let transfer_key = TransferKey::new(key, id, Direction::Store);
        if let Some(pending) = self.transfers.lock().get(&transfer_key).filter(|t| !t.quarantined) {
            // Asked again before its commit: the same slots, still its own.
            let context =
                StoreContext { slots: pending.slots.clone(), chunk_indices: pending.chunk_indices.clone() };
            return Ok(Response::PrepareStore(PrepareStoreResponse { context: Some(context) }));
        }
        let (range, rank) = (self.chunk_range(key)?, rank_of(key)?);
        let hashes = self.chain(key, range.end)?.hashes;
        let layout = &worker.groups[0].layout;
        let reserved = self
            .l1
            .reserve(
                key.model_name,
                key.cache_salt,
                hashes[range].iter().map(|hash| (*hash, rank, 0)),
                layout.fingerprint(),
                layout.bytes(),
                Some(owner(client, id)),
            )
            .map_err(|error| {
                let what = match error {
                    ReserveError::Full => "no memory",
                    ReserveError::TableFull => "no table record or name left",
                };
                (Refusal::PoolFull, what.to_owned())
            })?;
        self.after_change();
        let slots: Vec<Slot> = reserved.iter().map(|object| slot(&worker, layout, object.offset)).collect();
        let chunk_indices: Vec<u64> = reserved.iter().map(|object| object.position as u64).collect();
        if !reserved.is_empty() {
            let transfer = Transfer {
                pins: reserved.iter().map(|object| object.pin).collect(),
                slots: slots.clone(),
                chunk_indices: chunk_indices.clone(),
                started: Instant::now(),
                client: client.id,
                process: client.process(),
                quarantined: false,
            };
            self.transfers.lock().insert(transfer_key, transfer);
        }
        Ok(Response::PrepareStore(PrepareStoreResponse {
            context: Some(StoreContext { slots, chunk_indices }),
        }))
    }

    /// Makes the prepared slots readable.
    pub(super) fn commit_store(
        &self,
        _client: &Client,
        key: &CacheKey<'_>,
        id: u64,
        data: &[u8],
    ) -> Result<Response, (Refusal, String)> {
        if !data.is_empty() {
            return Err((Refusal::Pickle, format!("{} bytes of inline data", data.len())));
        }
        let pending =
            self.transfers.lock().take(&TransferKey::new(key, id, Direction::Store)).ok_or_else(|| {
                (Refusal::NothingPending, format!("instance {id}, request {}", key.request_id))
            })?;
        let committed = self.l1.commit(pending.pins.iter());
        if committed < pending.pins.len() {
            let detail = format!(
                "{committed} of {} slots of request {} were still reserved (--l1-write-ttl-seconds)",
                pending.pins.len(),
                key.request_id
            );
            return Err((Refusal::NothingPending, detail));
        }
        let chunk = self.hasher.chunk_size() as u64;
        self.stats.stored_tokens.fetch_add(committed as u64 * chunk, Ordering::Relaxed);
        tracing::info!(
            request = key.request_id,
            "Stored {} tokens in {:.3} seconds",
            committed as u64 * chunk,
            self.copy_time(key, id, Direction::Store, pending.started).as_secs_f64()
        );
        let range = self.chunk_range(key)?;
        let chain = self.chain(key, range.end)?;
        self.report_stored(
            key,
            &chain,
            pending.chunk_indices.iter().map(|index| range.start + *index as usize),
        );
        self.after_change();
        Ok(Response::Flag(true))
    }

    /// Pins the chunks and tells the worker where they are.
    pub(super) fn prepare_retrieve(
        &self,
        client: &Client,
        key: &CacheKey<'_>,
        id: u64,
    ) -> Result<Response, (Refusal, String)> {
        let worker = self.engine_driven_worker(id)?;
        let transfer_key = TransferKey::new(key, id, Direction::Retrieve);
        if let Some(pending) = self.transfers.lock().get(&transfer_key) {
            return Ok(Response::PrepareRetrieve(PrepareRetrieveResponse {
                slots: Some(pending.slots.clone()),
            }));
        }
        let (range, rank) = (self.chunk_range(key)?, rank_of(key)?);
        let hashes = self.chain(key, range.end)?.hashes;
        let layout = &worker.groups[0].layout;
        let pinned = self
            .l1
            .pin_read(
                key.model_name,
                key.cache_salt,
                hashes[range.clone()].iter().map(|hash| (*hash, rank, 0)),
                layout.fingerprint(),
                Some(owner(client, id)),
            )
            .filter(|pinned| !pinned.is_empty())
            .ok_or_else(|| (Refusal::NotResident, format!("request {}, chunks {range:?}", key.request_id)))?;
        let slots: Vec<Slot> = pinned.iter().map(|object| slot(&worker, layout, object.offset)).collect();
        let transfer = Transfer {
            pins: pinned.iter().map(|object| object.pin).collect(),
            slots: slots.clone(),
            chunk_indices: Vec::new(),
            started: Instant::now(),
            client: client.id,
            process: client.process(),
            quarantined: false,
        };
        self.transfers.lock().insert(transfer_key, transfer);
        Ok(Response::PrepareRetrieve(PrepareRetrieveResponse { slots: Some(slots) }))
    }

    /// The worker has its copy: ends the pins and the lease of this reader.
    pub(super) fn commit_retrieve(
        &self,
        _client: &Client,
        key: &CacheKey<'_>,
        id: u64,
    ) -> Result<Response, (Refusal, String)> {
        let pending =
            self.transfers.lock().take(&TransferKey::new(key, id, Direction::Retrieve)).ok_or_else(|| {
                (Refusal::NothingPending, format!("instance {id}, request {}", key.request_id))
            })?;
        let (range, rank) = (self.chunk_range(key)?, rank_of(key)?);
        self.retrieved(key, id, rank, 0, range);
        self.l1.unpin(pending.pins.iter());
        let tokens = pending.pins.len() as u64 * self.hasher.chunk_size() as u64;
        self.stats.retrieved_tokens.fetch_add(tokens, Ordering::Relaxed);
        tracing::info!(
            request = key.request_id,
            "Retrieved {tokens} tokens in {:.3} seconds",
            self.copy_time(key, id, Direction::Retrieve, pending.started).as_secs_f64()
        );
        Ok(Response::Flag(true))
    }

    /// How long the worker copied: by its own clock if it has published that, else since our prepare.
    fn copy_time(
        &self,
        key: &CacheKey<'_>,
        id: u64,
        direction: Direction,
        prepared: Instant,
    ) -> std::time::Duration {
        let direction = match direction {
            Direction::Store => TransferDirection::Store,
            Direction::Retrieve => TransferDirection::Retrieve,
        };
        let transfer = TransferId(transfer_id(key.request_id, key.start, key.end, direction));
        let timing = self.ring.take_timing(id, transfer);
        timing.map_or_else(|| prepared.elapsed(), |timing| timing.duration())
    }

    /// Ends the lease that this reader had on each chunk.
    pub(super) fn retrieved(
        &self,
        key: &CacheKey<'_>,
        instance: u64,
        rank: u32,
        group: u32,
        chunks: std::ops::Range<usize>,
    ) {
        if let Some(session) = self.sessions.get(key.request_id) {
            let ended = session.lock().retrieved(instance, rank, group, chunks);
            self.l1.end_leases(ended.into_iter().rev());
        }
    }
}

/// The packed rank of a worker's key.
pub(super) fn rank_of(key: &CacheKey<'_>) -> Result<u32, (Refusal, String)> {
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

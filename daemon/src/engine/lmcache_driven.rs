//! Transfers that the daemon drives: it copies between the worker's memory, which it has mapped, and the pool.

use std::sync::{Arc, OnceLock};

use lmcache_proto::wire::{CacheKey, Operation, RegisterKvCache, Response, validate_model};

use super::copies::{Reading, Subject, Writing};
use super::engine_driven::rank_of;
use super::instances::{GroupShape, Instance, Instances, Kind, Mode, Registered};
use super::transfers::Direction;
use super::{Client, Engine, Failure, Outcome, Refusal};
use crate::device::cpu_shm::Limits;
use crate::device::groups::KvGeometry;
use crate::device::plan::{check_coverage, null_chunks, skipped_in_chunk};
use crate::device::transfer::{self as device, Part, Transfer};
use crate::device::{Options, Registration};
use crate::events::Event;

/// Most memory that one worker may have mapped here. Mapping costs address space, not memory; the bound only keeps a
/// hostile worker from using it up.
const MAX_MAPPED_BYTES: u64 = 1 << 42;

impl Engine {
    /// Maps a worker's KV cache.
    pub(super) fn register_kv_cache(
        &self,
        client: &Client,
        payload: Box<RegisterKvCache>,
    ) -> Result<(), Failure> {
        self.served(&payload)?;
        let registration = Registration::new(&payload, &self.mapping_options(Some(client)))
            .map_err(|error| (Refusal::Layout, error.to_string()))?;
        let groups = self.groups_of(&registration.geometry)?;
        let chunk_bytes: u64 = groups.iter().map(|group| group.layout.bytes()).sum();
        let (id, layers) = (payload.instance_id, payload.kv_cache.len());
        let (model, world_size) = (payload.model_name.clone(), payload.world_size);
        let device = registration.label().to_owned();
        let kind = Kind::LmcacheDriven { payload, registration: OnceLock::from(Arc::new(registration)) };
        let instance =
            Instance::new(id, &model, world_size, groups, (kind, &device), Instances::now(self.started))
                .of(self.tenant_of(client));
        let outcome = self.instances.register(instance).ok_or_else(super::instances::full)?;
        self.registered(client, id);
        if outcome != Registered::Refreshed {
            tracing::info!(
                instance = id,
                model,
                world_size,
                layers,
                chunk_bytes,
                replaced = outcome == Registered::Replaced,
                device,
                "worker registered (server-driven)"
            );
        }
        Ok(())
    }

    /// A worker as an earlier daemon has registered it; its memory is mapped when it is heard.
    pub(super) fn expected_kv_cache(&self, payload: Box<RegisterKvCache>) -> Result<Instance, Failure> {
        self.served(&payload)?;
        let geometry = Registration::geometry(&payload, &self.mapping_options(None))
            .map_err(|error| (Refusal::Layout, error.to_string()))?;
        let groups = self.groups_of(&geometry)?;
        let (id, model, world_size) = (payload.instance_id, payload.model_name.clone(), payload.world_size);
        let kind = (Kind::LmcacheDriven { payload, registration: OnceLock::new() }, "cpu");
        Ok(Instance::new(id, &model, world_size, groups, kind, Instances::now(self.started)).expected())
    }

    fn served(&self, payload: &RegisterKvCache) -> Result<(), Failure> {
        if !self.config.lmcache_driven {
            return Err((Refusal::Disabled, "server-driven transfer".into()));
        }
        if !(1..=255).contains(&payload.world_size) || validate_model(&payload.model_name).is_err() {
            let detail = format!("world size {}, model {:?}", payload.world_size, payload.model_name);
            return Err((Refusal::BadValue, detail));
        }
        Ok(())
    }

    /// How a client's memory is mapped; `None` where only its geometry is wanted.
    pub(super) fn mapping_options(&self, client: Option<&Client>) -> Options<'_> {
        let owner = client.and_then(Client::owner_of_segments);
        Options {
            chunk_tokens: self.hasher.chunk_size() as u64,
            separate_object_groups: self.config.separate_object_groups,
            limits: Limits { max_bytes: MAX_MAPPED_BYTES, owner },
            cuda: self.cuda.as_deref(),
            process: client.and_then(Client::process),
        }
    }

    fn groups_of(&self, geometry: &KvGeometry) -> Result<Vec<GroupShape>, Failure> {
        let groups: Vec<GroupShape> = geometry
            .object_groups
            .iter()
            .map(|group| GroupShape {
                layout: group.layout.clone(),
                // Windows of less than a chunk are full attention to the lookup, as in the peer.
                window: u64::try_from(group.window_chunks).ok().filter(|window| *window >= 1),
                aux: group.aux,
            })
            .collect();
        let chunk_bytes: u64 = groups.iter().map(|group| group.layout.bytes()).sum();
        if chunk_bytes > self.l1.pool().segment().bytes() {
            return Err((Refusal::Layout, format!("a chunk of {chunk_bytes} bytes is larger than the pool")));
        }
        Ok(groups)
    }

    /// Forgets a worker; its memory is unmapped when the last copy that uses it is done.
    pub(super) fn unregister_kv_cache(&self, id: u64) -> Result<(), Failure> {
        self.instances
            .remove(id, Mode::LmcacheDriven)
            .ok_or_else(|| (Refusal::UnknownInstance, format!("instance {id}")))?;
        self.forget_registration(id, Mode::LmcacheDriven);
        self.worker_gone(id);
        tracing::info!(instance = id, "worker unregistered (server-driven)");
        Ok(())
    }

    /// The worker's memory, for checks from outside.
    pub fn registration(&self, id: u64) -> Option<Arc<Registration>> {
        self.mapped(id).ok().map(|(_, registration)| registration)
    }

    fn mapped(&self, id: u64) -> Result<(Arc<Instance>, Arc<Registration>), Failure> {
        let instance = self.instances.get(id, Mode::LmcacheDriven);
        let mapped = instance.and_then(|instance| match &instance.kind {
            Kind::LmcacheDriven { registration, .. } => {
                let registration = registration.get()?.clone();
                Some((instance, registration))
            }
            Kind::EngineDriven { .. } => None,
        });
        mapped.ok_or_else(|| (Refusal::UnknownInstance, format!("instance {id}")))
    }

    /// Copies the chunks that are not cached out of the worker's blocks. All or nothing: one failed copy, and none of
    /// the request's objects is committed.
    pub(super) fn store(
        &self,
        client: &Client,
        key: &CacheKey<'_>,
        id: u64,
        block_ids: Vec<Vec<u64>>,
        event: &[u8],
    ) -> Result<Outcome, Failure> {
        self.waits(id)?;
        let (instance, worker) = self.mapped(id)?;
        let (range, rank) = (self.chunk_range(key)?, rank_of(key)?);
        let chain = self.chain(client, key, range.end)?;
        let hashes = &chain.hashes[range.clone()];
        check_coverage(&worker.geometry, &block_ids, hashes.len() as u64).map_err(bad_blocks)?;
        let null = null_chunks(&worker.geometry, &block_ids, hashes.len() as u64, self.config.null_block_id);

        let mut writing = Writing::new(&self.l1, self.waiting(id));
        for (group, shape) in worker.geometry.object_groups.iter().enumerate() {
            let chunks: Vec<usize> = (0..hashes.len()).filter(|chunk| !null[group][*chunk]).collect();
            let cells = chunks.iter().map(|chunk| (hashes[*chunk], rank, group as u32));
            let reserved = self.reserve(key, &instance, cells, &shape.layout, None)?;
            writing
                .objects
                .extend(reserved.into_iter().map(|object| (group, chunks[object.position], object)));
        }
        let parts = writing.objects.iter().enumerate().map(|(object, (group, chunk, _))| Part {
            object,
            group: *group,
            chunk: *chunk as u64,
            skip_tokens: 0,
        });
        let parts: Vec<Part> = parts.collect();
        if parts.is_empty() {
            return Ok(Outcome::Reply(Response::Transfer(worker.idle_event(), true)));
        }
        let cells = writing.objects.iter().map(|(group, chunk, _)| (hashes[*chunk], rank, *group as u32));
        let told = self.told(key, &instance, Direction::Store, cells);
        let writing = Arc::new(writing);
        let transfer = Transfer {
            direction: device::Direction::Store,
            geometry: worker.geometry.clone(),
            block_ids,
            parts,
            objects: writing.clone(),
            event: event.to_vec(),
        };
        transfer.check().map_err(bad_blocks)?;
        let with_tokens = key.worker_id == Some(0) && self.kv_events.enabled();
        let subject = Subject { client, key, instance: &instance, worker: &worker, range, rank, chain, told };
        let copy = self.copy_of(subject, with_tokens)?;
        if let Some(told) = &copy.told {
            self.bus.publish(|| Event::L1WriteReserved { keys: told.keys.clone() });
            self.transfer_submitted(told);
            self.transfer_started(told);
        }
        Ok(self.submit(Operation::Store, copy, transfer, move |engine, copy, moved| {
            engine.store_ended(copy, &writing, moved)
        }))
    }

    /// Copies cached chunks into the worker's blocks.
    pub(super) fn retrieve(
        &self,
        client: &Client,
        key: &CacheKey<'_>,
        id: u64,
        block_ids: Vec<Vec<u64>>,
        (skip_first, event): (u64, &[u8]),
    ) -> Result<Outcome, Failure> {
        self.waits(id)?;
        let (instance, worker) = self.mapped(id)?;
        let (range, rank) = (self.chunk_range(key)?, rank_of(key)?);
        let chain = self.chain(client, key, range.end)?;
        let hashes = &chain.hashes[range.clone()];
        check_coverage(&worker.geometry, &block_ids, hashes.len() as u64).map_err(bad_blocks)?;

        let mut reading = Reading::new(&self.l1, self.waiting(id));
        for (group, shape) in worker.geometry.object_groups.iter().enumerate() {
            // Private groups belong to their connector; a lookup does not lease them, a retrieve does not read them.
            if shape.aux {
                continue;
            }
            let first = shape.first_chunk(hashes.len() as u64) as usize;
            let cells = hashes[first..].iter().map(|hash| (*hash, rank, group as u32));
            let pinned = self.pin(key, &instance, cells, &shape.layout, None)?;
            reading
                .objects
                .extend(pinned.into_iter().zip(first..).map(|(object, chunk)| (group, chunk, object)));
        }
        let parts = reading.objects.iter().enumerate().filter_map(|(object, (group, chunk, _))| {
            // What the engine shares with other requests is left alone.
            let skip_tokens = skipped_in_chunk(&worker.geometry, *chunk as u64, skip_first)?;
            Some(Part { object, group: *group, chunk: *chunk as u64, skip_tokens })
        });
        let parts: Vec<Part> = parts.collect();
        let cells = reading.objects.iter().map(|(group, chunk, _)| (hashes[*chunk], rank, *group as u32));
        let told = self.told(key, &instance, Direction::Retrieve, cells);
        let reading = Arc::new(reading);
        let transfer = Transfer {
            direction: device::Direction::Retrieve,
            geometry: worker.geometry.clone(),
            block_ids,
            parts,
            objects: reading.clone(),
            event: event.to_vec(),
        };
        // Every block is known to exist before the first is touched.
        transfer.check().map_err(bad_blocks)?;
        let subject = Subject { client, key, instance: &instance, worker: &worker, range, rank, chain, told };
        let copy = self.copy_of(subject, false)?;
        if let Some(told) = &copy.told {
            self.transfer_submitted(told);
            self.transfer_started(told);
        }
        Ok(self.submit(Operation::Retrieve, copy, transfer, move |engine, copy, moved| {
            engine.retrieve_ended(copy, &reading, moved)
        }))
    }
}

fn bad_blocks(error: impl std::fmt::Display) -> Failure {
    (Refusal::BadValue, error.to_string())
}

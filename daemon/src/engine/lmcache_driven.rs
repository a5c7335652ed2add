//! Transfers that the daemon drives: it copies between the worker's memory, which it has mapped, and the pool.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use lmcache_proto::wire::{CacheKey, RegisterKvCache, Response, validate_model};

use super::engine_driven::rank_of;
use super::instances::{GroupShape, Instance, Instances, Kind, Mode, Registered};
use super::transfers::Direction;
use super::{Client, Engine, Failure, Refusal};
use crate::device::cpu_shm::Limits;
use crate::device::groups::KvGeometry;
use crate::device::plan::{check_coverage, null_chunks, skipped_in_chunk};
use crate::device::{Options, Registration};
use crate::events::Event;
use crate::l1::{L1, Pin, Pinned, Reserved};

/// What a transfer on CPU memory answers as its completion event: the client takes any bytes, but none at all would
/// mean that nothing was submitted.
const CPU_EVENT: &[u8] = b"stub_ipc_handle";

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
        let registration = Registration::new(&payload, &self.mapping_options(client.owner_of_segments()))
            .map_err(|error| (Refusal::Layout, error.to_string()))?;
        let groups = self.groups_of(&registration.geometry)?;
        let chunk_bytes: u64 = groups.iter().map(|group| group.layout.bytes()).sum();
        let (id, layers) = (payload.instance_id, payload.kv_cache.len());
        let (model, world_size) = (payload.model_name.clone(), payload.world_size);
        let kind = Kind::LmcacheDriven { payload, registration: OnceLock::from(Arc::new(registration)) };
        let instance = Instance::new(id, &model, world_size, groups, kind, Instances::now(self.started))
            .of(self.tenant_of(client));
        let outcome = self.instances.register(instance).ok_or_else(super::instances::full)?;
        self.registered(id);
        if outcome != Registered::Refreshed {
            tracing::info!(
                instance = id,
                model,
                world_size,
                layers,
                chunk_bytes,
                replaced = outcome == Registered::Replaced,
                "worker registered (server-driven, CPU memory)"
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
        let kind = Kind::LmcacheDriven { payload, registration: OnceLock::new() };
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

    /// How the memory of a worker is mapped whose segments must belong to `owner`.
    pub(super) fn mapping_options(&self, owner: Option<u32>) -> Options {
        Options {
            chunk_tokens: self.hasher.chunk_size() as u64,
            separate_object_groups: self.config.separate_object_groups,
            limits: Limits { max_bytes: MAX_MAPPED_BYTES, owner },
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
        block_ids: &[Vec<u64>],
    ) -> Result<Response, Failure> {
        let (instance, worker) = self.mapped(id)?;
        let (range, rank) = (self.chunk_range(key)?, rank_of(key)?);
        let chain = self.chain(client, key, range.end)?;
        let hashes = &chain.hashes[range.clone()];
        check_coverage(&worker.geometry, block_ids, hashes.len() as u64).map_err(bad_blocks)?;
        let null = null_chunks(&worker.geometry, block_ids, hashes.len() as u64, self.config.null_block_id);

        let mut writing = Writing { l1: &self.l1, objects: Vec::new() };
        for (group, shape) in worker.geometry.object_groups.iter().enumerate() {
            let chunks: Vec<usize> = (0..hashes.len()).filter(|chunk| !null[group][*chunk]).collect();
            let cells = chunks.iter().map(|chunk| (hashes[*chunk], rank, group as u32));
            let reserved = self.reserve(key, &instance, cells, &shape.layout, None)?;
            writing
                .objects
                .extend(reserved.into_iter().map(|object| (group, chunks[object.position], object)));
        }
        if writing.objects.is_empty() {
            return Ok(Response::Transfer(CPU_EVENT.to_vec(), true));
        }
        let cells = writing.objects.iter().map(|(group, chunk, _)| (hashes[*chunk], rank, *group as u32));
        let told = self.told(key, &instance, Direction::Store, cells);
        if let Some(told) = &told {
            self.bus.publish(|| Event::L1WriteReserved { keys: told.keys.clone() });
            self.transfer_submitted(told);
            self.transfer_started(told);
        }
        if let Err(failure) = self.copy_out(&worker, block_ids, &writing.objects) {
            if let Some(told) = &told {
                self.tell_stored(key, told, &vec![false; writing.objects.len()], 0, 0);
            }
            return Err(failure);
        }
        let objects = std::mem::take(&mut writing.objects);
        let pins: Vec<Pin> = objects.iter().map(|(_, _, object)| object.pin).collect();
        self.call_finish_write(told.as_deref());
        let done = self.commit_and_log(key, &chain, &pins, |at| range.start + objects[at].1);
        for (group, shape) in worker.geometry.object_groups.iter().enumerate() {
            let of_group = objects.iter().zip(&done).filter(|((at, ..), done)| **done && *at == group);
            let cells = of_group.map(|((_, chunk, _), _)| (hashes[*chunk], rank, group as u32)).collect();
            self.offer(key, cells, shape.layout.fingerprint(), shape.layout.bytes());
        }
        let tokens = (range.len() * self.hasher.chunk_size()) as u64;
        self.stats.stored_tokens.fetch_add(tokens, Ordering::Relaxed);
        if let Some(told) = &told {
            let bytes =
                |(group, ..): &(usize, usize, Reserved)| worker.geometry.object_groups[*group].layout.bytes();
            self.tell_stored(key, told, &done, objects.iter().map(bytes).sum(), tokens);
        }
        self.after_change();
        Ok(Response::Transfer(CPU_EVENT.to_vec(), true))
    }

    /// Fills reserved objects (group, chunk, object). All plans before the first copy: a bad block id changes nothing.
    fn copy_out(
        &self,
        worker: &Registration,
        block_ids: &[Vec<u64>],
        objects: &[(usize, usize, Reserved)],
    ) -> Result<(), Failure> {
        let plans = objects
            .iter()
            .map(|(group, chunk, _)| worker.plan(*group, block_ids, *chunk as u64, 0).map_err(bad_blocks))
            .collect::<Result<Vec<_>, _>>()?;
        for (plan, (_, _, object)) in plans.iter().zip(objects) {
            let slot = self.l1.slot_mut(object).ok_or_else(gone)?;
            worker.store(plan, &mut slot.into()).map_err(copy_failed)?;
        }
        Ok(())
    }

    /// Copies cached chunks into the worker's blocks.
    pub(super) fn retrieve(
        &self,
        client: &Client,
        key: &CacheKey<'_>,
        id: u64,
        block_ids: &[Vec<u64>],
        skip_first: u64,
    ) -> Result<Response, Failure> {
        let (instance, worker) = self.mapped(id)?;
        let (range, rank) = (self.chunk_range(key)?, rank_of(key)?);
        let chain = self.chain(client, key, range.end)?;
        let hashes = &chain.hashes[range.clone()];
        check_coverage(&worker.geometry, block_ids, hashes.len() as u64).map_err(bad_blocks)?;

        let mut reading = Reading { l1: &self.l1, objects: Vec::new() };
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
        let cells = reading.objects.iter().map(|(group, chunk, _)| (hashes[*chunk], rank, *group as u32));
        let told = self.told(key, &instance, Direction::Retrieve, cells);
        if let Some(told) = &told {
            self.transfer_submitted(told);
            self.transfer_started(told);
        }
        let copied = self.copy_in(&worker, block_ids, skip_first, &reading.objects).and_then(|()| {
            // After the copy: what was written into an object before or during it is found.
            let damaged = reading.objects.iter().filter(|(_, _, object)| !self.l1.verify(object)).count();
            if damaged == 0 { Ok(()) } else { Err(self.damaged(key, &instance, damaged as u64)) }
        });
        if copied.is_ok() {
            self.call_finish_read(told.as_deref());
            let read = |(_, chunk, object): &(usize, usize, Pinned)| {
                ((range.start + chunk) as u32, object.pin.object)
            };
            self.retrieved(key, id, reading.objects.iter().map(read));
        }
        let tokens = if copied.is_ok() { (range.len() * self.hasher.chunk_size()) as u64 } else { 0 };
        if let Some(told) = &told {
            let (count, bytes) = if copied.is_ok() {
                (reading.objects.len(), reading.objects.iter().map(|(_, _, object)| object.length).sum())
            } else {
                (0, 0)
            };
            self.read_finished(told.keys.clone());
            self.transfer_ended(told, count as u64, bytes, tokens);
        }
        self.stats.retrieved_tokens.fetch_add(tokens, Ordering::Relaxed);
        copied?;
        Ok(Response::Transfer(CPU_EVENT.to_vec(), true))
    }

    /// Copies pinned objects (group, chunk, object) into the worker's blocks. Every block is known to exist before the
    /// first is touched.
    fn copy_in(
        &self,
        worker: &Registration,
        block_ids: &[Vec<u64>],
        skip_first: u64,
        objects: &[(usize, usize, Pinned)],
    ) -> Result<(), Failure> {
        let mut plans = Vec::with_capacity(objects.len());
        for (group, chunk, object) in objects {
            // What the engine shares with other requests is left alone.
            let Some(skip) = skipped_in_chunk(&worker.geometry, *chunk as u64, skip_first) else { continue };
            plans.push((object, worker.plan(*group, block_ids, *chunk as u64, skip).map_err(bad_blocks)?));
        }
        for (object, plan) in &plans {
            let slot = self.l1.slot_ref(object).ok_or_else(gone)?;
            worker.retrieve(plan, slot.into()).map_err(copy_failed)?;
        }
        Ok(())
    }
}

/// Reserved objects (group, chunk, object), given up unless they are taken out: on every way out, a panic included.
struct Writing<'l> {
    l1: &'l L1,
    objects: Vec<(usize, usize, Reserved)>,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if !self.objects.is_empty() {
            self.l1.abort(self.objects.iter().map(|(_, _, object)| &object.pin));
        }
    }
}

/// Pinned objects (group, chunk, object), let go when it goes.
struct Reading<'l> {
    l1: &'l L1,
    objects: Vec<(usize, usize, Pinned)>,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.l1.unpin(self.objects.iter().map(|(_, _, object)| &object.pin));
    }
}

fn bad_blocks(error: impl std::fmt::Display) -> Failure {
    (Refusal::BadValue, error.to_string())
}

fn copy_failed(error: impl std::fmt::Display) -> Failure {
    (Refusal::CopyFailed, error.to_string())
}

fn gone() -> Failure {
    (Refusal::Internal, "a held object is gone".to_owned())
}

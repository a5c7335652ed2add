//! Transfers that the daemon drives: it copies between the worker's memory, which it has mapped, and the pool.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use lmcache_proto::wire::{CacheKey, RegisterKvCache, Response};

use super::engine_driven::rank_of;
use super::instances::{GroupShape, Instance, Instances, Kind, Mode, Registered};
use super::{Engine, Refusal};
use crate::device::cpu_shm::Limits;
use crate::device::plan::{check_coverage, null_chunks, skipped_in_chunk};
use crate::device::{Options, Registration};
use crate::l1::{Pin, Pinned, ReserveError, Reserved};

/// What a transfer on CPU memory answers as its completion event: the client takes any bytes, but none at all would
/// mean that nothing was submitted.
const CPU_EVENT: &[u8] = b"stub_ipc_handle";

/// Most memory that one worker may have mapped here. Mapping costs address space, not memory; the bound only keeps a
/// hostile worker from using it up.
const MAX_MAPPED_BYTES: u64 = 1 << 42;

type Failure = (Refusal, String);

impl Engine {
    /// Maps a worker's KV cache.
    pub(super) fn register_kv_cache(&self, payload: Box<RegisterKvCache>) -> Result<(), Failure> {
        if !self.config.lmcache_driven {
            return Err((Refusal::Disabled, "server-driven transfer".into()));
        }
        if !(1..=255).contains(&payload.world_size) || payload.model_name.contains('@') {
            let detail = format!("world size {}, model {:?}", payload.world_size, payload.model_name);
            return Err((Refusal::BadValue, detail));
        }
        let options = Options {
            chunk_tokens: self.hasher.chunk_size() as u64,
            separate_object_groups: self.config.separate_object_groups,
            limits: Limits { max_bytes: MAX_MAPPED_BYTES, owner: None },
        };
        let registration =
            Registration::new(&payload, &options).map_err(|error| (Refusal::Layout, error.to_string()))?;
        let groups: Vec<GroupShape> = registration
            .geometry
            .object_groups
            .iter()
            .map(|group| GroupShape {
                layout: group.layout.clone(),
                // Windows of less than a chunk are full attention to the lookup, as in the peer.
                window: u64::try_from(group.window_chunks).ok().filter(|window| *window >= 1),
                aux: group.aux,
            })
            .collect();
        let object_bytes: u64 = groups.iter().map(|group| group.layout.bytes()).sum();
        if object_bytes > self.l1.pool().segment().bytes() {
            return Err((
                Refusal::Layout,
                format!("a chunk of {object_bytes} bytes is larger than the pool"),
            ));
        }
        let (id, layers) = (payload.instance_id, payload.kv_cache.len());
        let (model, world_size) = (payload.model_name.clone(), payload.world_size);
        let kind = Kind::LmcacheDriven { payload, registration: Arc::new(registration) };
        let instance = Instance::new(id, &model, world_size, groups, kind, Instances::now(self.started));
        let outcome = self
            .instances
            .register(instance)
            .ok_or_else(|| (Refusal::BadValue, "too many workers are registered".to_owned()))?;
        self.registered(id);
        if outcome != Registered::Refreshed {
            tracing::info!(
                instance = id,
                model,
                world_size,
                layers,
                chunk_bytes = object_bytes,
                replaced = outcome == Registered::Replaced,
                "worker registered (server-driven, CPU memory)"
            );
        }
        Ok(())
    }

    /// Forgets a worker; its memory is unmapped when the last copy that uses it is done.
    pub(super) fn unregister_kv_cache(&self, id: u64) -> Result<(), Failure> {
        self.instances
            .remove(id, Mode::LmcacheDriven)
            .ok_or_else(|| (Refusal::UnknownInstance, format!("instance {id}")))?;
        self.worker_gone(id);
        tracing::info!(instance = id, "worker unregistered (server-driven)");
        Ok(())
    }

    /// The worker's memory, for checks from outside.
    pub fn registration(&self, id: u64) -> Option<Arc<Registration>> {
        match &self.instances.get(id, Mode::LmcacheDriven)?.kind {
            Kind::LmcacheDriven { registration, .. } => Some(registration.clone()),
            Kind::EngineDriven { .. } => None,
        }
    }

    fn mapped(&self, id: u64) -> Result<Arc<Registration>, Failure> {
        self.registration(id).ok_or_else(|| (Refusal::UnknownInstance, format!("instance {id}")))
    }

    /// Copies the chunks that are not cached out of the worker's blocks. All or nothing: one failed copy, and none of
    /// the request's objects is committed.
    pub(super) fn store(
        &self,
        key: &CacheKey<'_>,
        id: u64,
        block_ids: &[Vec<u64>],
    ) -> Result<Response, Failure> {
        let started = Instant::now();
        let worker = self.mapped(id)?;
        let (range, rank) = (self.chunk_range(key)?, rank_of(key)?);
        let chain = self.chain(key, range.end)?;
        check_coverage(&worker.geometry, block_ids, range.len() as u64).map_err(bad_blocks)?;
        let null = null_chunks(&worker.geometry, block_ids, range.len() as u64, self.config.null_block_id);

        let mut reserved = Vec::new();
        let copied = self.store_groups(
            key,
            &worker,
            block_ids,
            &null,
            &chain.hashes[range.clone()],
            rank,
            &mut reserved,
        );
        self.after_change();
        if let Err(failure) = copied {
            self.l1.abort(reserved.iter().map(|(_, object)| &object.pin));
            return Err(failure);
        }
        let pins: Vec<Pin> = reserved.iter().map(|(_, object)| object.pin).collect();
        self.l1.commit(pins.iter());
        if !reserved.is_empty() {
            let tokens = (range.len() * self.hasher.chunk_size()) as u64;
            self.stats.stored_tokens.fetch_add(tokens, Ordering::Relaxed);
            let seconds = started.elapsed().as_secs_f64();
            tracing::info!(request = key.request_id, "Stored {tokens} tokens in {seconds:.3} seconds");
            let mut chunks: Vec<usize> = reserved.iter().map(|(chunk, _)| range.start + chunk).collect();
            chunks.sort_unstable();
            chunks.dedup();
            self.report_stored(key, &chain, chunks.into_iter());
            self.after_change();
        }
        Ok(Response::Transfer(CPU_EVENT.to_vec(), true))
    }

    /// Reserves and fills the objects of all groups; what was reserved is in `reserved` whatever happens, with its chunk.
    #[expect(
        clippy::too_many_arguments,
        reason = "one step of `store`, split off so that every way out cleans up"
    )]
    fn store_groups(
        &self,
        key: &CacheKey<'_>,
        worker: &Registration,
        block_ids: &[Vec<u64>],
        null: &[Vec<bool>],
        hashes: &[[u8; 32]],
        rank: u32,
        reserved: &mut Vec<(usize, Reserved)>,
    ) -> Result<(), Failure> {
        for (group, shape) in worker.geometry.object_groups.iter().enumerate() {
            let chunks: Vec<usize> = (0..hashes.len()).filter(|chunk| !null[group][*chunk]).collect();
            let keys = chunks.iter().map(|chunk| (hashes[*chunk], rank, group as u32));
            let (fingerprint, bytes) = (shape.layout.fingerprint(), shape.layout.bytes());
            let objects = self
                .l1
                .reserve(key.model_name, key.cache_salt, keys, fingerprint, bytes, None)
                .map_err(|error| match error {
                    ReserveError::Full => (Refusal::PoolFull, "no memory".to_owned()),
                    ReserveError::TableFull => (Refusal::PoolFull, "no table record or name left".to_owned()),
                })?;
            let first = reserved.len();
            reserved.extend(objects.into_iter().map(|object| (chunks[object.position], object)));
            // All plans before the first copy: a bad block id stops the group untouched.
            let plans = reserved[first..]
                .iter()
                .map(|(chunk, _)| worker.plan(group, block_ids, *chunk as u64, 0).map_err(bad_blocks))
                .collect::<Result<Vec<_>, _>>()?;
            for (plan, (_, object)) in plans.iter().zip(&reserved[first..]) {
                let slot = self.l1.slot_mut(object).ok_or_else(gone)?;
                worker.store(plan, &mut slot.into()).map_err(copy_failed)?;
            }
        }
        Ok(())
    }

    /// Copies cached chunks into the worker's blocks.
    pub(super) fn retrieve(
        &self,
        key: &CacheKey<'_>,
        id: u64,
        block_ids: &[Vec<u64>],
        skip_first: u64,
    ) -> Result<Response, Failure> {
        let started = Instant::now();
        let worker = self.mapped(id)?;
        let (range, rank) = (self.chunk_range(key)?, rank_of(key)?);
        let chain = self.chain(key, range.end)?;
        check_coverage(&worker.geometry, block_ids, range.len() as u64).map_err(bad_blocks)?;
        let hashes = &chain.hashes[range.clone()];

        let mut pinned = Vec::new();
        let copied = self.retrieve_groups(key, &worker, block_ids, skip_first, hashes, rank, &mut pinned);
        let pins: Vec<Pin> = pinned.iter().map(|object| object.pin).collect();
        if copied.is_ok() {
            for (group, shape) in
                worker.geometry.object_groups.iter().enumerate().filter(|(_, shape)| !shape.aux)
            {
                let needed = needed(shape.first_chunk(hashes.len() as u64), &range);
                self.retrieved(key, id, rank, group as u32, needed);
            }
        }
        self.l1.unpin(pins.iter());
        copied?;
        let tokens = (range.len() * self.hasher.chunk_size()) as u64;
        self.stats.retrieved_tokens.fetch_add(tokens, Ordering::Relaxed);
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!(request = key.request_id, "Retrieved {tokens} tokens in {seconds:.3} seconds");
        Ok(Response::Transfer(CPU_EVENT.to_vec(), true))
    }

    /// Pins and copies the objects of all groups; what was pinned is in `pinned` whatever happens.
    #[expect(
        clippy::too_many_arguments,
        reason = "one step of `retrieve`, split off so that every way out cleans up"
    )]
    fn retrieve_groups(
        &self,
        key: &CacheKey<'_>,
        worker: &Registration,
        block_ids: &[Vec<u64>],
        skip_first: u64,
        hashes: &[[u8; 32]],
        rank: u32,
        pinned: &mut Vec<Pinned>,
    ) -> Result<(), Failure> {
        let mut plans = Vec::new();
        for (group, shape) in worker.geometry.object_groups.iter().enumerate() {
            // Private groups belong to their connector; a lookup does not lease them, a retrieve does not read them.
            if shape.aux {
                continue;
            }
            let first = shape.first_chunk(hashes.len() as u64) as usize;
            let keys = hashes[first..].iter().map(|hash| (*hash, rank, group as u32));
            let objects = self
                .l1
                .pin_read(key.model_name, key.cache_salt, keys, shape.layout.fingerprint(), None)
                .ok_or_else(|| {
                    let what =
                        format!("request {}, object group {group}, {} chunks", key.request_id, hashes.len());
                    (Refusal::NotResident, what)
                })?;
            let at = pinned.len();
            pinned.extend(objects);
            for (chunk, object) in (first..).zip(at..pinned.len()) {
                // What the engine shares with other requests is left alone.
                let Some(skip) = skipped_in_chunk(&worker.geometry, chunk as u64, skip_first) else {
                    continue;
                };
                plans.push((object, worker.plan(group, block_ids, chunk as u64, skip).map_err(bad_blocks)?));
            }
        }
        // Everything is there and every block exists: only now is the worker's memory touched.
        for (object, plan) in &plans {
            let slot = self.l1.slot_ref(&pinned[*object]).ok_or_else(gone)?;
            worker.retrieve(plan, slot.into()).map_err(copy_failed)?;
        }
        Ok(())
    }
}

/// Chunks of the prompt that a group was read in.
fn needed(first: u64, range: &Range<usize>) -> Range<usize> {
    range.start + first as usize..range.end
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

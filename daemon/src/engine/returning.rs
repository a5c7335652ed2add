//! Workers that an earlier daemon knew: they need not register again.
//!
//! At start their registrations are read and their models' objects can be looked up. Nothing of theirs is opened before they
//! are heard, and then only what is the very same memory: the same files, of the same process where that is known. A worker
//! whose registration no longer holds is unknown, as if it had never registered: its pings make it register again.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lmcache_proto::shm::names;
use lmcache_proto::wire::{Operation, Request};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use serde_bytes::ByteBuf;

use super::instances::{Instance, Instances, Kind, Mode};
use super::{Client, Engine, Failure, Refusal};
use crate::device::{Registration, is_on_gpu};
use crate::journal::{Claim, Journal, Survivor};
use crate::process::ProcessId;
use crate::roster::{Kept, MemoryFile};

/// Those that have not been heard yet.
#[derive(Debug, Default)]
pub(super) struct Returning {
    /// Read before every request that names a worker; 0 as soon as all have come.
    left: AtomicUsize,
    waiting: Mutex<FxHashMap<(u64, Mode), Kept>>,
}

impl Returning {
    fn take(&self, instance: u64, mode: Mode, fits: impl FnOnce(&Kept) -> bool) -> Option<Kept> {
        // Relaxed: filled before the first connection is accepted; after that it only falls.
        if self.left.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut waiting = self.waiting.lock();
        waiting.get(&(instance, mode)).filter(|kept| fits(kept))?;
        let kept = waiting.remove(&(instance, mode));
        self.left.store(waiting.len(), Ordering::Relaxed);
        kept
    }

    /// Those of a process.
    fn of(&self, process: ProcessId) -> Vec<(u64, Mode)> {
        let waiting = self.waiting.lock();
        let theirs = waiting.iter().filter(|(_, kept)| process_of(kept) == Some(process));
        theirs.map(|(key, _)| *key).collect()
    }
}

fn process_of(kept: &Kept) -> Option<ProcessId> {
    kept.process.map(|(pid, start_time)| ProcessId { pid, start_time })
}

impl Engine {
    /// Takes over the registrations that an earlier daemon kept, before the first connection is accepted. `waiting`: that
    /// daemon has handed over all requests, and says until when its workers certainly wait.
    pub fn expect_workers(&self, kept: Vec<Kept>, waiting: Option<&FxHashMap<u64, Duration>>) {
        let mut expected = 0;
        for kept in kept {
            let (instance, mode) = (kept.instance, kept.mode);
            let process = process_of(&kept);
            if process.is_some_and(|process| !process.alive()) {
                self.roster.forget(instance, mode);
                continue;
            }
            let registered = self
                .expected(&kept)
                .and_then(|worker| self.instances.register(worker).ok_or_else(super::instances::full));
            if let Err((_, reason)) = registered {
                tracing::warn!(
                    instance,
                    reason,
                    "the registration that the earlier daemon kept does not fit this one's configuration; the worker has to register again"
                );
                self.roster.forget(instance, mode);
                continue;
            }
            if let Some(process) = process {
                self.deaths.watch(process);
            }
            if mode == Mode::LmcacheDriven {
                let until = waiting.and_then(|waiting| waiting.get(&instance)).copied();
                self.untold.expect(instance, until.unwrap_or_default());
            }
            expected += 1;
            self.returning.waiting.lock().insert((instance, mode), kept);
        }
        self.returning.left.store(expected, Ordering::Relaxed);
        if expected > 0 {
            tracing::info!(
                workers = expected,
                "workers of the earlier daemon need not register again; their memory is opened when they are heard"
            );
        }
    }

    fn expected(&self, kept: &Kept) -> Result<Instance, Failure> {
        let operation = match kept.mode {
            Mode::EngineDriven => Operation::RegisterEngineDriven,
            Mode::LmcacheDriven => Operation::RegisterKvCache,
        };
        match Request::decode(operation, &kept.payload) {
            Ok(Request::RegisterEngineDriven(payload)) => {
                self.engine_driven_instance(&payload).map(|worker| worker.expected().of(kept.owner))
            }
            Ok(Request::RegisterKvCache(payload)) => {
                self.expected_kv_cache(payload).map(|worker| worker.of(kept.owner))
            }
            Ok(_) => Err((Refusal::Undecodable, "not a registration".to_owned())),
            Err(error) => Err((Refusal::Undecodable, error.to_string())),
        }
    }

    /// Somebody is heard while connections of the earlier daemon are yet to come back: is it one of those? Then what it has
    /// asked for and was not answered is answered now.
    pub(super) fn find_owed(&self, client: &Client, request: &Request<'_>) {
        let Some(first) = client.first.get().copied().flatten() else { return };
        let instance = super::instance_of(request);
        // A scheduler's pings name nobody.
        let is_schedulers = request.operation().is_schedulers() || matches!(request, Request::Ping { .. });
        if instance.is_none() && !is_schedulers {
            return;
        }
        let Claim { owed, waits_until, .. } = self.journal.claim(instance, client.as_peer(), first);
        if let Some(instance) = instance {
            self.untold.is_back(instance, waits_until);
            // The daemon after this one must know it, too, should this one end before the next ping.
            if let Some(lane) = &client.lane {
                lane.waits_until(waits_until);
            }
        }
        if owed.is_empty() {
            return;
        }
        for owed in &owed {
            self.stats.refused(&client.peer, owed.operation, Refusal::Restarted, "under way at the restart");
        }
        client.owed.lock().extend(owed);
        client.owes.store(true, Ordering::Relaxed);
    }

    /// A connection that the service manager has kept over a restart. Its worker misses nothing: what was under way is
    /// answered.
    pub fn survivor(&self, connection: u64) -> Option<Survivor> {
        let survivor = self.journal.survivor(connection)?;
        if let Some(instance) = survivor.instance() {
            self.untold.is_back(instance, survivor.waits_until());
        }
        Some(survivor)
    }

    /// A worker has been heard: if an earlier daemon knew it, it is known again.
    pub(super) fn returned(&self, client: &Client, instance: u64, pings: bool) {
        // Relaxed: as in `take`.
        if self.returning.left.load(Ordering::Relaxed) == 0 {
            return;
        }
        // A ping tells it of the restart, and then it is no worker any more: nothing is opened for that. Nor is GPU memory, which
        // takes a while, before there is something to copy: pings are answered at once.
        if pings && (self.untold.contains(instance) || self.is_on_gpu(instance)) {
            return;
        }
        for mode in [Mode::EngineDriven, Mode::LmcacheDriven] {
            // Others may speak for a worker, a tool that pings for one, say. It has not come back with them.
            let is_its_own = |kept: &Kept| match (process_of(kept), client.process()) {
                (Some(worker), Some(speaker)) => worker == speaker,
                _ => true,
            };
            let Some(kept) = self.returning.take(instance, mode, is_its_own) else { continue };
            match self.reopen(client, &kept) {
                Ok(()) => {
                    self.speaks_for(client, instance);
                    tracing::info!(instance, peer = client.peer, "worker of the earlier daemon is back");
                }
                Err(reason) => {
                    tracing::warn!(
                        instance,
                        reason,
                        "the memory of a worker of the earlier daemon is not what it was; the worker has to register again"
                    );
                    self.forget_registration(instance, mode);
                    self.instances.remove(instance, mode);
                    self.worker_gone(instance);
                }
            }
        }
    }

    fn is_on_gpu(&self, instance: u64) -> bool {
        let instance = self.instances.get(instance, Mode::LmcacheDriven);
        instance.is_some_and(|instance| match &instance.kind {
            Kind::LmcacheDriven { payload, .. } => is_on_gpu(payload),
            Kind::EngineDriven { .. } => false,
        })
    }

    fn reopen(&self, client: &Client, kept: &Kept) -> Result<(), String> {
        // Engine-driven workers have mapped the pool, which is the same; there is nothing of theirs to open.
        let Some(instance) = self.instances.get(kept.instance, kept.mode) else { return Ok(()) };
        let Kind::LmcacheDriven { payload, registration } = &instance.kind else { return Ok(()) };
        // A handle of GPU memory names an allocation of a process: it is opened for that process and no other.
        if is_on_gpu(payload) && (client.process().is_none() || client.process() != process_of(kept)) {
            return Err("whose GPU memory its handles name is not certain over TCP".to_owned());
        }
        let opened = Registration::new(payload, &self.mapping_options(Some(client)))
            .map_err(|error| error.to_string())?;
        if files(&opened) != kept.memory {
            return Err("its memory is another under the same names".to_owned());
        }
        // Only whoever took the entry comes here.
        if *opened.label() == *instance.worker.device {
            let _ = registration.set(Arc::new(opened));
            return Ok(());
        }
        // Which GPU it is was not known before.
        let device = opened.label().to_owned();
        let kind = Kind::LmcacheDriven { payload: payload.clone(), registration: Arc::new(opened).into() };
        let groups = instance.groups.to_vec();
        let (now, model) = (Instances::now(self.started), &instance.model);
        let known = Instance::new(instance.id, model, instance.world_size, groups, (kind, &device), now);
        let registered = self.instances.register(known.of(instance.owner).expected());
        registered.map(drop).ok_or_else(|| "too many workers are registered".to_owned())
    }

    /// A worker registers: what an earlier daemon knew of it is of no use any more.
    pub(super) fn registers_anew(&self, client: &Client, instance: u64, operation: Operation) {
        self.heartbeats.begin_anew(instance);
        if let Some(lane) = &client.lane {
            lane.waits_until(Duration::ZERO);
        }
        if let Some(mode) = mode_of(operation) {
            drop(self.returning.take(instance, mode, |_| true));
            if mode == Mode::LmcacheDriven {
                self.untold.need_not_tell(instance);
            }
        }
    }

    /// Keeps a registration for the next daemon.
    pub(super) fn keep_registration<T: AsRef<[u8]>>(
        &self,
        client: &Client,
        instance: u64,
        operation: Operation,
        payload: &[T],
    ) {
        let Some(mode) = mode_of(operation) else { return };
        let memory = match mode {
            Mode::EngineDriven => Vec::new(),
            Mode::LmcacheDriven => self.registration(instance).map_or_else(Vec::new, |opened| files(&opened)),
        };
        self.roster.keep(&Kept {
            instance,
            mode,
            process: client.process().map(|process| (process.pid, process.start_time)),
            memory,
            owner: self.tenant_of(client),
            payload: payload.iter().map(|frame| ByteBuf::from(frame.as_ref())).collect(),
        });
    }

    /// A worker is gone: neither this daemon nor the next expects it.
    pub(super) fn forget_registration(&self, instance: u64, mode: Mode) {
        drop(self.returning.take(instance, mode, |_| true));
        if mode == Mode::LmcacheDriven {
            self.untold.need_not_tell(instance);
        }
        self.roster.forget(instance, mode);
    }

    /// Workers of a dead process that have not come back.
    pub(super) fn will_not_return(&self, process: ProcessId) -> Vec<u64> {
        self.returning.of(process).into_iter().map(|(instance, _)| instance).collect()
    }

    /// The files of the next daemon are removed with the pool.
    pub fn discard_registrations(&self) {
        self.roster.discard();
        Journal::discard(&names::journal(&self.config.pool_name));
    }
}

fn mode_of(operation: Operation) -> Option<Mode> {
    match operation {
        Operation::RegisterEngineDriven => Some(Mode::EngineDriven),
        Operation::RegisterKvCache => Some(Mode::LmcacheDriven),
        _ => None,
    }
}

fn files(registration: &Registration) -> Vec<MemoryFile> {
    let files = registration.files().into_iter();
    files.map(|file| MemoryFile { device: file.device, inode: file.inode, size: file.size }).collect()
}

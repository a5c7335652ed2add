//! Copies that the daemon drives, from their submission to their end.
//!
//! A device tells when a copy is over, on a thread of its own and perhaps long after the request was read. What follows from it
//! is here: objects become readable, leases and pins end, events are told, the request is answered and counted. Nothing of
//! it waits for the connection that asked: a copy whose client has gone ends all the same.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use lmcache_proto::hash::{Chain, ChunkHash};
use lmcache_proto::wire::{CacheKey, Operation, Response, Tokens};
use tokio::sync::oneshot;

use super::instances::{Instance, Mode};
use super::publish::Told;
use super::{Client, Engine, Failure, OpOutcome, Outcome, Refusal};
use crate::device::Registration;
use crate::device::copy::{CopyError, ObjectMut, ObjectRef};
use crate::device::transfer::{Moved, Objects, Transfer};
use crate::l1::{L1, Pin, Pinned, Reserved};

/// Copies of one worker that may be under way at once. An engine has a few for each of its running requests.
const MAX_OF_WORKER: usize = 1024;
/// Copies that may be under way at once.
const MAX_OF_ALL: usize = 8192;

/// A key that outlives its message. Its tokens are kept if somebody will want them.
#[derive(Debug)]
pub(super) struct KeptKey {
    model: String,
    salt: String,
    request_id: String,
    world_size: u32,
    worker_id: Option<u32>,
    tokens: (usize, Vec<u8>),
    range: Range<u64>,
    readers: u32,
}

impl KeptKey {
    fn new(key: &CacheKey<'_>, with_tokens: bool) -> KeptKey {
        let tokens = if with_tokens { key.tokens.bytes().to_vec() } else { Vec::new() };
        KeptKey {
            model: key.model_name.to_owned(),
            salt: key.cache_salt.to_owned(),
            request_id: key.request_id.to_owned(),
            world_size: key.world_size,
            worker_id: key.worker_id,
            tokens: (key.tokens.len(), tokens),
            range: key.start..key.end,
            readers: key.num_kv_readers,
        }
    }

    fn key(&self) -> CacheKey<'_> {
        CacheKey {
            model_name: &self.model,
            world_size: self.world_size,
            worker_id: self.worker_id,
            tokens: Tokens::of_checked(self.tokens.0, &self.tokens.1),
            start: self.range.start,
            end: self.range.end,
            request_id: &self.request_id,
            cache_salt: &self.salt,
            // Nothing that ends a copy looks at them.
            request_configs: &[0xc0],
            num_kv_readers: self.readers,
        }
    }
}

/// Copies under way, of all workers.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Arc<AtomicUsize>);

/// One of them; counted until it goes. While it is there its worker is in use.
#[derive(Debug)]
pub(super) struct Turn {
    all: Arc<AtomicUsize>,
    instance: Arc<Instance>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
        self.instance.copies.fetch_sub(1, Ordering::Relaxed);
    }
}

impl UnderWay {
    /// A place for one more copy of a worker.
    fn turn(&self, instance: &Arc<Instance>) -> Result<Turn, Failure> {
        let all = self.0.fetch_add(1, Ordering::Relaxed);
        let own = instance.copies.fetch_add(1, Ordering::Relaxed);
        let turn = Turn { all: self.0.clone(), instance: instance.clone() };
        if all < MAX_OF_ALL && own < MAX_OF_WORKER {
            return Ok(turn);
        }
        Err((Refusal::Limit, format!("{own} copies of instance {} are under way, {all} in all", instance.id)))
    }
}

/// For whom a copy is.
pub(super) struct Waiting {
    engine: Weak<Engine>,
    instance: u64,
}

impl Waiting {
    fn certainly(&self) -> bool {
        // A daemon that is ending tells nobody what became of it.
        self.engine.upgrade().is_none_or(|engine| engine.certainly_waits(self.instance))
    }
}

/// Reserved objects (group, chunk, object), given up unless they are committed: on every way out, a panic included.
pub(super) struct Writing {
    l1: Arc<L1>,
    waiting: Waiting,
    pub(super) objects: Vec<(usize, usize, Reserved)>,
    committed: AtomicBool,
}

impl Writing {
    pub(super) fn new(l1: &Arc<L1>, waiting: Waiting) -> Writing {
        Writing { l1: l1.clone(), waiting, objects: Vec::new(), committed: AtomicBool::new(false) }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.committed.load(Ordering::Relaxed) && !self.objects.is_empty() {
            self.l1.abort(self.objects.iter().map(|(_, _, object)| &object.pin));
        }
    }
}

impl Objects for Writing {
    fn writable(&self, at: usize) -> Option<ObjectMut<'_>> {
        let (_, _, object) = self.objects.get(at)?;
        self.l1.slot_mut(object).map(ObjectMut::from)
    }

    fn readable(&self, _: usize) -> Option<ObjectRef<'_>> {
        None
    }

    fn awaited(&self) -> bool {
        self.waiting.certainly()
    }
}

/// Pinned objects (group, chunk, object), let go when it goes.
pub(super) struct Reading {
    l1: Arc<L1>,
    waiting: Waiting,
    pub(super) objects: Vec<(usize, usize, Pinned)>,
}

impl Reading {
    pub(super) fn new(l1: &Arc<L1>, waiting: Waiting) -> Reading {
        Reading { l1: l1.clone(), waiting, objects: Vec::new() }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.l1.unpin(self.objects.iter().map(|(_, _, object)| &object.pin));
    }
}

impl Objects for Reading {
    fn writable(&self, _: usize) -> Option<ObjectMut<'_>> {
        None
    }

    fn readable(&self, at: usize) -> Option<ObjectRef<'_>> {
        let (_, _, object) = self.objects.get(at)?;
        self.l1.slot_ref(object).map(ObjectRef::from)
    }

    fn awaited(&self) -> bool {
        self.waiting.certainly()
    }
}

/// What is the same for both directions.
pub(super) struct Copy {
    turn: Turn,
    key: KeptKey,
    peer: String,
    worker: Arc<Registration>,
    /// Chunks of the prompt.
    range: Range<usize>,
    rank: u32,
    chain: Chain,
    pub(super) told: Option<Arc<Told>>,
}

impl Copy {
    fn hashes(&self) -> &[ChunkHash] {
        &self.chain.hashes[self.range.clone()]
    }

    fn instance(&self) -> &Instance {
        &self.turn.instance
    }
}

/// Of whom and of what a copy is.
pub(super) struct Subject<'a> {
    pub(super) client: &'a Client,
    pub(super) key: &'a CacheKey<'a>,
    pub(super) instance: &'a Arc<Instance>,
    pub(super) worker: &'a Arc<Registration>,
    pub(super) range: Range<usize>,
    pub(super) rank: u32,
    pub(super) chain: Chain,
    pub(super) told: Option<Arc<Told>>,
}

impl Engine {
    pub(super) fn waiting(&self, instance: u64) -> Waiting {
        Waiting { engine: self.me.clone(), instance }
    }

    pub(super) fn copy_of(&self, subject: Subject<'_>, with_tokens: bool) -> Result<Copy, Failure> {
        let Subject { client, key, instance, worker, range, rank, chain, told } = subject;
        Ok(Copy {
            turn: self.copies.turn(instance)?,
            key: KeptKey::new(key, with_tokens),
            peer: client.peer.clone(),
            worker: worker.clone(),
            range,
            rank,
            chain,
            told,
        })
    }

    /// Hands a transfer to its device. What the device says of it goes to `ended`, whose answer is the request's.
    pub(super) fn submit(
        &self,
        operation: Operation,
        copy: Copy,
        transfer: Transfer,
        ended: impl FnOnce(&Engine, &Copy, Result<Moved, CopyError>) -> Result<Response, Failure> + Send + 'static,
    ) -> Outcome {
        let (answer, pending) = oneshot::channel();
        let engine = self.me.clone();
        let worker = copy.worker.clone();
        worker.submit(
            transfer,
            Box::new(move |moved| {
                // The daemon has ended without waiting for it: there is nobody to tell, and the next one drops its objects.
                let Some(engine) = engine.upgrade() else { return };
                let response = engine.answered(operation, &copy.peer, ended(&engine, &copy, moved));
                // Whoever hears that it is over finds the worker unused.
                drop(copy);
                // Nobody waits for the answer when the connection has gone.
                let _ = answer.send(response);
            }),
        );
        Outcome::Pending(pending)
    }

    /// Counts a request that has ended, and says what it is answered.
    fn answered(&self, operation: Operation, peer: &str, ended: Result<Response, Failure>) -> Response {
        match ended {
            Ok(response) => {
                self.stats.count(operation, OpOutcome::Ok);
                response
            }
            Err((reason, detail)) => {
                self.stats.refused(peer, operation, reason, detail);
                self.negative(operation)
            }
        }
    }

    /// A store's copy is over. All or nothing: one failed copy, and none of the request's objects is committed.
    pub(super) fn store_ended(
        &self,
        copy: &Copy,
        writing: &Writing,
        moved: Result<Moved, CopyError>,
    ) -> Result<Response, Failure> {
        let Copy { worker, range, chain, rank, told, .. } = copy;
        let (key, hashes, objects) = (&copy.key.key(), copy.hashes(), &writing.objects);
        // After the last byte was read: what the worker has given up before that is not what it was.
        let moved =
            moved.and_then(|moved| if writing.awaited() { Ok(moved) } else { Err(CopyError::GivenUp) });
        let moved = match moved {
            Ok(moved) => moved,
            Err(error) => {
                self.forget_if_lost(copy);
                if let Some(told) = told {
                    self.tell_stored(key, told, &vec![false; objects.len()], 0, 0);
                }
                return Err(copy_failed(error));
            }
        };
        let pins: Vec<Pin> = objects.iter().map(|(_, _, object)| object.pin).collect();
        self.call_finish_write(told.as_deref());
        let done = self.commit_and_log(key, chain, &pins, |at| range.start + objects[at].1);
        writing.committed.store(true, Ordering::Relaxed);
        for (group, shape) in worker.geometry.object_groups.iter().enumerate() {
            let of_group = objects.iter().zip(&done).filter(|((at, ..), done)| **done && *at == group);
            let cells = of_group.map(|((_, chunk, _), _)| (hashes[*chunk], *rank, group as u32)).collect();
            self.offer(key, cells, shape.layout.fingerprint(), shape.layout.bytes());
        }
        let tokens = (range.len() * self.hasher.chunk_size()) as u64;
        self.stats.stored_tokens.fetch_add(tokens, Ordering::Relaxed);
        if let Some(told) = told {
            let bytes =
                |(group, ..): &(usize, usize, Reserved)| worker.geometry.object_groups[*group].layout.bytes();
            told.copied_in(moved.device_time);
            self.tell_stored(key, told, &done, objects.iter().map(bytes).sum(), tokens);
        }
        self.after_change();
        Ok(Response::Transfer(moved.event, true))
    }

    /// A retrieve's copy is over.
    pub(super) fn retrieve_ended(
        &self,
        copy: &Copy,
        reading: &Reading,
        moved: Result<Moved, CopyError>,
    ) -> Result<Response, Failure> {
        let Copy { range, told, .. } = copy;
        let key = &copy.key.key();
        let noted = moved.inspect_err(|_| self.forget_if_lost(copy));
        let copied = noted.map_err(copy_failed).and_then(|moved| {
            // After the copy: what was written into an object before or during it is found.
            let damaged = reading.objects.iter().filter(|(_, _, object)| !self.l1.verify(object)).count();
            if damaged == 0 { Ok(moved) } else { Err(self.damaged(key, copy.instance(), damaged as u64)) }
        });
        if copied.is_ok() {
            self.call_finish_read(told.as_deref());
            let read = |(_, chunk, object): &(usize, usize, Pinned)| {
                ((range.start + chunk) as u32, object.pin.object)
            };
            self.retrieved(key, copy.instance().id, reading.objects.iter().map(read));
        }
        let tokens = if copied.is_ok() { (range.len() * self.hasher.chunk_size()) as u64 } else { 0 };
        if let Some(told) = told {
            let (count, bytes) = match &copied {
                Ok(moved) => {
                    told.copied_in(moved.device_time);
                    (reading.objects.len(), reading.objects.iter().map(|(_, _, object)| object.length).sum())
                }
                Err(_) => (0, 0),
            };
            self.read_finished(told.keys.clone());
            self.transfer_ended(told, count as u64, bytes, tokens);
        }
        self.stats.retrieved_tokens.fetch_add(tokens, Ordering::Relaxed);
        Ok(Response::Transfer(copied?.event, true))
    }

    /// A worker that came back just when its GPU was lost was not known yet when that was told.
    fn forget_if_lost(&self, copy: &Copy) {
        let id = copy.instance().id;
        // Somebody registers it, or has heard of the loss: its next copy fails, too, if it must be forgotten still.
        if copy.worker.is_lost()
            && let Some(_turn) = self.turns.now(id)
        {
            self.forget_lost(id);
        }
    }

    /// A device takes nothing of a worker any more. `false`: somebody has the worker's turn, also after a moment if the caller
    /// would `wait`.
    pub(super) fn is_lost(&self, id: u64, wait: bool) -> bool {
        let turn = if wait { self.turns.soon(id) } else { self.turns.now(id) };
        if turn.is_some() {
            self.forget_lost(id);
        }
        turn.is_some()
    }

    /// Forgets a worker if its device takes nothing of it any more: its pings make it register again, and that opens everything
    /// anew. The caller has its turn.
    fn forget_lost(&self, id: u64) {
        let Some(instance) = self.instances.get(id, Mode::LmcacheDriven) else { return };
        if !instance.is_lost() || !self.instances.remove_this(&instance) {
            return;
        }
        self.forget_registration(id, Mode::LmcacheDriven);
        self.worker_gone(id);
        tracing::warn!(
            instance = id,
            device = &*instance.worker.device,
            "worker is forgotten because its GPU takes nothing of it any more; its next pings make it register again"
        );
    }
}

fn copy_failed(error: CopyError) -> Failure {
    (Refusal::CopyFailed, error.to_string())
}

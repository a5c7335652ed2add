//! Transfers under way: slices of the pool, and the commit that ends them.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use lmcache_proto::shm::ring::{Kind, Record};
use lmcache_proto::transfer_id::{TransferDirection, request_hash, transfer_id};
use lmcache_proto::wire::{
    Operation, PrepareRetrieveResponse, PrepareStoreResponse, Response, Slot as WireSlot,
};

use crate::client::{Client, Worker, uint};
use crate::error::{ClientError, SlotError};
use crate::identity::monotonic_nanos;
use crate::pool::Slot;
use crate::registration::Prompt;

/// What both directions have.
#[derive(Debug)]
struct Transfer {
    client: Client,
    worker: Arc<Worker>,
    key: Bytes,
    slots: Vec<Slot>,
    transfer: u64,
    request: u64,
    direction: TransferDirection,
    /// When the worker says it copied.
    copied: Option<(u64, u64)>,
}

impl Transfer {
    fn publish(&self, kind: Kind, nanos: u64, success: bool) {
        let end = matches!(kind, Kind::MpStoreEnd | Kind::MpRetrieveEnd);
        let count = if end { self.slots.len() as u64 } else { 0 };
        self.client.publisher().publish(&Record {
            kind,
            transfer: self.transfer,
            nanos,
            bytes: count * self.worker.object_bytes,
            tokens: count * self.worker.chunk_size,
            count: count as u32,
            success,
            request: self.request,
        });
    }

    /// The worker has its slots and begins to copy.
    fn begin(&self, submitted: u64) {
        let (kind, start) = match self.direction {
            TransferDirection::Store => (Kind::MpStoreSubmitted, Kind::MpStoreStart),
            TransferDirection::Retrieve => (Kind::MpRetrieveSubmitted, Kind::MpRetrieveStart),
        };
        self.publish(kind, submitted, true);
        self.publish(start, monotonic_nanos(), true);
    }

    /// The worker has copied. Before the commit is sent: the daemon looks for this record when the commit comes.
    async fn commit(&self, operation: Operation) -> Result<(), ClientError> {
        let (start, end) = match self.direction {
            TransferDirection::Store => (Kind::MpStoreStart, Kind::MpStoreEnd),
            TransferDirection::Retrieve => (Kind::MpRetrieveStart, Kind::MpRetrieveEnd),
        };
        match self.copied {
            // The start that stands is the last one said before the end.
            Some((began, ended)) => {
                self.publish(start, began, true);
                self.publish(end, ended, true);
            }
            None => self.publish(end, monotonic_nanos(), true),
        }
        let mut frames = vec![self.key.clone(), uint(self.worker.registration.instance_id)];
        if operation == Operation::CommitStore {
            // Inline data: none, it is in the pool.
            frames.push(Bytes::from_static(&[0xc4, 0]));
        }
        match self.client.call_frames(operation, frames, false, self.client.deadline()).await? {
            Response::Flag(true) => Ok(()),
            Response::Flag(false) => Err(ClientError::Refused(operation)),
            _ => Err(ClientError::WrongKind(operation)),
        }
    }
}

/// Lends the slots that the daemon named, all or none.
fn lend(worker: &Worker, named: &[WireSlot], write: bool) -> Result<Vec<Slot>, SlotError> {
    named
        .iter()
        .map(|slot| {
            if slot.length != worker.object_bytes {
                return Err(SlotError::Length { length: slot.length, object: worker.object_bytes });
            }
            worker.pool.lend(slot.offset, slot.length, write)
        })
        .collect()
}

async fn prepare(
    client: &Client,
    prompt: &Prompt<'_>,
    range: &Range<u64>,
    operation: Operation,
) -> Result<(Arc<Worker>, Bytes, u64, Response), ClientError> {
    let worker = client.worker()?;
    let chunks = prompt.chunks(range, worker.chunk_size)?;
    let registration = &worker.registration;
    let key = Bytes::from(prompt.key(registration, Some(registration.rank), range.clone())?);
    let frames = vec![key.clone(), uint(registration.instance_id)];
    let response = client.call_frames(operation, frames, true, client.deadline()).await?;
    // The call may have found a restarted daemon, with another pool.
    let worker = client.worker()?;
    Ok((worker, key, chunks, response))
}

/// A store under way: slots to fill for the chunks that are not cached yet.
///
/// Dropped without a commit, nothing of it is stored, and the same store can be prepared again and gets the same slots. The
/// daemon gives slots of a store that is never committed to nobody else while this process lives.
#[derive(Debug)]
pub struct Store {
    transfer: Transfer,
    chunks: Vec<u64>,
}

impl Store {
    pub(crate) async fn prepare(
        client: &Client,
        prompt: &Prompt<'_>,
        range: Range<u64>,
    ) -> Result<Store, ClientError> {
        let operation = Operation::PrepareStore;
        let submitted = monotonic_nanos();
        let (worker, key, chunks, response) = prepare(client, prompt, &range, operation).await?;
        let Response::PrepareStore(PrepareStoreResponse { context }) = response else {
            return Err(ClientError::WrongKind(operation));
        };
        let context = context.ok_or(ClientError::Refused(operation))?;
        let slots = context.slots.len() as u64;
        let indices = &context.chunk_indices;
        let sound = slots <= chunks
            && indices.len() as u64 == slots
            && indices.is_sorted_by(|a, b| a < b)
            && indices.last().is_none_or(|last| *last < chunks);
        let failed = |source| ClientError::Slots { operation, source };
        if !sound {
            return Err(failed(SlotError::Count { slots, chunks }));
        }
        let lent = lend(&worker, &context.slots, true).map_err(failed)?;
        let direction = TransferDirection::Store;
        let store = Store {
            transfer: Transfer {
                client: client.clone(),
                worker,
                key,
                slots: lent,
                transfer: transfer_id(prompt.request_id, range.start, range.end, direction),
                request: request_hash(prompt.request_id),
                direction,
                copied: None,
            },
            chunks: context.chunk_indices,
        };
        if !store.is_empty() {
            store.transfer.begin(submitted);
        }
        Ok(store)
    }

    /// Slots to fill; 0 when everything is cached already.
    pub fn len(&self) -> usize {
        self.transfer.slots.len()
    }

    /// Whether everything is cached already: there is nothing to copy, and the commit is free.
    pub fn is_empty(&self) -> bool {
        self.transfer.slots.is_empty()
    }

    /// Which chunk of the range slot `slot` is for, from 0.
    pub fn chunk(&self, slot: usize) -> Option<u64> {
        self.chunks.get(slot).copied()
    }

    /// The bytes of slot `slot`, in the pool.
    pub fn slot_mut(&mut self, slot: usize) -> Option<&mut [u8]> {
        self.transfer.slots.get_mut(slot)?.bytes_mut()
    }

    /// All slots with their chunks.
    pub fn slots_mut(&mut self) -> impl Iterator<Item = (u64, &mut [u8])> {
        let slots = self.transfer.slots.iter_mut();
        self.chunks.iter().copied().zip(slots).filter_map(|(chunk, slot)| Some((chunk, slot.bytes_mut()?)))
    }

    /// Says when the worker copied, in [`monotonic_nanos`]: for workers whose copy does not take the time between prepare and
    /// commit, such as those that queue it on a device. Without it, prepare and commit stand for start and end.
    pub fn copied(&mut self, start: u64, end: u64) {
        self.transfer.copied = Some((start, end));
    }

    /// Makes the chunks readable for everybody. All slots must have been filled.
    ///
    /// # Errors
    /// `Refused` when the daemon has taken the slots back (`--l1-write-ttl-seconds`, or a restart): nothing is stored.
    pub async fn commit(self) -> Result<(), ClientError> {
        if self.is_empty() {
            return Ok(());
        }
        self.transfer.commit(Operation::CommitStore).await
    }
}

/// A retrieve under way: pinned slots to read, one for each chunk of the range.
///
/// Dropped without a commit, its pins end with the client's next call.
#[derive(Debug)]
pub struct Retrieve {
    transfer: Transfer,
    committed: bool,
}

impl Retrieve {
    pub(crate) async fn prepare(
        client: &Client,
        prompt: &Prompt<'_>,
        range: Range<u64>,
    ) -> Result<Retrieve, ClientError> {
        let operation = Operation::PrepareRetrieve;
        let submitted = monotonic_nanos();
        let (worker, key, chunks, response) = prepare(client, prompt, &range, operation).await?;
        let Response::PrepareRetrieve(PrepareRetrieveResponse { slots }) = response else {
            return Err(ClientError::WrongKind(operation));
        };
        let named = slots.ok_or(ClientError::Refused(operation))?;
        let direction = TransferDirection::Retrieve;
        // Made first: should the slots be no good, dropping it gives the pins back.
        let mut retrieve = Retrieve {
            transfer: Transfer {
                client: client.clone(),
                worker,
                key,
                slots: Vec::new(),
                transfer: transfer_id(prompt.request_id, range.start, range.end, direction),
                request: request_hash(prompt.request_id),
                direction,
                copied: None,
            },
            committed: false,
        };
        let failed = |source| ClientError::Slots { operation, source };
        if named.len() as u64 != chunks {
            return Err(failed(SlotError::Count { slots: named.len() as u64, chunks }));
        }
        retrieve.transfer.slots = lend(&retrieve.transfer.worker, &named, false).map_err(failed)?;
        retrieve.transfer.begin(submitted);
        Ok(retrieve)
    }

    /// Slots to read: one for each chunk of the range.
    pub fn len(&self) -> usize {
        self.transfer.slots.len()
    }

    /// Never: a range has chunks.
    pub fn is_empty(&self) -> bool {
        self.transfer.slots.is_empty()
    }

    /// The bytes of chunk `chunk` of the range, in the pool.
    pub fn slot(&self, chunk: usize) -> Option<&[u8]> {
        self.transfer.slots.get(chunk).map(Slot::bytes)
    }

    /// All chunks of the range, in order.
    pub fn slots(&self) -> impl Iterator<Item = &[u8]> {
        self.transfer.slots.iter().map(Slot::bytes)
    }

    /// Says when the worker copied, in [`monotonic_nanos`]: for workers whose copy does not take the time between prepare and
    /// commit, such as those that queue it on a device. Without it, prepare and commit stand for start and end.
    pub fn copied(&mut self, start: u64, end: u64) {
        self.transfer.copied = Some((start, end));
    }

    /// Gives the slots back; the worker has its copy.
    ///
    /// # Errors
    /// `Refused` when the daemon was restarted meanwhile: then the copy may be of bytes that have changed, and must not be
    /// used.
    pub async fn commit(mut self) -> Result<(), ClientError> {
        self.committed = true;
        self.transfer.commit(Operation::CommitRetrieve).await
    }
}

impl Drop for Retrieve {
    fn drop(&mut self) {
        if !self.committed {
            // The slots are lent until after this, but nobody can touch them any more: `self` is gone.
            self.transfer.client.abandon(self.transfer.key.clone());
        }
    }
}

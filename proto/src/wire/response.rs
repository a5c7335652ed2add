//! Responses: one frame, or none at all for "nothing to say".

use serde::{Deserialize, Serialize};

use super::operation::Operation;
use super::reader::{DecodeError, Reader};
use super::ring::AttachRingResponse;
use super::structs::{from_frame, to_frame};
use super::writer::Writer;

/// What an operation answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// No response frame: a void operation's acknowledgement, and "still pending" of a status query.
    Nothing,
    /// `store` and `retrieve`: the completion event's handle (empty: no device work) and whether it worked.
    Transfer(Vec<u8>, bool),
    /// A count (`query_prefetch_status`, `get_chunk_size`).
    Count(u64),
    /// A verdict (`ping`, commits).
    Flag(bool),
    /// A string (`noop`).
    Text(&'static str),
    /// Capability names (`get_experimental`).
    Names(Vec<String>),
    /// `register_kv_cache_engine_driven_context`.
    Registered(RegisterEngineDrivenResponse),
    /// `prepare_store`.
    PrepareStore(PrepareStoreResponse),
    /// `prepare_retrieve`.
    PrepareRetrieve(PrepareRetrieveResponse),
    /// One batch of the KV event stream.
    KvEvents(KvEventBatch),
    /// `lmcached_attach_ring`.
    RingAttached(AttachRingResponse),
}

/// Where the pool is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterEngineDrivenResponse {
    /// Name for `shm_open`, without the leading slash.
    pub shm_name: String,
    /// Bytes to map.
    pub pool_size: u64,
}

/// One piece of the pool that the worker may touch until it commits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Byte offset into the pool.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Tensor shape of the slot.
    pub shape: Vec<u64>,
    /// torch dtype name.
    pub dtype: String,
}

/// Slots to write. An absent context (`{}` on the wire) means "could not prepare"; empty slots mean "everything
/// is cached already" to the client, so the two must never be mixed up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreContext {
    /// One slot per chunk to write.
    pub slots: Vec<Slot>,
    /// Which chunk of the request each slot is for.
    pub chunk_indices: Vec<u64>,
}

/// Answer of `prepare_store`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrepareStoreResponse {
    /// `None` is encoded as an empty map.
    pub context: Option<StoreContext>,
}

/// Answer of `prepare_retrieve`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrepareRetrieveResponse {
    /// Slots to read; `None` is "failed" (`success` false, `context` empty).
    pub slots: Option<Vec<Slot>>,
}

/// A change of the cache's contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvEventRecord {
    /// Position in the log, from 1.
    pub seq: u64,
    /// `stored` or `removed`.
    pub kind: String,
    /// Always `CPU`.
    pub medium: String,
    /// Model of the chunks.
    pub model_name: String,
    /// Chunk hashes.
    pub block_hashes: Vec<serde_bytes::ByteBuf>,
    /// Hash of the chunk before the first one.
    pub parent_block_hash: Option<serde_bytes::ByteBuf>,
    /// Tokens of a stored chunk.
    pub token_ids: Vec<u32>,
}

/// One frame of the KV event stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvEventBatch {
    /// Whether the daemon keeps the log at all.
    pub enabled: bool,
    /// Changes at every daemon start; a subscriber that sees a new one starts over.
    pub incarnation: u64,
    /// Where to go on reading.
    pub next_cursor: u64,
    /// Records between the cursor and the first one here are gone.
    pub lost: bool,
    /// The records.
    pub events: Vec<KvEventRecord>,
}

impl Response {
    /// The response frame, or `None` for [`Response::Nothing`].
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut w = Writer::new();
        match self {
            Response::Nothing => return None,
            Response::Transfer(event, ok) => {
                w.array(2).bin(event).bool(*ok);
            }
            Response::Count(count) => {
                w.uint(*count);
            }
            Response::Flag(flag) => {
                w.bool(*flag);
            }
            Response::Text(text) => {
                w.str(text);
            }
            Response::Names(names) => {
                w.array(names.len());
                for name in names {
                    w.str(name);
                }
            }
            Response::Registered(registered) => return Some(to_frame(registered)),
            Response::PrepareStore(PrepareStoreResponse { context }) => {
                w.map(1).str("context");
                match context {
                    Some(context) => {
                        w.map(2).str("slots");
                        encode_slots(&mut w, &context.slots);
                        w.str("chunk_indices").array(context.chunk_indices.len());
                        for index in &context.chunk_indices {
                            w.uint(*index);
                        }
                    }
                    None => {
                        w.map(0);
                    }
                }
            }
            Response::PrepareRetrieve(PrepareRetrieveResponse { slots }) => {
                w.map(3).str("success").bool(slots.is_some()).str("data").bin(b"").str("context");
                match slots {
                    Some(slots) => {
                        w.map(1).str("slots");
                        encode_slots(&mut w, slots);
                    }
                    None => {
                        w.map(0);
                    }
                }
            }
            Response::KvEvents(batch) => return Some(to_frame(batch)),
            Response::RingAttached(attached) => return Some(to_frame(attached)),
        }
        Some(w.into_vec())
    }

    /// Decodes the response frame of `operation` on the client side.
    ///
    /// # Errors
    /// The frame is not what the operation answers.
    pub fn decode(operation: Operation, frame: Option<&[u8]>) -> Result<Response, DecodeError> {
        let Some(frame) = frame else { return Ok(Response::Nothing) };
        let mut reader = Reader::new(frame);
        let response = match operation {
            Operation::Store | Operation::Retrieve => {
                if reader.array()? != 2 {
                    return Err(DecodeError::Invalid("transfer result is not a pair"));
                }
                Response::Transfer(reader.bin()?.to_vec(), reader.bool()?)
            }
            Operation::QueryPrefetchStatus | Operation::WaitPrefetchStatus | Operation::GetChunkSize => {
                Response::Count(reader.u64()?)
            }
            Operation::Ping
            | Operation::CommitStore
            | Operation::CommitRetrieve
            | Operation::Authenticate => Response::Flag(reader.bool()?),
            Operation::Noop => match reader.str()? {
                "OK" => Response::Text("OK"),
                _ => return Err(DecodeError::Invalid("noop did not answer OK")),
            },
            Operation::GetExperimental => {
                let count = reader.array()?;
                let names: Result<Vec<_>, _> = (0..count).map(|_| reader.str().map(str::to_owned)).collect();
                Response::Names(names?)
            }
            Operation::RegisterEngineDriven => return Ok(Response::Registered(from_frame(frame)?)),
            Operation::PrepareStore => {
                let wire: WirePrepareStore = from_frame(frame)?;
                let context = match (wire.context.slots, wire.context.chunk_indices) {
                    (Some(slots), Some(chunk_indices)) => Some(StoreContext { slots, chunk_indices }),
                    _ => None,
                };
                return Ok(Response::PrepareStore(PrepareStoreResponse { context }));
            }
            Operation::PrepareRetrieve => {
                let wire: WirePrepareRetrieve = from_frame(frame)?;
                let slots = wire.context.slots.filter(|_| wire.success);
                return Ok(Response::PrepareRetrieve(PrepareRetrieveResponse { slots }));
            }
            Operation::SubscribeKvEvents => return Ok(Response::KvEvents(from_frame(frame)?)),
            Operation::AttachRing => return Ok(Response::RingAttached(from_frame(frame)?)),
            _ => return Err(DecodeError::Invalid("void operation answered with a frame")),
        };
        reader.finish()?;
        Ok(response)
    }
}

fn encode_slots(w: &mut Writer, slots: &[Slot]) {
    w.array(slots.len());
    for slot in slots {
        w.map(4)
            .str("offset")
            .uint(slot.offset)
            .str("length")
            .uint(slot.length)
            .str("shape")
            .array(slot.shape.len());
        for dim in &slot.shape {
            w.uint(*dim);
        }
        w.str("dtype").str(&slot.dtype);
    }
}

#[derive(Deserialize)]
struct WireContext {
    #[serde(default)]
    slots: Option<Vec<Slot>>,
    #[serde(default)]
    chunk_indices: Option<Vec<u64>>,
}

#[derive(Deserialize)]
struct WirePrepareStore {
    context: WireContext,
}

#[derive(Deserialize)]
struct WirePrepareRetrieve {
    success: bool,
    context: WireContext,
}

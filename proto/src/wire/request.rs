//! Requests: payload frames in, a typed request out, and back.

use super::key::{CacheKey, TokenMemo};
use super::operation::Operation;
use super::reader::{DecodeError, Reader};
use super::ring::ProcessIdentity;
use super::structs::{
    BlockAllocationRecord, RegisterEngineDrivenPayload, RegisterKvCache, from_frame, scalar_u64, to_frame,
};
use super::writer::Writer;

/// Most KV groups of one model.
const MAX_GROUPS: usize = 256;

/// A decoded request.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "variants and fields are the protocol's arguments, see ARCHITECTURE.md")]
pub enum Request<'a> {
    RegisterKvCache(Box<RegisterKvCache>),
    UnregisterKvCache {
        instance_id: u64,
    },
    Store {
        key: CacheKey<'a>,
        instance_id: u64,
        block_ids: Vec<Vec<u64>>,
        event: &'a [u8],
    },
    Retrieve {
        key: CacheKey<'a>,
        instance_id: u64,
        block_ids: Vec<Vec<u64>>,
        event: &'a [u8],
        skip_first_n_tokens: u64,
    },
    Lookup {
        key: CacheKey<'a>,
        tp_size: u64,
    },
    QueryPrefetchStatus {
        request_id: &'a str,
    },
    WaitPrefetchStatus {
        request_id: &'a str,
        timeout: f64,
    },
    FreeLookupLocks {
        key: CacheKey<'a>,
        tp_size: u64,
    },
    EndSession {
        request_id: &'a str,
    },
    RegisterEngineDriven(Box<RegisterEngineDrivenPayload>),
    UnregisterEngineDriven {
        instance_id: u64,
    },
    PrepareStore {
        key: CacheKey<'a>,
        instance_id: u64,
    },
    CommitStore {
        key: CacheKey<'a>,
        instance_id: u64,
        data: &'a [u8],
    },
    PrepareRetrieve {
        key: CacheKey<'a>,
        instance_id: u64,
    },
    CommitRetrieve {
        key: CacheKey<'a>,
        instance_id: u64,
    },
    Clear {
        force: bool,
    },
    GetChunkSize,
    Ping {
        instance_id: Option<u64>,
    },
    ReportBlockAllocation {
        instance_id: u64,
        model_name: &'a str,
        records: Vec<BlockAllocationRecord>,
    },
    Noop,
    GetExperimental,
    SubscribeKvEvents {
        instance_id: u64,
        model_name: &'a str,
        cursor: i64,
        max_events: i64,
    },
    AttachRing {
        instance_id: u64,
        process: Option<Box<ProcessIdentity>>,
    },
}

fn exactly<const N: usize, T: AsRef<[u8]>>(payload: &[T]) -> Result<[&[u8]; N], DecodeError> {
    if payload.len() != N {
        return Err(DecodeError::Arity { want: N, got: payload.len() });
    }
    Ok(std::array::from_fn(|i| payload[i].as_ref()))
}

fn str_frame(frame: &[u8]) -> Result<&str, DecodeError> {
    let mut reader = Reader::new(frame);
    let value = reader.str()?;
    reader.finish()?;
    Ok(value)
}

fn bin_frame(frame: &[u8]) -> Result<&[u8], DecodeError> {
    let mut reader = Reader::new(frame);
    let value = reader.bin()?;
    reader.finish()?;
    Ok(value)
}

fn i64_frame(frame: &[u8]) -> Result<i64, DecodeError> {
    let mut reader = Reader::new(frame);
    let value = i64::try_from(reader.i128()?).map_err(|_| DecodeError::Range { what: "integer" })?;
    reader.finish()?;
    Ok(value)
}

fn block_ids(frame: &[u8]) -> Result<Vec<Vec<u64>>, DecodeError> {
    let mut reader = Reader::new(frame);
    let groups = reader.array()?;
    if groups > MAX_GROUPS {
        return Err(DecodeError::Range { what: "number of block lists" });
    }
    let mut lists = Vec::with_capacity(groups);
    for _ in 0..groups {
        // `array` has checked the count against the bytes left, so this reservation is at most 8× the frame.
        let count = reader.array()?;
        let mut list = Vec::with_capacity(count);
        for _ in 0..count {
            list.push(reader.u64()?);
        }
        lists.push(list);
    }
    reader.finish()?;
    Ok(lists)
}

impl<'a> Request<'a> {
    /// Decodes the payload frames of `operation`.
    ///
    /// # Errors
    /// A wrong number of frames, or a frame that is not what the protocol has at its place.
    pub fn decode<T: AsRef<[u8]>>(
        operation: Operation,
        payload: &'a [T],
    ) -> Result<Request<'a>, DecodeError> {
        Request::decode_with(operation, payload, &mut TokenMemo::default())
    }

    /// [`Request::decode`] with what is remembered of the client's last key (see [`TokenMemo`]).
    ///
    /// # Errors
    /// As [`Request::decode`].
    pub fn decode_with<T: AsRef<[u8]>>(
        operation: Operation,
        payload: &'a [T],
        memo: &mut TokenMemo,
    ) -> Result<Request<'a>, DecodeError> {
        Ok(match operation {
            Operation::RegisterKvCache => {
                Request::RegisterKvCache(Box::new(RegisterKvCache::decode(&exactly::<7, _>(payload)?)?))
            }
            Operation::UnregisterKvCache => {
                Request::UnregisterKvCache { instance_id: scalar_u64(exactly::<1, _>(payload)?[0])? }
            }
            Operation::Store => {
                let [key, instance, blocks, event] = exactly(payload)?;
                Request::Store {
                    key: CacheKey::decode_with(key, memo)?,
                    instance_id: scalar_u64(instance)?,
                    block_ids: block_ids(blocks)?,
                    event: bin_frame(event)?,
                }
            }
            Operation::Retrieve => {
                let [key, instance, blocks, event, skip] = exactly(payload)?;
                Request::Retrieve {
                    key: CacheKey::decode_with(key, memo)?,
                    instance_id: scalar_u64(instance)?,
                    block_ids: block_ids(blocks)?,
                    event: bin_frame(event)?,
                    skip_first_n_tokens: scalar_u64(skip)?,
                }
            }
            Operation::Lookup => {
                let [key, tp_size] = exactly(payload)?;
                Request::Lookup { key: CacheKey::decode_with(key, memo)?, tp_size: scalar_u64(tp_size)? }
            }
            Operation::QueryPrefetchStatus => {
                Request::QueryPrefetchStatus { request_id: str_frame(exactly::<1, _>(payload)?[0])? }
            }
            Operation::WaitPrefetchStatus => {
                let [request_id, timeout] = exactly(payload)?;
                let mut reader = Reader::new(timeout);
                let timeout = reader.f64()?;
                reader.finish()?;
                Request::WaitPrefetchStatus { request_id: str_frame(request_id)?, timeout }
            }
            Operation::FreeLookupLocks => {
                let [key, tp_size] = exactly(payload)?;
                Request::FreeLookupLocks {
                    key: CacheKey::decode_with(key, memo)?,
                    tp_size: scalar_u64(tp_size)?,
                }
            }
            Operation::EndSession => {
                Request::EndSession { request_id: str_frame(exactly::<1, _>(payload)?[0])? }
            }
            Operation::RegisterEngineDriven => {
                Request::RegisterEngineDriven(Box::new(from_frame(exactly::<1, _>(payload)?[0])?))
            }
            Operation::UnregisterEngineDriven => {
                Request::UnregisterEngineDriven { instance_id: scalar_u64(exactly::<1, _>(payload)?[0])? }
            }
            Operation::PrepareStore => {
                let [key, instance] = exactly(payload)?;
                Request::PrepareStore {
                    key: CacheKey::decode_with(key, memo)?,
                    instance_id: scalar_u64(instance)?,
                }
            }
            Operation::CommitStore => {
                let [key, instance, data] = exactly(payload)?;
                Request::CommitStore {
                    key: CacheKey::decode_with(key, memo)?,
                    instance_id: scalar_u64(instance)?,
                    data: bin_frame(data)?,
                }
            }
            Operation::PrepareRetrieve => {
                let [key, instance] = exactly(payload)?;
                Request::PrepareRetrieve {
                    key: CacheKey::decode_with(key, memo)?,
                    instance_id: scalar_u64(instance)?,
                }
            }
            Operation::CommitRetrieve => {
                let [key, instance] = exactly(payload)?;
                Request::CommitRetrieve {
                    key: CacheKey::decode_with(key, memo)?,
                    instance_id: scalar_u64(instance)?,
                }
            }
            Operation::Clear => {
                let mut reader = Reader::new(exactly::<1, _>(payload)?[0]);
                let force = reader.bool()?;
                reader.finish()?;
                Request::Clear { force }
            }
            Operation::GetChunkSize => {
                exactly::<0, _>(payload)?;
                Request::GetChunkSize
            }
            Operation::Ping => {
                let frame = exactly::<1, _>(payload)?[0];
                let instance_id = if frame == [0xc0] { None } else { Some(scalar_u64(frame)?) };
                Request::Ping { instance_id }
            }
            Operation::ReportBlockAllocation => {
                let [instance, model, records] = exactly(payload)?;
                Request::ReportBlockAllocation {
                    instance_id: scalar_u64(instance)?,
                    model_name: str_frame(model)?,
                    records: from_frame(records)?,
                }
            }
            Operation::Noop => {
                exactly::<0, _>(payload)?;
                Request::Noop
            }
            Operation::GetExperimental => {
                exactly::<0, _>(payload)?;
                Request::GetExperimental
            }
            Operation::SubscribeKvEvents => {
                let [instance, model, cursor, max_events] = exactly(payload)?;
                Request::SubscribeKvEvents {
                    instance_id: scalar_u64(instance)?,
                    model_name: str_frame(model)?,
                    cursor: i64_frame(cursor)?,
                    max_events: i64_frame(max_events)?,
                }
            }
            Operation::AttachRing => {
                let [instance, process] = exactly(payload)?;
                Request::AttachRing { instance_id: scalar_u64(instance)?, process: from_frame(process)? }
            }
        })
    }

    /// The operation that this request is.
    pub fn operation(&self) -> Operation {
        match self {
            Request::RegisterKvCache(_) => Operation::RegisterKvCache,
            Request::UnregisterKvCache { .. } => Operation::UnregisterKvCache,
            Request::Store { .. } => Operation::Store,
            Request::Retrieve { .. } => Operation::Retrieve,
            Request::Lookup { .. } => Operation::Lookup,
            Request::QueryPrefetchStatus { .. } => Operation::QueryPrefetchStatus,
            Request::WaitPrefetchStatus { .. } => Operation::WaitPrefetchStatus,
            Request::FreeLookupLocks { .. } => Operation::FreeLookupLocks,
            Request::EndSession { .. } => Operation::EndSession,
            Request::RegisterEngineDriven(_) => Operation::RegisterEngineDriven,
            Request::UnregisterEngineDriven { .. } => Operation::UnregisterEngineDriven,
            Request::PrepareStore { .. } => Operation::PrepareStore,
            Request::CommitStore { .. } => Operation::CommitStore,
            Request::PrepareRetrieve { .. } => Operation::PrepareRetrieve,
            Request::CommitRetrieve { .. } => Operation::CommitRetrieve,
            Request::Clear { .. } => Operation::Clear,
            Request::GetChunkSize => Operation::GetChunkSize,
            Request::Ping { .. } => Operation::Ping,
            Request::ReportBlockAllocation { .. } => Operation::ReportBlockAllocation,
            Request::Noop => Operation::Noop,
            Request::GetExperimental => Operation::GetExperimental,
            Request::SubscribeKvEvents { .. } => Operation::SubscribeKvEvents,
            Request::AttachRing { .. } => Operation::AttachRing,
        }
    }
}

/// Encodes a request's payload frames, as the peer's client does.
pub fn encode_request(request: &Request<'_>) -> Vec<Vec<u8>> {
    fn one(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut w = Writer::new();
        write(&mut w);
        w.into_vec()
    }
    let uint = |value: u64| {
        one(|w| {
            w.uint(value);
        })
    };
    let str = |value: &str| {
        one(|w| {
            w.str(value);
        })
    };
    let bin = |value: &[u8]| {
        one(|w| {
            w.bin(value);
        })
    };
    let blocks = |lists: &[Vec<u64>]| {
        one(|w| {
            w.array(lists.len());
            for list in lists {
                w.array(list.len());
                for id in list {
                    w.uint(*id);
                }
            }
        })
    };
    match request {
        Request::RegisterKvCache(register) => register.encode(),
        Request::UnregisterKvCache { instance_id } | Request::UnregisterEngineDriven { instance_id } => {
            vec![uint(*instance_id)]
        }
        Request::Store { key, instance_id, block_ids, event } => {
            vec![key.encode(), uint(*instance_id), blocks(block_ids), bin(event)]
        }
        Request::Retrieve { key, instance_id, block_ids, event, skip_first_n_tokens } => {
            vec![key.encode(), uint(*instance_id), blocks(block_ids), bin(event), uint(*skip_first_n_tokens)]
        }
        Request::Lookup { key, tp_size } | Request::FreeLookupLocks { key, tp_size } => {
            vec![key.encode(), uint(*tp_size)]
        }
        Request::QueryPrefetchStatus { request_id } | Request::EndSession { request_id } => {
            vec![str(request_id)]
        }
        Request::WaitPrefetchStatus { request_id, timeout } => {
            vec![
                str(request_id),
                one(|w| {
                    w.f64(*timeout);
                }),
            ]
        }
        Request::RegisterEngineDriven(payload) => vec![to_frame(payload)],
        Request::PrepareStore { key, instance_id }
        | Request::PrepareRetrieve { key, instance_id }
        | Request::CommitRetrieve { key, instance_id } => vec![key.encode(), uint(*instance_id)],
        Request::CommitStore { key, instance_id, data } => vec![key.encode(), uint(*instance_id), bin(data)],
        Request::Clear { force } => vec![one(|w| {
            w.bool(*force);
        })],
        Request::GetChunkSize | Request::Noop | Request::GetExperimental => vec![],
        Request::Ping { instance_id } => vec![match instance_id {
            Some(id) => uint(*id),
            None => one(|w| {
                w.nil();
            }),
        }],
        Request::ReportBlockAllocation { instance_id, model_name, records } => {
            vec![uint(*instance_id), str(model_name), to_frame(records)]
        }
        Request::SubscribeKvEvents { instance_id, model_name, cursor, max_events } => vec![
            uint(*instance_id),
            str(model_name),
            one(|w| {
                w.int(*cursor);
            }),
            one(|w| {
                w.int(*max_events);
            }),
        ],
        Request::AttachRing { instance_id, process } => vec![uint(*instance_id), to_frame(process)],
    }
}

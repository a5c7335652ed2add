//! Payload frames into a typed request.

use super::frame::{self, exactly};
use super::key::{CacheKey, TokenMemo};
use super::operation::Operation;
use super::reader::{DecodeError, NIL};
use super::request::{Request, Secret};
use super::ring::ProcessIdentity;
use super::structs::{BlockAllocationRecord, RegisterEngineDrivenPayload, RegisterKvCache};

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
                Request::UnregisterKvCache { instance_id: frame::u64(exactly::<1, _>(payload)?[0])? }
            }
            Operation::Store => {
                let [key, instance, blocks, event] = exactly(payload)?;
                Request::Store {
                    key: CacheKey::decode_with(key, memo)?,
                    instance_id: frame::u64(instance)?,
                    block_ids: frame::block_ids(blocks)?,
                    event: frame::bin(event)?,
                }
            }
            Operation::Retrieve => {
                let [key, instance, blocks, event, skip] = exactly(payload)?;
                Request::Retrieve {
                    key: CacheKey::decode_with(key, memo)?,
                    instance_id: frame::u64(instance)?,
                    block_ids: frame::block_ids(blocks)?,
                    event: frame::bin(event)?,
                    skip_first_n_tokens: frame::u64(skip)?,
                }
            }
            Operation::Lookup => {
                let [key, tp_size] = exactly(payload)?;
                Request::Lookup { key: CacheKey::decode_with(key, memo)?, tp_size: frame::u64(tp_size)? }
            }
            Operation::QueryPrefetchStatus => Request::QueryPrefetchStatus {
                request_id: frame::name(exactly::<1, _>(payload)?[0], "length of request_id")?,
            },
            Operation::WaitPrefetchStatus => {
                let [request_id, timeout] = exactly(payload)?;
                Request::WaitPrefetchStatus {
                    request_id: frame::name(request_id, "length of request_id")?,
                    timeout: frame::f64(timeout)?,
                }
            }
            Operation::FreeLookupLocks => {
                let [key, tp_size] = exactly(payload)?;
                Request::FreeLookupLocks {
                    key: CacheKey::decode_with(key, memo)?,
                    tp_size: frame::u64(tp_size)?,
                }
            }
            Operation::EndSession => Request::EndSession {
                request_id: frame::name(exactly::<1, _>(payload)?[0], "length of request_id")?,
            },
            Operation::RegisterEngineDriven => {
                let [payload] = exactly(payload)?;
                Request::RegisterEngineDriven(Box::new(RegisterEngineDrivenPayload::decode(payload)?))
            }
            Operation::UnregisterEngineDriven => {
                Request::UnregisterEngineDriven { instance_id: frame::u64(exactly::<1, _>(payload)?[0])? }
            }
            Operation::PrepareStore => {
                let [key, instance] = exactly(payload)?;
                Request::PrepareStore {
                    key: CacheKey::decode_with(key, memo)?,
                    instance_id: frame::u64(instance)?,
                }
            }
            Operation::CommitStore => {
                let [key, instance, data] = exactly(payload)?;
                Request::CommitStore {
                    key: CacheKey::decode_with(key, memo)?,
                    instance_id: frame::u64(instance)?,
                    data: frame::bin(data)?,
                }
            }
            Operation::PrepareRetrieve => {
                let [key, instance] = exactly(payload)?;
                Request::PrepareRetrieve {
                    key: CacheKey::decode_with(key, memo)?,
                    instance_id: frame::u64(instance)?,
                }
            }
            Operation::CommitRetrieve => {
                let [key, instance] = exactly(payload)?;
                Request::CommitRetrieve {
                    key: CacheKey::decode_with(key, memo)?,
                    instance_id: frame::u64(instance)?,
                }
            }
            Operation::Clear => Request::Clear { force: frame::bool(exactly::<1, _>(payload)?[0])? },
            Operation::GetChunkSize => {
                exactly::<0, _>(payload)?;
                Request::GetChunkSize
            }
            Operation::Ping => {
                let [instance] = exactly(payload)?;
                let instance_id = if instance == [NIL] { None } else { Some(frame::u64(instance)?) };
                Request::Ping { instance_id }
            }
            Operation::ReportBlockAllocation => {
                let [instance, model, records] = exactly(payload)?;
                Request::ReportBlockAllocation {
                    instance_id: frame::u64(instance)?,
                    model_name: frame::name(model, "length of model_name")?,
                    records: BlockAllocationRecord::decode_list(records)?,
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
                    instance_id: frame::u64(instance)?,
                    model_name: frame::name(model, "length of model_name")?,
                    cursor: frame::i64(cursor)?,
                    max_events: frame::i64(max_events)?,
                }
            }
            Operation::Authenticate => Request::Authenticate {
                token: Secret(frame::name(exactly::<1, _>(payload)?[0], "length of token")?),
            },
            Operation::AttachRing => {
                let [instance, process] = exactly(payload)?;
                Request::AttachRing {
                    instance_id: frame::u64(instance)?,
                    process: ProcessIdentity::decode(process)?,
                }
            }
        })
    }
}

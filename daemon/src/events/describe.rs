//! An event in JSON, for people who watch. Keys are counted, not listed: one event may have thousands.
#![forbid(unsafe_code)]

use std::sync::Arc;

use lmcache_proto::hash::ChunkHash;
use lmcache_proto::layout::Region;
use lmcache_proto::wire::BlockAllocationRecord;
use serde_json::{Map, Value, json};

use super::event::{
    AdapterId, CbPhase, During, Event, EvictionCause, Keys, LookupEnd, PrefetchFailure, ReadFailure,
    SaltCounts, TraceCall, TransferEnd, TransferId, Worker,
};

trait ToJson {
    fn to_json(&self) -> Value;
}

macro_rules! plain {
    ($($type:ty),*) => {
        $(impl ToJson for $type {
            fn to_json(&self) -> Value {
                json!(*self)
            }
        })*
    };
}

plain!(u64, u32, f64, bool, &'static str, Option<u32>);

impl ToJson for Arc<str> {
    fn to_json(&self) -> Value {
        Value::from(&**self)
    }
}

impl ToJson for Option<Arc<str>> {
    fn to_json(&self) -> Value {
        self.as_deref().map_or(Value::Null, Value::from)
    }
}

impl ToJson for Keys {
    fn to_json(&self) -> Value {
        json!({"model": &**self.model(), "cache_salt": &**self.salt(), "count": self.len()})
    }
}

impl ToJson for SaltCounts {
    fn to_json(&self) -> Value {
        Value::Object(self.iter().map(|(salt, count)| (salt.to_string(), json!(count))).collect())
    }
}

impl ToJson for AdapterId {
    fn to_json(&self) -> Value {
        json!({"index": self.index, "name": &*self.name})
    }
}

impl ToJson for Worker {
    fn to_json(&self) -> Value {
        json!({"instance": self.engine_id, "device": &*self.device, "model": &*self.model})
    }
}

impl ToJson for TransferId {
    fn to_json(&self) -> Value {
        json!(self.0)
    }
}

impl ToJson for During {
    fn to_json(&self) -> Value {
        json!(self.name())
    }
}

impl ToJson for ReadFailure {
    fn to_json(&self) -> Value {
        json!(self.name())
    }
}

impl ToJson for PrefetchFailure {
    fn to_json(&self) -> Value {
        json!(self.name())
    }
}

impl ToJson for EvictionCause {
    fn to_json(&self) -> Value {
        json!(snake(&format!("{self:?}")))
    }
}

impl ToJson for CbPhase {
    fn to_json(&self) -> Value {
        json!(self.span_name())
    }
}

impl ToJson for LookupEnd {
    fn to_json(&self) -> Value {
        json!({
            "model": &*self.model,
            "cache_salt": &*self.salt,
            "found_chunks": self.found_count,
            "requested_tokens": self.requested_tokens,
            "hit_tokens": self.hit_tokens,
            "l1_hit_tokens": self.l1_hit_tokens,
            "l2_hit_tokens": self.l2_hit_tokens,
            "early_exit_reason": self.early_exit_reason,
        })
    }
}

impl ToJson for TransferEnd {
    fn to_json(&self) -> Value {
        json!({
            "objects": self.count,
            "bytes": self.total_bytes,
            "tokens": self.num_tokens,
            "cache_salt": &*self.salt,
        })
    }
}

impl ToJson for Arc<[ChunkHash]> {
    fn to_json(&self) -> Value {
        json!(self.len())
    }
}

impl ToJson for Arc<[BlockAllocationRecord]> {
    fn to_json(&self) -> Value {
        json!(self.len())
    }
}

impl ToJson for Arc<[Region]> {
    fn to_json(&self) -> Value {
        json!(self.iter().filter_map(Region::bytes).sum::<u64>())
    }
}

impl ToJson for Arc<TraceCall> {
    fn to_json(&self) -> Value {
        json!(match &**self {
            TraceCall::ReserveWrite { .. } => "reserve_write",
            TraceCall::FinishWrite { .. } => "finish_write",
            TraceCall::SubmitPrefetch { .. } => "submit_prefetch_task",
            TraceCall::FinishRead { .. } => "finish_read_prefetched",
        })
    }
}

/// `L1ReadReserved` as `l1_read_reserved`.
fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 8);
    for (at, c) in name.char_indices() {
        if c.is_ascii_uppercase() && at > 0 {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

macro_rules! events {
    ($event:expr; $($variant:ident { $($field:ident),* })*) => {
        match $event {
            $(Event::$variant { $($field),* } => {
                let fields = [$((stringify!($field), $field.to_json())),*];
                (stringify!($variant), fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
            })*
        }
    };
}

/// The event's name, such as `l1_read_reserved`, and its fields.
pub fn describe(event: &Event) -> (String, Map<String, Value>) {
    let (name, fields): (&str, Map<String, Value>) = events! { event;
        L1ReadReserved { keys }
        L1ReadFinished { keys }
        L1WriteReserved { keys }
        L1WriteFinished { keys }
        L1WriteFinishedAndReadReserved { keys }
        L1KeysEvicted { keys, cause }
        L1KeysAccessed { keys }
        L1EvictionLoopTick { usage, watermark, triggered }
        L1AllocationFailed { during, model, keys }
        L1ReadFailed { during, reason, model, keys }
        SmReadPrefetched { succeeded, failed }
        SmReadPrefetchedFinished { succeeded, failed }
        SmWriteReserved { succeeded, failed }
        SmWriteFinished { succeeded, failed }
        SmCapacityChanged { l1_bytes }
        L2StoreSubmitted { adapter, task, keys, bytes, by_salt }
        L2StoreCompleted { adapter, task, bytes, succeeded, failed, by_salt }
        L2PrefetchLookupSubmitted { session, keys, adapters, by_salt }
        L2PrefetchLookupCompleted { session, prefix_hits }
        L2PrefetchLoadSubmitted { session, keys, adapters, by_salt }
        L2PrefetchLoadCompleted { session, loaded, failed, by_salt }
        L2LoadTaskSubmitted { session, adapter, task, keys, bytes }
        L2LoadTaskCompleted { session, adapter, task }
        L2KeysStored { adapter, keys }
        L2KeysAccessed { adapter, keys }
        L2KeysDeleted { adapter, keys }
        L2KeysEvicted { keys, by_salt }
        L2PrefetchFailed { reason, model, keys }
        MpRequestStart { session, traceparent }
        MpRequestEnd { session }
        MpLookupPrefetchStart { session }
        MpLookupPrefetchEnd { session, end }
        MpLookup { session, model, hashes, chunk_size, seq_len, regions }
        MpStoreSubmitted { session, transfer, worker }
        MpStoreStart { session, transfer, worker }
        MpStoreEnd { session, transfer, worker, end }
        MpRetrieveSubmitted { session, transfer, worker }
        MpRetrieveStart { session, transfer, worker }
        MpRetrieveEnd { session, transfer, worker, end }
        MpTransferPhaseSamples { transfer, staging_bytes, staging_seconds }
        MpTokens { session, chunks }
        MpVllmBlockAllocation { instance, model, records }
        MpVllmEndSession { session }
        WorkerGone { instance }
        TimeoutRaised { session, message, kind }
        TraceCall { call }
        CbRequestStart { session }
        CbRequestEnd { session }
        CbRetrieveSubmitted { session, instance }
        CbPhaseStart { session, phase, worker }
        CbPhaseEnd { session, phase, worker, success }
        CbLookupEnd { session, requested_tokens, hit_tokens }
        CbFingerprintsRegistered { session, chunks }
        CbChunksEvicted { chunks }
        CbRetrieveNoop { session, reason, dropped_matches }
    };
    (snake(name), fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_fields_as_readers_see_them() {
        let keys = Keys::new("m".into(), "s".into(), Box::default());
        let (name, fields) = describe(&Event::L1KeysEvicted { keys, cause: EvictionCause::Policy });
        assert_eq!(name, "l1_keys_evicted");
        let wanted = json!({"keys": {"model": "m", "cache_salt": "s", "count": 0}, "cause": "policy"});
        assert_eq!(Value::Object(fields), wanted);
    }
}

//! Operation ids and names, and what ids of other LMCache releases look like.

use std::fmt;

use super::limits::OPERATION_MAX_BYTES;
use super::reader::{DecodeError, Reader};

/// An operation of the 0.5.6 protocol that this daemon serves.
///
/// Source of ids: the frozen table of LMCache 0.5.6 (`tests/vectors/operation_ids.json`). Operations without
/// an id travel by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the protocol's own; ARCHITECTURE.md has a row for each")]
pub enum Operation {
    RegisterKvCache,
    UnregisterKvCache,
    Store,
    Retrieve,
    Lookup,
    QueryPrefetchStatus,
    WaitPrefetchStatus,
    FreeLookupLocks,
    EndSession,
    RegisterEngineDriven,
    UnregisterEngineDriven,
    PrepareStore,
    CommitStore,
    PrepareRetrieve,
    CommitRetrieve,
    Clear,
    GetChunkSize,
    Ping,
    ReportBlockAllocation,
    Noop,
    GetExperimental,
    SubscribeKvEvents,
    AttachRing,
    Authenticate,
}

use Operation as O;

/// `(operation, id, name)`; an id of 0 means "by name only".
const TABLE: [(Operation, u32, &str); 24] = [
    (O::RegisterKvCache, 1, "register_kv_cache"),
    (O::UnregisterKvCache, 2, "unregister_kv_cache"),
    (O::Store, 6, "store"),
    (O::Retrieve, 7, "retrieve"),
    (O::Lookup, 8, "lookup"),
    (O::QueryPrefetchStatus, 9, "query_prefetch_status"),
    (O::WaitPrefetchStatus, 10, "wait_prefetch_status"),
    (O::FreeLookupLocks, 12, "free_lookup_locks"),
    (O::EndSession, 13, "end_session"),
    (O::RegisterEngineDriven, 14, "register_kv_cache_engine_driven_context"),
    (O::UnregisterEngineDriven, 15, "unregister_kv_cache_engine_driven_context"),
    (O::PrepareStore, 16, "prepare_store"),
    (O::CommitStore, 17, "commit_store"),
    (O::PrepareRetrieve, 18, "prepare_retrieve"),
    (O::CommitRetrieve, 19, "commit_retrieve"),
    (O::Clear, 20, "clear"),
    (O::GetChunkSize, 21, "get_chunk_size"),
    (O::Ping, 22, "ping"),
    (O::ReportBlockAllocation, 23, "report_block_allocation"),
    (O::Noop, 24, "noop"),
    (O::GetExperimental, 32, "get_experimental"),
    (O::SubscribeKvEvents, 0, "subscribe_kv_events"),
    // Ours: no release of LMCache has it.
    (O::AttachRing, 0, "lmcached_attach_ring"),
    (O::Authenticate, 0, "lmcached_authenticate"),
];

/// Operations of 0.5.6 that belong to features this daemon does not have; named so that the log can say so. An id of 0
/// means "by name only", as above.
const KNOWN_UNSERVED: [(u32, &str); 14] = [
    (3, "register_q_cache"),
    (4, "unregister_q_cache"),
    (5, "store_q"),
    (25, "cb_register_rope"),
    (26, "cb_unregister_rope"),
    (27, "cb_retrieve_pre_computed"),
    (28, "cb_unified_lookup"),
    (29, "p2p_lookup_and_lock"),
    (30, "p2p_query_lookup_results"),
    (31, "p2p_unlock_objects"),
    (33, "cb_protocol_handshake"),
    (0, "cb_reorder_plan"),
    (0, "server_module_call"),
    (11, "query_prefetch_lookup_hits (retired)"),
];

impl Operation {
    /// Every operation, in table order; `index()` is its position here.
    pub fn all() -> impl Iterator<Item = Operation> {
        TABLE.iter().map(|row| row.0)
    }

    /// Number of operations; the length of a per-operation table.
    pub const COUNT: usize = TABLE.len();

    /// Position in `all()`, for per-operation counters.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The operation's wire name, also its label in metrics and logs.
    pub fn name(self) -> &'static str {
        TABLE[self as usize].2
    }

    /// The integer id, if the operation has one.
    pub fn id(self) -> Option<u32> {
        match TABLE[self as usize].1 {
            0 => None,
            id => Some(id),
        }
    }

    /// Whether the operation is answered at once, whatever its client has queued before it.
    ///
    /// These read nothing that the client's other operations change. `wait_prefetch_status` and streams are not
    /// among them: they start in order (a status asked before its lookup ran would be a final 0) and only their
    /// waiting holds nobody up.
    pub fn is_unordered(self) -> bool {
        matches!(self, O::Ping | O::Noop | O::GetChunkSize | O::GetExperimental)
    }

    /// Whether the first payload frame is a cache key.
    pub fn has_key(self) -> bool {
        matches!(
            self,
            O::Store
                | O::Retrieve
                | O::Lookup
                | O::FreeLookupLocks
                | O::PrepareStore
                | O::CommitStore
                | O::PrepareRetrieve
                | O::CommitRetrieve
        )
    }

    /// Whether only an engine's scheduler asks for it, which names no worker.
    pub fn is_schedulers(self) -> bool {
        matches!(
            self,
            O::Lookup
                | O::QueryPrefetchStatus
                | O::WaitPrefetchStatus
                | O::FreeLookupLocks
                | O::EndSession
                | O::ReportBlockAllocation
        )
    }

    /// Whether the daemon itself moves payload bytes, or maps memory, to execute the operation.
    pub fn is_copy(self) -> bool {
        matches!(self, O::Store | O::Retrieve | O::RegisterKvCache | O::UnregisterKvCache | O::Clear)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an operation frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpCode {
    /// An operation that this daemon serves.
    Known(Operation),
    /// A name or id of 0.5.6 that belongs to a feature this daemon does not have.
    Unserved(&'static str),
    /// Neither: perhaps another LMCache release (see [`ForeignRelease`]).
    Unknown(String),
}

impl OpCode {
    /// Decodes the operation frame: a msgpack integer id or a msgpack string name.
    ///
    /// # Errors
    /// Neither an integer nor a string, bytes after it, or more than [`OPERATION_MAX_BYTES`].
    pub fn decode(frame: &[u8]) -> Result<OpCode, DecodeError> {
        if frame.len() > OPERATION_MAX_BYTES {
            return Err(DecodeError::Range { what: "length of the operation" });
        }
        let mut reader = Reader::new(frame);
        if reader.peek_is_str() {
            let name = reader.str()?;
            reader.finish()?;
            return Ok(match TABLE.iter().find(|row| row.2 == name) {
                Some(row) => OpCode::Known(row.0),
                None => match KNOWN_UNSERVED.iter().find(|row| row.1 == name) {
                    Some(row) => OpCode::Unserved(row.1),
                    // A name comes from the peer and ends in a log line: keep it short and printable.
                    None => OpCode::Unknown(name.chars().take(64).flat_map(char::escape_default).collect()),
                },
            });
        }
        let id = reader.u64()?;
        reader.finish()?;
        let has_id = |row: u32| row != 0 && u64::from(row) == id;
        if let Some(row) = TABLE.iter().find(|row| has_id(row.1)) {
            return Ok(OpCode::Known(row.0));
        }
        Ok(match KNOWN_UNSERVED.iter().find(|row| has_id(row.0)) {
            Some(row) => OpCode::Unserved(row.1),
            None => OpCode::Unknown(id.to_string()),
        })
    }
}

/// A guess at the release of a client whose operation does not fit its frames.
///
/// Ids were renumbered between releases and there is no handshake, so an old client's first request arrives
/// under another operation's id. The first thing a worker or scheduler sends is `get_chunk_size` (no payload) or
/// `ping` (one payload), which makes the pair (id, number of payload frames) telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignRelease {
    /// `get_chunk_size` was 11, `ping` 12.
    V045,
    /// `get_chunk_size` was 17, `ping` 18.
    V047,
    /// `get_chunk_size` was 18, `ping` 19.
    V050,
    /// `get_experimental` was 40.
    V053,
}

impl ForeignRelease {
    /// Looks at an id and its payload count; `None` when nothing is recognised.
    pub fn guess(op_frame: &[u8], payload_frames: usize) -> Option<ForeignRelease> {
        let id = Reader::new(op_frame).u64().ok()?;
        match (id, payload_frames) {
            (11, 0) | (12, 1) => Some(ForeignRelease::V045),
            (17, 0) | (18, 1) => Some(ForeignRelease::V047),
            (18, 0) | (19, 1) => Some(ForeignRelease::V050),
            (34..=40, _) => Some(ForeignRelease::V053),
            _ => None,
        }
    }

    /// The release as an operator knows it.
    pub fn name(self) -> &'static str {
        match self {
            ForeignRelease::V045 => "0.4.5 or 0.4.6",
            ForeignRelease::V047 => "0.4.7",
            ForeignRelease::V050 => "0.5.0 or 0.5.1",
            ForeignRelease::V053 => "0.5.3",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_enum_order_and_agrees_with_the_vectors() {
        for (position, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0.index(), position, "{}", row.2);
        }
        let ids: std::collections::BTreeMap<String, u32> =
            serde_json::from_str(include_str!("../../tests/vectors/operation_ids.json"))
                .expect("vectors parse");
        for row in TABLE.iter().filter(|row| row.1 != 0) {
            assert_eq!(ids.get(row.2), Some(&row.1), "{}", row.2);
        }
    }

    #[test]
    fn what_overtakes_has_no_key() {
        // The remembered key of a client belongs to its ordered requests.
        assert!(Operation::all().all(|operation| !(operation.is_unordered() && operation.has_key())));
    }

    #[test]
    fn ids_and_names_decode() {
        assert_eq!(OpCode::decode(&[22]).expect("ping"), OpCode::Known(Operation::Ping));
        assert_eq!(OpCode::decode(b"\xa4ping").expect("ping"), OpCode::Known(Operation::Ping));
        assert_eq!(OpCode::decode(&[25]).expect("blend"), OpCode::Unserved("cb_register_rope"));
        assert_eq!(OpCode::decode(&[0]).expect("zero"), OpCode::Unknown("0".into()));
        assert_eq!(OpCode::decode(&[99]).expect("99"), OpCode::Unknown("99".into()));
        for name in ["cb_reorder_plan", "server_module_call"] {
            let mut w = crate::wire::Writer::new();
            w.str(name);
            assert_eq!(OpCode::decode(&w.into_vec()), Ok(OpCode::Unserved(name)));
        }
        let mut long = vec![0xd9, 200];
        long.resize(202, b'x');
        assert_eq!(OpCode::decode(&long), Err(DecodeError::Range { what: "length of the operation" }));
        assert!(OpCode::decode(&[]).is_err());
        assert!(OpCode::decode(&[22, 22]).is_err(), "trailing bytes");
    }

    #[test]
    fn other_releases_are_recognised() {
        assert_eq!(ForeignRelease::guess(&[11], 0), Some(ForeignRelease::V045));
        assert_eq!(ForeignRelease::guess(&[40], 0), Some(ForeignRelease::V053));
        assert_eq!(ForeignRelease::guess(&[21], 0), None);
    }
}

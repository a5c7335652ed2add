//! The wire of LMCache 0.5.6: which frames a request is made of, and how each is encoded.
//!
//! A request is `[uid, operation, payload…]` with one frame per argument; a reply is `[uid, operation]` and
//! at most one response frame. Integers, strings and arrays are plain msgpack; structs are maps keyed by
//! field name in declaration order. Decoding accepts any order of fields, ignores unknown ones, fills
//! defaults, and takes `true` for 1 and 1 for `true`, as the peer's decoder does.
#![forbid(unsafe_code)]

/// The release of LMCache whose wire this is.
pub const LMCACHE_RELEASE: &str = "0.5.6";

mod decode;
mod descriptor;
mod encode;
mod frame;
mod key;
pub mod limits;
mod operation;
mod reader;
mod request;
mod response;
mod ring;
mod shared_storage;
mod structs;
mod writer;

pub use descriptor::{DeviceDescriptor, TensorMetadata};
pub use encode::encode_request;
pub use key::{
    CacheKey, KeyBuilder, TokenIter, TokenMemo, Tokens, decode_tokens, validate_model, validate_salt,
};
pub use operation::{ForeignRelease, OpCode, Operation};
pub use reader::{DecodeError, Reader};
pub use request::{Request, Secret};
pub use response::{
    KvEventBatch, KvEventRecord, PrepareRetrieveResponse, PrepareStoreResponse, RegisterEngineDrivenResponse,
    Response, Slot, StoreContext,
};
pub use ring::{AttachRingResponse, ProcessIdentity};
pub use shared_storage::SharedStorage;
pub use structs::{
    BlockAllocationRecord, EngineGroupInfo, LayoutHints, RegisterEngineDrivenPayload, RegisterKvCache,
};
pub use writer::Writer;

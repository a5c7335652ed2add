//! What can go wrong, and what the caller can do about it.

use std::io;

use lmcache_proto::wire::{DecodeError, Operation};
use lmcache_proto::zmtp::{FrameError, HandshakeError};
use thiserror::Error;

/// Why a call did not do what it should. [`ClientError::is_retryable`] says whether trying again can help.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The endpoint is not `tcp://host:port` or `ipc:///path`.
    #[error("{0:?} is no endpoint; it is tcp://HOST:PORT or ipc:///PATH")]
    Endpoint(String),
    /// Nobody answers there.
    #[error("cannot connect to {endpoint}: {source}")]
    Connect {
        /// Where.
        endpoint: String,
        /// Why.
        source: io::Error,
    },
    /// Somebody answers who is not lmcached.
    #[error("handshake: {0}")]
    Handshake(#[from] HandshakeError),
    /// The connection broke.
    #[error("transport: {0}")]
    Transport(#[from] io::Error),
    /// The daemon has closed the connection.
    #[error("the daemon has closed the connection")]
    Closed,
    /// The daemon sent what is no message.
    #[error("frame: {0}")]
    Frame(#[from] FrameError),
    /// No answer in time; a late answer is ignored.
    #[error("no answer to {0} within the deadline")]
    Deadline(Operation),
    /// The daemon answered something that the protocol does not have.
    #[error("malformed answer to {operation}: {source}")]
    Malformed {
        /// What was asked.
        operation: Operation,
        /// What is wrong.
        source: DecodeError,
    },
    /// The daemon answered with another operation's kind of answer.
    #[error("the answer to {0} is of another kind")]
    WrongKind(Operation),
    /// The daemon said no: `prepare_store` without memory, `prepare_retrieve` of a chunk that has gone, a commit whose
    /// time was over. Nothing was stored or may be read; recompute, and go on.
    #[error("the daemon refused {0}; its log says why")]
    Refused(Operation),
    /// A request that the protocol cannot carry.
    #[error("the request is invalid: {0}")]
    Request(DecodeError),
    /// A range that does not lie on chunk borders inside the prompt.
    #[error("range {start}..{end} of {tokens} tokens is not made of whole chunks of {chunk}")]
    Range {
        /// First token.
        start: u64,
        /// End.
        end: u64,
        /// Tokens of the prompt.
        tokens: u64,
        /// Tokens of a chunk.
        chunk: u64,
    },
    /// `register` comes first.
    #[error("the worker is not registered; call register first")]
    NotRegistered,
    /// The pool cannot be used.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The daemon named slots that cannot be.
    #[error("the daemon's slots for {operation}: {source}; nothing was touched")]
    Slots {
        /// What was asked.
        operation: Operation,
        /// What is wrong.
        source: SlotError,
    },
    /// A blocking call was made on a thread that runs async tasks, which it would stop.
    #[error("a blocking call inside an async runtime; use the async client there")]
    InsideRuntime,
    /// The system gave no runtime (threads, descriptors).
    #[error("no runtime: {0}")]
    Runtime(io::Error),
}

impl ClientError {
    /// Whether the same call may work later without anything being changed: the daemon is restarting, slow or full.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            ClientError::Connect { .. }
                | ClientError::Transport(_)
                | ClientError::Closed
                | ClientError::Deadline(_)
                | ClientError::Refused(_)
        )
    }

    /// Whether the connection is of no use after this.
    pub(crate) fn breaks_connection(&self) -> bool {
        matches!(
            self,
            ClientError::Transport(_)
                | ClientError::Closed
                | ClientError::Frame(_)
                | ClientError::Handshake(_)
                | ClientError::Connect { .. }
        )
    }
}

/// Why the pool could not be mapped. The worker runs without cache; a pool that is not visible here (another IPC
/// namespace, another machine) will not become visible.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The daemon offers none.
    #[error("the daemon offers no pool to map")]
    None,
    /// A name that is no name of shared memory.
    #[error("{0:?} is no name of a shared-memory segment")]
    Name(String),
    /// It cannot be opened.
    #[error(
        "cannot open shared memory {name}: {source}; the worker needs the daemon's /dev/shm and its user"
    )]
    Open {
        /// Segment.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// It is smaller than the daemon said.
    #[error("shared memory {name} has {actual} bytes, the daemon said {announced}")]
    Size {
        /// Segment.
        name: String,
        /// What it has.
        actual: u64,
        /// What it should have.
        announced: u64,
    },
    /// It cannot be mapped.
    #[error("cannot map shared memory {name}: {source}")]
    Map {
        /// Segment.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// What is wrong with slots that the daemon named.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlotError {
    /// Outside the pool.
    #[error("offset {offset}, length {length} is outside the pool of {pool} bytes")]
    Outside {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Bytes of the pool.
        pool: u64,
    },
    /// Not of the size of this worker's objects.
    #[error("a slot of {length} bytes where an object has {object}")]
    Length {
        /// Bytes.
        length: u64,
        /// Bytes of an object.
        object: u64,
    },
    /// Lent out already, to this transfer or to another of this process.
    #[error("offset {offset} overlaps bytes that are lent out already")]
    Overlap {
        /// First byte.
        offset: u64,
    },
    /// More or fewer slots than chunks, or chunks that the request does not have.
    #[error("{slots} slots for {chunks} chunks, or chunk numbers that the request does not have")]
    Count {
        /// Slots named.
        slots: u64,
        /// Chunks of the request.
        chunks: u64,
    },
}

/// Why there is no lane. The worker goes on without publishing; the daemon's own times stand.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RingError {
    /// The daemon offers none: switched off, or all lanes taken.
    #[error("the daemon offers no lane")]
    None,
    /// The numbers that the daemon sent do not fit together.
    #[error("lane {lane} of {lanes} with {slots} slots in {bytes} bytes is no ring")]
    Layout {
        /// Lane.
        lane: u32,
        /// Lanes.
        lanes: u32,
        /// Slots.
        slots: u32,
        /// Bytes.
        bytes: u64,
    },
    /// The segment is of another version, or none at all.
    #[error("the segment is no ring of this version")]
    Header,
    /// The segment cannot be mapped.
    #[error(transparent)]
    Map(#[from] PoolError),
    /// The lane was given to somebody else meanwhile.
    #[error("the lane is under another epoch already")]
    Epoch,
}

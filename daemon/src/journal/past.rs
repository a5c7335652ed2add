//! What an earlier daemon has left in the journal. Read as bytes, never mapped: nothing of it is believed.
#![forbid(unsafe_code)]

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lmcache_proto::wire::{OpCode, Operation};

use super::lane::{
    ASKS, CONNECTION, ENTRIES, ENTRY_WORDS, FIRST_ENTRY, FLAGS, HOST, INSTANCE, KNOWS_INSTANCE,
    KNOWS_PROCESS, NEXT, OP_BYTES, PID, PRESENT, READING, START, TOKEN, UID_BYTES, UNNOTED, WAITS, WRITING,
    uid_number,
};
use super::memory::{HEADER, LANE_BYTES, LANE_WORDS, MAGIC, VERSION};
use super::{Lane, Owed, Peer};
use crate::process::ProcessId;
use crate::shm_file;

/// Most bytes that are read: some sixteen thousand lanes, more than any limit of connections makes.
const MAX_BYTES: u64 = 64 << 20;

/// A request without an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) uid: Bytes,
    pub(super) op_frame: Bytes,
    pub(super) operation: Operation,
}

/// One connection of the earlier daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Past {
    pub(super) connection: u64,
    /// The worker for which it spoke.
    pub(super) instance: Option<u64>,
    /// It asked what only schedulers ask.
    pub(super) asks: bool,
    pub(super) peer: Peer,
    /// Highest number of its requests.
    pub(super) last: Option<u64>,
    /// Requests that may be without answer and are not among these.
    pub(super) unnoted: u64,
    /// It may go on in another process: where its stream stands is known, behind all that was noted and in front of whole
    /// answers; and it has shown no token.
    pub(super) clean: bool,
    /// Until when its worker certainly waits (CLOCK_MONOTONIC) if it gets all its answers; zero if that cannot be told.
    pub(super) waits_until: Duration,
    pub(super) requests: Vec<Request>,
}

impl Past {
    /// Until when its worker certainly waits for what it has asked for; zero if that cannot be told. `complete`: none of its
    /// requests was lost.
    pub(super) fn certainly_waits_until(&self, complete: bool) -> Duration {
        // A ping that is owed may have failed since it was read.
        let pinged = self.requests.iter().any(|request| request.operation == Operation::Ping);
        if complete && !pinged { self.waits_until } else { Duration::ZERO }
    }

    /// Its requests as they are owed, noted in `lane` until they are answered.
    pub(super) fn owed(&self, lane: Option<&Arc<Lane>>) -> Vec<Owed> {
        let owed = self.requests.iter().enumerate().map(|(at, request)| Owed {
            uid: request.uid.clone(),
            op_frame: request.op_frame.clone(),
            operation: request.operation,
            ticket: lane.map(|lane| lane.ticket(at)),
        });
        owed.collect()
    }
}

/// What is in the file `path` for `pool`; nothing if there is none, or it is another pool's or release's.
pub(super) fn read(path: &Path, pool: u64) -> io::Result<Vec<Past>> {
    let bytes = shm_file::read_own(path, MAX_BYTES)?;
    Ok(bytes.map_or_else(Vec::new, |bytes| parse(&bytes, pool)))
}

/// What the bytes of a journal say.
pub(super) fn parse(bytes: &[u8], pool: u64) -> Vec<Past> {
    let mut pages = bytes.as_chunks::<LANE_BYTES>().0.iter();
    let Some(header) = pages.next() else { return Vec::new() };
    let [magic, version, lanes, inode] = HEADER.map(|word| word_of(header, word));
    if (magic, version, inode) != (MAGIC, VERSION, pool) {
        return Vec::new();
    }
    let lanes = usize::try_from(lanes).unwrap_or(usize::MAX);
    pages.take(lanes).filter_map(connection).collect()
}

fn word_of(page: &[u8; LANE_BYTES], word: usize) -> u64 {
    debug_assert!(word < LANE_WORDS);
    u64::from_le_bytes(page.as_chunks::<8>().0[word])
}

fn connection(page: &[u8; LANE_BYTES]) -> Option<Past> {
    let word = |word| word_of(page, word);
    let connection = Some(word(CONNECTION)).filter(|connection| *connection != 0)?;
    let flags = word(FLAGS);
    let process = (flags & KNOWS_PROCESS != 0).then(|| {
        let pid = u32::try_from(word(PID)).ok()?;
        Some(ProcessId { pid, start_time: word(START) })
    });
    let requests: Vec<Request> =
        (0..ENTRIES).filter_map(|entry| request(page, FIRST_ENTRY + entry)).collect();
    // A request is noted before it is counted.
    let noted = requests.iter().filter_map(|request| uid_number(&request.uid));
    Some(Past {
        connection,
        instance: (flags & KNOWS_INSTANCE != 0).then(|| word(INSTANCE)),
        asks: flags & ASKS != 0,
        peer: Peer { process: process.flatten(), host: word(HOST) },
        last: word(NEXT).checked_sub(1).into_iter().chain(noted).max(),
        unnoted: word(UNNOTED),
        clean: flags & (READING | WRITING | TOKEN) == 0,
        waits_until: Duration::from_nanos(word(WAITS)),
        requests,
    })
}

fn request(page: &[u8; LANE_BYTES], entry: usize) -> Option<Request> {
    let lengths = word_of(page, entry * ENTRY_WORDS);
    let (uid, op) = ((lengths >> 8 & 0xff) as usize, (lengths & 0xff) as usize);
    if lengths & PRESENT == 0 || uid > UID_BYTES || op > OP_BYTES {
        return None;
    }
    let bytes = &page[(entry * ENTRY_WORDS + 1) * 8..][..UID_BYTES + OP_BYTES];
    let (uid, op_frame) = (&bytes[..uid], &bytes[UID_BYTES..][..op]);
    let Ok(OpCode::Known(operation)) = OpCode::decode(op_frame) else { return None };
    Some(Request { uid: Bytes::copy_from_slice(uid), op_frame: Bytes::copy_from_slice(op_frame), operation })
}

//! One connection's page of the journal.
//!
//! Sixteen words say whose it is; 62 entries of eight words each are its requests under way. Crash rule: an entry's first word
//! is stored last, and cleared first; a page's first word likewise. What a kill interrupts is not there.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lmcache_proto::wire::{Operation, Reader};

use super::memory::LANE_WORDS;
use super::past::{Past, Request};
use super::{Lanes, Peer};
use crate::failpoint;

/// Number of the connection, never 0; 0 for a page of nobody.
pub(super) const CONNECTION: usize = 0;
/// See [`KNOWS_INSTANCE`] and its like.
pub(super) const FLAGS: usize = 1;
/// The worker for which the connection speaks.
pub(super) const INSTANCE: usize = 2;
/// Its process.
pub(super) const PID: usize = 3;
/// When that started.
pub(super) const START: usize = 4;
/// Its address.
pub(super) const HOST: usize = 5;
/// Highest number of its requests, plus 1.
pub(super) const NEXT: usize = 6;
/// Requests for which there was no entry.
pub(super) const UNNOTED: usize = 7;
/// Until when its worker certainly waits, in nanoseconds of CLOCK_MONOTONIC; 0 if that cannot be told.
pub(super) const WAITS: usize = 8;

/// [`INSTANCE`] is set.
pub(super) const KNOWS_INSTANCE: u64 = 1;
/// [`PID`] and [`START`] are set.
pub(super) const KNOWS_PROCESS: u64 = 2;
/// It asks what only schedulers ask.
pub(super) const ASKS: u64 = 4;

/// Bytes may have been taken from the socket that are not noted.
pub(super) const READING: u64 = 8;
/// Part of an answer may be with the kernel, and the rest is not.
pub(super) const WRITING: u64 = 16;

/// It has shown a token, which is not noted.
pub(super) const TOKEN: u64 = 32;

/// Words of an entry: lengths of both frames, two words of uid, five of operation.
pub(super) const ENTRY_WORDS: usize = 8;
/// Where the entries begin, in entries.
pub(super) const FIRST_ENTRY: usize = 2;
/// Entries of a page; LMCache's clients have some tens of requests under way.
pub(super) const ENTRIES: usize = LANE_WORDS / ENTRY_WORDS - FIRST_ENTRY;
/// Bytes of a correlation id that has an entry; LMCache's have at most 9.
pub(super) const UID_BYTES: usize = 16;
/// Bytes of an operation frame that has an entry; the longest name has 31.
pub(super) const OP_BYTES: usize = 40;
/// Bit of an entry's first word that says that it is there.
pub(super) const PRESENT: u64 = 1 << 63;

/// A connection's page; free again when the last that uses it is gone.
#[derive(Debug)]
pub struct Lane {
    lanes: Arc<Lanes>,
    number: u32,
    /// Entries in use; as many bits as there are entries.
    used: AtomicU64,
}

/// A request under way. Dropped when its answer is with the kernel, or when nobody waits for one.
#[derive(Debug)]
pub struct Ticket {
    lane: Arc<Lane>,
    entry: usize,
}

/// The number that a correlation id is, as LMCache's clients count.
pub fn uid_number(uid: &[u8]) -> Option<u64> {
    let mut reader = Reader::new(uid);
    let number = reader.u64().ok()?;
    reader.finish().ok()?;
    Some(number)
}

impl Lane {
    fn take(lanes: &Arc<Lanes>) -> Option<Arc<Lane>> {
        let number = lanes.free.lock().pop()?;
        let lane = Lane { lanes: lanes.clone(), number, used: AtomicU64::new(0) };
        lanes.memory.populate(number).then(|| Arc::new(lane))
    }

    pub(super) fn open(lanes: &Arc<Lanes>, connection: u64, peer: Peer) -> Option<Arc<Lane>> {
        let lane = Lane::take(lanes)?;
        lane.identify(peer, 0);
        lane.set(CONNECTION, connection.max(1));
        Some(lane)
    }

    /// A lane that says what an earlier daemon's has said.
    pub(super) fn adopt(lanes: &Arc<Lanes>, past: &Past) -> Option<Arc<Lane>> {
        let lane = Lane::take(lanes)?;
        lane.identify(past.peer, if past.asks { ASKS } else { 0 });
        if let Some(instance) = past.instance {
            lane.speaks_for(instance);
        }
        lane.set(NEXT, past.last.map_or(0, |last| last.saturating_add(1)));
        lane.set(UNNOTED, past.unnoted);
        lane.waits_until(past.waits_until);
        for (entry, request) in past.requests.iter().enumerate() {
            lane.used.fetch_or(1 << entry, Ordering::Relaxed);
            lane.write(entry, request);
        }
        lane.set(CONNECTION, past.connection);
        Some(lane)
    }

    fn words(&self) -> &[AtomicU64; LANE_WORDS] {
        self.lanes.memory.lane(self.number)
    }

    /// Release: a word that says that others are there comes after them. The partner is the next daemon, which reads when
    /// this one is dead.
    fn set(&self, word: usize, value: u64) {
        self.words()[word].store(value, Ordering::Release);
    }

    fn identify(&self, peer: Peer, flags: u64) {
        self.set(UNNOTED, 0);
        self.set(WAITS, 0);
        self.set(NEXT, 0);
        self.set(HOST, peer.host);
        self.set(FLAGS, flags);
        if let Some(process) = peer.process {
            self.is_process(process);
        }
    }

    /// The connection's process is known.
    pub fn is_process(&self, process: crate::process::ProcessId) {
        self.set(PID, u64::from(process.pid));
        self.set(START, process.start_time);
        self.words()[FLAGS].fetch_or(KNOWS_PROCESS, Ordering::Release);
    }

    /// The connection has spoken for a worker.
    pub fn speaks_for(&self, instance: u64) {
        let words = self.words();
        let known = words[FLAGS].load(Ordering::Relaxed) & KNOWS_INSTANCE != 0;
        if !known || words[INSTANCE].load(Ordering::Relaxed) != instance {
            self.set(INSTANCE, instance);
            words[FLAGS].fetch_or(KNOWS_INSTANCE, Ordering::Release);
        }
    }

    /// The connection's worker certainly waits until then (CLOCK_MONOTONIC) for what it has asked for; zero: that cannot be told.
    pub fn waits_until(&self, time: Duration) {
        self.set(WAITS, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Notes a request that has been read, before it is executed. `None`: it has no entry.
    pub fn note(self: &Arc<Lane>, operation: Operation, uid: &[u8], op_frame: &[u8]) -> Option<Ticket> {
        let words = self.words();
        if operation.is_schedulers() && words[FLAGS].load(Ordering::Relaxed) & ASKS == 0 {
            words[FLAGS].fetch_or(ASKS, Ordering::Release);
        }
        let ticket = self.entry(uid, op_frame);
        if ticket.is_none() {
            words[UNNOTED].fetch_add(1, Ordering::Release);
        }
        // After the entry: a number that is counted and has no entry would pass as answered.
        failpoint::hit("journal.noted");
        self.count(uid);
        ticket
    }

    fn flag(&self, flag: u64, now: bool) {
        let flags = &self.words()[FLAGS];
        // Release, so that what was noted before is seen with it; Acquire, so that what comes next is not done before.
        if now {
            flags.fetch_or(flag, Ordering::AcqRel);
        } else {
            flags.fetch_and(!flag, Ordering::AcqRel);
        }
    }

    /// The connection has shown a token. Without it, it would be somebody else after a crash.
    pub fn has_token(&self) {
        self.flag(TOKEN, true);
    }

    /// No request of the connection is without an answer: none is that had no entry, either.
    pub fn all_answered(&self) {
        if self.words()[UNNOTED].load(Ordering::Relaxed) != 0 {
            self.set(UNNOTED, 0);
        }
    }

    /// The connection goes on after requests up to number `last`.
    pub(super) fn continues(&self, past: &Past) {
        self.set(NEXT, past.last.map_or(0, |last| last.saturating_add(1)));
        if past.asks {
            self.words()[FLAGS].fetch_or(ASKS, Ordering::Release);
        }
        if let Some(instance) = past.instance {
            self.speaks_for(instance);
        }
        self.waits_until(past.certainly_waits_until(true));
    }

    fn count(&self, uid: &[u8]) {
        let next = &self.words()[NEXT];
        if let Some(number) = uid_number(uid)
            && number >= next.load(Ordering::Relaxed)
        {
            // Only the connection's own task counts.
            next.store(number.saturating_add(1), Ordering::Release);
        }
    }

    fn entry(self: &Arc<Lane>, uid: &[u8], op_frame: &[u8]) -> Option<Ticket> {
        if uid.len() > UID_BYTES || op_frame.len() > OP_BYTES {
            return None;
        }
        // Others only clear bits: an entry that is free stays free until it is taken here.
        let entry = (!self.used.load(Ordering::Acquire)).trailing_zeros() as usize;
        if entry >= ENTRIES {
            return None;
        }
        self.used.fetch_or(1 << entry, Ordering::Relaxed);
        write(self.entry_words(entry), uid, op_frame);
        Some(Ticket { lane: self.clone(), entry })
    }

    fn write(&self, entry: usize, request: &Request) {
        write(self.entry_words(entry), &request.uid, &request.op_frame);
    }

    fn entry_words(&self, entry: usize) -> &[AtomicU64] {
        &self.words()[(entry + FIRST_ENTRY) * ENTRY_WORDS..][..ENTRY_WORDS]
    }

    /// The request that was adopted as number `entry`.
    pub(super) fn ticket(self: &Arc<Lane>, entry: usize) -> Ticket {
        Ticket { lane: self.clone(), entry }
    }
}

/// One word about where a connection's stream stands, written only when it changes.
#[derive(Debug)]
pub struct Mark {
    lane: Option<Arc<Lane>>,
    flag: u64,
    on: bool,
}

impl Mark {
    /// Bytes may have been taken from the socket that are not noted. Without a lane nothing is written.
    pub fn reading(lane: Option<&Arc<Lane>>) -> Mark {
        Mark { lane: lane.cloned(), flag: READING, on: false }
    }

    /// Part of an answer may be with the kernel, and the rest is not. Without a lane nothing is written.
    pub fn writing(lane: Option<&Arc<Lane>>) -> Mark {
        Mark { lane: lane.cloned(), flag: WRITING, on: false }
    }

    /// Whether anybody reads it.
    pub fn is_kept(&self) -> bool {
        self.lane.is_some()
    }

    /// Says that it is so, or no more.
    pub fn set(&mut self, on: bool) {
        if let Some(lane) = self.lane.as_ref().filter(|_| on != self.on) {
            self.on = on;
            lane.flag(self.flag, on);
        }
    }
}

fn write(words: &[AtomicU64], uid: &[u8], op_frame: &[u8]) {
    let mut bytes = [0; UID_BYTES + OP_BYTES];
    bytes[..uid.len()].copy_from_slice(uid);
    bytes[UID_BYTES..][..op_frame.len()].copy_from_slice(op_frame);
    for (word, bytes) in words[1..].iter().zip(bytes.as_chunks::<8>().0) {
        word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
    }
    let lengths = PRESENT | (uid.len() as u64) << 8 | op_frame.len() as u64;
    words[0].store(lengths, Ordering::Release);
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.lane.lanes.ends.load(Ordering::Relaxed) {
            return;
        }
        self.lane.entry_words(self.entry)[0].store(0, Ordering::Release);
        failpoint::hit("journal.answered");
        // Release; the partner is the Acquire in `entry`: the word is 0 before the entry is somebody else's.
        self.lane.used.fetch_and(!(1 << self.entry), Ordering::Release);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if self.lanes.ends.load(Ordering::Relaxed) {
            return;
        }
        self.set(CONNECTION, 0);
        self.lanes.free.lock().push(self.number);
    }
}

//! Requests under way, as bytes that outlive the daemon.
//!
//! LMCache's client waits for the answer to a request as long as its deadline says, five minutes by default, and for that to
//! a `retrieve` without any; it does not ask again when its connection breaks. So what has been read from a connection and
//! not yet answered is noted beside the pool, in shared memory, before it is executed. The next daemon answers it negatively
//! as soon as the same socket is heard again: the engine recomputes at once instead of waiting.
//!
//! What it cannot know are requests that were still unread in the socket. Clients number their requests, so a gap in the
//! numbers tells that there were any ([`Claim::waits_until`]).
//!
//! * `lane`: one connection's page: who it is, and its requests under way;
//! * `memory`: the segment (unsafe room);
//! * `past`: what an earlier daemon has left in it.
#![deny(unsafe_code)]

mod lane;
mod memory;
mod past;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lmcache_proto::wire::Operation;
use parking_lot::Mutex;

pub use lane::{Lane, Mark, Ticket, uid_number};

use crate::failpoint;
use crate::l1::pool::SHM_DIR;
use crate::process::ProcessId;
use crate::shm_file;
use memory::Memory;
use past::Past;

/// How long an earlier daemon's requests are kept for a socket that does not come back: twice the time for which LMCache's
/// client waits by default.
const KEPT: Duration = Duration::from_secs(600);

/// The journal of one pool's daemon. It is a service to the next one and never fails a request of this one.
#[derive(Debug)]
pub struct Journal {
    lanes: Option<Arc<Lanes>>,
    orphans: Mutex<Vec<Orphan>>,
    /// Orphans left. Read for every request; 0 as soon as all have been claimed or given up.
    left: AtomicUsize,
}

/// The segment and which lanes of it nobody has.
#[derive(Debug)]
struct Lanes {
    memory: Memory,
    free: Mutex<Vec<u32>>,
    /// The daemon ends: what goes now goes with it, and is the next one's.
    ends: AtomicBool,
}

/// What an earlier daemon left of one connection.
#[derive(Debug)]
struct Orphan {
    past: Past,
    /// Keeps the requests noted until they are answered; `None` if there was no room.
    lane: Option<Arc<Lane>>,
}

/// A connection of an earlier daemon that goes on.
#[derive(Debug)]
pub struct Survivor {
    /// Its requests that have no answer.
    pub owed: Vec<Owed>,
    past: Past,
}

impl Survivor {
    /// The worker for which it speaks.
    pub fn instance(&self) -> Option<u64> {
        self.past.instance
    }

    /// Its process, where it is known.
    pub fn process(&self) -> Option<ProcessId> {
        self.past.peer.process
    }

    /// Until when its worker certainly waits for what it has asked for (CLOCK_MONOTONIC); zero if that cannot be told.
    pub fn waits_until(&self) -> Duration {
        self.past.certainly_waits_until(true)
    }

    /// The connection's new lane takes up where the old one ended.
    pub fn goes_on_in(&self, lane: &Lane) {
        lane.continues(&self.past);
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its process, where it is known.
    pub process: Option<ProcessId>,
    /// Stands for its address; 0 on a Unix socket.
    pub host: u64,
}

/// A request that an earlier daemon has not answered.
#[derive(Debug)]
pub struct Owed {
    /// Correlation id, as it came.
    pub uid: Bytes,
    /// Operation frame, as it came.
    pub op_frame: Bytes,
    /// What was asked.
    pub operation: Operation,
    /// To be kept until the answer is on its way.
    pub ticket: Option<Ticket>,
}

/// What is owed to a connection that came back.
#[derive(Debug, Default)]
pub struct Claim {
    /// Its requests.
    pub owed: Vec<Owed>,
    /// Until when its worker certainly waits for what it has asked for (CLOCK_MONOTONIC); zero if that cannot be told, as when
    /// a request was lost unread.
    pub waits_until: Duration,
}

impl Journal {
    /// A journal that notes nothing.
    pub fn none() -> Journal {
        Journal { lanes: None, orphans: Mutex::default(), left: AtomicUsize::new(0) }
    }

    /// Opens the journal `name` (in shared memory, without slash) of the pool with inode `pool`, for `connections` at once,
    /// and takes over what an earlier daemon of the same pool noted; not if that one has `handed_over` its requests themselves.
    ///
    /// The caller owns the pool and with it this file: no other daemon writes it.
    pub fn open(name: &str, pool: u64, connections: usize, handed_over: bool) -> Journal {
        match Journal::try_open(name, pool, connections, handed_over) {
            Ok(journal) => journal,
            Err(error) => {
                tracing::warn!(
                    file = name,
                    error = &*error as &dyn std::error::Error,
                    "cannot note requests under way in shared memory; after a crash their clients wait for their whole deadline (lmcache.mp.mq_timeout)"
                );
                Journal::none()
            }
        }
    }

    fn try_open(
        name: &str,
        pool: u64,
        connections: usize,
        handed_over: bool,
    ) -> Result<Journal, Box<dyn std::error::Error>> {
        let path = Path::new(SHM_DIR).join(name);
        let before = if handed_over { Vec::new() } else { past::read(&path, pool)? };
        let new = format!("{name}.new");
        shm_file::remove(&Path::new(SHM_DIR).join(&new))?;
        // Room for as many that come as for those that may come back.
        let count = u32::try_from(2 * connections)?;
        let memory = Memory::create(&new, pool, count)?;
        failpoint::hit("journal.created");
        let lanes = Arc::new(Lanes {
            memory,
            free: Mutex::new((0..count).rev().collect()),
            ends: AtomicBool::new(false),
        });
        let orphans: Vec<Orphan> = before
            .into_iter()
            .filter(|past| past.peer.process.is_none_or(|process| process.alive()))
            .map(|past| Orphan { lane: Lane::adopt(&lanes, &past), past })
            .collect();
        failpoint::hit("journal.publish");
        fs::rename(Path::new(SHM_DIR).join(&new), &path)?;
        failpoint::hit("journal.published");
        let requests: usize = orphans.iter().map(|orphan| orphan.past.requests.len()).sum();
        if requests > 0 {
            tracing::info!(
                requests,
                connections = orphans.len(),
                "requests were under way when the earlier daemon ended; they are answered negatively as soon as their clients are heard"
            );
        }
        let left = AtomicUsize::new(orphans.len());
        Ok(Journal { lanes: Some(lanes), orphans: Mutex::new(orphans), left })
    }

    /// A lane for a connection; `None` if none is left, or nothing is noted.
    pub fn lane(&self, connection: u64, peer: Peer) -> Option<Arc<Lane>> {
        Lane::open(self.lanes.as_ref()?, connection, peer)
    }

    /// Whether connections of an earlier daemon are yet to come back.
    pub fn is_waiting(&self) -> bool {
        // Relaxed: filled before the first connection is accepted; after that it only falls.
        self.left.load(Ordering::Relaxed) > 0
    }

    /// A peer is heard, whose first request on this connection had the number `first`. It speaks for the worker `instance`,
    /// or asks as schedulers do (`None`). What was owed to it?
    ///
    /// Numbers go up for the life of a client's socket, across its connections. A connection whose numbers begin anew belongs
    /// to another socket, whose requests must not be answered with those of the old one.
    pub fn claim(&self, instance: Option<u64>, peer: Peer, first: u64) -> Claim {
        let mut orphans = self.orphans.lock();
        let continues = |past: &Past| past.last.is_some_and(|last| last < first);
        let differ = |past: &Past| matches!((past.peer.process, peer.process), (Some(a), Some(b)) if a != b);
        let found = orphans.iter().position(|Orphan { past, .. }| match instance {
            Some(_) => past.instance == instance && continues(past) && !differ(past),
            None => {
                past.asks && past.instance.is_none() && continues(past) && {
                    let same = past.peer.process.is_some() && past.peer.process == peer.process;
                    // Over TCP nobody says who it is: only one whose numbers go on exactly where they ended.
                    same || (past.peer == peer
                        && past.last.and_then(|last| last.checked_add(1)) == Some(first))
                }
            }
        });
        let Some(at) = found else { return Claim::default() };
        let is_rival = |other: &Orphan| {
            let past = &other.past;
            instance.is_none()
                && past.asks
                && past.instance.is_none()
                && past.peer == peer
                && past.last == orphans[at].past.last
        };
        if orphans.iter().filter(|other| is_rival(other)).count() > 1 {
            return Claim::default();
        }
        let Orphan { past, lane } = orphans.swap_remove(at);
        self.left.store(orphans.len(), Ordering::Relaxed);
        drop(orphans);
        // What is owed are all of its requests without an answer.
        let complete = past.unnoted == 0 && past.last.and_then(|last| last.checked_add(1)) == Some(first);
        Claim { owed: past.owed(lane.as_ref()), waits_until: past.certainly_waits_until(complete) }
    }

    /// A connection whose socket the service manager has kept: what it was, with its requests that have no answer. `None`: where
    /// its stream stands is not known, and it must end; its client may come back on another one.
    pub fn survivor(&self, connection: u64) -> Option<Survivor> {
        let mut orphans = self.orphans.lock();
        let usable = |past: &Past| past.connection == connection && past.clean && past.unnoted == 0;
        let Some(at) = orphans.iter().position(|orphan| usable(&orphan.past)) else {
            let past = orphans.iter().map(|orphan| &orphan.past).find(|past| past.connection == connection);
            tracing::debug!(connection, ?past, "where a connection's stream stands is not known");
            return None;
        };
        let Orphan { past, lane } = orphans.swap_remove(at);
        self.left.store(orphans.len(), Ordering::Relaxed);
        Some(Survivor { owed: past.owed(lane.as_ref()), past })
    }

    /// The number after those of all connections that are remembered.
    pub fn next_connection(&self) -> u64 {
        let highest = self.orphans.lock().iter().map(|orphan| orphan.past.connection).max();
        highest.map_or(1, |highest| highest.saturating_add(1))
    }

    /// Gives up those that do not come back: their process is dead, or so much time has gone by since `started` that their
    /// clients have given up, too.
    pub fn expire(&self, started: Instant) {
        if !self.is_waiting() {
            return;
        }
        let over = started.elapsed() > KEPT;
        let mut orphans = self.orphans.lock();
        orphans.retain(|orphan| !over && orphan.past.peer.process.is_none_or(|process| process.alive()));
        self.left.store(orphans.len(), Ordering::Relaxed);
    }

    /// The daemon ends: connections and requests that go from here on have no answer, and stay noted for the next one.
    pub fn keep(&self) {
        if let Some(lanes) = &self.lanes {
            lanes.ends.store(true, Ordering::Relaxed);
        }
    }

    /// Removes the file `name`: nobody is owed anything.
    pub fn discard(name: &str) {
        let _ = fs::remove_file(Path::new(SHM_DIR).join(name));
    }
}

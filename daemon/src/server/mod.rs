//! The listening side: ZMTP connections in, requests to the engine, replies out.
//!
//! * `handshake`: greeting and READY; commands and frames are `lmcache_proto::zmtp`, which clients share;
//! * `access`: who may connect to a Unix socket;
//! * `endpoint`, `socket`: `tcp://` and `ipc://`, listening and connected;
//! * `door`: from the listening socket to the first request;
//! * `connection`: one task per peer, which is the ROUTER: when it is read, and in what order its requests run;
//! * `intake`, `limits`: what becomes of a message, and what a peer may make the daemon hold;
//! * `queue`, `execute`: what waits for its turn, and what becomes of it: answered, parked, a stream;
//! * `budget`, `rate`: bytes that peers may make the daemon hold, and messages that they may send in a second;
//! * `handover`: connections that go on in another process;
//! * `threads`: where the tasks of connections run;
//! * `stats`: what was no request, and why connections were ended.
//!
//! A connection is one client. Its requests are executed one after the other, in the order sent; small ones in the
//! connection's own task, long ones on the compute threads, so that no client waits for another's work. Pings and
//! the like never wait.
#![forbid(unsafe_code)]

mod access;
mod budget;
mod connection;
mod door;
mod endpoint;
mod execute;
mod handover;
mod handshake;
mod intake;
mod limits;
mod queue;
mod rate;
mod socket;
mod stats;
#[cfg(test)]
mod tests;
mod threads;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use lmcache_proto::zmtp;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

pub use access::Access;
pub use budget::Budget;
pub use endpoint::{BindError, Listener};
pub use handover::{ConnectionState, Parted};
pub use stats::{BadMessage, Ended, Paused, ServerStats};
pub use threads::Threads;

use crate::engine::Engine;
use crate::log_limit::LogLimit;
use crate::systemd::Supervisor;
use threads::Side;

/// Bounds and deadlines of the listening side.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Largest message, all its frames together.
    pub max_message_bytes: usize,
    /// Bytes that one peer may have queued, in and out.
    pub max_peer_bytes: usize,
    /// Bytes that all peers may have queued.
    pub max_total_bytes: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// Messages that one peer may send in a second; 0 does not limit them.
    pub max_peer_requests_per_second: u32,
    /// Time for greeting and READY.
    pub handshake_timeout: Duration,
    /// Time for one message, from its first byte to its last, and for a peer to take some of the answers that wait for
    /// it. A peer that sends or takes a byte now and then would hold its memory for ever.
    pub message_timeout: Duration,
}

/// The running listening side.
#[derive(Debug)]
pub struct Server {
    engine: Arc<Engine>,
    /// Keeps sockets for the next daemon.
    supervisor: Supervisor,
    config: ServerConfig,
    threads: Threads,
    budget: Arc<Budget>,
    stats: Arc<ServerStats>,
    accept_errors: LogLimit,
    connections: AtomicUsize,
    /// Connections that have asked for nothing yet, the oldest first: those that give way when all places are taken.
    quiet: Mutex<BTreeMap<u64, Arc<Notify>>>,
    next_id: AtomicU64,
    in_flight: AtomicUsize,
    idle: Notify,
    phase: watch::Sender<Phase>,
    /// Connections that wait to go on in another process.
    parted: Mutex<Vec<Parted>>,
    /// Told when a connection has ended or parted.
    fewer: Notify,
}

/// What the listening side does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It accepts, reads and answers.
    Serving,
    /// It finishes what it has begun, and keeps connections for another process; nobody is accepted.
    Parting,
    /// It finishes what it has begun.
    Draining,
    /// Another process has its sockets.
    Left,
}

impl Server {
    /// A server for `engine`; nothing listens yet.
    pub fn new(
        engine: Arc<Engine>,
        config: ServerConfig,
        supervisor: Supervisor,
        threads: Threads,
    ) -> Arc<Server> {
        Arc::new(Server {
            supervisor,
            threads,
            engine,
            // The largest message must fit with what its frames cost, or a peer alone could never send it.
            budget: Arc::new(Budget::new(config.max_total_bytes.max(
                config.max_message_bytes.saturating_add(zmtp::MAX_FRAMES * budget::FRAME_OVERHEAD + 1),
            ))),
            config,
            stats: Arc::new(ServerStats::new()),
            accept_errors: LogLimit::default(),
            connections: AtomicUsize::new(0),
            quiet: Mutex::default(),
            next_id: AtomicU64::new(1),
            in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
            phase: watch::Sender::new(Phase::Serving),
            parted: Mutex::default(),
            fewer: Notify::new(),
        })
    }

    /// What was no request, and why connections were ended.
    pub fn stats(&self) -> &ServerStats {
        &self.stats
    }

    /// Connections now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Requests that are executing now.
    pub fn executing(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Bytes that peers make the daemon hold now.
    pub fn queued_bytes(&self) -> usize {
        self.budget.used()
    }

    /// Until connections are not wanted by another process any more.
    async fn parts_no_more(&self) {
        // An error is impossible: we hold the sender.
        let _ = self.phase.subscribe().wait_for(|phase| *phase != Phase::Parting).await;
    }

    fn is_parting(&self) -> bool {
        *self.phase.borrow() == Phase::Parting
    }

    /// Stops accepting and reading, and waits until no request is executing, at most `limit`. Returns how many still were.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.phase.send_replace(Phase::Draining);
        let all_idle = async {
            loop {
                let notified = self.idle.notified();
                if self.in_flight.load(Ordering::SeqCst) == 0 {
                    return;
                }
                notified.await;
            }
        };
        let _ = tokio::time::timeout(limit, all_idle).await;
        self.in_flight.load(Ordering::SeqCst)
    }

    fn begin(self: &Arc<Server>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        InFlight(self.clone())
    }
}

/// One of `--max-connections`; given back however the connection's task ends.
struct Place {
    server: Arc<Server>,
    id: u64,
    /// Told when another connection takes this place; only before the first request.
    give_way: Arc<Notify>,
    /// Where its task runs.
    side: Arc<Side>,
}

impl Place {
    /// Of a connection that is counted and has asked for nothing yet.
    fn new(server: Arc<Server>, id: u64) -> Place {
        let give_way = Arc::new(Notify::new());
        server.quiet.lock().insert(id, give_way.clone());
        Place { server, id, give_way, side: Arc::default() }
    }

    /// The connection has asked for something: it keeps its place.
    fn keep(&self) {
        self.server.quiet.lock().remove(&self.id);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.keep();
        self.server.connections.fetch_sub(1, Ordering::SeqCst);
        self.server.fewer.notify_waiters();
    }
}

/// A request that is executing.
struct InFlight(Arc<Server>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

//! The listening side: ZMTP connections in (`lmcache_proto::zmtp`), requests to the engine, replies out.
//!
//! * `endpoint`: `tcp://` and `ipc://` listeners;
//! * `connection`: one task per peer, which is the ROUTER: order, parking, streams, budgets;
//! * `budget`: bytes that peers may make the daemon hold.
//!
//! A connection is one client. Its requests are executed one after the other, in the order sent; small ones in the
//! connection's own task, long ones on the compute threads, so that no client waits for another's work. Pings and
//! the like never wait.
#![forbid(unsafe_code)]

mod budget;
mod connection;
mod endpoint;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use lmcache_proto::zmtp;
use tokio::sync::{Notify, watch};

pub use budget::Budget;
pub use endpoint::{BindError, Listener};

use crate::engine::Engine;

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
    /// Time for greeting and READY.
    pub handshake_timeout: Duration,
}

/// The running listening side.
#[derive(Debug)]
pub struct Server {
    engine: Arc<Engine>,
    config: ServerConfig,
    budget: Arc<Budget>,
    connections: AtomicUsize,
    next_id: AtomicU64,
    in_flight: AtomicUsize,
    idle: Notify,
    draining: watch::Sender<bool>,
}

impl Server {
    /// A server for `engine`; nothing listens yet.
    pub fn new(engine: Arc<Engine>, config: ServerConfig) -> Arc<Server> {
        Arc::new(Server {
            engine,
            budget: Arc::new(Budget::new(config.max_total_bytes)),
            config,
            connections: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
            in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
            draining: watch::Sender::new(false),
        })
    }

    /// Accepts peers until the daemon drains.
    pub async fn accept(self: Arc<Server>, mut listener: Listener) {
        let mut draining = self.draining.subscribe();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = draining.wait_for(|draining| *draining) => return,
            };
            match accepted {
                Ok(stream) => self.clone().admit(stream),
                Err(error) => {
                    // Out of descriptors, mostly. The listener stays readable, so without a pause this would spin.
                    tracing::error!(endpoint = %listener.endpoint(), %error, "cannot accept a connection; raise LimitNOFILE if descriptors ran out");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn admit(self: Arc<Server>, stream: endpoint::Stream) {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= self.config.max_connections {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            self.engine.stats().connection_refused();
            return;
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            connection::run(&self, id, stream).await;
            self.connections.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// Connections now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Bytes queued now.
    pub fn queued_bytes(&self) -> usize {
        self.budget.used()
    }

    /// Stops accepting and waits until no request is executing, at most `limit`. Returns how many still were.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.draining.send_replace(true);
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

/// A request that is executing.
struct InFlight(Arc<Server>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

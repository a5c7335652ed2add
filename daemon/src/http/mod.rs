//! The admin API and `/metrics`.
#![forbid(unsafe_code)]
#![allow(clippy::result_large_err, reason = "an error here is an answer, made once and sent")]

mod adapters;
mod answer;
mod body;
mod cache;
mod call;
mod config_page;
mod drain;
mod events;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod guard;
pub mod history;
mod info;
mod loglevel;
mod objects;
mod own;
mod page;
mod places;
mod prefetches;
mod quota;
mod routes;
mod serve;
mod status;
mod threads;
mod upgrade;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustc_hash::FxHashSet;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::config::Config;
use crate::engine::Engine;
use crate::events::Bus;
use crate::l2::control::Attached;
use crate::log_limit::LogLimit;
use crate::logging::Levels;
use crate::net;
use crate::periodic::Periodic;
use crate::server::Server;
use crate::telemetry::{HttpCounters, Telemetry};
pub use drain::DrainOrder;
pub use events::EventStreams;
pub use guard::{Guard, Token, TokenError};
use history::{History, Source, State};
pub use upgrade::{UpgradeOrder, UpgradeReply, Upgraded};

/// What the routes are made of.
#[derive(Debug)]
pub struct AdminParts {
    /// The engine.
    pub engine: Arc<Engine>,
    /// The listening side.
    pub server: Arc<Server>,
    /// Makes `/metrics`.
    pub telemetry: Arc<Telemetry>,
    /// The event bus.
    pub bus: Arc<Bus>,
    /// The readers of its events.
    pub events: Arc<EventStreams>,
    /// The work that comes round.
    pub periodic: Arc<Periodic>,
    /// The levels of the log.
    pub levels: Levels,
    /// Who may use the API.
    pub guard: Guard,
    /// `/status` says it.
    pub hash_algorithm: &'static str,
    /// Of both ports.
    pub http: Arc<HttpCounters>,
}

/// What the routes look at.
#[derive(Debug)]
pub struct Admin {
    engine: Arc<Engine>,
    server: Arc<Server>,
    telemetry: Arc<Telemetry>,
    bus: Arc<Bus>,
    events: Arc<EventStreams>,
    periodic: Arc<Periodic>,
    levels: Levels,
    guard: Guard,
    hash_algorithm: &'static str,
    http: Arc<HttpCounters>,
    max_connections: usize,
    max_body: usize,
    eviction_policy: &'static str,
    /// The page of `/config`.
    config: Value,
    /// Events that fit in the bus.
    event_capacity: usize,
    /// Indices of tiers whose storage other daemons use, too.
    shared_tiers: Mutex<FxHashSet<u32>>,
    /// Set while the daemon drains.
    draining: AtomicBool,
    /// Held by the one request that may be working.
    turn: tokio::sync::Mutex<()>,
    wrong_tokens: LogLimit,
    /// Set when the daemon ends; see [`Admin::last_answers`].
    ending: watch::Sender<bool>,
    /// The order to drain and end, for whoever runs the daemon.
    pub drain_order: DrainOrder,
    /// The order to hand over to another process.
    pub upgrade_order: UpgradeOrder,
    /// Numbers of the last minutes, for the live page.
    pub history: Arc<History>,
}

impl Source for Admin {
    fn exposition(&self) -> Result<String, String> {
        Ok(self.telemetry.scrape_only(page::wanted::is_wanted))
    }

    fn state(&self) -> State {
        State {
            not_ready: self.not_ready(),
            draining: self.draining.load(Ordering::Relaxed),
            tiers_down: self.tiers_down(),
        }
    }
}

impl Admin {
    /// The admin API of a daemon.
    pub fn new(config: &Config, parts: AdminParts) -> Admin {
        let AdminParts {
            engine,
            server,
            telemetry,
            bus,
            events,
            periodic,
            levels,
            guard,
            hash_algorithm,
            http,
        } = parts;
        // Tiers are numbered as on the command line.
        let shared = (0..).zip(&config.l2.adapters).filter(|(_, tier)| tier.shared).map(|(index, _)| index);
        Admin {
            shared_tiers: Mutex::new(shared.collect()),
            engine,
            server,
            telemetry,
            bus,
            events,
            periodic,
            levels,
            guard,
            hash_algorithm,
            http,
            max_connections: config.server.limits.http_max_connections,
            max_body: config.server.limits.http_max_body_bytes,
            eviction_policy: config.eviction.policy.name(),
            config: config_page::page(config),
            event_capacity: config.observability.event_bus_queue_size.get(),
            draining: AtomicBool::new(false),
            turn: tokio::sync::Mutex::new(()),
            wrong_tokens: LogLimit::default(),
            ending: watch::Sender::new(false),
            drain_order: DrainOrder::default(),
            upgrade_order: UpgradeOrder::default(),
            history: Arc::new(History::new()),
        }
    }

    /// The daemon drains from now on: it is no longer ready.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Tiers that get no calls now, and why.
    fn tiers_down(&self) -> Vec<(String, String)> {
        let Some(l2) = self.engine.l2() else { return Vec::new() };
        let all = l2.opened.tiers.all();
        let down = all.iter().filter(|attached| attached.tier.breaker().is_shut());
        let reason = |attached: &Arc<Attached>| {
            let error = attached.tier.breaker().status().last_error;
            (attached.tier.label().to_owned(), error.unwrap_or_else(|| "it was too slow".into()))
        };
        down.map(reason).collect()
    }

    /// Accepts nobody any more and waits until what has been asked is answered, at most `limit`: who orders the end of the
    /// daemon is to hear that it comes. Streams end with the limit.
    pub async fn last_answers(&self, limit: Duration) {
        self.ending.send_replace(true);
        let _ = tokio::time::timeout(limit, self.ending.closed()).await;
    }

    /// Why the daemon should get no traffic now; `None` when it should.
    pub fn not_ready(&self) -> Option<String> {
        if self.draining.load(Ordering::Relaxed) {
            return Some("draining".into());
        }
        let l1 = self.engine.l1().stats();
        (l1.frontier < l1.capacity)
            .then(|| format!("reserving memory: {} of {} bytes", l1.frontier, l1.capacity))
    }
}

/// Binds a listener by ourselves: warp panics on a busy port.
///
/// # Errors
/// The bind call's.
pub async fn bind(host: &str, port: u16) -> io::Result<TcpListener> {
    net::listen(host, port).await
}

/// Serves the whole admin API.
pub async fn serve_admin(listener: TcpListener, admin: Arc<Admin>) {
    let (most, counters) = (admin.max_connections, admin.http.clone());
    let ending = admin.ending.subscribe();
    serve::serve(listener, routes::admin(admin), most, counters, ending).await;
}

/// Serves `/metrics` alone.
pub async fn serve_metrics(listener: TcpListener, admin: Arc<Admin>) {
    let (most, counters) = (admin.max_connections, admin.http.clone());
    let ending = admin.ending.subscribe();
    serve::serve(listener, routes::metrics(admin), most, counters, ending).await;
}

//! The admin API and `/metrics`.
#![forbid(unsafe_code)]

mod answer;
mod body;
mod cache;
pub mod history;
mod page;
mod quota;
mod routes;
mod serve;
mod status;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::TcpListener;

use crate::engine::Engine;
use crate::l2::control::Attached;
use crate::net;
use crate::server::Server;
use crate::telemetry::Telemetry;
use history::{History, Source, State};

/// What the routes look at.
#[derive(Debug)]
pub struct Admin {
    /// The engine.
    pub engine: Arc<Engine>,
    /// The listening side.
    pub server: Arc<Server>,
    /// Makes `/metrics`.
    pub telemetry: Arc<Telemetry>,
    /// `/status` says it.
    pub hash_algorithm: &'static str,
    /// `/status` says it.
    pub eviction_policy: &'static str,
    /// Set while the daemon drains.
    draining: AtomicBool,
    /// Held by the one request that may be working.
    turn: tokio::sync::Mutex<()>,
    /// Numbers of the last minutes, for the live page.
    pub history: Arc<History>,
}

impl Source for Admin {
    fn exposition(&self) -> Result<String, String> {
        Ok(self.telemetry.scrape())
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
    pub fn new(
        engine: Arc<Engine>,
        server: Arc<Server>,
        telemetry: Arc<Telemetry>,
        hash_algorithm: &'static str,
        eviction_policy: &'static str,
    ) -> Admin {
        let (draining, turn) = (AtomicBool::new(false), tokio::sync::Mutex::new(()));
        let history = Arc::new(History::new());
        Admin { engine, server, telemetry, hash_algorithm, eviction_policy, draining, turn, history }
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
    serve::serve(listener, routes::admin(admin)).await;
}

/// Serves `/metrics` alone.
pub async fn serve_metrics(listener: TcpListener, admin: Arc<Admin>) {
    serve::serve(listener, routes::metrics(admin)).await;
}

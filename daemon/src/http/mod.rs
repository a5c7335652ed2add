//! The admin API and `/metrics`.
#![forbid(unsafe_code)]

pub mod history;
mod page;
mod routes;

use std::io;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::TcpListener;

use crate::engine::Engine;
use crate::server::Server;
use crate::telemetry;
use history::{History, Source, State};

/// What the routes look at.
#[derive(Debug)]
pub struct Admin {
    /// The engine.
    pub engine: Arc<Engine>,
    /// The listening side.
    pub server: Arc<Server>,
    /// `/status` says it.
    pub hash_algorithm: &'static str,
    /// Set while the daemon drains.
    pub draining: AtomicBool,
    /// Numbers of the last minutes, for the live page.
    pub history: Arc<History>,
}

impl Source for Admin {
    fn exposition(&self) -> Result<String, String> {
        telemetry::exposition(&self.engine, &self.server).map_err(|error| error.to_string())
    }

    fn state(&self) -> State {
        State {
            not_ready: self.not_ready(),
            draining: self.draining.load(Ordering::Relaxed),
            // There are no tiers yet; what their breakers say belongs here.
            tiers_down: Vec::new(),
        }
    }
}

impl Admin {
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
    let addresses: Vec<_> = (host, port).to_socket_addrs()?.collect();
    let address = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    TcpListener::bind(address.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?).await
}

/// Serves the whole admin API.
pub async fn serve_admin(listener: TcpListener, admin: Arc<Admin>) {
    warp::serve(routes::admin(admin)).incoming(listener).run().await;
}

/// Serves `/metrics` alone.
pub async fn serve_metrics(listener: TcpListener, admin: Arc<Admin>) {
    warp::serve(routes::metrics(admin)).incoming(listener).run().await;
}

//! Counters of the HTTP ports: the admin API and the page that scrapers read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a request was not read, or a connection not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpRefusal {
    /// Its body is larger than `--http-max-body-bytes`.
    TooLarge,
    /// Its body did not come in time.
    Slow,
    /// Its body broke off.
    Broken,
    /// It had asked for nothing yet, and another one came when all places were taken.
    Displaced,
    /// `--http-max-connections` are open, and all of them ask.
    TooMany,
}

impl HttpRefusal {
    /// Every reason, in counter order.
    pub const ALL: [HttpRefusal; 5] = [
        HttpRefusal::TooLarge,
        HttpRefusal::Slow,
        HttpRefusal::Broken,
        HttpRefusal::Displaced,
        HttpRefusal::TooMany,
    ];

    /// The label.
    pub fn name(self) -> &'static str {
        match self {
            HttpRefusal::TooLarge => "body_too_large",
            HttpRefusal::Slow => "body_timeout",
            HttpRefusal::Broken => "body_broken",
            HttpRefusal::Displaced => "displaced",
            HttpRefusal::TooMany => "too_many_connections",
        }
    }
}

/// The counters, of both ports together.
#[derive(Debug, Default)]
pub struct HttpCounters {
    connections: AtomicU64,
    refused: [AtomicU64; HttpRefusal::ALL.len()],
}

/// A connection, counted while this lives.
#[derive(Debug)]
pub struct HttpConnection(Arc<HttpCounters>);

impl HttpCounters {
    /// One more connection.
    pub fn connection(self: &Arc<HttpCounters>) -> HttpConnection {
        self.connections.fetch_add(1, Ordering::Relaxed);
        HttpConnection(self.clone())
    }

    /// Connections now.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Counts one that was not read, or not served.
    pub fn refuse(&self, reason: HttpRefusal) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What was not read or not served, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (HttpRefusal, u64)> {
        HttpRefusal::ALL
            .into_iter()
            .map(|reason| (reason, self.refused[reason as usize].load(Ordering::Relaxed)))
    }
}

impl Drop for HttpConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

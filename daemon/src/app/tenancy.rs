//! Tenants: read at the start, and again at SIGHUP.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Config;
use crate::http::Guard;
use crate::tenants::{Gate, TenantsError};

pub(super) fn open(config: &Config) -> Result<Option<Arc<Gate>>, TenantsError> {
    let server = &config.server;
    let open = |path| Gate::open(path, server.tenant_token_required).map(Arc::new);
    server.tenant_tokens_file.as_deref().map(open).transpose()
}

/// Without tenants the signal keeps its meaning: the terminal is gone.
pub(super) fn hangup(config: &Config) -> io::Result<Option<Signal>> {
    config.server.tenant_tokens_file.as_ref().map(|_| signal(SignalKind::hangup())).transpose()
}

pub(super) fn announce(gate: &Gate, guard: &Guard) {
    tracing::info!(
        tokens = gate.now().len(),
        everybody_shows_one = gate.is_required(),
        "connections are bound to cache salts by token; SIGHUP reads the file again"
    );
    if let Guard::Loopback = guard {
        tracing::warn!(
            "tenants are bound to their cache salts by token, but the admin API serves every process of this machine: it can clear and list everybody's objects; set --http-token-file"
        );
    }
}

/// Reads the file at each signal, for as long as the daemon runs.
pub(super) async fn reload(gate: Arc<Gate>, hangup: Option<Signal>) {
    let Some(mut hangup) = hangup else { return };
    while hangup.recv().await.is_some() {
        let gate = gate.clone();
        let read = tokio::task::spawn_blocking(move || gate.reload()).await;
        match read {
            Ok(Ok(tenants)) => tracing::info!(
                tokens = tenants.len(),
                "SIGHUP: the tokens of the tenants were read again; connections whose token is gone are refused from now on"
            ),
            Ok(Err(error)) => {
                tracing::error!(%error, "SIGHUP: the tokens of the tenants stay as they were, because the file cannot be used");
            }
            Err(error) => {
                tracing::error!(%error, "SIGHUP: the tokens of the tenants stay as they were; this is a bug in lmcached")
            }
        }
    }
}

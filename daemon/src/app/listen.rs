//! Where the daemon is reached: sockets that it makes, that the service manager has made, or that a running daemon leaves it.

use tokio::net::TcpListener;

use super::AppError;
use super::open::{access, hash_algorithm};
use crate::config::{Config, Endpoint, Listen};
use crate::handover::{Heir, SocketRole};
use crate::http;
use crate::l1::L1;
use crate::server::Listener;
use crate::systemd::Sockets;

/// All listeners.
#[derive(Debug)]
pub(super) struct Doors {
    pub(super) clients: Vec<Listener>,
    pub(super) admin: TcpListener,
    /// `None`: it is switched off, or its default port is somebody else's.
    pub(super) metrics: Option<TcpListener>,
}

impl Doors {
    /// Listens everywhere.
    ///
    /// # Errors
    /// The first endpoint that cannot be listened on.
    pub(super) async fn open(
        config: &Config,
        sockets: &mut Sockets,
        mut heir: Option<&mut Heir>,
    ) -> Result<Doors, AppError> {
        let access = access(config);
        let mut clients = Vec::new();
        for endpoint in &config.server.endpoints {
            if let Some((socket, own_file)) = heir.as_mut().and_then(|heir| heir.listener(endpoint)) {
                clients.push(Listener::take_over(endpoint.clone(), socket, own_file, &access)?);
                continue;
            }
            let handed_over = match endpoint {
                Endpoint::Ipc { path } => sockets.at(path),
                Endpoint::Tcp { .. } => None,
            };
            clients.push(match (handed_over, endpoint) {
                (Some(socket), Endpoint::Ipc { path }) => Listener::adopt(path.clone(), socket, &access)?,
                _ => Listener::bind(endpoint.clone(), &access).await?,
            });
        }
        for (path, socket) in sockets.rest() {
            clients.push(Listener::adopt(path, socket, &access)?);
        }
        while let Some((endpoint, socket)) = heir.as_mut().and_then(|heir| heir.other_listener()) {
            clients.push(Listener::take_over(endpoint, socket, false, &access)?);
        }
        let mut taken = |role| heir.as_mut().and_then(|heir| heir.http(&role));
        let admin = listen(&config.http.listen, "--http-port", taken(SocketRole::Admin)).await?;
        let metrics = match &config.observability.prometheus {
            Some(on) => match listen(on, "--prometheus-port", taken(SocketRole::Metrics)).await {
                Ok(listener) => Some(listener),
                Err(error) if !on.port_is_explicit => {
                    tracing::warn!("{error}; /metrics stays on --http-port");
                    None
                }
                Err(error) => return Err(error),
            },
            None => None,
        };
        Ok(Doors { clients, admin, metrics })
    }
}

/// Listens; on the socket that a running daemon has left, if it was bound to the same.
async fn listen(
    on: &Listen,
    flag: &'static str,
    handed_over: Option<std::net::TcpListener>,
) -> Result<TcpListener, AppError> {
    let listener = match handed_over {
        Some(socket) if socket.local_addr().is_ok_and(|bound| on.port == 0 || bound.port() == on.port) => {
            socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket))
        }
        _ => http::bind(&on.host, on.port).await,
    };
    listener.map_err(|source| AppError::Http { host: on.host.clone(), port: on.port, flag, source })
}

/// Says where it is reached, and what it serves.
pub(super) fn announce(
    config: &Config,
    l1: &L1,
    listeners: &[Listener],
    admin: &TcpListener,
    metrics: Option<&TcpListener>,
) {
    for listener in listeners {
        tracing::info!(endpoint = %listener.endpoint(), "listening for LMCache 0.5.6 clients");
        if listener.is_remote() {
            let who = if config.server.tenant_tokens_file.is_some() {
                "requests for the cache need a token of --tenant-tokens-file, which travels unencrypted"
            } else {
                "the protocol has no authentication: anybody who reaches it can read and clear the cache"
            };
            tracing::warn!(endpoint = %listener.endpoint(), "this endpoint can be reached from other machines, and {who}");
        }
    }
    let address =
        |listener: &TcpListener| listener.local_addr().map_or_else(|_| "?".into(), |a| a.to_string());
    tracing::info!(
        http = address(admin),
        metrics = metrics.map_or_else(|| "off".into(), address),
        "admin API"
    );
    tracing::info!(
        pool = config.l1.pool_name,
        bytes = l1.stats().capacity,
        chosen_by = if config.l1.size_bytes.is_some() { "--l1-size-gb" } else { "free memory" },
        eviction = ?config.eviction.policy,
        chunk_size = config.server.chunk_size,
        hash = hash_algorithm(config).name(),
        taken_over = l1.pool().segment().reused(),
        "L1 pool; reserving its memory in the background"
    );
}

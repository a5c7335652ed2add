//! `tcp://host:port` and `ipc:///path` listeners.

use std::io;
use std::net::ToSocketAddrs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::config::Endpoint;
use crate::process::ProcessId;

/// Why an endpoint cannot be listened on.
#[derive(Debug, Error)]
pub enum BindError {
    /// The host has no address.
    #[error("cannot resolve host {0}")]
    Resolve(String),
    /// Somebody listens there.
    #[error("{0} is in use by another process; stop it or choose another --port (or --bind)")]
    Busy(Endpoint),
    /// Something that is not a socket has the name.
    #[error("{0} exists and is not a socket; remove it or choose another path")]
    NotASocket(Endpoint),
    /// The system refused.
    #[error("cannot listen on {endpoint}: {source}")]
    Os {
        /// Where.
        endpoint: Endpoint,
        /// Why.
        source: io::Error,
    },
}

/// A bound listener.
#[derive(Debug)]
pub struct Listener {
    endpoint: Endpoint,
    socket: Socket,
    /// Whether its file is ours to remove.
    owns_file: bool,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Ipc(UnixListener),
}

/// An accepted connection.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream, String),
    Ipc(UnixStream, Option<ProcessId>),
}

impl Listener {
    /// Binds `endpoint`.
    ///
    /// A socket file that nobody answers on is the leftover of a dead daemon and is replaced; one that answers is busy.
    ///
    /// # Errors
    /// See [`BindError`].
    pub async fn bind(endpoint: Endpoint) -> Result<Listener, BindError> {
        let os = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::Busy(endpoint.clone()),
            _ => BindError::Os { endpoint: endpoint.clone(), source },
        };
        let socket = match &endpoint {
            Endpoint::Tcp { host, port } => {
                let addresses: Vec<_> = (host.as_str(), *port)
                    .to_socket_addrs()
                    .map_err(|_| BindError::Resolve(host.clone()))?
                    .collect();
                // The peer binds `localhost` as IPv4; clients that resolve it to IPv6 first fall back.
                let first = addresses.iter().find(|a| a.is_ipv4()).or(addresses.first());
                let address = *first.ok_or_else(|| BindError::Resolve(host.clone()))?;
                Socket::Tcp(TcpListener::bind(address).await.map_err(os)?)
            }
            Endpoint::Ipc { path } => {
                remove_stale(path, &endpoint).await?;
                // Created under a private name and renamed, so that it is never open to others for a moment.
                let listener = UnixListener::bind(path).map_err(os)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(os)?;
                Socket::Ipc(listener)
            }
        };
        Ok(Listener { endpoint, socket, owns_file: true })
    }

    /// Listens on a socket that the service manager has bound to `path`, and will go on holding: its file is left alone.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn adopt(path: PathBuf, listener: std::os::unix::net::UnixListener) -> Result<Listener, BindError> {
        let endpoint = Endpoint::Ipc { path };
        let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
        match listener {
            Ok(listener) => Ok(Listener { endpoint, socket: Socket::Ipc(listener), owns_file: false }),
            Err(source) => Err(BindError::Os { endpoint, source }),
        }
    }

    /// Where it listens; with the real port if 0 was asked for.
    pub fn endpoint(&self) -> Endpoint {
        match (&self.socket, &self.endpoint) {
            (Socket::Tcp(listener), Endpoint::Tcp { host, .. }) => match listener.local_addr() {
                Ok(address) => Endpoint::Tcp { host: host.clone(), port: address.port() },
                Err(_) => self.endpoint.clone(),
            },
            _ => self.endpoint.clone(),
        }
    }

    /// Whether peers of other machines can reach it.
    pub fn is_remote(&self) -> bool {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().is_ok_and(|address| !address.ip().is_loopback()),
            Socket::Ipc(_) => false,
        }
    }

    pub(super) async fn accept(&mut self) -> io::Result<Stream> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream, format!("tcp://{address}")))
            }
            Socket::Ipc(listener) => {
                let (stream, _) = listener.accept().await?;
                let process =
                    getsockopt(&stream, PeerCredentials).ok().and_then(|cred| ProcessId::of(cred.pid()));
                Ok(Stream::Ipc(stream, process))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let (Endpoint::Ipc { path }, true) = (&self.endpoint, self.owns_file) {
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn remove_stale(path: &Path, endpoint: &Endpoint) -> Result<(), BindError> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(BindError::NotASocket(endpoint.clone()));
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(BindError::Busy(endpoint.clone())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| BindError::Os { endpoint: endpoint.clone(), source })
        }
        Err(source) => Err(BindError::Os { endpoint: endpoint.clone(), source }),
    }
}

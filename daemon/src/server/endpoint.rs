//! `tcp://host:port` and `ipc:///path` listeners.

use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::stat::{Mode, fchmod};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket, UnixStream};
use tokio::runtime::Handle;

use super::access::{Access, Credentials};
use crate::config::Endpoint;
use crate::net;

/// Why an endpoint cannot be listened on.
#[derive(Debug, Error)]
pub enum BindError {
    /// The host has no address.
    #[error("cannot listen on {0}: its host has no address")]
    Resolve(Endpoint),
    /// Somebody listens there.
    #[error("{0} is in use by another process; stop it or choose another --port (or --bind)")]
    Busy(Endpoint),
    /// Something that is not a socket has the name.
    #[error("{0} exists and is not a socket; remove it or choose another path")]
    NotASocket(Endpoint),
    /// Its file cannot be given to the group.
    #[error(
        "cannot give the socket file of {endpoint} to group {gid}: {source}; the daemon's user must be a member of the group of --shm-group"
    )]
    Group {
        /// Where.
        endpoint: Endpoint,
        /// The group.
        gid: u32,
        /// What the system said.
        source: io::Error,
    },
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
    /// Who may connect, if it is a Unix socket.
    access: Access,
}

/// Answers that the kernel takes for a TCP peer (it takes as much again for its own bookkeeping); what it does not take waits
/// in the daemon and is counted there. Left alone the kernel takes up to 4 MiB (`net.ipv4.tcp_wmem`), and some hundreds of peers
/// that never read would have all memory that it has for TCP. A Unix socket takes 208 KiB.
const SEND_BYTES: usize = 256 << 10;

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    /// With the device and inode of its file: what has the name at the end may be another daemon's.
    /// None if the file is the service manager's.
    Ipc(UnixListener, Option<(u64, u64)>),
}

/// An accepted connection.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream, SocketAddr),
    /// With what the kernel says of whoever connected.
    Ipc(UnixStream, Option<Credentials>),
}

impl Listener {
    /// Binds `endpoint`; if it is a Unix socket, for those whom `access` admits.
    ///
    /// A socket file that nobody answers on is the leftover of a dead daemon and is replaced; one that answers is busy.
    ///
    /// # Errors
    /// See [`BindError`].
    pub async fn bind(endpoint: Endpoint, access: &Access) -> Result<Listener, BindError> {
        let os = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::Busy(endpoint.clone()),
            io::ErrorKind::NotFound if matches!(endpoint, Endpoint::Tcp { .. }) => {
                BindError::Resolve(endpoint.clone())
            }
            _ => BindError::Os { endpoint: endpoint.clone(), source },
        };
        let socket = match &endpoint {
            Endpoint::Tcp { host, port } => Socket::Tcp(net::listen(host, *port).await.map_err(os)?),
            Endpoint::Ipc { path } => {
                remove_stale(path, &endpoint).await?;
                let socket = UnixSocket::new_stream().map_err(os)?;
                // Before the bind, which gives the file the mode of the socket: it is never open to others, not even for
                // a moment. Whoever can connect can read and clear the cache.
                fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| os(errno.into()))?;
                socket.bind(path).map_err(os)?;
                if let [gid, ..] = access.groups[..] {
                    // The group before the mode: never open to another group.
                    lchown(path, None, Some(gid))
                        .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(0o660)))
                        .map_err(|source| BindError::Group { endpoint: endpoint.clone(), gid, source })?;
                }
                let file = std::fs::symlink_metadata(path).map_err(os)?;
                Socket::Ipc(socket.listen(net::BACKLOG).map_err(os)?, Some((file.dev(), file.ino())))
            }
        };
        Ok(Listener { endpoint, socket, access: access.clone() })
    }

    /// Listens on a socket that the service manager has bound to `path`, and will go on holding: its file is left alone. Its
    /// mode admits besides those of `access`.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn adopt(
        path: PathBuf,
        listener: std::os::unix::net::UnixListener,
        access: &Access,
    ) -> Result<Listener, BindError> {
        let access = access.and_mode_of(&path);
        if access.anybody {
            tracing::warn!(path = %path.display(), "the mode of the service manager's socket lets every user of this machine read and clear the cache; set SocketMode=0660 and a SocketGroup=");
        }
        let endpoint = Endpoint::Ipc { path };
        let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
        match listener {
            Ok(listener) => Ok(Listener { endpoint, socket: Socket::Ipc(listener, None), access }),
            Err(source) => Err(BindError::Os { endpoint, source }),
        }
    }

    /// Listens on a socket that an earlier process has handed over, with the file if it was that process's.
    ///
    /// # Errors
    /// The socket is not of the endpoint's kind.
    pub fn take_over(
        endpoint: Endpoint,
        socket: OwnedFd,
        own_file: bool,
        access: &Access,
    ) -> Result<Listener, BindError> {
        let os = |source| BindError::Os { endpoint: endpoint.clone(), source };
        let (socket, access) = match &endpoint {
            Endpoint::Tcp { .. } => {
                let listener = std::net::TcpListener::from(socket);
                listener.set_nonblocking(true).map_err(os)?;
                (Socket::Tcp(TcpListener::from_std(listener).map_err(os)?), access.clone())
            }
            Endpoint::Ipc { path } => {
                let listener = std::os::unix::net::UnixListener::from(socket);
                if !own_file {
                    return Listener::adopt(path.clone(), listener, access);
                }
                listener.set_nonblocking(true).map_err(os)?;
                let file = std::fs::symlink_metadata(path).map_err(os)?;
                let listener = UnixListener::from_std(listener).map_err(os)?;
                (Socket::Ipc(listener, Some((file.dev(), file.ino()))), access.clone())
            }
        };
        Ok(Listener { endpoint, socket, access })
    }

    /// The same socket for another process, and whether its file is ours.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn hand_over(&self) -> io::Result<(OwnedFd, bool)> {
        match &self.socket {
            Socket::Tcp(listener) => Ok((listener.as_fd().try_clone_to_owned()?, true)),
            Socket::Ipc(listener, file) => Ok((listener.as_fd().try_clone_to_owned()?, file.is_some())),
        }
    }

    /// The same socket, heard by another runtime from here on.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn moved_to(mut self, runtime: &Handle) -> Result<Listener, BindError> {
        let _there = runtime.enter();
        let moved = match &self.socket {
            Socket::Tcp(listener) => listener
                .as_fd()
                .try_clone_to_owned()
                .and_then(|socket| TcpListener::from_std(socket.into()).map(Socket::Tcp)),
            Socket::Ipc(listener, file) => listener.as_fd().try_clone_to_owned().and_then(|socket| {
                UnixListener::from_std(socket.into()).map(|listener| Socket::Ipc(listener, *file))
            }),
        };
        match moved {
            Ok(socket) => self.socket = socket,
            Err(source) => return Err(BindError::Os { endpoint: self.endpoint.clone(), source }),
        }
        Ok(self)
    }

    /// Another process listens on it: its file stays.
    pub(super) fn leave(mut self) {
        if let Socket::Ipc(_, file) = &mut self.socket {
            *file = None;
        }
    }

    /// The endpoint as it was configured.
    pub fn configured(&self) -> &Endpoint {
        &self.endpoint
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
            Socket::Ipc(..) => false,
        }
    }

    /// Whether whoever has connected may.
    pub(super) fn admits(&self, stream: &Stream) -> bool {
        match stream {
            Stream::Tcp(..) => true,
            Stream::Ipc(_, peer) => {
                self.access.anybody || peer.as_ref().is_some_and(|peer| self.access.admits(peer))
            }
        }
    }

    pub(super) async fn accept(&mut self) -> io::Result<Stream> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Both fail when the peer has gone already, which the next read shows.
                let _ = stream.set_nodelay(true);
                let _ = setsockopt(&stream, sockopt::SndBuf, &SEND_BYTES);
                Ok(Stream::Tcp(stream, address))
            }
            Socket::Ipc(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let peer = Credentials::of(&stream);
                Ok(Stream::Ipc(stream, peer))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let (Endpoint::Ipc { path }, Socket::Ipc(_, Some(file))) = (&self.endpoint, &self.socket)
            && std::fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == *file)
        {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_file_is_private_and_only_removed_by_its_owner() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("sock");
        let endpoint = Endpoint::Ipc { path: path.clone() };
        let first = Listener::bind(endpoint.clone(), &Access::default()).await.expect("bind");
        let mode = std::fs::symlink_metadata(&path).expect("file").mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(
            Listener::bind(endpoint.clone(), &Access::default()).await,
            Err(BindError::Busy(_))
        ));
        // Somebody takes the name away, and another daemon binds it.
        std::fs::remove_file(&path).expect("remove");
        let second = Listener::bind(endpoint, &Access::default()).await.expect("bind");
        drop(first);
        assert!(path.exists(), "the second one's file is not the first one's to remove");
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_kernel_takes_little_for_a_tcp_peer() {
        let endpoint = Endpoint::Tcp { host: "127.0.0.1".into(), port: 0 };
        let mut listener = Listener::bind(endpoint, &Access::default()).await.expect("bind");
        let Endpoint::Tcp { port, .. } = listener.endpoint() else { panic!("a TCP endpoint") };
        let _peer = TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
        let Ok(Stream::Tcp(stream, _)) = listener.accept().await else { panic!("a TCP stream") };
        let taken = nix::sys::socket::getsockopt(&stream, sockopt::SndBuf).expect("size");
        // It doubles what it is told, within `net.core.wmem_max`.
        assert!(taken <= 2 * SEND_BYTES, "{taken} bytes");
    }
}

//! The old process, as the new one sees it.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use super::channel::Channel;
use super::{ChannelError, Estate, Hello, SocketRole, VARIABLE};
use crate::config::{Config, Endpoint};
use crate::engine::EngineState;
use crate::l1::HandedOver;
use crate::process::ProcessId;
use crate::server::Parted;

/// Why nothing was handed over.
#[derive(Debug, Error)]
pub enum HeirError {
    /// The standard input is no channel.
    #[error(
        "{VARIABLE} is set, but the standard input is no channel of a running daemon ({0}); unset it, or run lmcache-ctl upgrade"
    )]
    Channel(io::Error),
    /// The other daemon goes on by itself, or has ended.
    #[error("the running daemon has handed over nothing: {0}")]
    Nothing(#[from] ChannelError),
}

/// What a running daemon has left to this process.
#[derive(Debug)]
pub struct Heir {
    channel: Channel,
    left: Vec<(SocketRole, OwnedFd)>,
    next_connection: u64,
    engine: EngineState,
}

impl Heir {
    /// Says what this process is and waits until everything is its own; `None`: nobody hands over. Blocks.
    ///
    /// # Errors
    /// See [`HeirError`].
    pub fn from_environment(config: &Config) -> Result<Option<Heir>, HeirError> {
        if std::env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        let input = io::stdin().as_fd().try_clone_to_owned().map_err(HeirError::Channel)?;
        rustix::net::sockopt::socket_type(&input).map_err(|errno| HeirError::Channel(errno.into()))?;
        // The channel has one end here: the other side must see it close when this process ends or drops it.
        let null = File::open("/dev/null").map_err(HeirError::Channel)?;
        rustix::stdio::dup2_stdin(&null).map_err(|errno| HeirError::Channel(errno.into()))?;
        let mut channel = Channel::from_fd(input);
        channel.send(&Hello::new(config), &[])?;
        let (Estate { roles, next_connection, engine }, descriptors) = channel.receive(None)?;
        if roles.len() != descriptors.len() {
            let message = format!("{} descriptors for {} roles", descriptors.len(), roles.len());
            return Err(ChannelError::Message(message).into());
        }
        let left = roles.into_iter().zip(descriptors).collect();
        Ok(Some(Heir { channel, left, next_connection, engine }))
    }

    fn take(&mut self, is: impl Fn(&SocketRole) -> bool) -> Option<(SocketRole, OwnedFd)> {
        let at = self.left.iter().position(|(role, _)| is(role))?;
        Some(self.left.remove(at))
    }

    /// The pool and its table.
    pub fn segments(&mut self) -> Option<HandedOver> {
        let (_, pool) = self.take(|role| *role == SocketRole::Pool)?;
        let (_, table) = self.take(|role| *role == SocketRole::Table)?;
        Some(HandedOver { pool: Arc::new(pool), table: Arc::new(table), writing: self.engine.writing() })
    }

    /// The socket of a client endpoint, and whether its file was the daemon's.
    pub fn listener(&mut self, endpoint: &Endpoint) -> Option<(OwnedFd, bool)> {
        let wanted = SocketRole::of(endpoint, true);
        let (role, socket) = self.take(|role| match (role, &wanted) {
            (SocketRole::Ipc { path, .. }, SocketRole::Ipc { path: wanted, .. }) => path == wanted,
            _ => *role == wanted,
        })?;
        Some((socket, !matches!(role, SocketRole::Ipc { own_file: false, .. })))
    }

    /// Unix sockets that no endpoint names: the service manager's.
    pub fn other_listener(&mut self) -> Option<(Endpoint, OwnedFd)> {
        let (role, socket) = self.take(|role| matches!(role, SocketRole::Ipc { own_file: false, .. }))?;
        let SocketRole::Ipc { path, .. } = role else { return None };
        Some((Endpoint::Ipc { path }, socket))
    }

    /// The listener of the admin API or of the metrics.
    pub fn http(&mut self, role: &SocketRole) -> Option<std::net::TcpListener> {
        let (_, socket) = self.take(|other| other == role)?;
        Some(socket.into())
    }

    /// Requests under way.
    pub fn engine(&mut self) -> EngineState {
        std::mem::take(&mut self.engine)
    }

    /// Number of the next connection.
    pub fn next_connection(&self) -> u64 {
        self.next_connection
    }

    /// The connections.
    pub fn connections(&mut self) -> Vec<Parted> {
        let (connections, others) = std::mem::take(&mut self.left)
            .into_iter()
            .partition(|(role, _)| matches!(role, SocketRole::Connection { .. }));
        self.left = others;
        let connection = |(role, socket)| {
            let SocketRole::Connection { id, is_ipc, process, token, quiet, unread, unsent } = role else {
                return None;
            };
            let process = process.map(|(pid, start_time)| ProcessId { pid, start_time });
            let (unread, unsent) = (unread.into_vec(), unsent.into_vec());
            Some(Parted { id, socket, is_ipc, process, token, quiet, unread, unsent })
        };
        Vec::into_iter(connections).filter_map(connection).collect()
    }

    /// This process serves: the other one ends. What nobody has asked for is closed.
    ///
    /// # Errors
    /// It has ended by itself. Then it was not told, and this process serves all the same.
    pub fn serves(mut self) -> Result<(), ChannelError> {
        for (role, _) in &self.left {
            match role {
                SocketRole::Ipc { path, own_file: true } => {
                    tracing::info!(path = %path.display(), "the configuration does not name this socket any more; it is closed");
                    remove(path);
                }
                role => tracing::info!(?role, "nobody uses this socket any more; it is closed"),
            }
        }
        self.channel.send(&(), &[])
    }
}

fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

//! The old process, as the new one sees it.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use thiserror::Error;

use super::channel::Channel;
use super::{ChannelError, Estate, Hello, SocketRole, VARIABLE};
use crate::config::{Config, Endpoint};
use crate::engine::EngineState;
use crate::l1::HandedOver;
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
    connections: Vec<Parted>,
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
        let (estate, mut descriptors) = channel.receive::<Estate>(None)?;
        let Estate { roles, connections, next_connection, engine } = estate;
        if roles.len() + connections.len() != descriptors.len() {
            let (wanted, came) = (roles.len() + connections.len(), descriptors.len());
            return Err(ChannelError::Message(format!("{came} descriptors instead of {wanted}")).into());
        }
        let sockets = descriptors.split_off(roles.len());
        let parted = |(state, socket)| Parted { socket, state };
        let connections = connections.into_iter().zip(sockets).map(parted).collect();
        let left = roles.into_iter().zip(descriptors).collect();
        Ok(Some(Heir { channel, left, connections, next_connection, engine }))
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
        let is_it =
            |role: &SocketRole| matches!(role, SocketRole::Clients { endpoint: of, .. } if of == endpoint);
        let (role, socket) = self.take(is_it)?;
        Some((socket, matches!(role, SocketRole::Clients { own_file: true, .. })))
    }

    /// Unix sockets that no endpoint names: the service manager's.
    pub fn other_listener(&mut self) -> Option<(Endpoint, OwnedFd)> {
        let (role, socket) = self.take(|role| matches!(role, SocketRole::Clients { own_file: false, .. }))?;
        let SocketRole::Clients { endpoint, .. } = role else { return None };
        Some((endpoint, socket))
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
        std::mem::take(&mut self.connections)
    }

    /// This process serves: the other one ends. What nobody has asked for is closed.
    ///
    /// # Errors
    /// It has ended by itself. Then it was not told, and this process serves all the same.
    pub fn serves(mut self) -> Result<(), ChannelError> {
        for (role, _) in &self.left {
            match role {
                SocketRole::Clients { endpoint: Endpoint::Ipc { path }, own_file: true } => {
                    tracing::info!(path = %path.display(), "the configuration does not name this socket any more; it is closed");
                    let _ = std::fs::remove_file(path);
                }
                role => tracing::info!(?role, "nobody uses this socket any more; it is closed"),
            }
        }
        self.channel.send(&(), &[])
    }
}

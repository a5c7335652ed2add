//! Connections that go on in another process: what the peer has sent and not got an answer to goes with them.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;

use super::access::Credentials;
use super::connection::{self, Connection};
use super::endpoint::Stream;
use super::execute::Event;
use super::queue::Message;
use super::socket::{self, Reader, Writer};
use super::zmtp::{self, Decoder};
use super::{Phase, Place, Server};
use crate::journal::Survivor;
use crate::process::ProcessId;
use crate::tenants::TokenHash;

/// A connection between two requests.
#[derive(Debug)]
pub struct Parted {
    /// The socket.
    pub socket: OwnedFd,
    /// What is known of it.
    pub state: ConnectionState,
}

/// What another process needs to know of a connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct ConnectionState {
    /// Its number; leases and transfers know it.
    pub id: u64,
    /// A Unix socket.
    pub is_ipc: bool,
    /// The process that the peer said it is.
    pub process: Option<ProcessId>,
    /// The token that it has shown.
    pub token: Option<TokenHash>,
    /// It has asked for nothing yet.
    pub quiet: bool,
    /// What was read and not executed, in front of what the socket still has.
    #[serde(with = "serde_bytes")]
    pub unread: Vec<u8>,
    /// Answers that the peer has not taken.
    #[serde(with = "serde_bytes")]
    pub unsent: Vec<u8>,
}

/// Where a connection is taken up again.
#[derive(Debug, Default)]
pub(super) struct Resumed {
    pub(super) process: Option<ProcessId>,
    pub(super) token: Option<TokenHash>,
    pub(super) quiet: bool,
    /// What an earlier daemon has left unanswered on it.
    pub(super) survivor: Option<Survivor>,
    pub(super) unread: BytesMut,
    pub(super) unsent: BytesMut,
}

/// A socket that another process had, as one of this process's runtime.
fn adopt(socket: OwnedFd, is_ipc: bool) -> io::Result<Stream> {
    if is_ipc {
        let stream = std::os::unix::net::UnixStream::from(socket);
        stream.set_nonblocking(true)?;
        let stream = UnixStream::from_std(stream)?;
        let credentials = Credentials::of(&stream);
        return Ok(Stream::Ipc(stream, credentials));
    }
    let stream = std::net::TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    let address = stream.peer_addr()?;
    Ok(Stream::Tcp(TcpStream::from_std(stream)?, address))
}

/// What became of a connection that was to be handed over.
pub(super) enum Handed {
    /// It is not ours any more.
    Over,
    /// The server serves again: it goes on here.
    Back(BytesMut, Reader, Writer),
}

impl Connection<'_> {
    /// Nothing of the peer's is under way when this returns; what can be answered is.
    pub(super) async fn come_to_rest(&mut self, inbox: &mut mpsc::UnboundedReceiver<Event>) {
        while self.executing.is_some() {
            self.event(inbox.recv().await.expect("we hold a sender"));
        }
        // A copy is not broken off: its blocks would be written while their owner takes it for failed.
        while self.copying > 0 {
            let server = self.server.clone();
            tokio::select! {
                event = inbox.recv() => self.event(event.expect("we hold a sender")),
                // It takes too long, and the peer is served again meanwhile.
                () = server.parts_no_more() => return,
            }
        }
        // Those who wait for an event are told that it has not come; they ask again.
        self.parked.abort_all();
        while self.parked.join_next().await.is_some() {}
        for stream in self.streams.values_mut() {
            stream.end().await;
        }
        while let Ok(event) = inbox.try_recv() {
            self.event(event);
        }
    }

    /// What the peer has sent and nobody has executed, as it came.
    pub(super) fn unread(&mut self, decoder: Decoder, inbuf: &[u8]) -> BytesMut {
        let mut unread = BytesMut::new();
        while let Some(Message { call, payload, .. }) = self.queue.pop() {
            let mut frames: Vec<&[u8]> = vec![&call.uid, &call.op_frame];
            frames.extend(payload.iter().map(|frame| &frame[..]));
            zmtp::encode(&mut unread, &frames);
        }
        unread.extend_from_slice(&decoder.into_unread());
        unread.extend_from_slice(inbuf);
        unread
    }

    /// Leaves the connection for another process.
    pub(super) fn hand_over(&mut self, reader: Reader, writer: Writer, unread: BytesMut) -> Handed {
        // Under the lock: whoever takes them out changes the phase under it.
        let mut parted = self.server.parted.lock();
        if !self.server.is_parting() {
            return Handed::Back(unread, reader, writer);
        }
        // One that takes no answers has gone.
        let socket = if self.deaf { None } else { socket::into_socket(reader, writer).ok() };
        let Some((socket, is_ipc)) = socket else { return Handed::Over };
        let state = ConnectionState {
            id: self.client.id,
            is_ipc,
            process: self.client.process(),
            token: self.client.shown(),
            quiet: self.quiet,
            unread: unread.into(),
            unsent: std::mem::take(&mut self.out).into(),
        };
        parted.push(Parted { socket, state });
        Handed::Over
    }
}

impl Server {
    /// Stops accepting and reading, lets every request that has begun end, and takes the connections out.
    ///
    /// # Errors
    /// How many connections were still busy after `limit`; then all go on here.
    pub async fn part(self: &Arc<Server>, limit: Duration) -> Result<Vec<Parted>, usize> {
        self.phase.send_replace(Phase::Parting);
        let all_parted = async {
            loop {
                let fewer = self.fewer.notified();
                if self.connections() == 0 {
                    return;
                }
                fewer.await;
            }
        };
        let in_time = tokio::time::timeout(limit, all_parted).await.is_ok();
        let mut parted = self.parted.lock();
        let parted = if in_time {
            return Ok(std::mem::take(&mut *parted));
        } else {
            // Under the lock: those that part in this moment find the phase changed, and go on by themselves.
            self.phase.send_replace(Phase::Serving);
            std::mem::take(&mut *parted)
        };
        let busy = self.connections();
        self.take_up(parted);
        Err(busy)
    }

    /// Another process has the sockets: the files of Unix sockets are its own now.
    pub fn leave(&self) {
        self.phase.send_replace(Phase::Left);
    }

    /// Goes on with connections that were taken out, here or in another process.
    pub fn take_up(self: &Arc<Server>, parted: Vec<Parted>) {
        for Parted { socket, state } in parted {
            let ConnectionState { id, is_ipc, process, token, quiet, unread, unsent } = state;
            self.number_from(id + 1);
            let resumed = Resumed {
                process,
                token,
                quiet,
                survivor: None,
                unread: unread[..].into(),
                unsent: unsent[..].into(),
            };
            match adopt(socket, is_ipc) {
                Ok(stream) => self.resume(id, stream, resumed),
                // It has gone meanwhile.
                Err(error) => {
                    tracing::debug!(client = id, %error, "a connection ended while it was handed over");
                }
            }
        }
    }

    fn resume(self: &Arc<Server>, id: u64, stream: Stream, resumed: Resumed) {
        self.connections.fetch_add(1, Ordering::SeqCst);
        let place = Place::new(self.clone(), id);
        self.threads
            .spawn(place.side.clone(), async move { connection::resume(&place, stream, resumed).await });
    }

    /// Goes on with connections that the service manager has kept over a crash, as far as it is known where their streams stand.
    pub fn revive(self: &Arc<Server>, kept: Vec<(u64, OwnedFd, bool)>) {
        let (all, mut alive, mut owed) = (kept.len(), 0, 0);
        for (id, socket, is_ipc) in kept {
            let Some(survivor) = self.engine.survivor(id) else {
                // The peer sees an end, and connects again.
                let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
                self.supervisor.forget(id);
                continue;
            };
            // One that cannot be adopted has ended.
            let Ok(stream) = adopt(socket, is_ipc) else {
                self.supervisor.forget(id);
                continue;
            };
            alive += 1;
            owed += survivor.owed.len();
            let process = survivor.process();
            self.resume(id, stream, Resumed { process, survivor: Some(survivor), ..Resumed::default() });
        }
        if all > 0 {
            tracing::info!(
                alive,
                ended = all - alive,
                owed,
                "connections of the earlier daemon were kept by the service manager; those in the middle of a message were ended, and what was under way is answered negatively"
            );
        }
    }

    /// Numbers from here on are nobody's yet.
    pub fn number_from(&self, next: u64) {
        self.next_id.fetch_max(next, Ordering::Relaxed);
    }

    /// The number of the next connection.
    pub fn next_number(&self) -> u64 {
        self.next_id.load(Ordering::Relaxed)
    }
}

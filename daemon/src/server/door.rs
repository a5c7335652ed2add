//! From the listening socket to the first request: who comes in, and shakes hands.
//!
//! All of it runs on threads behind those that serve. Whoever connects and goes without end costs accepts, greetings and ends,
//! as fast as a core can do them, and would take the cores from those that are in the middle of a request; a worker connects once
//! and can wait a little. With its first byte after the handshake a connection moves, with its socket: what it asks must not
//! wait for a thread of these, not even for the news that it is here.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use tokio::task::JoinHandle;

use super::connection::{self, GAVE_WAY};
use super::endpoint::Stream;
use super::handover::Resumed;
use super::handshake::{self, Stranger};
use super::socket::{self, QUIET_BUFFER};
use super::stats::Ended;
use super::{Listener, Phase, Place, Server};

/// Pause after a failed accept. What it waits for, a free descriptor of the process, has no event.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections above `--max-connections` for the moment in which those that they displace are leaving.
const LEAVING: usize = 64;

impl Server {
    /// Accepts peers on `listener`, which the threads at the door should hear ([`Listener::moved_to`]), until the daemon
    /// drains, or another process has its sockets.
    pub fn open(self: &Arc<Server>, listener: Listener) -> JoinHandle<()> {
        self.threads.door.spawn(self.clone().accept(listener))
    }

    async fn accept(self: Arc<Server>, mut listener: Listener) {
        let mut phase = self.phase.subscribe();
        loop {
            // Who connects meanwhile waits in the kernel, for us or for another process with the same socket.
            match phase.wait_for(|phase| *phase != Phase::Parting).await {
                Ok(phase) if *phase == Phase::Serving => {}
                Ok(phase) if *phase == Phase::Left => return listener.leave(),
                _ => return,
            }
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = phase.wait_for(|phase| *phase != Phase::Serving) => continue,
            };
            match accepted {
                Ok(stream) if listener.admits(&stream) => {
                    self.clone().admit(stream);
                    // One after the other with those that shake hands and those that leave: as many as one turn accepts would
                    // be all of `LEAVING`, and the next are refused though others are about to go.
                    tokio::task::yield_now().await;
                }
                Ok(stream) => self.stats.stranger(&listener.endpoint(), &stream),
                // The peer went while it waited to be accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Out of descriptors, mostly. The listener stays readable, so without a pause this would spin.
                    if let Some(suppressed) = self.accept_errors.pass() {
                        tracing::error!(endpoint = %listener.endpoint(), %error, suppressed, "cannot accept a connection; raise LimitNOFILE if descriptors ran out");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(self: Arc<Server>, stream: Stream) {
        let most = self.config.max_connections;
        let open = self.connections.fetch_add(1, Ordering::Relaxed);
        if open >= most && (open >= most + LEAVING || !self.displace()) {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            self.stats.not_admitted(most);
            return;
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let place = Place::new(self.clone(), id);
        // A task of the runtime that this one runs on.
        tokio::spawn(receive(place, stream));
    }

    /// Tells the connection that has been quiet for the longest to go. `false`: all have asked for something.
    ///
    /// Otherwise a flood of connections that never say anything would keep workers out for as long as it lasts.
    fn displace(&self) -> bool {
        let oldest = self.quiet.lock().pop_first();
        oldest.is_some_and(|(_, give_way)| {
            give_way.notify_one();
            true
        })
    }
}

/// Shakes hands with a peer, and waits until it asks for something.
async fn receive(place: Place, stream: Stream) {
    let server = place.server.clone();
    let (mut reader, writer, client) = socket::meet(place.id, stream);
    let mut phase = server.phase.subscribe();
    let mut inbuf = BytesMut::with_capacity(QUIET_BUFFER);
    let greeted = tokio::time::timeout(
        server.config.handshake_timeout,
        handshake::greet(&mut reader, &writer, &mut inbuf),
    );
    let greeted = tokio::select! {
        greeted = greeted => greeted,
        () = place.give_way.notified() => return server.stats.end(&client, Ended::Displaced, GAVE_WAY),
        // It has asked for nothing, and connects again.
        _ = phase.wait_for(|phase| *phase == Phase::Parting) => return,
    };
    match greeted {
        Ok(Ok(())) => {}
        Ok(Err(Stranger::Silent)) => return,
        Ok(Err(Stranger::Refused(why))) => return server.stats.end(&client, Ended::Handshake, why),
        Err(_) => return server.stats.end(&client, Ended::Handshake, "no ZMTP greeting in time"),
    }
    // Here, not with its first request: who is here and never asks is what the log is searched for.
    tracing::debug!(client = client.id, peer = %client.peer, "client connected");
    if inbuf.is_empty() {
        tokio::select! {
            heard = reader.heard() => if !heard.is_ok_and(|more| more) {
                tracing::debug!(client = client.id, peer = %client.peer, "client disconnected; it had asked for nothing");
                return;
            },
            () = place.give_way.notified() => return server.stats.end(&client, Ended::Displaced, GAVE_WAY),
            // What becomes of those that have shaken hands is decided where they are served.
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => {}
        }
    }
    server.threads.spawn(place.side.clone(), async move {
        match socket::moved_here(reader, writer) {
            Ok((reader, writer)) => {
                let resumed = Resumed { quiet: true, unread: inbuf, ..Resumed::default() };
                connection::go_on(&place, reader, writer, client, resumed).await;
            }
            Err(error) => {
                if let Some(suppressed) = place.server.accept_errors.pass() {
                    tracing::error!(peer = %client.peer, %error, suppressed, "a new connection cannot be served, and is closed");
                }
            }
        }
    });
}

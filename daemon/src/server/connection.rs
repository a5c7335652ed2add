//! One peer: what is read from it and when, its requests in order, its replies, and everything it may make us hold.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::budget::{FRAME_OVERHEAD, PEER_FLOOR, READ_BYTES, Share};
use super::endpoint::Stream;
use super::execute::{Event, Subscription};
use super::handover::{Handed, Resumed};
use super::queue::{Message, Queue};
use super::rate::Rate;
use super::socket::{self, QUIET_BUFFER, Reader, Writer};
use super::stats::{Ended, Paused};
use super::zmtp::{self, Decoder, FrameError, Item};
use super::{InFlight, Phase, Place, Server};
use crate::engine::Client;
use crate::journal::{Mark, Ticket};

/// Why a connection that has asked for nothing was ended.
pub(super) const GAVE_WAY: &str = "it had asked for nothing yet, and --max-connections are open";
/// Messages handled before the thread is given to others. A read buffer may hold thousands of tiny ones.
const TURN: usize = 128;
/// Bytes of answers that go to the kernel as a whole or not at all, see [`Connection::flush_now`].
const WHOLE: usize = 16 << 10;

pub(super) struct Connection<'s> {
    pub(super) server: &'s Arc<Server>,
    pub(super) client: Arc<Client>,
    pub(super) events: mpsc::UnboundedSender<Event>,
    pub(super) share: Share,
    pub(super) queue: Queue,
    /// Cost of the ordered request on the compute threads, if one is there.
    pub(super) executing: Option<usize>,
    pub(super) out: BytesMut,
    /// Requests whose replies are in `out`.
    pub(super) unflushed: Vec<InFlight>,
    /// The same, as the next daemon would see them.
    pub(super) unanswered: Vec<Ticket>,
    /// Set while the kernel may have a part of an answer.
    pub(super) writing: Mark,
    pub(super) parked: JoinSet<()>,
    /// Requests whose copies are under way.
    pub(super) copying: usize,
    pub(super) streams: HashMap<Bytes, Subscription>,
    pub(super) next_stream: u64,
    /// Since when replies wait for the peer, and how many bytes of them it has taken since.
    pub(super) unsent: Option<(Instant, usize)>,
    /// The peer takes no more replies.
    pub(super) deaf: bool,
    pub(super) paused: Option<Paused>,
    /// Messages that it may send.
    rate: Option<Rate>,
    /// It has asked for nothing yet.
    pub(super) quiet: bool,
}

/// How the service of a connection ends.
enum Over {
    /// The peer has left.
    Left,
    /// It was thrown out.
    Ended(Ended, String),
    /// It goes on in another process, which finds this in front of what the socket still has.
    Parted(BytesMut),
}

/// Serves a peer of an earlier time, in this process or in another.
pub(super) async fn resume(place: &Place, stream: Stream, resumed: Resumed) {
    let (reader, writer, client) = socket::meet(place.id, stream);
    tracing::debug!(client = client.id, peer = %client.peer, "client of an earlier time goes on");
    if !resumed.quiet {
        place.keep();
    }
    go_on(place, reader, writer, client, resumed).await;
}

/// Serves a peer until it goes; hands were shaken before.
pub(super) async fn go_on(
    place: &Place,
    mut reader: Reader,
    mut writer: Writer,
    client: Client,
    resumed: Resumed,
) {
    let server = &place.server;
    let client = Arc::new(client.noted_in(server.engine.journal()));
    let kept = client.lane.as_ref().filter(|_| server.supervisor.stores());
    reader.mark = Mark::reading(kept);
    if let (Some(survivor), Some(lane)) = (&resumed.survivor, &client.lane) {
        survivor.goes_on_in(lane);
    }
    if let Some(process) = resumed.process {
        client.set_process(process);
    }
    client.has_shown(resumed.token);
    server.engine.client_arrived(&client);
    let arrived = Arrived { server, client: &client };
    let (events, mut inbox) = mpsc::unbounded_channel();
    let mut connection = Connection {
        server,
        client: client.clone(),
        events,
        share: Share::new(server.budget.clone()),
        queue: Queue::default(),
        executing: None,
        out: resumed.unsent,
        unflushed: Vec::new(),
        unanswered: Vec::new(),
        writing: Mark::writing(kept),
        parked: JoinSet::new(),
        copying: 0,
        streams: HashMap::new(),
        next_stream: 0,
        unsent: None,
        deaf: false,
        paused: None,
        rate: Rate::new(server.config.max_peer_requests_per_second, Instant::now()),
        quiet: resumed.quiet,
    };
    let mut inbuf = resumed.unread;
    reader.mark.set(!inbuf.is_empty());
    connection.answer_owed(resumed.survivor.map(|survivor| survivor.owed).unwrap_or_default());
    loop {
        match connection.serve(place, &mut reader, &writer, inbuf, &mut inbox).await {
            Over::Left => break,
            Over::Ended(reason, detail) => {
                server.stats.end(&client, reason, detail);
                break;
            }
            Over::Parted(unread) => match connection.hand_over(reader, writer, unread) {
                Handed::Over => return,
                Handed::Back(kept, read, write) => (inbuf, reader, writer) = (kept, read, write),
            },
        }
    }
    if server.supervisor.stores() && !connection.quiet {
        reader.shut_down();
        server.supervisor.forget(client.id);
    }
    drop((reader, writer));
    connection.settle(&mut inbox).await;
    drop(connection);
    drop(arrived);
}

/// A client that the engine counts as connected, until this goes: also when the connection's task panics, or the client's
/// leases would never end.
struct Arrived<'s> {
    server: &'s Arc<Server>,
    client: &'s Client,
}

impl Drop for Arrived<'_> {
    fn drop(&mut self) {
        self.server.engine.client_left(self.client);
    }
}

impl Connection<'_> {
    /// The loop.
    async fn serve(
        &mut self,
        place: &Place,
        reader: &mut Reader,
        writer: &Writer,
        mut inbuf: BytesMut,
        inbox: &mut mpsc::UnboundedReceiver<Event>,
    ) -> Over {
        let mut phase = self.server.phase.subscribe();
        let mut decoder = Decoder::new(self.server.config.max_message_bytes);
        let mut batch: Vec<Message> = Vec::new();
        // When the first byte of the message that has begun was here.
        let mut begun: Option<Instant> = None;
        let budget = self.server.budget.clone();
        let timeout = self.server.config.message_timeout;
        loop {
            // Before anything looks at the budget: it is woken by what is freed from here on.
            let freed = Share::freed(&budget);
            let mut turn = TURN;
            let now = *phase.borrow_and_update();
            if now == Phase::Parting {
                self.come_to_rest(inbox).await;
                self.flush_now(writer);
                return Over::Parted(self.unread(decoder, &inbuf));
            }
            self.advance(&mut turn);
            // What has not been taken out of the buffer when the daemon stops is for the next one.
            let stopping = now != Phase::Serving;
            let mut full = self.is_full();
            let mut next_turn = None;
            // All that is here whole is read, and noted, before the first of it is executed: what the daemon dies of must not
            // take with it what came behind.
            let mut cost = 0;
            while turn > 0 && !stopping && full.is_none() {
                next_turn = self.rate.as_mut().and_then(|rate| rate.wait(Instant::now()));
                if next_turn.is_some() {
                    full = Some(Paused::Rate);
                    break;
                }
                match decoder.next(&mut inbuf) {
                    Ok(Some(item)) => {
                        turn -= 1;
                        begun = None;
                        let large = decoder.last_bytes() > READ_BYTES;
                        match item {
                            Item::Message(frames) => {
                                if let Some(rate) = &mut self.rate {
                                    rate.spend();
                                }
                                if std::mem::take(&mut self.quiet) {
                                    place.keep();
                                    self.keep_socket(reader);
                                }
                                if frames.get(1).is_some_and(Bytes::is_empty) {
                                    // The stream that it is about may be among those before it.
                                    self.execute(&mut batch);
                                    cost = 0;
                                    self.control(&frames);
                                } else if let Some(message) = self.message(frames) {
                                    cost += message.cost();
                                    batch.push(message);
                                }
                            }
                            Item::Command(body) => zmtp::answer_command(&mut self.out, &body),
                        }
                        if large {
                            // What follows a large message must not keep its memory.
                            inbuf = BytesMut::from(&inbuf[..]);
                        }
                        full = self.is_full_with(cost, batch.len());
                    }
                    Ok(None) => break,
                    Err(error) => {
                        self.execute(&mut batch);
                        let ended = match error {
                            FrameError::TooLarge { .. } => Ended::Oversized,
                            _ => Ended::Frame,
                        };
                        return Over::Ended(ended, error.to_string());
                    }
                }
            }
            let noted = inbuf.is_empty() && decoder.pending() == 0;
            if noted {
                reader.mark.set(false);
            }
            self.execute(&mut batch);
            let full = full.or_else(|| self.is_full());
            let paused = full.filter(|_| !stopping);
            let full = stopping || full.is_some();
            // The clock runs while the peer is read, and while it waits for other peers' bytes to go: somebody holds those,
            // and somebody must give up. It does not run while the peer's own requests keep us from reading.
            if full || turn == 0 || (decoder.pending() == 0 && inbuf.is_empty()) {
                begun = None;
            } else if begun.is_none() {
                begun = Some(Instant::now());
            }
            self.flush_now(writer);
            let unread = inbuf.len() + decoder.pending() + decoder.pending_frames() * FRAME_OVERHEAD;
            self.hold(unread);
            // A whole turn used up and there is more, or more than it may ask: behind those that ask less, until it has caught
            // up.
            place.side.set_busy(turn == 0 || next_turn.is_some());
            if turn == 0 {
                tokio::task::yield_now().await;
                continue;
            }
            // What kept it from being read has just been taken, or thrown away: nothing else would wake us.
            if !stopping && matches!(paused, Some(Paused::Answers | Paused::Peer)) && self.is_full().is_none()
            {
                continue;
            }
            if inbuf.is_empty() && inbuf.capacity() > READ_BYTES {
                inbuf = BytesMut::with_capacity(QUIET_BUFFER);
            }
            let room = if full { 0 } else { self.share.room() };
            // Waits for other peers: for room to read, or for room for the answers of what is queued.
            let starved = (!full && room == 0) || self.is_held_back();
            // Not reading, we would not see that the peer has gone; its half message would keep others waiting till its
            // deadline.
            let hogging = starved && unread >= PEER_FLOOR;
            self.note_pause(paused, starved);
            let deadline = [begun, self.unsent.map(|(since, _)| since)].into_iter().flatten().min();
            tokio::select! {
                read = reader.read(&mut inbuf, room, noted), if room > 0 || hogging => match read {
                    // Every whole message that came before it is out of the buffer: only then is there a read.
                    Ok(0) | Err(_) => return Over::Left,
                    Ok(_) => {}
                },
                event = inbox.recv() => self.event(event.expect("we hold a sender")),
                // An error shows again at the next write.
                _ = writer.writable(), if !self.out.is_empty() => {}
                () = freed, if starved => {}
                () = tokio::time::sleep_until(next_turn.unwrap_or_else(Instant::now)), if next_turn.is_some() => {}
                () = place.give_way.notified(), if self.quiet => {
                    return Over::Ended(Ended::Displaced, GAVE_WAY.to_owned());
                }
                // Looked at when the loop begins again.
                _ = phase.changed() => {}
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now) + timeout), if deadline.is_some() => {
                    if let Some((ended, detail)) = self.late(begun, unread) {
                        return Over::Ended(ended, detail);
                    }
                }
            }
        }
    }

    /// After the peer has gone: what it had sent whole is still done, in order. A worker that commits and exits must not
    /// lose its commit. There is nobody to answer.
    async fn settle(&mut self, inbox: &mut mpsc::UnboundedReceiver<Event>) {
        self.go_deaf();
        loop {
            let mut turn = TURN;
            self.advance(&mut turn);
            self.unflushed.clear();
            self.unanswered.clear();
            self.hold(0);
            if turn == 0 {
                tokio::task::yield_now().await;
            } else if self.executing.is_some() {
                self.event(inbox.recv().await.expect("we hold a sender"));
            } else {
                return;
            }
        }
    }

    /// Lets the service manager keep the socket for the next daemon.
    fn keep_socket(&self, reader: &Reader) {
        let supervisor = &self.server.supervisor;
        // Without a descriptor, or without a lane that says where its stream stands, it is an ordinary connection.
        if supervisor.stores()
            && self.client.lane.is_some()
            && let Ok(socket) = reader.copy()
        {
            supervisor.store(self.client.id, socket);
        }
    }

    /// Whether nothing of the peer's is under way.
    fn is_idle(&self) -> bool {
        self.queue.is_empty()
            && self.executing.is_none()
            && self.parked.is_empty()
            && self.copying == 0
            && self.streams.is_empty()
            && self.out.is_empty()
    }

    fn flush_now(&mut self, writer: &Writer) {
        let before = self.out.len();
        // The kernel takes what is small as a whole unless its buffer is all but full: then something was left before, or is
        // after this write.
        self.writing.set(before > WHOLE || self.unsent.is_some());
        // A peer that takes no more replies may have sent more before it went; that is read to its end.
        if writer.flush_now(&mut self.out).is_err() {
            self.go_deaf();
        }
        if self.out.is_empty() {
            self.unflushed.clear();
            self.unanswered.clear();
            self.unsent = None;
            self.writing.set(false);
            if let Some(lane) = &self.client.lane
                && before > 0
                && self.is_idle()
            {
                lane.all_answered();
            }
        } else {
            self.writing.set(true);
            let (since, taken) = self.unsent.unwrap_or_else(|| (Instant::now(), 0));
            self.unsent = Some((since, taken + before - self.out.len()));
        }
    }

    fn go_deaf(&mut self) {
        self.deaf = true;
        self.out = BytesMut::new();
        self.streams.clear();
        self.parked.abort_all();
    }
}

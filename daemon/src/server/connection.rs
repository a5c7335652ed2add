//! One peer: its handshake, its requests in order, its replies, and everything it may make us hold.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use lmcache_proto::wire::{ForeignRelease, OpCode, Operation, Response};
use tokio::io::AsyncReadExt;
use tokio::net::{tcp, unix};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::budget::Share;
use super::endpoint::Stream;
use super::zmtp::{self, Decoder, Item};
use super::{InFlight, Server};
use crate::engine::{Client, Outcome, Refusal};

/// Messages above this are decoded and hashed on the compute threads. 32 KiB is about 10 k tokens, some 40 µs.
const INLINE_BYTES: usize = 32 << 10;
/// Requests of one client that may wait for an event (a prefetch, a stream) at once.
const MAX_PARKED: usize = 1024;
/// Longest correlation id; LMCache's are msgpack integers of at most 9 bytes.
const MAX_UID: usize = 64;
/// A peer that stops in the middle of a message for this long is gone or hostile.
const STALL: Duration = Duration::from_secs(60);
/// Read buffer of a quiet connection.
const QUIET_BUFFER: usize = 8 << 10;
/// Read buffer of a connection that fills smaller ones: a request of 4 k tokens fits, so that it takes one read.
const BUSY_BUFFER: usize = 64 << 10;

/// The peer's end of the socket, either kind.
enum Half {
    Tcp(tcp::OwnedReadHalf),
    Ipc(unix::OwnedReadHalf),
}

struct Reader {
    half: Half,
    /// Room to offer to the next read: grows while reads fill it.
    room: usize,
}

enum Writer {
    Tcp(tcp::OwnedWriteHalf),
    Ipc(unix::OwnedWriteHalf),
}

impl Reader {
    fn new(half: Half) -> Reader {
        Reader { half, room: QUIET_BUFFER }
    }

    async fn read(&mut self, buf: &mut BytesMut) -> io::Result<usize> {
        // Doubling, but never from an announced length: only from bytes that are here.
        buf.reserve(self.room.max(buf.len()));
        let room = buf.capacity() - buf.len();
        let read = match &mut self.half {
            Half::Tcp(half) => half.read_buf(buf).await?,
            Half::Ipc(half) => half.read_buf(buf).await?,
        };
        if read == room {
            self.room = (self.room * 2).min(BUSY_BUFFER);
        }
        Ok(read)
    }
}

impl Writer {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Writer::Tcp(half) => half.try_write(bytes),
            Writer::Ipc(half) => half.try_write(bytes),
        }
    }

    async fn writable(&self) -> io::Result<()> {
        match self {
            Writer::Tcp(half) => half.writable().await,
            Writer::Ipc(half) => half.writable().await,
        }
    }
}

/// A request as it came.
struct Message {
    uid: Bytes,
    op_frame: Bytes,
    operation: Operation,
    payload: Vec<Bytes>,
    bytes: usize,
}

/// What other tasks tell the connection.
enum Event {
    /// The ordered request on the compute threads is done.
    Done { uid: Bytes, op_frame: Bytes, outcome: Outcome, guard: InFlight },
    /// A parked request has its answer.
    Woken { uid: Bytes, op_frame: Bytes, response: Response },
    /// A stream has a batch, or has ended (`None`).
    Stream { uid: Bytes, op_frame: Bytes, batch: Option<Response> },
}

struct Subscription {
    credit: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Connection<'s> {
    server: &'s Arc<Server>,
    client: Arc<Client>,
    events: mpsc::UnboundedSender<Event>,
    queue: VecDeque<Message>,
    queued_bytes: usize,
    busy: bool,
    out: BytesMut,
    /// Requests whose replies are in `out`.
    unflushed: Vec<InFlight>,
    parked: usize,
    streams: HashMap<Bytes, Subscription>,
}

/// Serves one peer until it goes.
pub(super) async fn run(server: &Arc<Server>, id: u64, stream: Stream) {
    let (mut reader, writer, client) = match stream {
        Stream::Tcp(stream, peer) => {
            let (read, write) = stream.into_split();
            (Reader::new(Half::Tcp(read)), Writer::Tcp(write), Client::new(id, peer, None))
        }
        Stream::Ipc(stream, process) => {
            let (read, write) = stream.into_split();
            let peer = process.map_or("ipc".into(), |p| format!("ipc pid {}", p.pid));
            (Reader::new(Half::Ipc(read)), Writer::Ipc(write), Client::new(id, peer, process))
        }
    };
    let mut inbuf = BytesMut::with_capacity(QUIET_BUFFER);
    let greeted =
        tokio::time::timeout(server.config.handshake_timeout, handshake(&mut reader, &writer, &mut inbuf));
    match greeted.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return server.engine.refuse_peer(&client, error),
        Err(_) => return server.engine.refuse_peer(&client, "no ZMTP greeting in time"),
    }
    let client = Arc::new(client);
    server.engine.client_arrived(&client);
    let (events, mut inbox) = mpsc::unbounded_channel();
    let mut connection = Connection {
        server,
        client: client.clone(),
        events,
        queue: VecDeque::new(),
        queued_bytes: 0,
        busy: false,
        out: BytesMut::new(),
        unflushed: Vec::new(),
        parked: 0,
        streams: HashMap::new(),
    };
    let reason = connection.serve(&mut reader, &writer, inbuf, &mut inbox).await;
    if let Some(reason) = reason {
        server.engine.refuse_peer(&client, reason);
    }
    server.engine.client_left(&client);
}

/// Greeting and READY, both ways.
async fn handshake(reader: &mut Reader, writer: &Writer, inbuf: &mut BytesMut) -> Result<(), String> {
    let mut hello = BytesMut::from(&zmtp::greeting()[..]);
    hello.extend_from_slice(&zmtp::ready());
    flush_all(writer, &mut hello).await.map_err(|error| error.to_string())?;
    while inbuf.len() < zmtp::GREETING_LEN {
        // A wrong signature shows in the first bytes; a peer of another protocol need not send 64 of them.
        if inbuf.first().is_some_and(|byte| *byte != 0xff) {
            return Err(zmtp::HandshakeError::Signature.to_string());
        }
        read_some(reader, inbuf).await?;
    }
    let greeting = inbuf.split_to(zmtp::GREETING_LEN);
    let greeting: &[u8; zmtp::GREETING_LEN] = greeting[..].try_into().expect("64 bytes were split off");
    zmtp::check_greeting(greeting).map_err(|error| error.to_string())?;
    let mut decoder = Decoder::new(0);
    loop {
        match decoder.next(inbuf).map_err(|error| error.to_string())? {
            Some(Item::Command(body)) => return zmtp::check_ready(&body).map_err(|error| error.to_string()),
            Some(Item::Message(_)) => return Err(zmtp::HandshakeError::Ready.to_string()),
            None => read_some(reader, inbuf).await?,
        }
    }
}

async fn read_some(reader: &mut Reader, inbuf: &mut BytesMut) -> Result<(), String> {
    match reader.read(inbuf).await {
        Ok(0) => Err("closed during the handshake".into()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

async fn flush_all(writer: &Writer, out: &mut BytesMut) -> io::Result<()> {
    while !out.is_empty() {
        match writer.try_write(out) {
            Ok(n) => out.advance(n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => writer.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Connection<'_> {
    /// The loop. Returns why the peer was thrown out, or `None` if it left by itself.
    async fn serve(
        &mut self,
        reader: &mut Reader,
        writer: &Writer,
        mut inbuf: BytesMut,
        inbox: &mut mpsc::UnboundedReceiver<Event>,
    ) -> Option<String> {
        let mut decoder = Decoder::new(self.server.config.max_message_bytes);
        let mut share = Share::new(self.server.budget.clone());
        let per_peer = self.server.config.max_peer_bytes;
        loop {
            loop {
                match decoder.next(&mut inbuf) {
                    Ok(Some(Item::Message(frames))) => self.message(frames),
                    Ok(Some(Item::Command(body))) => zmtp::answer_command(&mut self.out, &body),
                    Ok(None) => break,
                    Err(error) => return Some(error.to_string()),
                }
                if self.queued_bytes > per_peer || self.out.len() > per_peer {
                    break;
                }
            }
            while !self.out.is_empty() {
                match writer.try_write(&self.out) {
                    Ok(n) => self.out.advance(n),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => return None,
                }
            }
            if self.out.is_empty() {
                self.unflushed.clear();
            }
            let held = inbuf.len() + decoder.pending() + self.queued_bytes + self.out.len();
            if !share.set(held) {
                return Some("all peers together hold more than --max-total-bytes".into());
            }
            if inbuf.is_empty() && inbuf.capacity() > 8 * QUIET_BUFFER {
                inbuf = BytesMut::with_capacity(QUIET_BUFFER);
            }
            // Backpressure: a peer over its budget is not read until it has drained.
            let may_read = self.queued_bytes <= per_peer && self.out.len() <= per_peer;
            let half_message = may_read && (decoder.pending() > 0 || !inbuf.is_empty());
            tokio::select! {
                read = reader.read(&mut inbuf), if may_read => match read {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                },
                event = inbox.recv() => self.event(event.expect("we hold a sender")),
                writable = writer.writable(), if !self.out.is_empty() => {
                    if writable.is_err() {
                        return None;
                    }
                }
                () = tokio::time::sleep(STALL), if half_message => {
                    return Some("stopped in the middle of a message".into());
                }
            }
        }
    }

    /// One message: a request, or a stream's ack or cancel.
    fn message(&mut self, mut frames: Vec<Bytes>) {
        let stats = self.server.engine.stats();
        if frames.len() < 2 || frames[0].len() > MAX_UID {
            stats.malformed(&self.client, "fewer than two frames, or an overlong id");
            return;
        }
        if frames[1].is_empty() {
            return self.control(&frames);
        }
        let bytes = frames.iter().map(Bytes::len).sum();
        let payload = frames.split_off(2);
        let (Some(op_frame), Some(uid)) = (frames.pop(), frames.pop()) else { return };
        // An old release's ids mean other operations here, so the hint comes whatever the id is called now.
        let foreign = ForeignRelease::guess(&op_frame, payload.len());
        if let Some(release) = foreign {
            stats.foreign(&self.client, release);
        }
        let operation = match OpCode::decode(&op_frame) {
            Ok(OpCode::Known(operation)) => operation,
            Ok(OpCode::Unserved(name)) => return stats.unserved(&self.client, name),
            Ok(OpCode::Unknown(name)) => return stats.unknown(&self.client, &name),
            Err(error) => return stats.malformed(&self.client, error),
        };
        let message = Message { uid, op_frame, operation, payload, bytes };
        if operation.is_unordered() {
            self.execute_here(message);
        } else if self.busy || !self.queue.is_empty() {
            self.queued_bytes += message.bytes;
            self.queue.push_back(message);
        } else {
            self.start(message);
        }
    }

    fn control(&mut self, frames: &[Bytes]) {
        match frames.get(2).map(|frame| &frame[..]) {
            Some(b"ack") => {
                if let Some(stream) = self.streams.get(&frames[0]) {
                    stream.credit.notify_one();
                }
            }
            Some(b"cancel") => drop(self.streams.remove(&frames[0])),
            _ => self.server.engine.stats().malformed(&self.client, "unknown control message"),
        }
    }

    /// Starts an ordered request: here if it is short, on the compute threads if it is not.
    fn start(&mut self, message: Message) {
        let heavy = message.bytes > INLINE_BYTES || message.operation.is_copy();
        if !heavy {
            return self.execute_here(message);
        }
        self.busy = true;
        let guard = self.server.begin();
        let (engine, client, events) = (self.server.engine.clone(), self.client.clone(), self.events.clone());
        tokio::task::spawn_blocking(move || {
            let outcome = guarded(&engine, &client, &message);
            // Fails when the connection has gone meanwhile: then nobody waits for the answer.
            let _ = events.send(Event::Done { uid: message.uid, op_frame: message.op_frame, outcome, guard });
        });
    }

    fn execute_here(&mut self, message: Message) {
        let guard = self.server.begin();
        let outcome = guarded(&self.server.engine, &self.client, &message);
        self.finish(message.uid, message.op_frame, outcome);
        self.unflushed.push(guard);
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Done { uid, op_frame, outcome, guard } => {
                self.finish(uid, op_frame, outcome);
                self.unflushed.push(guard);
                self.busy = false;
                while !self.busy {
                    let Some(message) = self.queue.pop_front() else { break };
                    self.queued_bytes -= message.bytes;
                    self.start(message);
                }
            }
            Event::Woken { uid, op_frame, response } => {
                self.parked -= 1;
                self.reply(&uid, &op_frame, &response);
            }
            Event::Stream { uid, op_frame, batch } => {
                if self.streams.contains_key(&uid) {
                    match batch {
                        Some(batch) => self.reply(&uid, &op_frame, &batch),
                        None => {
                            self.streams.remove(&uid);
                            self.reply(&uid, &op_frame, &Response::Nothing);
                        }
                    }
                }
            }
        }
    }

    fn finish(&mut self, uid: Bytes, op_frame: Bytes, outcome: Outcome) {
        match outcome {
            Outcome::Reply(response) => self.reply(&uid, &op_frame, &response),
            Outcome::Silence => {}
            Outcome::Later { wait, otherwise } => {
                if self.parked >= MAX_PARKED {
                    return self.reply(&uid, &op_frame, &otherwise);
                }
                self.parked += 1;
                let events = self.events.clone();
                tokio::spawn(async move {
                    let response = wait.await;
                    let _ = events.send(Event::Woken { uid, op_frame, response });
                });
            }
            Outcome::Stream(mut source) => {
                if self.streams.len() >= MAX_PARKED {
                    return self.reply(&uid, &op_frame, &Response::Nothing);
                }
                let credit = Arc::new(Notify::new());
                let (events, permit, key) = (self.events.clone(), credit.clone(), uid.clone());
                let task = tokio::spawn(async move {
                    // One batch per credit; the first credit is implicit.
                    loop {
                        let batch = source.next().await.map(Response::KvEvents);
                        let ended = batch.is_none();
                        let event = Event::Stream { uid: uid.clone(), op_frame: op_frame.clone(), batch };
                        if events.send(event).is_err() || ended {
                            return;
                        }
                        permit.notified().await;
                    }
                });
                self.streams.insert(key, Subscription { credit, task });
            }
        }
    }

    fn reply(&mut self, uid: &[u8], op_frame: &[u8], response: &Response) {
        match response.encode() {
            Some(frame) => zmtp::encode(&mut self.out, &[uid, op_frame, &frame]),
            None => zmtp::encode(&mut self.out, &[uid, op_frame]),
        }
    }
}

/// Runs a request; a panic in it is a failed request, not a dead daemon and not a client that waits for ever.
fn guarded(engine: &crate::engine::Engine, client: &Client, message: &Message) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| engine.handle(client, message.operation, &message.payload))).unwrap_or_else(|_| {
        tracing::error!(operation = message.operation.name(), peer = %client.peer, "request handler panicked; this is a bug in lmcached, please report it with the lines above");
        engine.refuse(message.operation, Refusal::Internal)
    })
}

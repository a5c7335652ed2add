//! One connection, one request at a time, every wait with a deadline.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use lmcache_proto::wire::{Operation, Request, Response, Writer, encode_request};
use lmcache_proto::zmtp::{self, Decoder, HandshakeError, Item};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};

use crate::error::ClientError;

/// Largest answer believed. The largest real one, slots for a prompt of a million tokens, has a few hundred kB.
const MAX_ANSWER: usize = 64 << 20;
/// Room offered to a read.
const READ_ROOM: usize = 16 << 10;

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Ipc(UnixStream),
}

impl Stream {
    async fn open(endpoint: &str) -> Result<Stream, ClientError> {
        let failed = |source| ClientError::Connect { endpoint: endpoint.to_owned(), source };
        if let Some(path) = endpoint.strip_prefix("ipc://").filter(|path| path.starts_with('/')) {
            return UnixStream::connect(path).await.map(Stream::Ipc).map_err(failed);
        }
        let address = endpoint.strip_prefix("tcp://").unwrap_or(endpoint);
        if address.contains("://") || !address.contains(':') {
            return Err(ClientError::Endpoint(endpoint.to_owned()));
        }
        let stream = TcpStream::connect(address).await.map_err(failed)?;
        if is_oneself(&stream).map_err(failed)? {
            return Err(failed(io::ErrorKind::ConnectionRefused.into()));
        }
        stream.set_nodelay(true).map_err(failed)?;
        Ok(Stream::Tcp(stream))
    }

    async fn read(&mut self, buf: &mut BytesMut) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read_buf(buf).await,
            Stream::Ipc(stream) => stream.read_buf(buf).await,
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(bytes).await,
            Stream::Ipc(stream) => stream.write(bytes).await,
        }
    }
}

/// Whether both ends are the same socket. Where nobody listens on a port of the ephemeral range, the kernel may choose that very
/// port for our end: TCP then connects it to itself. It would greet us as we greet it, answer each request with the request,
/// and keep the port from the daemon that is being restarted.
fn is_oneself(stream: &TcpStream) -> io::Result<bool> {
    Ok(stream.local_addr()? == stream.peer_addr()?)
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    inbuf: BytesMut,
    /// What is not sent yet. A send that was given up in the middle is finished by the next one: a message is never torn.
    out: BytesMut,
    decoder: Decoder,
    next_uid: u32,
    deadline: Duration,
}

impl Connection {
    /// Connects to `tcp://host:port` or `ipc:///path`; `deadline` bounds the connect and each request.
    ///
    /// # Errors
    /// The daemon cannot be reached in time, or is not lmcached.
    pub async fn connect(endpoint: &str, deadline: Duration) -> Result<Connection, ClientError> {
        let connecting = async {
            let mut connection = Connection {
                stream: Stream::open(endpoint).await?,
                inbuf: BytesMut::new(),
                out: BytesMut::new(),
                decoder: Decoder::new(MAX_ANSWER),
                next_uid: 0,
                deadline,
            };
            connection.handshake().await?;
            Ok(connection)
        };
        tokio::time::timeout(deadline, connecting).await.unwrap_or_else(|_| {
            let source = io::Error::from(io::ErrorKind::TimedOut);
            Err(ClientError::Connect { endpoint: endpoint.to_owned(), source })
        })
    }

    async fn handshake(&mut self) -> Result<(), ClientError> {
        self.out.extend_from_slice(&zmtp::greeting());
        self.out.extend_from_slice(&zmtp::ready_dealer());
        self.flush().await?;
        while self.inbuf.len() < zmtp::GREETING_LEN {
            if self.inbuf.first().is_some_and(|byte| *byte != 0xff) {
                return Err(HandshakeError::Signature.into());
            }
            self.fill().await?;
        }
        let greeting = self.inbuf.split_to(zmtp::GREETING_LEN);
        let greeting = greeting[..].try_into().map_err(|_| HandshakeError::Signature)?;
        zmtp::check_greeting(greeting)?;
        loop {
            match self.decoder.next(&mut self.inbuf)? {
                Some(Item::Command(body)) => return Ok(zmtp::check_ready(&body)?),
                Some(Item::Message(_)) => return Err(HandshakeError::Ready.into()),
                None => self.fill().await?,
            }
        }
    }

    async fn fill(&mut self) -> Result<(), ClientError> {
        // Never from an announced length: only as bytes come.
        self.inbuf.reserve(READ_ROOM);
        match self.stream.read(&mut self.inbuf).await? {
            0 => Err(ClientError::Closed),
            _ => Ok(()),
        }
    }

    async fn flush(&mut self) -> Result<(), ClientError> {
        while !self.out.is_empty() {
            match self.stream.write(&self.out).await? {
                0 => return Err(ClientError::Closed),
                sent => self.out.advance(sent),
            }
        }
        Ok(())
    }

    /// Sends a request without waiting for its answer; the correlation id that the answer will carry.
    ///
    /// # Errors
    /// The connection is gone, or the daemon does not read.
    pub async fn send(&mut self, request: &Request<'_>) -> Result<Bytes, ClientError> {
        let operation = request.operation();
        let until = Instant::now() + self.deadline;
        self.send_until(operation, encode_request(request).into_iter().map(Bytes::from), until).await
    }

    /// Sends frames as they are after a correlation id of ours.
    ///
    /// # Errors
    /// The connection is gone, or the daemon does not read.
    pub async fn send_raw(
        &mut self,
        op_frame: Bytes,
        payload: impl Iterator<Item = Bytes>,
    ) -> Result<Bytes, ClientError> {
        let uid = self.queue(op_frame, payload);
        let until = Instant::now() + self.deadline;
        match timeout_at(until, self.flush()).await {
            Ok(sent) => sent.map(|()| uid),
            Err(_) => Err(ClientError::Transport(io::ErrorKind::TimedOut.into())),
        }
    }

    pub(crate) async fn send_until(
        &mut self,
        operation: Operation,
        payload: impl Iterator<Item = Bytes>,
        until: Instant,
    ) -> Result<Bytes, ClientError> {
        let uid = self.queue(operation_frame(operation), payload);
        timeout_at(until, self.flush()).await.map_err(|_| ClientError::Deadline(operation))??;
        Ok(uid)
    }

    fn queue(&mut self, op_frame: Bytes, payload: impl Iterator<Item = Bytes>) -> Bytes {
        self.next_uid = self.next_uid.wrapping_add(1);
        let mut uid = Writer::new();
        uid.uint(u64::from(self.next_uid));
        let uid = Bytes::from(uid.into_vec());
        let payload: Vec<Bytes> = payload.collect();
        let mut frames: Vec<&[u8]> = vec![&uid, &op_frame];
        frames.extend(payload.iter().map(|frame| &frame[..]));
        zmtp::encode(&mut self.out, &frames);
        uid
    }

    /// Sends a stream's control message: `ack` gives a credit, `cancel` ends it.
    ///
    /// # Errors
    /// The connection is gone, or the daemon does not read.
    pub async fn send_control(&mut self, uid: &Bytes, word: &'static [u8]) -> Result<(), ClientError> {
        zmtp::encode(&mut self.out, &[uid, b"", word]);
        let until = Instant::now() + self.deadline;
        timeout_at(until, self.flush())
            .await
            .unwrap_or_else(|_| Err(ClientError::Transport(io::ErrorKind::TimedOut.into())))
    }

    /// The next message from the daemon, as it is. Waits as long as it takes: what a stream sends has no deadline.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn receive(&mut self) -> Result<Vec<Bytes>, ClientError> {
        loop {
            match self.decoder.next(&mut self.inbuf)? {
                Some(Item::Message(frames)) => return Ok(frames),
                Some(Item::Command(body)) => {
                    zmtp::answer_command(&mut self.out, &body);
                    self.flush().await?;
                }
                None => self.fill().await?,
            }
        }
    }

    /// Waits for the answer to `uid`, dropping answers to requests that were given up.
    ///
    /// # Errors
    /// No answer in time, or one that is malformed.
    pub async fn wait(&mut self, operation: Operation, uid: &[u8]) -> Result<Response, ClientError> {
        self.wait_until(operation, uid, Instant::now() + self.deadline).await
    }

    pub(crate) async fn wait_until(
        &mut self,
        operation: Operation,
        uid: &[u8],
        until: Instant,
    ) -> Result<Response, ClientError> {
        loop {
            let frames =
                timeout_at(until, self.receive()).await.map_err(|_| ClientError::Deadline(operation))??;
            if frames.first().is_some_and(|frame| frame[..] == *uid) {
                if frames.get(1).is_some_and(|frame| *frame != operation_frame(operation)) {
                    return Err(ClientError::WrongKind(operation));
                }
                let response = frames.get(2).map(|frame| &frame[..]);
                return Response::decode(operation, response)
                    .map_err(|source| ClientError::Malformed { operation, source });
            }
        }
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn call(&mut self, request: &Request<'_>) -> Result<Response, ClientError> {
        let uid = self.send(request).await?;
        self.wait(request.operation(), &uid).await
    }
}

/// The operation as it travels: its id, or its name if it has none.
pub fn operation_frame(operation: Operation) -> Bytes {
    let mut w = Writer::new();
    match operation.id() {
        Some(id) => w.uint(u64::from(id)),
        None => w.str(operation.name()),
    };
    Bytes::from(w.into_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_is_connected_to_itself_is_no_daemon() {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let own = socket.local_addr().expect("its address");
        let stream = socket.connect(own).await.expect("TCP allows it");
        assert!(is_oneself(&stream).expect("addresses"));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        assert!(!is_oneself(&TcpStream::connect(address).await.expect("connects")).expect("addresses"));
    }
}

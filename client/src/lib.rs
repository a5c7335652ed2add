//! A thin client of lmcached: one connection, one request at a time, every wait with a deadline.
#![forbid(unsafe_code)]

use std::time::Duration;

use bytes::Bytes;
use lmcache_proto::wire::{DecodeError, Operation, Request, Response, encode_request};
use thiserror::Error;
use tokio::time::{Instant, timeout_at};
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, ZmqError, ZmqMessage};

/// What can go wrong with a request.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The transport failed; connect again.
    #[error("transport: {0}")]
    Transport(#[from] ZmqError),
    /// No answer in time; the connection is still good, the answer is ignored when it comes.
    #[error("no answer to {0} within the deadline")]
    Deadline(Operation),
    /// The daemon answered something that the protocol does not have.
    #[error("malformed answer to {operation}: {source}")]
    Malformed {
        /// What was asked.
        operation: Operation,
        /// What is wrong.
        source: DecodeError,
    },
}

/// A connection to the daemon.
pub struct Connection {
    socket: DealerSocket,
    next_uid: u32,
    deadline: Duration,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("next_uid", &self.next_uid).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects to `tcp://host:port` or `ipc:///path`; `deadline` bounds the connect and each request.
    ///
    /// # Errors
    /// The daemon cannot be reached.
    pub async fn connect(endpoint: &str, deadline: Duration) -> Result<Connection, ClientError> {
        let mut socket = DealerSocket::new();
        socket.connect(endpoint).await?;
        Ok(Connection { socket, next_uid: 0, deadline })
    }

    /// Sends a request without waiting; the correlation id that its answer will carry.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send(&mut self, request: &Request<'_>) -> Result<Bytes, ClientError> {
        let operation = request.operation();
        let op_frame = operation_frame(operation);
        self.send_raw(op_frame, encode_request(request).into_iter().map(Bytes::from)).await
    }

    /// Sends frames as they are after a correlation id of ours.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send_raw(
        &mut self,
        op_frame: Bytes,
        payload: impl Iterator<Item = Bytes>,
    ) -> Result<Bytes, ClientError> {
        self.next_uid = self.next_uid.wrapping_add(1);
        let mut uid = lmcache_proto::wire::Writer::new();
        uid.uint(u64::from(self.next_uid));
        let uid = Bytes::from(uid.into_vec());
        let mut message = ZmqMessage::from(uid.clone());
        message.push_back(op_frame);
        payload.for_each(|frame| message.push_back(frame));
        self.socket.send(message).await?;
        Ok(uid)
    }

    /// Sends a stream's control message: `ack` gives a credit, `cancel` ends it.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send_control(&mut self, uid: &Bytes, word: &'static [u8]) -> Result<(), ClientError> {
        let mut message = ZmqMessage::from(uid.clone());
        message.push_back(Bytes::new());
        message.push_back(Bytes::from_static(word));
        Ok(self.socket.send(message).await?)
    }

    /// The next message from the daemon, as it is.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn receive(&mut self) -> Result<Vec<Bytes>, ClientError> {
        Ok(self.socket.recv().await?.into_vec())
    }

    /// Waits for the answer to `uid`, dropping answers to requests that were given up.
    ///
    /// # Errors
    /// No answer in time, or one that is malformed.
    pub async fn wait(&mut self, operation: Operation, uid: &[u8]) -> Result<Response, ClientError> {
        let until = Instant::now() + self.deadline;
        loop {
            let frames =
                timeout_at(until, self.receive()).await.map_err(|_| ClientError::Deadline(operation))??;
            if frames.first().is_some_and(|frame| frame[..] == *uid) {
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
    let mut w = lmcache_proto::wire::Writer::new();
    match operation.id() {
        Some(id) => w.uint(u64::from(id)),
        None => w.str(operation.name()),
    };
    Bytes::from(w.into_vec())
}

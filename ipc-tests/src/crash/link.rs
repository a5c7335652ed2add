//! Calls whose failure is part of the test: a daemon that was killed answers nobody.

use std::path::Path;
use std::time::Duration;

use lmcache_client::{ClientError, Connection};
use lmcache_proto::wire::{Request, Response, Slot, StoreContext};

use super::Content;
use crate::worker::key;

/// Longest wait for an answer. A daemon that is alive and needs longer hangs.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug)]
pub enum Lost {
    /// The connection is gone: what was asked may have been done or not.
    Gone,
    /// The connection stands and nobody answers.
    Unanswered(String),
    /// An answer that cannot be.
    Wrong(String),
}

/// A connection.
#[derive(Debug)]
pub struct Link(Connection);

impl Link {
    /// Connects, if somebody listens.
    ///
    /// # Errors
    /// Nobody does.
    pub async fn open(endpoint: &str) -> Result<Link, Lost> {
        match Connection::connect(endpoint, DEADLINE).await {
            Ok(connection) => Ok(Link(connection)),
            // Somebody accepted and said nothing.
            Err(ClientError::Connect { source, .. }) if source.kind() == std::io::ErrorKind::TimedOut => {
                Err(Lost::Unanswered("the greeting".into()))
            }
            Err(_) => Err(Lost::Gone),
        }
    }

    /// Asks.
    ///
    /// # Errors
    /// See [`Lost`].
    pub async fn call(&mut self, request: &Request<'_>) -> Result<Response, Lost> {
        self.0.call(request).await.map_err(|error| match error {
            ClientError::Deadline(operation) => Lost::Unanswered(operation.name().into()),
            ClientError::Transport(_) | ClientError::Closed => Lost::Gone,
            other => Lost::Wrong(other.to_string()),
        })
    }

    async fn flag(&mut self, request: &Request<'_>) -> Result<bool, Lost> {
        match self.call(request).await? {
            Response::Flag(flag) => Ok(flag),
            other => Err(Lost::Wrong(format!("{} answered {other:?}", request.operation()))),
        }
    }

    /// Slots to write; `None` if the daemon has none.
    ///
    /// # Errors
    /// See [`Lost`].
    pub async fn prepare_store(&mut self, frame: &[u8], id: u64) -> Result<Option<StoreContext>, Lost> {
        match self.call(&Request::PrepareStore { key: key(frame), instance_id: id }).await? {
            Response::PrepareStore(response) => Ok(response.context),
            other => Err(Lost::Wrong(format!("prepare_store answered {other:?}"))),
        }
    }

    /// Whether all that was prepared is readable now.
    ///
    /// # Errors
    /// See [`Lost`].
    pub async fn commit_store(&mut self, frame: &[u8], id: u64) -> Result<bool, Lost> {
        self.flag(&Request::CommitStore { key: key(frame), instance_id: id, data: b"" }).await
    }

    /// Slots to read; `None` if something is not there.
    ///
    /// # Errors
    /// See [`Lost`].
    pub async fn prepare_retrieve(&mut self, frame: &[u8], id: u64) -> Result<Option<Vec<Slot>>, Lost> {
        match self.call(&Request::PrepareRetrieve { key: key(frame), instance_id: id }).await? {
            Response::PrepareRetrieve(response) => Ok(response.slots),
            other => Err(Lost::Wrong(format!("prepare_retrieve answered {other:?}"))),
        }
    }

    /// Whether the retrieve was known.
    ///
    /// # Errors
    /// See [`Lost`].
    pub async fn commit_retrieve(&mut self, frame: &[u8], id: u64) -> Result<bool, Lost> {
        self.flag(&Request::CommitRetrieve { key: key(frame), instance_id: id }).await
    }

    /// Chunks that the daemon has of a prompt's first `chunks`; it holds them for the request from now on.
    ///
    /// # Errors
    /// See [`Lost`].
    pub async fn lookup(&mut self, of: Content, request: &str, chunks: u8) -> Result<u8, Lost> {
        let frame = super::frame(of, request, None, 0, chunks);
        self.call(&Request::Lookup { key: key(&frame), tp_size: 1 }).await?;
        loop {
            match self.call(&Request::QueryPrefetchStatus { request_id: request }).await? {
                Response::Count(found) => return Ok(found as u8),
                Response::Nothing => tokio::time::sleep(Duration::from_millis(2)).await,
                other => return Err(Lost::Wrong(format!("the lookup's status is {other:?}"))),
            }
        }
    }

    /// Ends what a request holds.
    ///
    /// # Errors
    /// See [`Lost`].
    pub async fn end_session(&mut self, request: &str) -> Result<(), Lost> {
        self.call(&Request::EndSession { request_id: request }).await.map(|_| ())
    }

    /// Says whose process this connection is, which the kernel does not say over TCP.
    ///
    /// # Errors
    /// See [`Lost`].
    pub async fn declare(&mut self, id: u64) -> Result<(), Lost> {
        let process = lmcache_client::own_process().map(Box::new);
        self.call(&Request::AttachRing { instance_id: id, process }).await.map(|_| ())
    }

    /// Registers and opens the pool by its name, as a worker does; a pool whose name is gone in this moment is asked for again.
    ///
    /// # Errors
    /// See [`Lost`].
    pub async fn register(
        &mut self,
        model: &crate::worker::Model,
        id: u64,
        pool: &Path,
    ) -> Result<crate::pool::Pool, Lost> {
        loop {
            match self.call(&model.registration(id)).await? {
                Response::Registered(answer) if !answer.shm_name.is_empty() => {}
                other => return Err(Lost::Wrong(format!("registration answered {other:?}"))),
            }
            match crate::pool::Pool::try_open(pool) {
                Ok(pool) => return Ok(pool),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Lost::Wrong(format!("the pool: {error}"))),
            }
        }
    }
}

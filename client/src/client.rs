//! The client: one connection that is made again when it breaks, and what must be said again then.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lmcache_proto::wire::{
    AttachRingResponse, Operation, RegisterEngineDrivenResponse, Request, Response, Secret, encode_request,
};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::connection::Connection;
use crate::error::{ClientError, RingError};
use crate::identity::own_process;
use crate::pool::Pool;
use crate::registration::{Prompt, Registration};
use crate::ring::Publisher;
use crate::transfer::{Retrieve, Store};

/// Answers in a row that may fail to come before the connection is given up: it may lead to a machine that is gone.
const MAX_SILENCE: u32 = 3;
/// Longest that one `wait_prefetch_status` holds the connection; other calls go in between.
const WAIT_SLICE: Duration = Duration::from_millis(100);

/// Deadlines, and whether the worker publishes its timings.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Bounds a connect. Default: 5 s.
    pub connect_timeout: Duration,
    /// Bounds each call, reconnecting included. Default: 30 s.
    pub call_timeout: Duration,
    /// Ask for a lane of the shared ring. Default: yes; a daemon without a ring is no error.
    pub publish: bool,
    /// The tenant's token, for a daemon with `--tenant-tokens-file`. Default: none.
    pub token: Option<Token>,
}

/// A tenant's token; not shown by `Debug`.
#[derive(Clone)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(30),
            publish: true,
            token: None,
        }
    }
}

impl Options {
    /// Sets both deadlines.
    #[must_use]
    pub fn timeouts(mut self, connect: Duration, call: Duration) -> Options {
        (self.connect_timeout, self.call_timeout) = (connect, call);
        self
    }

    /// Sets the token that every connection shows before anything else.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Options {
        self.token = Some(Token(token.into()));
        self
    }

    /// Sets whether a lane of the ring is asked for.
    #[must_use]
    pub fn publish(mut self, publish: bool) -> Options {
        self.publish = publish;
        self
    }
}

/// A client of the daemon. Cheap to clone; clones share the connection, and calls on it take turns.
///
/// A connection that breaks is made again by the next call, which registers the worker again and gets it a new lane, as a
/// restarted daemon needs. Transfers that were under way then are refused at their commit.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoint: String,
    options: Options,
    link: tokio::sync::Mutex<Link>,
    worker: Mutex<Option<Arc<Worker>>>,
    publisher: Publisher,
    ring_error: Mutex<Option<RingError>>,
    /// Key frames of retrieves that were dropped without commit; their pins end with the next call.
    abandoned: Mutex<Vec<Bytes>>,
    chunk_size: AtomicU64,
}

#[derive(Debug, Default)]
struct Link {
    connection: Option<Connection>,
    silent: u32,
}

/// A registered worker and its view of the pool.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) registration: Registration,
    pub(crate) pool: Arc<Pool>,
    pub(crate) object_bytes: u64,
    pub(crate) chunk_size: u64,
}

impl Client {
    /// Connects to `tcp://host:port` or `ipc:///path`.
    ///
    /// # Errors
    /// The daemon cannot be reached in time, or does not speak the protocol.
    pub async fn connect(endpoint: &str, options: Options) -> Result<Client, ClientError> {
        let client = Client {
            inner: Arc::new(Inner {
                endpoint: endpoint.to_owned(),
                options,
                link: tokio::sync::Mutex::default(),
                worker: Mutex::default(),
                publisher: Publisher::default(),
                ring_error: Mutex::default(),
                abandoned: Mutex::default(),
                chunk_size: AtomicU64::new(0),
            }),
        };
        client.chunk_size().await?;
        Ok(client)
    }

    /// Tokens of a chunk, as the daemon has it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn chunk_size(&self) -> Result<u64, ClientError> {
        match self.inner.chunk_size.load(Ordering::Relaxed) {
            0 => match self.call(&Request::GetChunkSize, true).await? {
                Response::Count(size @ 1..=65_536) => {
                    self.inner.chunk_size.store(size, Ordering::Relaxed);
                    Ok(size)
                }
                _ => Err(ClientError::WrongKind(Operation::GetChunkSize)),
            },
            size => Ok(size),
        }
    }

    /// Registers the worker, maps the pool, and gets a lane of the ring (if there is one and [`Options::publish`] is on).
    ///
    /// # Errors
    /// The daemon does not serve the layout, or its pool cannot be mapped. Nothing is left behind.
    pub async fn register(&self, registration: Registration) -> Result<(), ClientError> {
        let chunk_size = self.chunk_size().await?;
        let refused = ClientError::Refused(Operation::RegisterEngineDriven);
        let Some(object_bytes) = registration.object_bytes(chunk_size) else { return Err(refused) };
        let request = Request::RegisterEngineDriven(Box::new(registration.payload()));
        let Response::Registered(answer) = self.call(&request, true).await? else {
            return Err(ClientError::WrongKind(Operation::RegisterEngineDriven));
        };
        let id = registration.instance_id;
        let pool = match Pool::map(&answer.shm_name, answer.pool_size) {
            Ok(pool) => pool,
            Err(error) => {
                // A worker that will never transfer must not look alive.
                let _ = self.call(&Request::UnregisterEngineDriven { instance_id: id }, false).await;
                return Err(error.into());
            }
        };
        let worker = Worker { registration, pool, object_bytes, chunk_size };
        *self.inner.worker.lock() = Some(Arc::new(worker));
        let mut link = self.inner.link.lock().await;
        if let Some(connection) = &mut link.connection {
            let until = Instant::now() + self.inner.options.call_timeout;
            self.inner.attach_ring(connection, id, until).await?;
        }
        Ok(())
    }

    /// Forgets the worker: its lane, and its slots that nobody writes any more.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn unregister(&self) -> Result<(), ClientError> {
        let worker = self.inner.worker.lock().take().ok_or(ClientError::NotRegistered)?;
        self.inner.publisher.detach();
        let instance_id = worker.registration.instance_id;
        self.call(&Request::UnregisterEngineDriven { instance_id }, true).await.map(drop)
    }

    /// Asks whether the daemon is there and knows the worker; it is registered again if not.
    ///
    /// # Errors
    /// The daemon cannot be reached.
    pub async fn ping(&self) -> Result<(), ClientError> {
        let worker = self.inner.worker.lock().clone();
        let instance_id = worker.as_ref().map(|worker| worker.registration.instance_id);
        match (self.call(&Request::Ping { instance_id }, true).await?, worker) {
            (Response::Flag(true), _) => Ok(()),
            // It forgot us (reaped, or restarted behind a proxy that kept the connection).
            (Response::Flag(false), Some(worker)) => self.register(worker.registration.clone()).await,
            (Response::Flag(false), None) => Err(ClientError::Refused(Operation::Ping)),
            _ => Err(ClientError::WrongKind(Operation::Ping)),
        }
    }

    /// Begins a lookup of the prompt's whole chunks, for all ranks. What it finds is leased until it is retrieved by
    /// [`Prompt::readers`] workers, or the session ends.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn lookup_submit(&self, prompt: &Prompt<'_>) -> Result<(), ClientError> {
        let worker = self.worker()?;
        let end = prompt.tokens.len() as u64;
        let key = prompt.key(&worker.registration, None, 0..end)?;
        let frames = vec![Bytes::from(key), uint(1)];
        self.call_frames(Operation::Lookup, frames, true, self.deadline()).await.map(drop)
    }

    /// Waits for a lookup's result: the number of chunks found, from the prompt's beginning; `None` if it takes longer than
    /// `timeout`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn lookup_wait(&self, request_id: &str, timeout: Duration) -> Result<Option<u64>, ClientError> {
        let until = Instant::now() + timeout.min(Duration::from_secs(86_400));
        loop {
            let slice = until.saturating_duration_since(Instant::now()).min(WAIT_SLICE);
            let request = Request::WaitPrefetchStatus { request_id, timeout: slice.as_secs_f64() };
            match self.call(&request, true).await? {
                Response::Count(chunks) => return Ok(Some(chunks)),
                Response::Nothing if Instant::now() >= until => return Ok(None),
                Response::Nothing => {}
                _ => return Err(ClientError::WrongKind(Operation::WaitPrefetchStatus)),
            }
        }
    }

    /// [`Client::lookup_submit`], then [`Client::lookup_wait`]. Chunks found, never more than the prompt has.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn lookup(&self, prompt: &Prompt<'_>, timeout: Duration) -> Result<Option<u64>, ClientError> {
        self.lookup_submit(prompt).await?;
        let chunks = prompt.tokens.len() as u64 / self.worker()?.chunk_size;
        Ok(self.lookup_wait(prompt.request_id, timeout).await?.map(|found| found.min(chunks)))
    }

    /// Reserves slots for the chunks of `range` (tokens, on chunk borders) that are not cached. See [`Store`].
    ///
    /// # Errors
    /// See [`ClientError`]; `Refused` when the pool is full.
    pub async fn prepare_store(&self, prompt: &Prompt<'_>, range: Range<u64>) -> Result<Store, ClientError> {
        Store::prepare(self, prompt, range).await
    }

    /// Pins the chunks of `range` (tokens, on chunk borders) for reading. See [`Retrieve`].
    ///
    /// # Errors
    /// See [`ClientError`]; `Refused` when a chunk is not there.
    pub async fn prepare_retrieve(
        &self,
        prompt: &Prompt<'_>,
        range: Range<u64>,
    ) -> Result<Retrieve, ClientError> {
        Retrieve::prepare(self, prompt, range).await
    }

    /// Ends a request: its leases go, its session is forgotten.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn end_session(&self, request_id: &str) -> Result<(), ClientError> {
        self.call(&Request::EndSession { request_id }, true).await.map(drop)
    }

    /// The worker's lane of the shared ring, for records of its own.
    pub fn publisher(&self) -> &Publisher {
        &self.inner.publisher
    }

    /// Why there is no lane, if one was asked for.
    pub fn ring_error(&self) -> Option<String> {
        self.inner.ring_error.lock().as_ref().map(ToString::to_string)
    }

    pub(crate) fn worker(&self) -> Result<Arc<Worker>, ClientError> {
        self.inner.worker.lock().clone().ok_or(ClientError::NotRegistered)
    }

    /// The retrieve with this key frame will not be committed by its owner.
    pub(crate) fn abandon(&self, key: Bytes) {
        let mut abandoned = self.inner.abandoned.lock();
        // Bounded; what does not fit ends with the session or the process.
        if abandoned.len() < 1024 {
            abandoned.push(key);
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.inner.options.call_timeout
    }

    async fn call(&self, request: &Request<'_>, again: bool) -> Result<Response, ClientError> {
        let frames = encode_request(request).into_iter().map(Bytes::from).collect();
        self.call_frames(request.operation(), frames, again, self.deadline()).await
    }

    /// One call. `again`: whether it may be sent a second time over a new connection when the first one breaks; commits
    /// may not, since the daemon may have executed them.
    pub(crate) async fn call_frames(
        &self,
        operation: Operation,
        frames: Vec<Bytes>,
        again: bool,
        until: Instant,
    ) -> Result<Response, ClientError> {
        let waiting = timeout_at(until, self.inner.link.lock()).await;
        let mut link = waiting.map_err(|_| ClientError::Deadline(operation))?;
        let mut tries = if again { 2 } else { 1 };
        loop {
            let fresh = link.connection.is_none();
            let outcome = self.inner.exchange(&mut link, operation, frames.clone(), until).await;
            match &outcome {
                Ok(_) => link.silent = 0,
                Err(ClientError::Deadline(_)) => {
                    link.silent += 1;
                    if link.silent >= MAX_SILENCE {
                        *link = Link::default();
                    }
                }
                Err(error) if error.breaks_connection() => {
                    *link = Link::default();
                    tries -= 1;
                    // A connection that could not even be made says enough.
                    if tries > 0 && !fresh && Instant::now() < until {
                        continue;
                    }
                }
                Err(_) => {}
            }
            return outcome;
        }
    }
}

impl Inner {
    async fn exchange(
        &self,
        link: &mut Link,
        operation: Operation,
        frames: Vec<Bytes>,
        until: Instant,
    ) -> Result<Response, ClientError> {
        if link.connection.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            let limit = self.options.connect_timeout.min(left);
            let mut connection = Connection::connect(&self.endpoint, limit).await?;
            self.authenticate(&mut connection, until).await?;
            self.restore(&mut connection, operation, until).await?;
            link.connection = Some(connection);
        }
        let Some(connection) = &mut link.connection else { return Err(ClientError::Closed) };
        let worker = self.worker.lock().clone();
        if let Some(worker) = worker {
            let id = worker.registration.instance_id;
            if self.publisher.is_stale() && operation != Operation::UnregisterEngineDriven {
                self.attach_ring(connection, id, until).await?;
            }
            let abandoned = std::mem::take(&mut *self.abandoned.lock());
            for key in abandoned {
                let frames = [key, uint(id)];
                connection.send_until(Operation::CommitRetrieve, frames.into_iter(), until).await?;
            }
        }
        let uid = connection.send_until(operation, frames.into_iter(), until).await?;
        connection.wait_until(operation, &uid, until).await
    }

    /// Says whose we are. A daemon that does not know the token serves nothing of what it is for, so that is an error.
    async fn authenticate(&self, connection: &mut Connection, until: Instant) -> Result<(), ClientError> {
        let Some(Token(token)) = &self.options.token else { return Ok(()) };
        match ask(connection, &Request::Authenticate { token: Secret(token) }, until).await? {
            Response::Flag(true) => Ok(()),
            Response::Flag(false) => Err(ClientError::Refused(Operation::Authenticate)),
            _ => Err(ClientError::WrongKind(Operation::Authenticate)),
        }
    }

    /// Says again what a daemon must know that has not heard of us: perhaps it is another one.
    async fn restore(
        &self,
        connection: &mut Connection,
        operation: Operation,
        until: Instant,
    ) -> Result<(), ClientError> {
        let worker = self.worker.lock().clone();
        let Some(worker) = worker else { return Ok(()) };
        // Asked to register or unregister: that will say it.
        if matches!(operation, Operation::RegisterEngineDriven | Operation::UnregisterEngineDriven) {
            return Ok(());
        }
        self.abandoned.lock().clear();
        let Response::Count(chunk_size) = ask(connection, &Request::GetChunkSize, until).await? else {
            return Err(ClientError::WrongKind(Operation::GetChunkSize));
        };
        let register = Request::RegisterEngineDriven(Box::new(worker.registration.payload()));
        let Response::Registered(RegisterEngineDrivenResponse { shm_name, pool_size }) =
            ask(connection, &register, until).await?
        else {
            return Err(ClientError::WrongKind(Operation::RegisterEngineDriven));
        };
        if chunk_size != worker.chunk_size || !worker.pool.is(&shm_name, pool_size) {
            let refused = ClientError::Refused(Operation::RegisterEngineDriven);
            let object_bytes = worker.registration.object_bytes(chunk_size);
            let Some(object_bytes) = object_bytes.filter(|_| (1..=65_536).contains(&chunk_size)) else {
                return Err(refused);
            };
            let pool = Pool::map(&shm_name, pool_size)?;
            let registration = worker.registration.clone();
            let new = Worker { registration, pool, object_bytes, chunk_size };
            self.chunk_size.store(chunk_size, Ordering::Relaxed);
            *self.worker.lock() = Some(Arc::new(new));
        }
        self.attach_ring(connection, worker.registration.instance_id, until).await
    }

    /// Gets a lane. Only a connection that breaks is an error here: a worker without a lane works.
    async fn attach_ring(
        &self,
        connection: &mut Connection,
        instance_id: u64,
        until: Instant,
    ) -> Result<(), ClientError> {
        self.publisher.detach();
        if !self.options.publish {
            return Ok(());
        }
        let request = Request::AttachRing { instance_id, process: own_process().map(Box::new) };
        // LMCache's own server has no such operation and says nothing at all: it must not cost the whole deadline.
        let patience = Instant::now() + self.options.connect_timeout;
        let response = match ask(connection, &request, until.min(patience)).await {
            Ok(Response::RingAttached(response)) => response,
            Err(error) if error.breaks_connection() => return Err(error),
            Ok(_) | Err(_) => AttachRingResponse::default(),
        };
        *self.ring_error.lock() = self.publisher.attach(&response).err();
        Ok(())
    }
}

async fn ask(
    connection: &mut Connection,
    request: &Request<'_>,
    until: Instant,
) -> Result<Response, ClientError> {
    let operation = request.operation();
    let frames = encode_request(request).into_iter().map(Bytes::from);
    let uid = connection.send_until(operation, frames, until).await?;
    connection.wait_until(operation, &uid, until).await
}

pub(crate) fn uint(value: u64) -> Bytes {
    let mut w = lmcache_proto::wire::Writer::new();
    w.uint(value);
    Bytes::from(w.into_vec())
}

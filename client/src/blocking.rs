//! The client for threads without an async runtime. It brings its own, which runs on the calling thread.

use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;
use std::time::Duration;

use crate::client::Options;
use crate::error::ClientError;
use crate::registration::{Prompt, Registration};
use crate::ring::Publisher;

#[derive(Debug)]
struct Runtime(Option<tokio::runtime::Runtime>);

impl Runtime {
    fn new() -> Result<Runtime, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Runtime(Some(runtime.map_err(ClientError::Runtime)?)))
    }

    fn run<T>(&self, future: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        // Blocking here would stop the caller's own runtime, and tokio would panic.
        if tokio::runtime::Handle::try_current().is_ok() {
            return Err(ClientError::InsideRuntime);
        }
        match &self.0 {
            Some(runtime) => runtime.block_on(future),
            None => Err(ClientError::Closed),
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // An ordinary drop waits, and panics on a thread that runs async tasks.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// [`crate::Client`] with blocking calls. May be shared between threads; their calls take turns.
#[derive(Clone, Debug)]
pub struct Client {
    // Before the runtime: its connection must go while that lives.
    client: crate::Client,
    runtime: Arc<Runtime>,
}

/// [`crate::Store`] with a blocking commit.
#[derive(Debug)]
pub struct Store {
    store: crate::Store,
    runtime: Arc<Runtime>,
}

/// [`crate::Retrieve`] with a blocking commit.
#[derive(Debug)]
pub struct Retrieve {
    retrieve: crate::Retrieve,
    runtime: Arc<Runtime>,
}

impl Client {
    /// See [`crate::Client::connect`].
    ///
    /// # Errors
    /// As there.
    pub fn connect(endpoint: &str, options: Options) -> Result<Client, ClientError> {
        let runtime = Runtime::new()?;
        let client = runtime.run(crate::Client::connect(endpoint, options))?;
        Ok(Client { client, runtime: Arc::new(runtime) })
    }

    /// See [`crate::Client::chunk_size`].
    ///
    /// # Errors
    /// As there.
    pub fn chunk_size(&self) -> Result<u64, ClientError> {
        self.runtime.run(self.client.chunk_size())
    }

    /// See [`crate::Client::register`].
    ///
    /// # Errors
    /// As there.
    pub fn register(&self, registration: Registration) -> Result<(), ClientError> {
        self.runtime.run(self.client.register(registration))
    }

    /// See [`crate::Client::unregister`].
    ///
    /// # Errors
    /// As there.
    pub fn unregister(&self) -> Result<(), ClientError> {
        self.runtime.run(self.client.unregister())
    }

    /// See [`crate::Client::ping`].
    ///
    /// # Errors
    /// As there.
    pub fn ping(&self) -> Result<(), ClientError> {
        self.runtime.run(self.client.ping())
    }

    /// See [`crate::Client::lookup_submit`].
    ///
    /// # Errors
    /// As there.
    pub fn lookup_submit(&self, prompt: &Prompt<'_>) -> Result<(), ClientError> {
        self.runtime.run(self.client.lookup_submit(prompt))
    }

    /// See [`crate::Client::lookup_wait`].
    ///
    /// # Errors
    /// As there.
    pub fn lookup_wait(&self, request_id: &str, timeout: Duration) -> Result<Option<u64>, ClientError> {
        self.runtime.run(self.client.lookup_wait(request_id, timeout))
    }

    /// See [`crate::Client::lookup`].
    ///
    /// # Errors
    /// As there.
    pub fn lookup(&self, prompt: &Prompt<'_>, timeout: Duration) -> Result<Option<u64>, ClientError> {
        self.runtime.run(self.client.lookup(prompt, timeout))
    }

    /// See [`crate::Client::prepare_store`].
    ///
    /// # Errors
    /// As there.
    pub fn prepare_store(&self, prompt: &Prompt<'_>, range: Range<u64>) -> Result<Store, ClientError> {
        let store = self.runtime.run(self.client.prepare_store(prompt, range))?;
        Ok(Store { store, runtime: self.runtime.clone() })
    }

    /// See [`crate::Client::prepare_retrieve`].
    ///
    /// # Errors
    /// As there.
    pub fn prepare_retrieve(&self, prompt: &Prompt<'_>, range: Range<u64>) -> Result<Retrieve, ClientError> {
        let retrieve = self.runtime.run(self.client.prepare_retrieve(prompt, range))?;
        Ok(Retrieve { retrieve, runtime: self.runtime.clone() })
    }

    /// See [`crate::Client::end_session`].
    ///
    /// # Errors
    /// As there.
    pub fn end_session(&self, request_id: &str) -> Result<(), ClientError> {
        self.runtime.run(self.client.end_session(request_id))
    }

    /// See [`crate::Client::publisher`].
    pub fn publisher(&self) -> &Publisher {
        self.client.publisher()
    }

    /// See [`crate::Client::ring_error`].
    pub fn ring_error(&self) -> Option<String> {
        self.client.ring_error()
    }
}

impl Deref for Store {
    type Target = crate::Store;

    fn deref(&self) -> &crate::Store {
        &self.store
    }
}

impl DerefMut for Store {
    fn deref_mut(&mut self) -> &mut crate::Store {
        &mut self.store
    }
}

impl Store {
    /// See [`crate::Store::commit`].
    ///
    /// # Errors
    /// As there.
    pub fn commit(self) -> Result<(), ClientError> {
        self.runtime.run(self.store.commit())
    }
}

impl Deref for Retrieve {
    type Target = crate::Retrieve;

    fn deref(&self) -> &crate::Retrieve {
        &self.retrieve
    }
}

impl DerefMut for Retrieve {
    fn deref_mut(&mut self) -> &mut crate::Retrieve {
        &mut self.retrieve
    }
}

impl Retrieve {
    /// See [`crate::Retrieve::commit`].
    ///
    /// # Errors
    /// As there.
    pub fn commit(self) -> Result<(), ClientError> {
        self.runtime.run(self.retrieve.commit())
    }
}

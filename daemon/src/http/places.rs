//! Who has one of `--http-max-connections` of a port.
//!
//! When all are taken, the connection that has been open for the longest without asking for anything gives way: connections
//! that never say anything must not keep a probe out. If all have asked, the new one is told so.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::service::Service;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use warp::http::Request;

use crate::telemetry::{HttpConnection, HttpCounters, HttpRefusal};

/// What is said to a connection for which there is no place.
const NO_PLACE: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 78\r\nretry-after: 1\r\nconnection: close\r\n\r\n{\"detail\":\"--http-max-connections are open, and all of them ask: come again\"}\n";

/// The places of one port.
#[derive(Debug)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    /// Connections that have asked for nothing yet, the oldest first.
    quiet: Mutex<BTreeMap<u64, Arc<Notify>>>,
    next: AtomicU64,
    counters: Arc<HttpCounters>,
}

impl Places {
    pub(super) fn new(most: usize, counters: Arc<HttpCounters>) -> Arc<Places> {
        Arc::new(Places {
            free: Arc::new(Semaphore::new(most)),
            quiet: Mutex::default(),
            next: AtomicU64::new(0),
            counters,
        })
    }

    /// A place for a connection that has come. `None`: all are taken, and their connections have asked for something.
    pub(super) async fn take(self: &Arc<Places>) -> Option<Arc<Place>> {
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let (_, give_way) = self.quiet.lock().pop_first()?;
                self.counters.refuse(HttpRefusal::Displaced);
                give_way.notify_one();
                // It ends as soon as its task runs.
                self.free.clone().acquire_owned().await.expect("the semaphore is never closed")
            }
        };
        let (number, give_way) = (self.next.fetch_add(1, Ordering::Relaxed), Arc::new(Notify::new()));
        self.quiet.lock().insert(number, give_way.clone());
        let counted = self.counters.connection();
        Some(Arc::new(Place { places: self.clone(), number, give_way, _permit: permit, _counted: counted }))
    }

    /// Says to a connection that there is no place for it. Nobody waits for it to listen.
    pub(super) fn turn_away(&self, stream: TcpStream) {
        self.counters.refuse(HttpRefusal::TooMany);
        let Ok(mut stream) = stream.into_std() else { return };
        // What it has asked already is read, so that the close is no reset that overtakes the answer.
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write(NO_PLACE.as_bytes());
    }
}

/// The place of a connection, free again when this goes.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    give_way: Arc<Notify>,
    _permit: OwnedSemaphorePermit,
    _counted: HttpConnection,
}

impl Place {
    /// Resolves when another connection is to have the place.
    pub(super) async fn given_away(&self) {
        self.give_way.notified().await;
    }

    fn keep(&self) {
        self.places.quiet.lock().remove(&self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.keep();
    }
}

/// Notes that a connection has asked for something.
#[derive(Clone, Debug)]
pub(super) struct Asks<S> {
    pub(super) inner: S,
    pub(super) place: Arc<Place>,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for Asks<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, request: Request<B>) -> S::Future {
        self.place.keep();
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_has_the_length_that_it_says() {
        let (head, body) = NO_PLACE.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
    }
}

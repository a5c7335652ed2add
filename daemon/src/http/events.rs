//! `GET /lmcached/events`: the events of the bus as they happen, as server-sent events.
//!
//! The drain thread writes each event once, and only while somebody listens. Readers get it through a bounded queue each;
//! one that does not keep up is cut off and counted, and slows nobody down.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use futures_util::stream;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::mpsc::{self, Receiver, Sender, error::TrySendError};
use warp::Reply;
use warp::http::StatusCode;
use warp::sse;

use super::answer::detail;
use super::call::{Call, Later};
use crate::events::{Stamped, Subscriber, describe};

/// Readers at the same time.
const MAX_READERS: usize = 8;
/// Events that wait for one reader: some seconds of a busy daemon.
const QUEUE: usize = 4096;

#[derive(Debug)]
struct Reader {
    queue: Sender<Arc<str>>,
    /// Only events whose name begins so.
    prefix: String,
}

/// The readers of the stream.
#[derive(Debug, Default)]
pub struct EventStreams {
    readers: Mutex<Vec<Reader>>,
    /// Length of `readers`, for the drain thread, which looks at it for each event.
    open: AtomicUsize,
    cut_off: AtomicU64,
}

impl EventStreams {
    /// Readers now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Readers that did not keep up, ever.
    pub fn cut_off(&self) -> u64 {
        self.cut_off.load(Ordering::Relaxed)
    }

    /// The subscriber that feeds the streams.
    pub fn subscriber(self: &Arc<EventStreams>) -> Box<dyn Subscriber> {
        Box::new(Tap { streams: self.clone(), started: (Instant::now(), SystemTime::now()) })
    }

    fn add(&self, prefix: String) -> Option<Receiver<Arc<str>>> {
        let mut readers = self.readers.lock();
        readers.retain(|reader| !reader.queue.is_closed());
        if readers.len() >= MAX_READERS {
            return None;
        }
        let (queue, events) = mpsc::channel(QUEUE);
        readers.push(Reader { queue, prefix });
        self.open.store(readers.len(), Ordering::Relaxed);
        Some(events)
    }

    fn send(&self, name: &str, line: impl Fn() -> Arc<str>) {
        let mut made: Option<Arc<str>> = None;
        let mut readers = self.readers.lock();
        readers.retain(|reader| {
            if reader.queue.is_closed() {
                return false;
            }
            if !name.starts_with(&reader.prefix) {
                return true;
            }
            let line = made.get_or_insert_with(&line).clone();
            match reader.queue.try_send(line) {
                Ok(()) => true,
                Err(TrySendError::Closed(_)) => false,
                // Dropping the sender ends the stream once what waits has been read.
                Err(TrySendError::Full(_)) => {
                    self.cut_off.fetch_add(1, Ordering::Relaxed);
                    false
                }
            }
        });
        self.open.store(readers.len(), Ordering::Relaxed);
    }
}

struct Tap {
    streams: Arc<EventStreams>,
    /// One moment on both clocks: events carry the one that never jumps.
    started: (Instant, SystemTime),
}

impl Subscriber for Tap {
    fn name(&self) -> &'static str {
        "event_streams"
    }

    fn on_event(&mut self, event: &Stamped) {
        if self.streams.open() == 0 {
            return;
        }
        let (name, fields) = describe(&event.event);
        let (instant, wall) = self.started;
        let at = wall + event.at.saturating_duration_since(instant);
        let seconds = at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        self.streams
            .send(&name, || json!({"event": name, "time": seconds, "fields": fields}).to_string().into());
    }

    fn shutdown(&mut self) {
        self.streams.readers.lock().clear();
    }
}

/// The stream. `prefix` chooses events whose name begins so, such as `l2_`.
pub(super) fn stream(call: Call) -> Later {
    Box::pin(async move {
        let admin = call.admin.clone();
        if !admin.bus.enabled() {
            let line = "there are no events with --disable-observability";
            return detail(StatusCode::SERVICE_UNAVAILABLE, line.into()).into_response();
        }
        let prefix = call.query.get("prefix").cloned().unwrap_or_default();
        let Some(events) = admin.events.add(prefix) else {
            let line = format!("{MAX_READERS} readers are connected already");
            return detail(StatusCode::SERVICE_UNAVAILABLE, line).into_response();
        };
        let lines = stream::unfold(events, |mut events| async move {
            let line = poll_fn(|context| events.poll_recv(context)).await?;
            Some((Ok::<_, Infallible>(sse::Event::default().data(&*line)), events))
        });
        sse::reply(sse::keep_alive().stream(Box::pin(lines))).into_response()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_read_is_cut_off_and_the_others_go_on() {
        let streams = EventStreams::default();
        let line = || Arc::from("line");
        let slow = streams.add(String::new()).expect("room");
        for _ in 0..QUEUE {
            streams.send("l1_x", line);
        }
        let mut good = streams.add("l2_".into()).expect("room");
        assert_eq!((streams.open(), streams.cut_off()), (2, 0));
        streams.send("l1_x", line);
        assert_eq!((streams.open(), streams.cut_off()), (1, 1));
        streams.send("l2_x", line);
        assert_eq!(good.try_recv().as_deref(), Ok("line"));
        assert!(good.try_recv().is_err(), "the event of the other name was not for it");
        drop((slow, good));
        streams.send("l2_x", line);
        assert_eq!((streams.open(), streams.cut_off()), (0, 1), "who leaves is not cut off");
    }

    #[test]
    fn readers_are_bounded() {
        let streams = EventStreams::default();
        let readers: Vec<_> = (0..MAX_READERS).map(|_| streams.add(String::new())).collect();
        assert!(readers.iter().all(Option::is_some) && streams.add(String::new()).is_none());
        drop(readers);
        assert!(streams.add(String::new()).is_some());
    }
}

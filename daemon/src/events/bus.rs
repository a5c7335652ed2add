//! The queue between those who publish and the one thread that tells the subscribers.
//!
//! Publishing is lock-free: a push into a bounded queue, dropped and counted when it is full (tail-drop), so that a slow
//! subscriber never slows a request. Waking the drain thread for every event would cost a system call each; instead the
//! first event after a pause wakes it, it gathers for a moment, and then drains all there is.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use parking_lot::{Condvar, Mutex};

use super::event::{Event, Stamped};
use super::subscriber::Subscriber;
use crate::process;

/// How long the drain thread lets events gather after the first one.
const GATHER: Duration = Duration::from_millis(20);

/// The drain thread is telling subscribers; it looks at the queue again by itself.
const BUSY: u8 = 0;
/// It waits for the first event.
const IDLE: u8 = 1;
/// It lets events gather; only a queue that fills up wakes it.
const GATHERING: u8 = 2;

/// The publishing side. Cheap to share; with observability off it is one branch.
#[derive(Debug)]
pub struct Bus {
    inner: Option<Inner>,
}

#[derive(Debug)]
struct Inner {
    queue: ArrayQueue<Stamped>,
    state: AtomicU8,
    thread: OnceLock<Thread>,
    stop: AtomicBool,
    /// When the oldest undelivered event happened, in nanoseconds since `started`; 0 when there is none.
    oldest: AtomicU64,
    started: Instant,
    published: AtomicU64,
    dropped: AtomicU64,
    /// Events delivered, for those who wait for it.
    delivered: Mutex<u64>,
    progress: Condvar,
    flushing: AtomicBool,
    exceptions: Mutex<Vec<(&'static str, u64)>>,
}

/// Numbers about the bus itself; they are read from it, not carried by it, so that drops cannot silence them.
#[derive(Clone, Debug, Default)]
pub struct BusStatus {
    /// Events waiting.
    pub queue_depth: usize,
    /// Seconds since the oldest of them happened.
    pub drain_lag_seconds: f64,
    /// Events that found the queue full.
    pub dropped: u64,
    /// Events accepted.
    pub published: u64,
    /// Panics of each subscriber.
    pub exceptions: Vec<(&'static str, u64)>,
}

/// The drain thread; stops it when dropped, after delivering what is queued.
#[derive(Debug)]
pub struct Drain {
    bus: Arc<Bus>,
    thread: Option<JoinHandle<()>>,
}

impl Bus {
    /// A bus that drops everything without looking at it.
    pub fn disabled() -> Arc<Bus> {
        Arc::new(Bus { inner: None })
    }

    /// A bus with room for `capacity` events, and its drain thread.
    ///
    /// # Panics
    /// If the system gives no thread.
    pub fn start(capacity: usize, subscribers: Vec<Box<dyn Subscriber>>) -> (Arc<Bus>, Drain) {
        let exceptions = subscribers.iter().map(|subscriber| (subscriber.name(), 0)).collect();
        let bus = Arc::new(Bus {
            inner: Some(Inner {
                queue: ArrayQueue::new(capacity.max(1)),
                state: AtomicU8::new(BUSY),
                thread: OnceLock::new(),
                stop: AtomicBool::new(false),
                oldest: AtomicU64::new(0),
                started: Instant::now(),
                published: AtomicU64::new(0),
                dropped: AtomicU64::new(0),
                delivered: Mutex::new(0),
                progress: Condvar::new(),
                flushing: AtomicBool::new(false),
                exceptions: Mutex::new(exceptions),
            }),
        });
        let shared = bus.clone();
        let thread = process::behind(|| {
            std::thread::Builder::new()
                .name("lmcached-events".into())
                .spawn(move || {
                    if let Some(inner) = &shared.inner {
                        inner.drain(subscribers);
                    }
                })
                .expect("the system has room for one thread at start")
        });
        if let Some(inner) = &bus.inner {
            let _ = inner.thread.set(thread.thread().clone());
        }
        (bus.clone(), Drain { bus, thread: Some(thread) })
    }

    /// Whether anybody listens. For events that are dear to make; the others are published without asking.
    #[inline]
    pub fn enabled(&self) -> bool {
        self.inner.is_some()
    }

    /// Publishes the event that `make` makes; with observability off it is not made.
    #[inline]
    pub fn publish(&self, make: impl FnOnce() -> Event) {
        if let Some(inner) = &self.inner {
            inner.push(Stamped { at: Instant::now(), event: make() });
        }
    }

    /// Publishes an event that happened at `at` (a worker's own clock reading, converted).
    #[inline]
    pub fn publish_at(&self, at: Instant, make: impl FnOnce() -> Event) {
        if let Some(inner) = &self.inner {
            inner.push(Stamped { at, event: make() });
        }
    }

    /// Waits until everything published so far is delivered, at most `limit`. For those who read what subscribers keep.
    pub fn flush(&self, limit: Duration) {
        let Some(inner) = &self.inner else { return };
        let target = inner.published.load(Ordering::Acquire);
        let until = Instant::now() + limit;
        let mut delivered = inner.delivered.lock();
        while *delivered < target {
            inner.flushing.store(true, Ordering::SeqCst);
            inner.wake();
            if inner.progress.wait_until(&mut delivered, until).timed_out() {
                return;
            }
        }
    }

    /// Events that found the queue full.
    pub fn dropped(&self) -> u64 {
        self.inner.as_ref().map_or(0, |inner| inner.dropped.load(Ordering::Relaxed))
    }

    /// Numbers about the bus.
    pub fn status(&self) -> BusStatus {
        let Some(inner) = &self.inner else { return BusStatus::default() };
        let oldest = inner.oldest.load(Ordering::Relaxed);
        let now = inner.started.elapsed().as_nanos() as u64;
        BusStatus {
            queue_depth: inner.queue.len(),
            drain_lag_seconds: if oldest == 0 { 0.0 } else { now.saturating_sub(oldest) as f64 / 1e9 },
            dropped: inner.dropped.load(Ordering::Relaxed),
            published: inner.published.load(Ordering::Relaxed),
            exceptions: inner.exceptions.lock().clone(),
        }
    }
}

impl Inner {
    fn push(&self, event: Stamped) {
        let at = event.at;
        if self.queue.push(event).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.published.fetch_add(1, Ordering::Release);
        // The push before the look at the state; partner is the fence in `rest`, between its state and its look at the
        // queue. One of the two sees the other, so no event is left lying.
        fence(Ordering::SeqCst);
        match self.state.load(Ordering::Relaxed) {
            BUSY => {}
            IDLE => {
                if self.state.compare_exchange(IDLE, GATHERING, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    self.note_oldest(at);
                    self.wake();
                }
            }
            _ => {
                if self.queue.len() * 2 > self.queue.capacity() {
                    self.wake();
                }
            }
        }
    }

    fn note_oldest(&self, at: Instant) {
        // Never 0, which means "none".
        let since = at.saturating_duration_since(self.started).as_nanos() as u64;
        self.oldest.store(since.max(1), Ordering::Relaxed);
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn drain(&self, mut subscribers: Vec<Box<dyn Subscriber>>) {
        loop {
            let mut delivered = 0;
            while let Some(event) = self.queue.pop() {
                self.note_oldest(event.at);
                for (position, subscriber) in subscribers.iter_mut().enumerate() {
                    if catch_unwind(AssertUnwindSafe(|| subscriber.on_event(&event))).is_err() {
                        self.count_exception(position);
                    }
                }
                delivered += 1;
                // In between, so that a flush of a long queue sees progress.
                if delivered == 256 {
                    self.report(std::mem::take(&mut delivered));
                }
            }
            self.oldest.store(0, Ordering::Relaxed);
            self.report(delivered);
            let now = Instant::now();
            for (position, subscriber) in subscribers.iter_mut().enumerate() {
                if catch_unwind(AssertUnwindSafe(|| subscriber.on_idle(now))).is_err() {
                    self.count_exception(position);
                }
            }
            if self.stop.load(Ordering::Acquire) && self.queue.is_empty() {
                break;
            }
            self.rest();
        }
        // Last to come, first to go: a subscriber may rely on those before it.
        for (position, subscriber) in subscribers.iter_mut().enumerate().rev() {
            if catch_unwind(AssertUnwindSafe(|| subscriber.shutdown())).is_err() {
                self.count_exception(position);
            }
        }
    }

    /// Waits for an event, then lets more gather.
    fn rest(&self) {
        self.state.store(IDLE, Ordering::Relaxed);
        // Partner of the fence in `push`.
        fence(Ordering::SeqCst);
        while self.state.load(Ordering::Acquire) == IDLE && self.queue.is_empty() && !self.hurry() {
            std::thread::park();
        }
        self.state.store(GATHERING, Ordering::Relaxed);
        let until = Instant::now() + GATHER;
        loop {
            let now = Instant::now();
            if now >= until || self.hurry() || self.queue.len() * 2 > self.queue.capacity() {
                break;
            }
            std::thread::park_timeout(until - now);
        }
        self.state.store(BUSY, Ordering::Relaxed);
        self.flushing.store(false, Ordering::SeqCst);
    }

    fn hurry(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.flushing.load(Ordering::SeqCst)
    }

    fn report(&self, delivered: u64) {
        if delivered > 0 {
            *self.delivered.lock() += delivered;
            self.progress.notify_all();
        }
    }

    fn count_exception(&self, position: usize) {
        let mut exceptions = self.exceptions.lock();
        exceptions[position].1 += 1;
        let (name, count) = exceptions[position];
        drop(exceptions);
        // Once, then ever more rarely: a subscriber that panics at every event must not flood the log too.
        if count.is_power_of_two() {
            tracing::error!(
                subscriber = name,
                count,
                "an event subscriber panicked; its numbers are incomplete, the others go on; this is a bug in lmcached, please report it"
            );
        }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        if let Some(inner) = &self.bus.inner {
            inner.stop.store(true, Ordering::Release);
            inner.wake();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Collect(Arc<Mutex<Vec<u64>>>);

    impl Subscriber for Collect {
        fn name(&self) -> &'static str {
            "collect"
        }

        fn on_event(&mut self, event: &Stamped) {
            if let Event::CbChunksEvicted { chunks } = event.event {
                self.0.lock().push(chunks);
            }
        }
    }

    struct Panics;

    impl Subscriber for Panics {
        fn name(&self) -> &'static str {
            "panics"
        }

        fn on_event(&mut self, _event: &Stamped) {
            panic!("on purpose");
        }
    }

    struct Stuck(Arc<Mutex<()>>);

    impl Subscriber for Stuck {
        fn name(&self) -> &'static str {
            "stuck"
        }

        fn on_event(&mut self, _event: &Stamped) {
            drop(self.0.lock());
        }
    }

    fn number(chunks: u64) -> Event {
        Event::CbChunksEvicted { chunks }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn everything_is_delivered_in_order_from_each_publisher() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (bus, drain) = Bus::start(100_000, vec![Box::new(Collect(seen.clone()))]);
        std::thread::scope(|scope| {
            for publisher in 0..4u64 {
                let bus = &bus;
                scope.spawn(move || (0..5000).for_each(|i| bus.publish(|| number(publisher * 10_000 + i))));
            }
        });
        bus.flush(LONG);
        let seen = seen.lock().clone();
        assert_eq!(seen.len(), 20_000);
        for publisher in 0..4u64 {
            let of_one: Vec<u64> = seen.iter().copied().filter(|n| n / 10_000 == publisher).collect();
            assert!(of_one.is_sorted());
        }
        assert_eq!(bus.status().dropped, 0);
        assert_eq!(bus.status().queue_depth, 0);
        drop(drain);
    }

    #[test]
    fn a_panic_is_counted_under_its_name_and_harms_nobody() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (bus, drain) = Bus::start(100, vec![Box::new(Panics), Box::new(Collect(seen.clone()))]);
        (0..10).for_each(|i| bus.publish(|| number(i)));
        bus.flush(LONG);
        assert_eq!(seen.lock().len(), 10);
        assert_eq!(bus.status().exceptions, [("panics", 10), ("collect", 0)]);
        drop(drain);
    }

    #[test]
    fn a_full_queue_drops_the_newest_and_counts() {
        let gate = Arc::new(Mutex::new(()));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let closed = gate.lock();
        let (bus, drain) =
            Bus::start(1, vec![Box::new(Stuck(gate.clone())), Box::new(Collect(seen.clone()))]);
        for i in 0..1000 {
            bus.publish(|| number(i));
        }
        let status = bus.status();
        assert!(status.dropped >= 990, "{status:?}");
        assert_eq!(status.dropped + status.published, 1000);
        drop(closed);
        bus.flush(LONG);
        assert_eq!(seen.lock().len() as u64, bus.status().published);
        drop(drain);
    }

    #[test]
    fn stopping_delivers_what_is_queued() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (bus, drain) = Bus::start(1000, vec![Box::new(Collect(seen.clone()))]);
        (0..500).for_each(|i| bus.publish(|| number(i)));
        drop(drain);
        assert_eq!(seen.lock().len(), 500);
    }

    #[test]
    fn a_disabled_bus_makes_no_events() {
        let bus = Bus::disabled();
        bus.publish(|| panic!("made for nobody"));
        bus.flush(LONG);
        assert_eq!(bus.status().published, 0);
    }

    #[test]
    fn lag_rises_while_a_subscriber_is_stuck() {
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock();
        let (bus, drain) = Bus::start(10, vec![Box::new(Stuck(gate.clone()))]);
        bus.publish(|| number(1));
        bus.publish(|| number(2));
        while bus.status().drain_lag_seconds < 0.05 {
            std::thread::yield_now();
        }
        drop(closed);
        bus.flush(LONG);
        assert_eq!(bus.status().drain_lag_seconds, 0.0);
        drop(drain);
    }
}

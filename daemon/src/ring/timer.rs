//! The thread that reads lanes whose workers send nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use super::hub::RingHub;

/// A lane of 1,024 slots holds what a worker writes in this time at 10,000 records a second.
const PERIOD: Duration = Duration::from_millis(100);

/// Drains all lanes every 100 ms while there are any; asleep otherwise. Stops when dropped.
#[derive(Debug)]
pub struct RingTimer {
    hub: Arc<RingHub>,
    thread: Option<JoinHandle<()>>,
}

impl RingTimer {
    /// Starts the thread.
    ///
    /// # Panics
    /// If the system gives no thread.
    pub fn start(hub: Arc<RingHub>) -> RingTimer {
        let shared = hub.clone();
        let thread = std::thread::Builder::new()
            .name("lmcached-ring".into())
            .spawn(move || run(&shared))
            .expect("the system has room for one thread at start");
        RingTimer { hub, thread: Some(thread) }
    }
}

fn run(hub: &RingHub) {
    let (lock, changed) = &hub.wake;
    loop {
        {
            let mut guard = lock.lock();
            while hub.idle() && !hub.stop.load(Ordering::Acquire) {
                changed.wait(&mut guard);
            }
            if !hub.stop.load(Ordering::Acquire) {
                changed.wait_for(&mut guard, PERIOD);
            }
        }
        if hub.stop.load(Ordering::Acquire) {
            return;
        }
        hub.drain_all();
    }
}

impl Drop for RingTimer {
    fn drop(&mut self) {
        self.hub.stop.store(true, Ordering::Release);
        self.hub.wake_timer();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

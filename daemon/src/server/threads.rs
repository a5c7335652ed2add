//! Which threads a connection's task runs on: those that serve everybody, or, while its peer always has more to ask, others that
//! give way to them. Who comes in is at the `door`, whose threads give way, too, until something comes after its handshake.
//!
//! A peer that fills its socket as fast as it is read would be read all the time, and as many such peers as there are threads
//! would leave none for those that ask little. Turns do not help against the kernel's scheduler, to which all of a process's
//! threads are alike: who asks little waits until a thread that is busy for others has used up its slice, milliseconds. So the
//! busy ones have threads of their own at a higher nice value: they get every core that nobody else wants, and no other.
//! Such a thread may hold the index's lock when others take its core. The kernel still gives it a tenth of the time of those, and a
//! lock is held for microseconds: who waits for it waits some milliseconds in the worst case, and only while cores are short.
#![forbid(unsafe_code)]

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use tokio::runtime::Handle;

/// The sets of threads.
#[derive(Clone, Debug)]
pub struct Threads {
    /// For all peers.
    pub all: Handle,
    /// For those that always have more to ask.
    pub busy: Handle,
    /// For those that come in.
    pub door: Handle,
}

impl Threads {
    /// The current runtime's for all.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn here() -> Threads {
        Threads { all: Handle::current(), busy: Handle::current(), door: Handle::current() }
    }

    /// Starts a connection's task.
    pub(super) fn spawn(&self, side: Arc<Side>, task: impl Future<Output = ()> + Send + 'static) {
        self.run(side, Box::pin(task));
    }

    fn run(&self, side: Arc<Side>, mut task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let (threads, here) = (self.clone(), side.is_busy());
        let on = if here { &self.busy } else { &self.all };
        on.spawn(async move {
            let over = poll_fn(|context| match task.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(true),
                // Whatever the task waits for may have woken this one for the last time: the other one polls it at once.
                Poll::Pending if side.is_busy() != here => Poll::Ready(false),
                Poll::Pending => Poll::Pending,
            });
            if !over.await {
                threads.run(side, task);
            }
        });
    }
}

/// The side that a connection's task belongs to, from the next time on that it waits.
#[derive(Debug, Default)]
pub(super) struct Side(AtomicBool);

impl Side {
    /// Says which.
    pub(super) fn set_busy(&self, busy: bool) {
        // Relaxed: written and read by the task itself, and handed on with it.
        self.0.store(busy, Ordering::Relaxed);
    }

    fn is_busy(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::thread::ThreadId;

    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
    }

    #[test]
    fn a_task_moves_when_it_waits_and_comes_back() {
        let (all, busy) = (runtime(), runtime());
        let of = |runtime: &Runtime| {
            let thread = runtime.spawn(async { std::thread::current().id() });
            runtime.block_on(thread).expect("a thread")
        };
        let (first, second): (ThreadId, ThreadId) = (of(&all), of(&busy));
        let threads =
            Threads { all: all.handle().clone(), busy: busy.handle().clone(), door: all.handle().clone() };
        let (side, (said, heard)) = (Arc::new(Side::default()), std::sync::mpsc::channel());
        let mover = side.clone();
        threads.spawn(side, async move {
            for busy in [false, true, true, false] {
                mover.set_busy(busy);
                tokio::task::yield_now().await;
                // Timers and sockets belong to the runtime that they were made in, wherever they are waited for.
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                said.send(std::thread::current().id()).expect("the test listens");
            }
        });
        let seen: Vec<ThreadId> = heard.iter().collect();
        assert_eq!(seen, [first, second, second, first]);
    }
}

//! The pool, pinned for the GPUs: copies between pinned memory and a GPU run at the speed of the bus and beside the CPU.
//!
//! Pinning takes about a second for each eight gigabytes and thread, so it is done in parts by several threads. A part that is
//! not pinned, or cannot be, is copied all the same, at the speed of memory that the driver has to stage. Where there are
//! several NUMA nodes, a thread pins what lies on its own first.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::context::Context;
use super::driver::cuda;
use super::numa::{self, NODES, Node, Shares};
use super::pieces::Borders;
use crate::l1::L1;

/// Bytes that are pinned at once.
const PART: u64 = 256 << 20;
/// Threads that pin. More wait for each other in the kernel.
const MAX_THREADS: usize = 16;
/// `CU_MEMHOSTREGISTER_PORTABLE`: for all contexts.
const PORTABLE: u32 = 1;

/// The pool, and how it is pinned now.
#[derive(Debug)]
pub(super) struct Pins {
    l1: Arc<L1>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Workers.
    users: usize,
    /// Kept while there are workers, and besides by every slice that is under way.
    current: Option<Arc<Pin>>,
}

/// A worker's use of the pinned pool.
#[derive(Debug)]
pub(super) struct PinUser {
    pins: Arc<Pins>,
}

impl Pins {
    pub(super) fn new(l1: Arc<L1>) -> Pins {
        Pins { l1, state: Mutex::default() }
    }

    /// For one more worker. What is not pinned is being pinned from now on.
    pub(super) fn user(self: &Arc<Pins>, context: &Arc<Context>) -> PinUser {
        self.state.lock().users += 1;
        let user = PinUser { pins: self.clone() };
        user.pin(context).work.start();
        user
    }

    /// A context may be lost: what was pinned in it is let go as soon as no slice uses it.
    pub(super) fn drop_lost(&self) {
        // Outside of the lock: it takes a while.
        let lost = self.state.lock().take_lost();
        drop(lost);
    }
}

impl PinUser {
    /// The pinned pool; pinned anew in `context` if the context that it was pinned in is lost.
    pub(super) fn pin(&self, context: &Arc<Context>) -> Arc<Pin> {
        let mut state = self.pins.state.lock();
        match state.current.clone() {
            Some(pin) if !pin.is_lost() => pin,
            lost => {
                let pin = Arc::new(Pin::new(context, &self.pins.l1));
                if pin.is_lost() {
                    // For this once: kept for others, it would keep the context.
                    return pin;
                }
                state.current = Some(pin.clone());
                drop(state);
                drop(lost);
                pin.work.start();
                pin
            }
        }
    }

    /// As [`Pins::drop_lost`].
    pub(super) fn drop_lost(&self) {
        self.pins.drop_lost();
    }
}

impl State {
    fn take_lost(&mut self) -> Option<Arc<Pin>> {
        self.current.take_if(|pin| pin.is_lost())
    }
}

impl Drop for PinUser {
    fn drop(&mut self) {
        let last = {
            let mut state = self.pins.state.lock();
            state.users -= 1;
            // Perhaps in a context that has no workers any more, and in which the last one could not register.
            if state.users == 0 { state.current.take() } else { state.take_lost() }
        };
        // Outside of the lock: it takes a while.
        drop(last);
    }
}

/// The pinned pool.
#[derive(Debug)]
pub(super) struct Pin {
    work: Arc<Work>,
}

#[derive(Debug)]
struct Work {
    context: Arc<Context>,
    l1: Arc<L1>,
    borders: Borders,
    /// Pinned parts.
    pinned: Vec<AtomicBool>,
    stop: AtomicBool,
    warned: AtomicBool,
    running: Mutex<usize>,
    done: Condvar,
}

impl Pin {
    fn new(context: &Arc<Context>, l1: &Arc<L1>) -> Pin {
        let segment = l1.pool().segment();
        let parts = segment.bytes().div_ceil(PART) as usize;
        let work = Arc::new(Work {
            context: context.clone(),
            l1: l1.clone(),
            borders: Borders { start: segment.base().as_ptr() as u64, step: PART },
            pinned: (0..parts).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            warned: AtomicBool::new(false),
            running: Mutex::new(0),
            done: Condvar::new(),
        });
        Pin { work }
    }

    /// Waits until the pool is pinned, as far as it will be. `false`: it takes longer.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let mut running = self.work.running.lock();
        let until = Instant::now() + limit;
        while *running > 0 {
            if self.work.done.wait_until(&mut running, until).timed_out() {
                return *running == 0;
            }
        }
        true
    }

    /// Where copies are cut.
    pub(super) fn borders(&self) -> Borders {
        self.work.borders
    }

    /// Whether the part with this address is pinned.
    pub(super) fn is_pinned(&self, host: u64) -> bool {
        let part = self.work.pinned.get(self.work.borders.part(host));
        part.is_some_and(|part| part.load(Ordering::Acquire))
    }

    /// Whether it is pinned in this context.
    pub(super) fn is_of(&self, context: &Arc<Context>) -> bool {
        Arc::ptr_eq(&self.work.context, context)
    }

    /// Of no use any more: its context is lost.
    pub(super) fn is_lost(&self) -> bool {
        self.work.context.has_failed()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.work.stop.store(true, Ordering::Relaxed);
    }
}

impl Work {
    /// Pins what is not pinned, unless that is being done.
    fn start(self: &Arc<Work>) {
        let is_missing = |part: &usize| !self.pinned[*part].load(Ordering::Relaxed);
        let missing: Vec<usize> = (0..self.pinned.len()).filter(is_missing).collect();
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let threads = missing.len().min(cores).min(MAX_THREADS);
        {
            let mut running = self.running.lock();
            if *running > 0 || threads == 0 {
                return;
            }
            *running = threads;
        }
        let nodes = numa::nodes(Path::new(NODES));
        let near = |part| if nodes.is_empty() { None } else { self.node(part) };
        let shares = Shares::new(&nodes, missing.into_iter().map(|part| (part, near(part))));
        let (shares, begun) = (Arc::new(shares), Instant::now());
        for number in 0..threads {
            let home = number % nodes.len().max(1);
            let (work, shares, node) = (self.clone(), shares.clone(), nodes.get(home).cloned());
            let spawned = std::thread::Builder::new()
                .name("cuda-pin".to_owned())
                .spawn(move || work.run(begun, &shares, (home, node.as_ref())));
            if spawned.is_err() {
                self.leave();
            }
        }
    }

    fn run(&self, begun: Instant, shares: &Shares, (home, node): (usize, Option<&Node>)) {
        if let Some(node) = node {
            numa::stay_on(node);
        }
        while !self.stop.load(Ordering::Relaxed)
            && !self.context.has_failed()
            && let Some(part) = shares.next(home)
        {
            if let Err(why) = self.pin(part)
                && !self.warned.swap(true, Ordering::Relaxed)
            {
                tracing::warn!(
                    part,
                    why,
                    "cannot pin the pool for the GPUs (look at the memory limits of the daemon's cgroup); copies with what is not pinned are slower, and correct"
                );
            }
        }
        if self.leave() {
            let pinned = self.pinned.iter().filter(|part| part.load(Ordering::Relaxed)).count();
            tracing::info!(
                parts = self.pinned.len(),
                pinned,
                took_ms = begun.elapsed().as_millis() as u64,
                "the pool is pinned for the GPUs"
            );
        }
    }

    /// A thread ends. Returns whether it was the last.
    fn leave(&self) -> bool {
        let mut running = self.running.lock();
        *running -= 1;
        self.done.notify_all();
        *running == 0
    }

    fn range(&self, part: usize) -> (u64, u64) {
        let begin = part as u64 * PART;
        (begin, PART.min(self.l1.pool().segment().bytes() - begin))
    }

    /// The NUMA node on which a part lies, if it is real memory already: the thread that makes it real decides otherwise.
    fn node(&self, part: usize) -> Option<u32> {
        let (begin, bytes) = self.range(part);
        // SAFETY: the first page of the part, in the pool's mapping and below its frontier.
        (begin + bytes <= self.l1.pool().frontier())
            .then(|| unsafe { numa::node_of(self.borders.start + begin) })?
    }

    fn pin(&self, part: usize) -> Result<(), String> {
        let (begin, bytes) = self.range(part);
        // The pool becomes real memory in the background; what is pinned must be before.
        self.l1.pool().segment().populate(begin, bytes).map_err(|error| error.to_string())?;
        let registered = self.context.enter().and_then(|_current| {
            let start = (self.borders.start + begin) as *mut c_void;
            // SAFETY: a part of the pool's mapping, which `self.l1` keeps; unregistered in the drop.
            unsafe { cuda!(self.context.driver, cuMemHostRegister_v2(start, bytes as usize, PORTABLE)) }
        });
        match registered {
            Ok(()) => {}
            // Also if a context that is lost and still being let go has it: the next registration tries again.
            Err(error) => {
                self.context.note(error);
                return Err(error.to_string());
            }
        }
        self.pinned[part].store(true, Ordering::Release);
        Ok(())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else { return };
        for part in (0..self.pinned.len()).filter(|part| self.pinned[*part].load(Ordering::Relaxed)) {
            let start = (self.borders.start + self.range(part).0) as *mut c_void;
            // SAFETY: registered by `pin`; no copy is under way without a `Pin`.
            let gone = unsafe { cuda!(self.context.driver, cuMemHostUnregister(start)) };
            if gone.is_err() {
                break;
            }
        }
    }
}

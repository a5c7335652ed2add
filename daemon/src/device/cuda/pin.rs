//! The pool, pinned for the GPUs: copies between pinned memory and a GPU run at the speed of the bus and beside the CPU.
//!
//! Pinning takes about a second for each eight gigabytes and thread, so it is done in parts by several threads. A part that is
//! not pinned, or cannot be, is copied all the same, at the speed of memory that the driver has to stage.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::context::Context;
use super::driver::cuda;
use super::error::{CudaError, code};
use super::pieces::Borders;
use crate::l1::L1;

/// Bytes that are pinned at once.
const PART: u64 = 256 << 20;
/// Threads that pin. More wait for each other in the kernel.
const MAX_THREADS: usize = 16;
/// `CU_MEMHOSTREGISTER_PORTABLE`: for all contexts.
const PORTABLE: u32 = 1;

/// The pinned pool; let go with the last worker.
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
    /// Those of them that this value has pinned.
    own: Vec<AtomicBool>,
    next: AtomicUsize,
    stop: AtomicBool,
    warned: AtomicBool,
    running: Mutex<usize>,
    done: Condvar,
}

impl Pin {
    /// Begins to pin the pool.
    pub(super) fn begin(context: &Arc<Context>, l1: &Arc<L1>) -> Arc<Pin> {
        let segment = l1.pool().segment();
        let parts = segment.bytes().div_ceil(PART) as usize;
        let flags = || (0..parts).map(|_| AtomicBool::new(false)).collect();
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let threads = parts.min(cores).min(MAX_THREADS);
        let work = Arc::new(Work {
            context: context.clone(),
            l1: l1.clone(),
            borders: Borders { start: segment.base().as_ptr() as u64, step: PART },
            pinned: flags(),
            own: flags(),
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            warned: AtomicBool::new(false),
            running: Mutex::new(threads),
            done: Condvar::new(),
        });
        for _ in 0..threads {
            let (work, begun) = (work.clone(), Instant::now());
            let ended = work.clone();
            let spawned =
                std::thread::Builder::new().name("cuda-pin".to_owned()).spawn(move || work.run(begun));
            if spawned.is_err() {
                ended.leave();
            }
        }
        Arc::new(Pin { work })
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
    fn run(&self, begun: Instant) {
        loop {
            let part = self.next.fetch_add(1, Ordering::Relaxed);
            if part >= self.pinned.len() || self.stop.load(Ordering::Relaxed) {
                break;
            }
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
            Ok(()) => self.own[part].store(true, Ordering::Relaxed),
            // By a context that is being let go.
            Err(CudaError { code: code::ALREADY_REGISTERED, .. }) => {}
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
        for part in (0..self.own.len()).filter(|part| self.own[*part].load(Ordering::Relaxed)) {
            let start = (self.borders.start + self.range(part).0) as *mut c_void;
            // SAFETY: registered by `pin`; no copy is under way without a `Pin`.
            let gone = unsafe { cuda!(self.context.driver, cuMemHostUnregister(start)) };
            if gone.is_err() {
                break;
            }
        }
    }
}

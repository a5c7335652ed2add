//! One io_uring and the thread that drives it.
//!
//! A job owns its buffer and its file from the submission until the kernel's completion; only then is the caller told. A
//! caller that has gone by then changes nothing. Should the thread unwind with transfers in flight, their buffers are
//! leaked: the kernel may still write to them.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::Duration;

use io_uring::types::Fd;
use io_uring::{IoUring, Probe, opcode, squeue};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::oneshot;

use super::super::memory::{SourceBuf, TargetBuf};
use super::MOST;

/// Marks the completion that says "there are new jobs".
const WAKE: u64 = u64::MAX;

type ReadReply = oneshot::Sender<(io::Result<usize>, TargetBuf)>;

enum Kind {
    Read { target: TargetBuf, reply: ReadReply },
    Write { source: SourceBuf, reply: oneshot::Sender<io::Result<()>> },
}

struct Job {
    file: Arc<File>,
    /// `u64::MAX`: the file's own position (pipes).
    offset: u64,
    done: usize,
    kind: Kind,
}

/// A handle; the thread ends when it is dropped and the last transfer is over.
#[derive(Debug)]
pub(super) struct Uring {
    jobs: Sender<Job>,
    wake: Arc<EventFd>,
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The sender goes first, then the thread looks: a new channel's sender takes its place.
        self.jobs = channel().0;
        let _ = self.wake.write(1);
    }
}

impl Uring {
    /// Sets up a ring if the kernel has what is needed and permits it.
    pub(super) fn start(depth: u32) -> io::Result<Uring> {
        // Under valgrind a ring does not work (ipc-tests/sanitize.sh).
        #[cfg(test)]
        if std::env::var_os("LMCACHED_TEST_NO_URING").is_some() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut ring = IoUring::new(depth.clamp(1, 4096) + 1)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        for code in [opcode::Read::CODE, opcode::Write::CODE, opcode::PollAdd::CODE, opcode::Nop::CODE] {
            if !probe.is_supported(code) {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring is too old"));
            }
        }
        // Some sandboxes permit the set-up and not the use.
        // SAFETY: a no-op has no buffer.
        unsafe { ring.submission().push(&opcode::Nop::new().build()) }.map_err(io::Error::other)?;
        ring.submit_and_wait(1)?;
        ring.completion().for_each(drop);
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let (jobs, inbox) = channel();
        let mut driver = Driver {
            depth: depth.clamp(1, 4096) as usize,
            ring,
            inbox,
            wake: wake.clone(),
            waiting: VecDeque::new(),
            flying: Flying::default(),
            armed: false,
        };
        std::thread::Builder::new().name("l2-uring".into()).spawn(move || driver.drive())?;
        Ok(Uring { jobs, wake })
    }

    pub(super) async fn read(
        &self,
        file: Arc<File>,
        offset: u64,
        target: TargetBuf,
    ) -> (io::Result<usize>, TargetBuf) {
        let (reply, answer) = oneshot::channel();
        self.submit(Job { file, offset, done: 0, kind: Kind::Read { target, reply } });
        match answer.await {
            Ok(outcome) => outcome,
            // The driver unwound and the buffer is lost to the kernel: this read never ends, and its deadline says so.
            Err(_) => std::future::pending().await,
        }
    }

    pub(super) async fn write(&self, file: Arc<File>, offset: u64, source: SourceBuf) -> io::Result<()> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job { file, offset, done: 0, kind: Kind::Write { source, reply } });
        answer.await.unwrap_or_else(|_| Err(io::Error::other("the io_uring thread is gone")))
    }

    fn submit(&self, job: Job) {
        // A failure drops the job with its reply, which the caller sees.
        if self.jobs.send(job).is_ok() {
            // Full means that the thread is to be woken anyway.
            let _ = self.wake.write(1);
        }
    }
}

/// Jobs that the kernel has.
#[derive(Default)]
struct Flying {
    slots: Vec<Option<Job>>,
    free: Vec<usize>,
    count: usize,
}

impl Flying {
    fn insert(&mut self, job: Job) -> usize {
        self.count += 1;
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(job);
                slot
            }
            None => {
                self.slots.push(Some(job));
                self.slots.len() - 1
            }
        }
    }

    fn remove(&mut self, slot: usize) -> Job {
        let job = self.slots[slot].take().expect("the kernel completes what was submitted, once");
        self.free.push(slot);
        self.count -= 1;
        job
    }
}

impl Drop for Flying {
    fn drop(&mut self) {
        if self.count > 0 {
            // Only after a panic. See the module.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

struct Driver {
    depth: usize,
    ring: IoUring,
    inbox: Receiver<Job>,
    wake: Arc<EventFd>,
    waiting: VecDeque<Job>,
    flying: Flying,
    /// A poll of the wake-up is in the ring.
    armed: bool,
}

impl Driver {
    fn drive(&mut self) {
        loop {
            let closed = self.take_jobs();
            while self.flying.count < self.depth
                && let Some(job) = self.waiting.pop_front()
            {
                self.push_job(job);
            }
            if closed && self.flying.count == 0 && self.waiting.is_empty() {
                return;
            }
            if !self.armed {
                let poll = opcode::PollAdd::new(Fd(self.wake.as_fd().as_raw_fd()), libc::POLLIN as u32);
                // SAFETY: no buffer; the descriptor lives as long as the driver.
                unsafe { self.push(&poll.build().user_data(WAKE)) };
                self.armed = true;
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
                Err(error) => {
                    tracing::error!(%error, "io_uring does not take requests; trying again. If this goes on, set io_engine to posix");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
            self.reap();
        }
    }

    /// Empties the inbox; whether no more can come.
    fn take_jobs(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(job) => self.waiting.push_back(job),
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return true,
            }
        }
    }

    fn reap(&mut self) {
        let done: Vec<(u64, i32)> = self.ring.completion().map(|c| (c.user_data(), c.result())).collect();
        for (user, result) in done {
            if user == WAKE {
                // Cleared before the inbox is read, so that a job sent in between wakes us again.
                let _ = self.wake.read();
                self.armed = false;
                continue;
            }
            let job = self.flying.remove(user as usize);
            self.advance(job, result);
        }
    }

    fn advance(&mut self, mut job: Job, result: i32) {
        match result {
            1.. => {
                job.done += result as usize;
                if job.done < job.len() { self.push_job(job) } else { job.finish(Ok(())) }
            }
            0 => job.finish(Ok(())),
            code if code == -libc::EAGAIN || code == -libc::EINTR => self.push_job(job),
            // Direct I/O: what follows the end of the file is not aligned.
            code if code == -libc::EINVAL && job.done > 0 && matches!(job.kind, Kind::Read { .. }) => {
                job.finish(Ok(()));
            }
            code => job.finish(Err(io::Error::from_raw_os_error(-code))),
        }
    }

    fn push_job(&mut self, mut job: Job) {
        let fd = Fd(job.file.as_raw_fd());
        let want = (job.len() - job.done).min(MOST) as u32;
        let offset = if job.offset == u64::MAX { job.offset } else { job.offset + job.done as u64 };
        if want == 0 {
            return job.finish(Ok(()));
        }
        let done = job.done;
        let entry = match &mut job.kind {
            Kind::Read { target, .. } => {
                // SAFETY: inside the target, `done` being below its length.
                let start = unsafe { target.as_mut_ptr().add(done) };
                opcode::Read::new(fd, start, want).offset(offset).build()
            }
            Kind::Write { source, .. } => {
                // SAFETY: as above.
                let start = unsafe { source.as_ptr().add(done) };
                opcode::Write::new(fd, start, want).offset(offset).build()
            }
        };
        let slot = self.flying.insert(job);
        // SAFETY: the job in `flying` owns the buffer and the file until the completion takes it out.
        unsafe { self.push(&entry.user_data(slot as u64)) };
    }

    /// # Safety
    /// Buffer and descriptor of `entry` live until its completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        // The queue has room for `depth` jobs and the wake-up, but a resubmission may come before the kernel took the
        // earlier ones.
        // SAFETY: passed on.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            if let Err(error) = self.ring.submit() {
                tracing::debug!(%error, "io_uring is busy");
                std::thread::yield_now();
            }
        }
    }
}

impl Job {
    fn len(&self) -> usize {
        match &self.kind {
            Kind::Read { target, .. } => target.len(),
            Kind::Write { source, .. } => source.len(),
        }
    }

    fn finish(self, result: io::Result<()>) {
        let (done, len) = (self.done, self.len());
        match self.kind {
            Kind::Read { target, reply } => drop(reply.send((result.map(|()| done), target))),
            Kind::Write { reply, .. } => {
                let whole = if done < len { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) };
                let _ = reply.send(result.and(whole));
            }
        }
    }
}

//! Notices the death of a process when it happens, not when it has been silent for long enough.
//!
//! A pidfd becomes readable when its process has ended, however it ended; the kernel tells, nobody asks. Where the kernel
//! gives no pidfd (older than 5.3, a seccomp filter, no descriptors left) the timeouts of the engine remain.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustc_hash::FxHashSet;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::process::ProcessId;

/// Processes watched at once: each takes a descriptor. Beyond that the timeouts have to do.
const MAX_WATCHED: usize = 4096;

/// Where processes to watch are named. Each is watched once, until it is dead.
#[derive(Debug)]
pub struct DeathWatch {
    watched: Mutex<FxHashSet<ProcessId>>,
    new: mpsc::UnboundedSender<ProcessId>,
}

/// The side that waits.
#[derive(Debug)]
pub struct Deaths {
    watch: Arc<DeathWatch>,
    new: mpsc::UnboundedReceiver<ProcessId>,
}

impl DeathWatch {
    /// Both sides. Nothing is watched until [`Deaths::run`] runs.
    pub fn new() -> (Arc<DeathWatch>, Deaths) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let watch = Arc::new(DeathWatch { watched: Mutex::default(), new: sender });
        (watch.clone(), Deaths { watch, new: receiver })
    }

    /// Watches a process from now on.
    pub fn watch(&self, process: ProcessId) {
        let mut watched = self.watched.lock();
        if watched.len() < MAX_WATCHED && watched.insert(process) {
            // Fails when nobody runs the other side: at shutdown.
            let _ = self.new.send(process);
        }
    }
}

impl Deaths {
    /// Calls `dead` for each watched process that has ended. Runs until it is dropped.
    pub async fn run(mut self, dead: impl Fn(ProcessId)) {
        let mut waiting = JoinSet::new();
        loop {
            tokio::select! {
                Some(process) = self.new.recv() => {
                    waiting.spawn(async move { (process, ended(process).await) });
                }
                Some(done) = waiting.join_next() => {
                    let Ok((process, outcome)) = done else { continue };
                    self.watch.watched.lock().remove(&process);
                    match outcome {
                        Ok(()) => dead(process),
                        Err(error) => unwatched(process, &error),
                    }
                }
                else => return,
            }
        }
    }
}

/// Resolves when the process has ended.
async fn ended(process: ProcessId) -> io::Result<()> {
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let fd: OwnedFd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // The descriptor is that of whoever has the pid now; if that is somebody else, ours has ended.
    if !process.alive() {
        return Ok(());
    }
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types that may change their descriptor; an OwnedFd never does"
    )]
    let fd = AsyncFd::with_interest(fd, Interest::READABLE)?;
    fd.readable().await?.retain_ready();
    Ok(())
}

fn unwatched(process: ProcessId, error: &io::Error) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            pid = process.pid,
            %error,
            "the kernel does not tell us when workers die; what they leave is freed by timeout (--worker-reap-timeout-seconds, --lease-grace-seconds)"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_kill_is_noticed_and_a_reused_pid_is_not_mistaken() {
        let (watch, deaths) = DeathWatch::new();
        let (sender, mut dead) = mpsc::unbounded_channel();
        tokio::spawn(deaths.run(move |process| sender.send(process).expect("the test listens")));
        let mut children: Vec<_> =
            (0..2).map(|_| std::process::Command::new("sleep").arg("60").spawn().expect("spawn")).collect();
        let ids: Vec<_> =
            children.iter().map(|child| ProcessId::of(child.id() as i32).expect("alive")).collect();
        let earlier = ProcessId { start_time: ids[0].start_time - 1, ..ids[0] };
        watch.watch(ids[0]);
        watch.watch(ids[0]);
        watch.watch(ids[1]);
        watch.watch(earlier);
        assert_eq!(dead.recv().await, Some(earlier), "its pid is another process's by now");
        children[0].kill().expect("kill");
        // Not waited for: a zombie is dead.
        let first = tokio::time::timeout(Duration::from_secs(60), dead.recv()).await.expect("noticed");
        assert_eq!(first, Some(ids[0]));
        for child in &mut children {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
        let second = tokio::time::timeout(Duration::from_secs(60), dead.recv()).await.expect("noticed");
        assert_eq!(second, Some(ids[1]));
        // A process that was dead before anybody watched.
        watch.watch(ids[1]);
        let third = tokio::time::timeout(Duration::from_secs(60), dead.recv()).await.expect("noticed");
        assert_eq!(third, Some(ids[1]));
    }
}

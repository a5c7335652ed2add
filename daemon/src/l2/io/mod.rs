//! File I/O into and out of the caller's memory.
//!
//! Unsafe room: the addresses of buffers go to the kernel here. Two engines, one behaviour: a thread per call, or
//! io_uring where the kernel permits it. Both own the buffer until the kernel is done, whatever becomes of the future.
#![allow(unsafe_code)]

mod uring;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::error::Trouble;
use super::memory::{SourceBuf, TargetBuf};
use uring::Uring;

/// Largest transfer of one system call; the kernel stops at 2 GiB less a page anyway.
const MOST: usize = 1 << 30;

/// Which engine to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// io_uring if the kernel permits it.
    Auto,
    /// Threads.
    Threads,
    /// io_uring, or do not start.
    Uring,
}

/// Carries out the I/O of one adapter.
#[derive(Debug)]
pub struct Engine {
    /// Bounds the blocking calls, so that a file system that hangs holds so many threads and no more.
    workers: Arc<Semaphore>,
    uring: Option<Uring>,
}

impl Engine {
    /// At most `workers` blocking calls, and `depth` transfers in the ring.
    ///
    /// # Errors
    /// io_uring was insisted on and is not to be had.
    pub fn new(choice: Choice, workers: usize, depth: u32) -> Result<Engine, Trouble> {
        let uring = match choice {
            Choice::Threads => None,
            Choice::Auto | Choice::Uring => match Uring::start(depth) {
                Ok(uring) => Some(uring),
                Err(error) if choice == Choice::Uring => {
                    return Err(Trouble::Denied(format!(
                        "io_uring is not to be had: {error} (see /proc/sys/kernel/io_uring_disabled and the container's seccomp profile)"
                    )));
                }
                Err(error) => {
                    tracing::info!(%error, "no io_uring here (kernel, sysctl or seccomp profile); file I/O uses threads");
                    None
                }
            },
        };
        Ok(Engine { workers: Arc::new(Semaphore::new(workers)), uring })
    }

    /// For status.
    pub fn name(&self) -> &'static str {
        if self.uring.is_some() { "io_uring" } else { "threads" }
    }

    /// Whether transfers go through the ring; otherwise a caller does better to do all of its work in one [`Self::run`].
    pub fn is_async(&self) -> bool {
        self.uring.is_some()
    }

    /// Runs `work`, which may block, on a thread. It runs to its end even if the future is dropped.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let permit = self.workers.clone().acquire_owned().await.expect("never closed");
        let job = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        match job.await {
            Ok(value) => value,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down: so is the daemon.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Reads `target.len()` bytes at `offset`, or up to the end of the file; the bytes read.
    pub async fn read(
        &self,
        file: &Arc<File>,
        offset: u64,
        mut target: TargetBuf,
    ) -> (io::Result<usize>, TargetBuf) {
        let file = file.clone();
        match &self.uring {
            Some(uring) => uring.read(file, offset, target).await,
            None => {
                self.run(move || {
                    let result = read_at(&file, offset, &mut target);
                    (result, target)
                })
                .await
            }
        }
    }

    /// Writes all of `source` at `offset`.
    pub async fn write(&self, file: &Arc<File>, offset: u64, source: SourceBuf) -> io::Result<()> {
        let file = file.clone();
        match &self.uring {
            Some(uring) => uring.write(file, offset, source).await,
            None => self.run(move || write_at(&file, offset, &source)).await,
        }
    }
}

/// Reads until the target or the file is at its end. Blocks.
pub fn read_at(file: &File, offset: u64, target: &mut TargetBuf) -> io::Result<usize> {
    let len = target.len();
    let start = target.as_mut_ptr();
    let mut done = 0;
    while done < len {
        let want = (len - done).min(MOST);
        // SAFETY: `want` bytes from `start + done` are inside the target, which is ours and writable during the call.
        let read = unsafe {
            libc::pread(file.as_raw_fd(), start.add(done).cast(), want, (offset + done as u64) as libc::off_t)
        };
        match read {
            0 => break,
            1.. => done += read as usize,
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                // Direct I/O: what follows the end of the file is not aligned.
                error if error.kind() == io::ErrorKind::InvalidInput && done > 0 => break,
                error => return Err(error),
            },
        }
    }
    Ok(done)
}

/// Writes all of it. Blocks.
pub fn write_at(file: &File, offset: u64, source: &SourceBuf) -> io::Result<()> {
    let len = source.len();
    let start = source.as_ptr();
    let mut done = 0;
    while done < len {
        let want = (len - done).min(MOST);
        // SAFETY: `want` bytes from `start + done` are inside the source, readable during the call.
        let written = unsafe {
            libc::pwrite(
                file.as_raw_fd(),
                start.add(done).cast(),
                want,
                (offset + done as u64) as libc::off_t,
            )
        };
        match written {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            1.. => done += written as usize,
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// Whether direct I/O with blocks of `align` bytes can use this memory as it is.
pub fn aligned(start: *const u8, len: usize, align: usize) -> bool {
    start.addr().is_multiple_of(align) && len.is_multiple_of(align)
}

impl SourceBuf {
    /// Itself if direct I/O can use it, or a copy padded with zeros to a multiple of `align`.
    pub(super) fn for_direct_io(&self, align: usize) -> SourceBuf {
        if aligned(self.as_ptr(), self.len(), align) {
            return self.clone();
        }
        let mut padded = TargetBuf::with_len(self.len().next_multiple_of(align));
        let mut offset = 0;
        self.pieces(|piece| {
            padded.write_at(offset, piece);
            offset += piece.len();
        });
        padded.into_source()
    }
}

impl TargetBuf {
    /// Whether direct I/O can use it.
    pub(super) fn is_aligned(&mut self, align: usize) -> bool {
        let len = self.len();
        aligned(self.as_mut_ptr(), len, align)
    }

    /// Takes the first bytes of a longer, aligned buffer.
    pub(super) fn fill_from(&mut self, bounce: &TargetBuf) {
        let (mut offset, len) = (0, self.len());
        bounce.pieces(|piece| {
            let take = piece.len().min(len - offset);
            self.write_at(offset, &piece[..take]);
            offset += take;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engines() -> Vec<Engine> {
        [Choice::Threads, Choice::Auto].into_iter().map(|c| Engine::new(c, 2, 4).expect("starts")).collect()
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 % 253) as u8).collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_was_written_is_read() {
        for engine in engines() {
            let file = Arc::new(tempfile::tempfile().expect("a file"));
            let written = bytes(1_000_003);
            engine.write(&file, 5, SourceBuf::copy_of(&written)).await.expect("writes");
            let (read, target) = engine.read(&file, 5, TargetBuf::with_len(written.len())).await;
            assert_eq!(read.expect("reads"), written.len());
            assert!(target.to_vec() == written, "{}", engine.name());
            let (read, _) = engine.read(&file, 1_000_000, TargetBuf::with_len(100)).await;
            assert_eq!(read.expect("reads"), 8, "the end of the file");
            let (read, _) = engine.read(&file, 0, TargetBuf::with_len(0)).await;
            assert_eq!(read.expect("reads"), 0);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn errors_come_back_with_the_buffer() {
        for engine in engines() {
            let full = Arc::new(File::options().write(true).open("/dev/full").expect("a device"));
            let error = engine.write(&full, 0, SourceBuf::copy_of(&[1; 4096])).await.expect_err("full");
            assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{}", engine.name());
            let dir = Arc::new(File::open("/").expect("a directory"));
            let (read, target) = engine.read(&dir, 0, TargetBuf::with_len(10)).await;
            assert_eq!(read.expect_err("a directory").kind(), io::ErrorKind::IsADirectory);
            assert_eq!(target.len(), 10);
        }
    }

    /// A pipe that nobody writes to is a read that hangs: the guard must live until the kernel is done.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn memory_of_a_dropped_read_stays_guarded() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let engine = Engine::new(Choice::Auto, 2, 4).expect("starts");
        let Some(uring) = &engine.uring else {
            eprintln!("skipped: no io_uring on this machine");
            return;
        };
        let guard = Arc::new(());
        let mut memory = vec![0u8; 4096];
        // SAFETY: `memory` outlives the read, which is awaited below through its guard.
        let target = unsafe { TargetBuf::new(memory.as_mut_ptr(), memory.len(), guard.clone()) };
        let file = Arc::new(File::from(std::os::fd::OwnedFd::from(reader)));
        let read = uring.read(file, u64::MAX, target);
        let gave_up = tokio::time::timeout(std::time::Duration::from_millis(50), read).await;
        assert!(gave_up.is_err(), "nothing to read yet");
        assert_eq!(Arc::strong_count(&guard), 2, "the kernel may still write");
        io::Write::write_all(&mut writer, &[9; 4096]).expect("writes");
        drop(writer);
        while Arc::strong_count(&guard) > 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(memory, [9; 4096]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn more_transfers_than_the_ring_is_deep() {
        for engine in engines().into_iter().map(Arc::new) {
            let file = Arc::new(tempfile::tempfile().expect("a file"));
            let tasks: Vec<_> = (0..100u64)
                .map(|i| {
                    let (engine, file) = (engine.clone(), file.clone());
                    tokio::spawn(async move {
                        let block = vec![i as u8; 8192];
                        engine.write(&file, i * 8192, SourceBuf::copy_of(&block)).await.expect("writes");
                        let (read, target) = engine.read(&file, i * 8192, TargetBuf::with_len(8192)).await;
                        assert_eq!((read.expect("reads"), target.to_vec()), (8192, block));
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("no panic");
            }
        }
    }
}

//! Names, numbers, and small things that all rooms need.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Prefix of the segments.
pub(crate) static NAME: LazyLock<String> =
    LazyLock::new(|| std::env::var("FAKE_CUDA_NAME").unwrap_or_else(|_| "fake_cuda".into()));
/// Pause before an operation.
pub(crate) static DELAY: LazyLock<Duration> =
    LazyLock::new(|| Duration::from_micros(number("FAKE_CUDA_DELAY_US", 0)));

/// A number of the environment.
pub(crate) fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Numbers that this process gives once.
pub(crate) fn fresh() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// When a process started; `None` if it is dead.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(rest.first(), Some(&"Z" | &"X")) {
        return None;
    }
    rest.get(19)?.parse().ok()
}

/// Nanoseconds of the monotonic clock.
pub(crate) fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid pointer and a clock that is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A handle as it is passed by value.
#[repr(C)]
pub struct RawHandle(pub [u8; 64]);

/// What 64 bytes of a handle say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Handle {
    pub(crate) kind: u64,
    pub(crate) pid: u32,
    pub(crate) device: u32,
    pub(crate) start_time: u64,
    pub(crate) number: u64,
    pub(crate) size: u64,
}

pub(crate) const MEMORY: u64 = 0x6d65_6d6f;
pub(crate) const EVENT: u64 = 0x6576_656e;

impl Handle {
    pub(crate) fn new(kind: u64, device: u32, number: u64, size: u64) -> Handle {
        let pid = std::process::id();
        Handle { kind, pid, device, start_time: start_time(pid).unwrap_or(0), number, size }
    }

    pub(crate) fn encode(&self) -> [u8; 64] {
        let mut bytes = [0xcd; 64];
        let words = [
            self.kind,
            u64::from(self.pid) | u64::from(self.device) << 32,
            self.start_time,
            self.number,
            self.size,
        ];
        for (at, word) in words.iter().enumerate() {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; 64]) -> Handle {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at * 8..at * 8 + 8]);
            u64::from_le_bytes(word)
        };
        Handle {
            kind: word(0),
            pid: word(1) as u32,
            device: (word(1) >> 32) as u32,
            start_time: word(2),
            number: word(3),
            size: word(4),
        }
    }

    /// The segment behind it.
    pub(crate) fn segment(&self) -> String {
        let kind = if self.kind == MEMORY { "mem" } else { "event" };
        format!("{}_{kind}_{}_{}", *NAME, self.pid, self.number)
    }

    /// Whether the exporter still is the process that it was.
    pub(crate) fn alive(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }
}

/// Maps a segment; made if `create`.
pub(crate) fn map(name: &str, bytes: usize, create: bool) -> Option<*mut u8> {
    let path = std::ffi::CString::new(format!("/dev/shm/{name}")).ok()?;
    let flags = libc::O_RDWR | libc::O_CLOEXEC | if create { libc::O_CREAT | libc::O_EXCL } else { 0 };
    // SAFETY: a path with an end, and plain flags; the descriptor is closed below.
    unsafe {
        let fd = libc::open(path.as_ptr(), flags, 0o600);
        if fd < 0 {
            return None;
        }
        let sized = !create || libc::ftruncate(fd, bytes as libc::off_t) == 0;
        let start = if sized {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            )
        } else {
            libc::MAP_FAILED
        };
        libc::close(fd);
        (start != libc::MAP_FAILED).then_some(start.cast())
    }
}

/// Takes a segment's name away.
pub(crate) fn unlink(name: &str) {
    let _ = std::fs::remove_file(format!("/dev/shm/{name}"));
}

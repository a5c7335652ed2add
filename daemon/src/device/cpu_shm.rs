//! A worker's KV in POSIX shared memory (`cpu_shm` descriptors).
//!
//! The worker names a segment and says where in it each layer lies. Nothing of that is believed: the name must be one
//! that LMCache gives to KV segments, the file must be a regular one, as long as announced, and known under no other
//! name; every view must end inside it. What the worker does to the file later is [`super::sigbus`]'s business.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use libc::{S_IFMT, S_IFREG, c_void};
use lmcache_proto::wire::DeviceDescriptor;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap, shm_open};
use nix::sys::stat::{Mode, fstat};

use super::copy::{self, CopyError};
use super::groups::KvGeometry;
use super::sigbus::{Guard, GuardError};
use super::transfer::{Device, Direction, Done, Moved, Transfer};
use crate::failpoint;

/// Prefix of KV segments. The daemon's own pool and everybody else's shared memory have other names.
const PREFIX: &str = "/lmcache_kv_";
/// What a transfer on CPU memory answers as its completion event: the client takes any bytes, but none at all would
/// mean that nothing was submitted.
const EVENT: &[u8] = b"stub_ipc_handle";
/// Longest rest of a name.
const SUFFIX_MAX: usize = 200;

/// What the caller allows a worker to register.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most bytes of all segments together.
    pub max_bytes: u64,
    /// Owner that every segment must have, where the caller knows its peer; keeps a worker from naming the segments
    /// of another user that only the daemon may open.
    pub owner: Option<u32>,
}

/// Why a segment cannot be mapped.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum MapError {
    #[error(
        "tensor {tensor}: {name:?} is not a name of a KV segment (/lmcache_kv_ and 1 to 200 of A-Z a-z 0-9 _ . -)"
    )]
    Name { tensor: usize, name: String },
    #[error(
        "tensor {tensor}: a segment of {nbytes} bytes was announced; 1 to {max} bytes in all are allowed"
    )]
    Announced { tensor: usize, nbytes: u64, max: u64 },
    #[error("tensor {tensor}: its view ends at byte {end}, its segment at {nbytes}")]
    View { tensor: usize, end: u64, nbytes: u64 },
    #[error("segment {name}: {call} failed: {errno}")]
    Os { name: String, call: &'static str, errno: Errno },
    #[error("segment {0} is not a regular file with a single name")]
    Kind(String),
    #[error(
        "segment {name} belongs to user {owner}, and this connection may only register segments of user {expected}"
    )]
    Owner { name: String, owner: u32, expected: u32 },
    #[error("segment {name} has {size} bytes, {nbytes} were announced")]
    Size { name: String, size: u64, nbytes: u64 },
    #[error("segment {name}: {source}")]
    Guard { name: String, source: GuardError },
}

/// Which file a segment was when it was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentIdentity {
    /// File system.
    pub device: u64,
    /// File.
    pub inode: u64,
    /// Bytes of the file.
    pub size: u64,
}

/// One mapped segment; unmapped on drop.
#[derive(Debug)]
pub struct Segment {
    name: String,
    identity: SegmentIdentity,
    start: NonNull<u8>,
    len: NonZeroUsize,
    /// Given up in [`Drop`] before the mapping: the handler must not find an address that is somebody else's by then.
    guard: Option<Guard>,
}

// SAFETY: the mapping belongs to the value and is not tied to a thread. Its bytes are shared with another process
// anyway, so they are only ever copied through raw pointers, never borrowed.
unsafe impl Send for Segment {}
// SAFETY: as above; the value itself is never changed after construction.
unsafe impl Sync for Segment {}

impl Segment {
    fn map(name: &str, nbytes: u64, limits: &Limits) -> Result<Segment, MapError> {
        let failed = |call| move |errno| MapError::Os { name: name.to_owned(), call, errno };
        let too_big = || failed("mmap")(Errno::EOVERFLOW);
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd: OwnedFd = shm_open(name, flags, Mode::empty()).map_err(failed("shm_open"))?;
        let stat = fstat(&fd).map_err(failed("fstat"))?;
        // A second name would let a worker reach another segment, our own pool for one, through a hard link.
        if stat.st_mode & S_IFMT != S_IFREG || stat.st_nlink > 1 {
            return Err(MapError::Kind(name.to_owned()));
        }
        if let Some(expected) = limits.owner.filter(|owner| *owner != stat.st_uid) {
            return Err(MapError::Owner { name: name.to_owned(), owner: stat.st_uid, expected });
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size < nbytes {
            return Err(MapError::Size { name: name.to_owned(), size, nbytes });
        }
        let len = usize::try_from(nbytes).ok().filter(|len| isize::try_from(*len).is_ok());
        let len = len.and_then(NonZeroUsize::new).ok_or_else(too_big)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours.
        let start = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, &fd, 0) };
        let start = start.map_err(failed("mmap"))?.cast::<u8>();
        let identity = SegmentIdentity { device: stat.st_dev, inode: stat.st_ino, size };
        let mut segment = Segment { name: name.to_owned(), identity, start, len, guard: None };
        // SAFETY: the mapping of `len` bytes is the segment's and lives until its drop, which gives up the guard first;
        // `CpuShm::tensor` hands out raw pointers only.
        let guard = unsafe { Guard::new(start.as_ptr(), len.get()) };
        segment.guard = Some(guard.map_err(|source| MapError::Guard { name: name.to_owned(), source })?);
        Ok(segment)
    }

    /// The segment's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which file it was when it was mapped.
    pub fn identity(&self) -> SegmentIdentity {
        self.identity
    }

    /// Mapped bytes.
    pub fn bytes(&self) -> u64 {
        self.len.get() as u64
    }

    /// True once the worker took pages away that we touched; see [`super::sigbus`]. Ask after every copy.
    pub fn poisoned(&self) -> bool {
        self.guard.as_ref().is_none_or(Guard::poisoned)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: the mapping is ours, of this length, and no pointer into it outlives the value.
        if let Err(errno) = unsafe { munmap(self.start.cast::<c_void>(), self.len.get()) } {
            tracing::warn!(segment = %self.name, %errno, "cannot unmap a worker's segment");
        }
    }
}

/// Where one tensor's storage is mapped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mapped<'a> {
    pub(super) segment: &'a Segment,
    /// First byte of the storage.
    pub(super) start: *mut u8,
    /// Bytes from there that the tensor's descriptor announced.
    pub(super) len: u64,
}

/// The segments of one worker.
#[derive(Debug)]
pub struct CpuShm {
    segments: Vec<Segment>,
    /// Per tensor: its segment and the bytes that its descriptor announced.
    tensors: Vec<Option<(usize, u64)>>,
}

impl CpuShm {
    /// Maps what the geometry needs of `descriptors`, each segment once however many tensors name it.
    ///
    /// # Errors
    /// [`MapError`] for the first tensor or segment that does not hold. Nothing stays mapped then.
    pub(super) fn map(
        descriptors: &[DeviceDescriptor],
        geometry: &KvGeometry,
        limits: &Limits,
    ) -> Result<CpuShm, MapError> {
        let max = limits.max_bytes;
        let mut wanted: Vec<(&str, u64)> = Vec::new();
        let mut position: HashMap<&str, usize> = HashMap::new();
        let mut tensors = Vec::with_capacity(descriptors.len());
        for (tensor, (descriptor, view)) in descriptors.iter().zip(&geometry.tensors).enumerate() {
            let (DeviceDescriptor::CpuShm { shm_name, nbytes, .. }, Some(view)) = (descriptor, view) else {
                tensors.push(None);
                continue;
            };
            if !valid_name(shm_name) {
                return Err(MapError::Name { tensor, name: shm_name.chars().take(32).collect() });
            }
            let (end, nbytes) = (view.view.end, *nbytes);
            if nbytes == 0 || nbytes > max {
                return Err(MapError::Announced { tensor, nbytes, max });
            }
            if end > nbytes {
                return Err(MapError::View { tensor, end, nbytes });
            }
            let segment = *position.entry(shm_name).or_insert(wanted.len());
            match wanted.get_mut(segment) {
                Some((_, longest)) => *longest = nbytes.max(*longest),
                None => wanted.push((shm_name, nbytes)),
            }
            tensors.push(Some((segment, nbytes)));
        }
        let total = wanted.iter().fold(0u64, |sum, (_, nbytes)| sum.saturating_add(*nbytes));
        if total > max {
            return Err(MapError::Announced { tensor: 0, nbytes: total, max });
        }
        let segments = wanted.iter().map(|(name, nbytes)| Segment::map(name, *nbytes, limits));
        Ok(CpuShm { segments: segments.collect::<Result<_, _>>()?, tensors })
    }

    /// The mapped segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Storage of a tensor; `None` for one that was not mapped.
    ///
    /// The pointer is good for raw reads and writes of `len` bytes while `self` lives. Another process may change or
    /// take away the bytes at any time: no reference into them, and [`Segment::poisoned`] afterwards.
    pub(super) fn tensor(&self, tensor: usize) -> Option<Mapped<'_>> {
        let (segment, len) = self.tensors.get(tensor).copied().flatten()?;
        let segment = self.segments.get(segment)?;
        Some(Mapped { segment, start: segment.start.as_ptr(), len: len.min(segment.bytes()) })
    }
}

impl Device for CpuShm {
    fn label(&self) -> &str {
        "cpu"
    }

    fn identity(&self) -> Vec<SegmentIdentity> {
        self.segments.iter().map(Segment::identity).collect()
    }

    fn idle_event(&self) -> Vec<u8> {
        EVENT.to_vec()
    }

    /// Copies on the caller's thread: CPU memory has no events, the worker's data is complete when it asks and ours when we
    /// answer.
    fn submit(&self, transfer: Transfer, done: Done) {
        let moved = self.copy(&transfer);
        // Who is told that it is over finds the objects let go.
        drop(transfer);
        done(moved.map(|bytes| Moved { bytes, device_time: None, event: EVENT.to_vec() }));
    }

    fn read(&self, tensor: usize, offset: u64, into: &mut [u8]) -> Result<(), CopyError> {
        copy::read(self, tensor, offset, into)
    }
}

impl CpuShm {
    fn copy(&self, transfer: &Transfer) -> Result<u64, CopyError> {
        let mut bytes = 0;
        for part in &transfer.parts {
            let plan = transfer.plan(part)?;
            failpoint::stop("copy.part");
            if !transfer.objects.awaited() {
                return Err(CopyError::GivenUp);
            }
            bytes += match transfer.direction {
                Direction::Store => {
                    let mut object = transfer.objects.writable(part.object).ok_or(CopyError::Gone)?;
                    copy::store(self, &plan, &mut object)?
                }
                Direction::Retrieve => {
                    let object = transfer.objects.readable(part.object).ok_or(CopyError::Gone)?;
                    copy::retrieve(self, &plan, object)?
                }
            };
        }
        Ok(bytes)
    }
}

fn valid_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    name.strip_prefix(PREFIX)
        .is_some_and(|rest| (1..=SUFFIX_MAX).contains(&rest.len()) && rest.bytes().all(allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kv_segment_names_are_opened() {
        for good in ["/lmcache_kv_12_0", "/lmcache_kv_a.b-c", "/lmcache_kv_.."] {
            assert!(valid_name(good), "{good}");
        }
        let long = format!("/lmcache_kv_{}", "x".repeat(201));
        let bad = [
            "",
            "/",
            "/lmcache_kv_",
            "lmcache_kv_1",
            "/lmcache_l1_pool_x",
            "/..",
            "/lmcache_kv_../lmcache_l1_pool_x",
            "/lmcache_kv_/x",
            "/lmcache_kv_a b",
            "/lmcache_kv_a\0",
            "/lmcache_kv_é",
            &long,
        ];
        for name in bad {
            assert!(!valid_name(name), "{name:?}");
        }
    }
}

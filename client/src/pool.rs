//! Mappings of the daemon's shared memory, and who in this process may touch which bytes of it.
//!
//! Unsafe room. The daemon's word is that a slot that it hands out belongs to this process until the commit. What is
//! checked here is what a lying daemon could do to the worker's own memory safety: slots outside the mapping, and slots
//! that overlap what is lent out already, which would be two `&mut` to the same bytes.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::error::{PoolError, SlotError};

/// A shared mapping of a part of a segment.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    inode: u64,
}

// SAFETY: the mapping is not bound to a thread; what is done with its bytes is decided by its users below and in `ring`.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` gives out a raw pointer and lengths.
unsafe impl Sync for Mapping {}

/// Opens a segment by the name that the daemon said; at least `announced` bytes long.
pub(crate) fn open(name: &str, announced: u64) -> Result<std::fs::File, PoolError> {
    // A name, not a path: it must not lead out of the directory.
    if name.is_empty() || name.len() > 255 || name.contains(['/', '\0']) || name == "." || name == ".." {
        return Err(PoolError::Name(name.chars().take(80).collect()));
    }
    let failed = |source| PoolError::Open { name: name.to_owned(), source };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags((rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC).bits() as i32)
        .open(Path::new("/dev/shm").join(name))
        .map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let actual = meta.len();
    if !meta.file_type().is_file() || actual < announced || announced == 0 {
        return Err(PoolError::Size { name: name.to_owned(), actual, announced });
    }
    Ok(file)
}

impl Mapping {
    /// Maps `len` bytes from `offset` (a multiple of the page size) of an open segment. `touch`: make the pages present
    /// now, so that no access faults later.
    pub(crate) fn new(
        file: &std::fs::File,
        name: &str,
        offset: u64,
        len: u64,
        touch: bool,
    ) -> Result<Mapping, PoolError> {
        let failed = |source| PoolError::Map { name: name.to_owned(), source };
        let meta = file.metadata().map_err(failed)?;
        let size = PoolError::Size { name: name.to_owned(), actual: meta.len(), announced: len };
        let inside = offset.checked_add(len).is_some_and(|end| end <= meta.len());
        let bytes =
            usize::try_from(len).ok().filter(|len| inside && *len > 0 && isize::try_from(*len).is_ok());
        let Some(bytes) = bytes else { return Err(size) };
        let mut flags = MapFlags::SHARED | MapFlags::NORESERVE;
        if touch {
            flags |= MapFlags::POPULATE;
        }
        // SAFETY: a new mapping at an address that the kernel picks; nothing of this process lies there.
        let base =
            unsafe { mmap(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags, file, offset) };
        let base = base.map_err(|error| failed(error.into()))?;
        let base = NonNull::new(base.cast()).ok_or_else(|| failed(std::io::ErrorKind::OutOfMemory.into()))?;
        Ok(Mapping { base, len: bytes, inode: meta.ino() })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what mmap returned; every user of its bytes holds the mapping.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lent {
    end: u64,
    /// Readers of exactly these bytes; 0: one writer.
    readers: u32,
}

/// The mapped pool.
#[derive(Debug)]
pub(crate) struct Pool {
    mapping: Mapping,
    name: String,
    lent: Mutex<BTreeMap<u64, Lent>>,
}

impl Pool {
    /// Maps the pool that the daemon named.
    pub(crate) fn map(name: &str, bytes: u64) -> Result<Arc<Pool>, PoolError> {
        if name.is_empty() && bytes == 0 {
            return Err(PoolError::None);
        }
        let file = open(name, bytes)?;
        let mapping = Mapping::new(&file, name, 0, bytes, false)?;
        Ok(Arc::new(Pool { mapping, name: name.to_owned(), lent: Mutex::default() }))
    }

    /// Whether this is the segment that has `name` now, with `bytes` bytes.
    pub(crate) fn is(&self, name: &str, bytes: u64) -> bool {
        let inode = std::fs::metadata(Path::new("/dev/shm").join(name)).map(|meta| meta.ino());
        self.name == name && self.bytes() == bytes && inode.is_ok_and(|inode| inode == self.mapping.inode)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.mapping.len as u64
    }

    /// Lends a slot, unless it cannot be lent safely.
    pub(crate) fn lend(self: &Arc<Pool>, offset: u64, length: u64, write: bool) -> Result<Slot, SlotError> {
        let end = offset.checked_add(length).filter(|end| *end <= self.bytes() && length > 0);
        let end = end.ok_or(SlotError::Outside { offset, length, pool: self.bytes() })?;
        let mut lent = self.lent.lock();
        if !write
            && let Some(same) = lent.get_mut(&offset)
            && same.end == end
            && same.readers > 0
        {
            same.readers = same.readers.checked_add(1).ok_or(SlotError::Overlap { offset })?;
        } else {
            // Ranges in the map are disjoint, so only the last one that begins before `end` can overlap.
            if lent.range(..end).next_back().is_some_and(|(_, before)| before.end > offset) {
                return Err(SlotError::Overlap { offset });
            }
            lent.insert(offset, Lent { end, readers: u32::from(!write) });
        }
        Ok(Slot { pool: self.clone(), offset, length, write })
    }

    fn take_back(&self, offset: u64) {
        let mut lent = self.lent.lock();
        if let Some(entry) = lent.get_mut(&offset) {
            entry.readers = entry.readers.saturating_sub(1);
            if entry.readers == 0 {
                lent.remove(&offset);
            }
        }
    }
}

/// Bytes of the pool that are lent to one transfer.
#[derive(Debug)]
pub(crate) struct Slot {
    pool: Arc<Pool>,
    offset: u64,
    length: u64,
    write: bool,
}

impl Slot {
    fn start(&self) -> *mut u8 {
        // SAFETY: inside the mapping, checked by `lend`, which `self.pool` keeps.
        unsafe { self.pool.mapping.base.as_ptr().add(self.offset as usize) }
    }

    /// The bytes, to read.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: inside the mapping for as long as `self` lives. In this process nobody has a `&mut` to them: `lend` gave
        // none while this is lent, and a writing slot lends its own through `&mut self` only. Other processes do not write
        // them by the daemon's contract (committed and pinned, or reserved for us); one that does anyway can make us read
        // nonsense, which the caller must expect of shared memory.
        unsafe { std::slice::from_raw_parts(self.start(), self.length as usize) }
    }

    /// The bytes, to write; `None` if the slot was lent for reading.
    pub(crate) fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        // SAFETY: as above; lent for writing, so no other slot of this process overlaps, and `&mut self` is unique.
        self.write.then(|| unsafe { std::slice::from_raw_parts_mut(self.start(), self.length as usize) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.take_back(self.offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Segment(String);

    impl Segment {
        fn new(bytes: u64) -> Segment {
            static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
            let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let name = format!("lmcache_client_test_{}_{number}", std::process::id());
            let file = std::fs::File::create(format!("/dev/shm/{name}")).expect("create");
            file.set_len(bytes).expect("size");
            Segment(name)
        }
    }

    impl Drop for Segment {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(format!("/dev/shm/{}", self.0));
        }
    }

    #[test]
    fn slots_are_lent_once_to_writers_and_often_to_readers() {
        let segment = Segment::new(1 << 16);
        let pool = Pool::map(&segment.0, 1 << 16).expect("map");
        let mut writer = pool.lend(4096, 4096, true).expect("free");
        writer.bytes_mut().expect("to write").fill(7);
        for (offset, length) in [(4096, 4096), (0, 4097), (8191, 1), (0, 1 << 16), (5000, 10)] {
            for write in [true, false] {
                let error = pool.lend(offset, length, write).expect_err("overlaps");
                assert_eq!(error, SlotError::Overlap { offset });
            }
        }
        let _before = pool.lend(0, 4096, true).expect("next to it");
        let _after = pool.lend(8192, 4096, true).expect("next to it");
        drop(writer);
        let mut first = pool.lend(4096, 4096, false).expect("free again");
        let second = pool.lend(4096, 4096, false).expect("readers share");
        assert_eq!((first.bytes(), second.bytes()[0]), (&[7; 4096][..], 7));
        assert!(first.bytes_mut().is_none());
        assert!(pool.lend(4096, 100, false).is_err(), "only the same bytes are shared");
        drop(first);
        assert!(pool.lend(4096, 4096, true).is_err(), "a reader is left");
        drop(second);
        assert!(pool.lend(4096, 4096, true).is_ok());
    }

    #[test]
    fn what_is_outside_is_not_lent() {
        let segment = Segment::new(8192);
        let pool = Pool::map(&segment.0, 8192).expect("map");
        for (offset, length) in [(0, 8193), (8192, 1), (u64::MAX, 1), (1, u64::MAX), (8191, 2), (0, 0)] {
            let error = pool.lend(offset, length, true).expect_err("outside");
            assert_eq!(error, SlotError::Outside { offset, length, pool: 8192 });
        }
    }

    #[test]
    fn lies_about_the_segment_are_errors() {
        let segment = Segment::new(4096);
        assert!(matches!(Pool::map("", 0), Err(PoolError::None)));
        for name in ["", "..", ".", "a/b", "/etc/passwd", "a\0b"] {
            assert!(matches!(Pool::map(name, 10), Err(PoolError::Name(_))), "{name:?}");
        }
        assert!(matches!(Pool::map("lmcache_client_test_none", 10), Err(PoolError::Open { .. })));
        for bytes in [0, 4097, u64::MAX] {
            assert!(matches!(Pool::map(&segment.0, bytes), Err(PoolError::Size { .. })), "{bytes}");
        }
        let link = format!("/dev/shm/{}_link", segment.0);
        std::os::unix::fs::symlink(format!("/dev/shm/{}", segment.0), &link).expect("link");
        let through_link = Pool::map(&format!("{}_link", segment.0), 4096);
        std::fs::remove_file(link).expect("remove");
        assert!(matches!(through_link, Err(PoolError::Open { .. })));
    }
}

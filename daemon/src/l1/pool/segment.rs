//! A POSIX shared-memory segment that this process owns.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::ptr::NonNull;

use thiserror::Error;

use super::file::{give_to_group, keeper_path, names_inode, open_existing, other_group, revive, shm_path};
use crate::failpoint;

/// Why a segment could not be had.
#[derive(Debug, Error)]
pub enum SegmentError {
    /// Another daemon holds it.
    #[error(
        "shared memory {name} is owned by a running daemon; stop that one, or give this one another --shm-name or --port"
    )]
    Owned {
        /// Segment name.
        name: String,
    },
    /// Its file is somebody else's, or others may open it.
    #[error(
        "shared memory {name} belongs to user {uid} with mode {mode:o}; it must be ours and closed to others (mode 600, or 660 with --shm-group): remove /dev/shm/{name} or choose another --shm-name"
    )]
    Foreign {
        /// Segment name.
        name: String,
        /// Its owner.
        uid: u32,
        /// Its permissions.
        mode: u32,
    },
    /// It is not what it was a moment ago.
    #[error(
        "shared memory {name} has changed while this daemon started ({was} bytes, now {is}): another one has started as well, and has ended; start again"
    )]
    Changed {
        /// Segment name.
        name: String,
        /// Bytes that it had.
        was: u64,
        /// Bytes that it has.
        is: u64,
    },
    /// It cannot be given to the group of `--shm-group`.
    #[error(
        "cannot give shared memory {name} to group {gid}: {source}; the daemon's user must be a member of the group of --shm-group (SupplementaryGroups= in the unit)"
    )]
    Group {
        /// Segment name.
        name: String,
        /// The group.
        gid: u32,
        /// What the system said.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{action} shared memory {name}: {source}")]
    Os {
        /// What was tried.
        action: &'static str,
        /// Segment name.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

/// An open, locked and mapped segment.
///
/// The lock is `flock` on the segment's own file: the kernel drops it when the process dies, however it dies, so a
/// lock that is held means a daemon that lives. Dropping the value unmaps and unlocks, and never unlinks: the pool
/// outlives the daemon.
#[derive(Debug)]
pub struct Segment {
    file: File,
    name: String,
    base: NonNull<u8>,
    len: usize,
    inode: u64,
    reused: bool,
}

// SAFETY: `base` is a shared mapping that lives as long as the value; the pointer itself may move between threads.
// Who may touch which bytes is decided above (index and pins), not here.
unsafe impl Send for Segment {}
// SAFETY: as above; `&Segment` gives out only raw pointers and lengths.
unsafe impl Sync for Segment {}

impl Segment {
    /// Opens the segment `name` of `len` bytes, taking over one that a dead daemon left if `reuse` allows it and nobody but us
    /// and `group` may have it mapped, or making a new one otherwise. One that is to be reused and has another size is an error. Members of the group may map it.
    /// One that has lost its name is found by its second one ([`Segment::keep`]).
    ///
    /// # Errors
    /// `Owned` if a living daemon holds the segment of that name, `Foreign` if it is not ours, `Changed` if it has another size,
    /// `Os` for the rest.
    pub fn open(name: &str, len: u64, reuse: bool, group: Option<u32>) -> Result<Segment, SegmentError> {
        Segment::open_or_take(name, len, reuse, group, None)
    }

    /// [`Segment::open`] by a descriptor that its owner has handed over with the lock on it, where there is one. The lock is
    /// the descriptor's, and both processes have it until one of them ends.
    ///
    /// # Errors
    /// As [`Segment::open`].
    pub fn open_or_take(
        name: &str,
        len: u64,
        reuse: bool,
        group: Option<u32>,
        handed_over: Option<OwnedFd>,
    ) -> Result<Segment, SegmentError> {
        let os = |action, source| SegmentError::Os { action, name: name.to_owned(), source };
        let path = shm_path(name);
        if reuse {
            revive(name, len).map_err(|error| os("restore the name of", error))?;
        }
        let existing = match handed_over {
            Some(file) => Some(File::from(file)),
            None => open_existing(&path).map_err(|error| os("open", error))?,
        };
        if let Some(file) = existing {
            lock(&file, name)?;
            failpoint::hit("segment.found");
            let meta = file.metadata().map_err(|error| os("stat", error))?;
            let (uid, mode) = (meta.uid(), meta.mode() & 0o777);
            if uid != nix::unistd::geteuid().as_raw() || mode & 0o007 != 0 {
                return Err(SegmentError::Foreign { name: name.to_owned(), uid, mode });
            }
            // Between our open and our lock another daemon may have put a new file under the name.
            if !names_inode(&path, meta.ino()) {
                return Err(SegmentError::Owned { name: name.to_owned() });
            }
            // Whoever reuses a segment has looked at its length, without a lock.
            if reuse && meta.len() != len && meta.len() > 0 {
                return Err(SegmentError::Changed { name: name.to_owned(), was: len, is: meta.len() });
            }
            let others = other_group(&meta, group);
            if let Some(gid) = others.filter(|_| reuse) {
                tracing::warn!(
                    segment = name,
                    group = gid,
                    "shared memory was open to a group that --shm-group does not name; starting with new memory"
                );
            }
            if reuse && meta.len() == len && others.is_none() {
                give_to_group(&file, name, group)?;
                return Segment::map(file, name, len, true);
            }
            // A new inode, not a truncation: a worker may still have the old one mapped, and must neither be killed by
            // SIGBUS nor write into what is somebody else's by now.
            failpoint::hit("segment.replace.before");
            // The second name first: who dies in between leaves the old segment under the name that the next start looks at,
            // not under one that would bring back what has been given up, or keep its memory.
            let _ = fs::remove_file(keeper_path(name));
            failpoint::hit("segment.replace.unkept");
            fs::remove_file(&path).map_err(|error| os("unlink old", error))?;
            failpoint::hit("segment.replace.unnamed");
        }
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&path)
            .map_err(|error| os("create", error))?;
        failpoint::hit("segment.created");
        lock(&file, name)?;
        file.set_len(len).map_err(|error| os("size", error))?;
        failpoint::hit("segment.sized");
        give_to_group(&file, name, group)?;
        Segment::map(file, name, len, false)
    }

    /// The same memory, and more behind it up to `len` bytes. Who has the segment mapped sees of it what it was.
    ///
    /// # Errors
    /// `Os`; the segment is then closed, and as long as it was or as it should be.
    pub fn extended(self, len: u64) -> Result<Segment, SegmentError> {
        assert!(len >= self.bytes(), "a segment that others have mapped never shrinks");
        let os = |action, source| SegmentError::Os { action, name: self.name.clone(), source };
        let file = self.file.try_clone().map_err(|error| os("extend", error))?;
        file.set_len(len).map_err(|error| os("extend", error))?;
        failpoint::hit("segment.extended");
        Segment::map(file, &self.name, len, self.reused)
    }

    /// Gives the segment the name `name`, in place of the one that has it.
    ///
    /// # Errors
    /// `Os`; both are then what they were.
    pub fn renamed(mut self, name: &str) -> Result<Segment, SegmentError> {
        let os = |source| SegmentError::Os { action: "rename", name: self.name.clone(), source };
        failpoint::hit("segment.rename.before");
        fs::rename(shm_path(&self.name), shm_path(name)).map_err(os)?;
        failpoint::hit("segment.rename.done");
        name.clone_into(&mut self.name);
        Ok(self)
    }

    fn map(file: File, name: &str, len: u64, reused: bool) -> Result<Segment, SegmentError> {
        let os = |action, source| SegmentError::Os { action, name: name.to_owned(), source };
        let inode = file.metadata().map_err(|error| os("stat", error))?.ino();
        let len = usize::try_from(len).map_err(|_| os("map", io::Error::from(io::ErrorKind::OutOfMemory)))?;
        // SAFETY: a new shared mapping of a file we hold open, at an address the kernel picks; nothing else aliases it
        // in this process.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(os("map", io::Error::last_os_error()));
        }
        let base = NonNull::new(base.cast())
            .ok_or_else(|| os("map", io::Error::from(io::ErrorKind::AddrNotAvailable)))?;
        Ok(Segment { file, name: name.to_owned(), base, len, inode, reused })
    }

    /// First byte of the mapping.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Mapped bytes.
    pub fn bytes(&self) -> u64 {
        self.len as u64
    }

    /// The segment with its lock, for the process that takes over.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn hand_over(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// Name without the leading slash.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Inode of the file behind the mapping.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Whether the segment was there before, left by a daemon that is gone.
    pub fn reused(&self) -> bool {
        self.reused
    }

    /// Gives the segment a second, hidden name. A file whose last name is gone cannot be named again, so this is what
    /// makes [`Segment::restore_name`] possible.
    ///
    /// # Errors
    /// The link call's.
    pub fn keep(&self) -> io::Result<()> {
        let keeper = keeper_path(&self.name);
        if names_inode(&keeper, self.inode) {
            return Ok(());
        }
        failpoint::hit("segment.keep.before");
        let _ = fs::remove_file(&keeper);
        failpoint::hit("segment.keep.removed");
        fs::hard_link(shm_path(&self.name), keeper)?;
        failpoint::hit("segment.keep.linked");
        Ok(())
    }

    /// Puts the segment's name back if a client has unlinked it (or put another file in its place). Returns whether
    /// that was necessary.
    ///
    /// # Errors
    /// The link call's.
    pub fn restore_name(&self) -> io::Result<bool> {
        let path = shm_path(&self.name);
        if names_inode(&path, self.inode) {
            return Ok(false);
        }
        failpoint::hit("segment.restore.before");
        let _ = fs::remove_file(&path);
        failpoint::hit("segment.restore.removed");
        fs::hard_link(keeper_path(&self.name), path)?;
        failpoint::hit("segment.restore.linked");
        Ok(true)
    }

    /// Removes the names; the memory goes when the last process unmaps it.
    pub fn unlink(&self) {
        // In this order: a segment that is given up must not be found by its second name.
        for path in [keeper_path(&self.name), shm_path(&self.name)] {
            if names_inode(&path, self.inode) {
                failpoint::hit("segment.unlink.before");
                let _ = fs::remove_file(path);
                failpoint::hit("segment.unlink.done");
            }
        }
    }

    /// Asks for transparent huge pages (a hint: the kernel's policy for shared memory decides).
    pub fn advise_huge(&self) -> io::Result<()> {
        // SAFETY: the range is our own mapping; the advice changes no contents.
        let rc = unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, libc::MADV_HUGEPAGE) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Makes the memory of `[offset, offset + len)` real, so that touching it later can neither fault slowly nor kill
    /// the process with SIGBUS. Keeps what is there.
    ///
    /// # Errors
    /// No memory left in the tmpfs or the cgroup.
    pub fn populate(&self, offset: u64, len: u64) -> io::Result<()> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.bytes()), "range inside the segment");
        // SAFETY: the range lies inside our mapping (asserted); populating changes no contents.
        let rc = unsafe {
            libc::madvise(
                self.base.as_ptr().add(offset as usize).cast(),
                len as usize,
                libc::MADV_POPULATE_WRITE,
            )
        };
        let error = io::Error::last_os_error();
        match (rc, error.raw_os_error()) {
            (0, _) => Ok(()),
            // Kernels before 5.14 do not know the advice: reserve through the file, and fault in when touched.
            (_, Some(libc::EINVAL)) => self.back(offset, len),
            // What would have been a SIGBUS: the tmpfs is full.
            (_, Some(libc::EFAULT)) => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            _ => Err(error),
        }
    }

    /// Reserves the memory of `[offset, offset + len)` through the file, without touching it: fails where a page fault
    /// would be a SIGBUS. Keeps what is there.
    ///
    /// # Errors
    /// No memory left in the tmpfs or the cgroup.
    pub fn back(&self, offset: u64, len: u64) -> io::Result<()> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.bytes()), "range inside the segment");
        loop {
            // SAFETY: plain system call on our own descriptor.
            let rc = unsafe {
                libc::fallocate(self.file.as_raw_fd(), 0, offset as libc::off_t, len as libc::off_t)
            };
            let error = io::Error::last_os_error();
            match rc {
                0 => return Ok(()),
                _ if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            }
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are what mmap returned; nobody holds a pointer past the owner's life.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

fn lock(file: &File, name: &str) -> Result<(), SegmentError> {
    // SAFETY: plain system call on a descriptor we hold.
    let rc = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    let error = io::Error::last_os_error();
    match rc {
        0 => Ok(()),
        _ if error.kind() == io::ErrorKind::WouldBlock => Err(SegmentError::Owned { name: name.to_owned() }),
        _ => Err(SegmentError::Os { action: "lock", name: name.to_owned(), source: error }),
    }
}

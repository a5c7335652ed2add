//! Files on their way: written under a name that nobody reads, renamed when whole.
//!
//! The writer holds a `flock` on its file, so whoever cleans up can tell an abandoned file from one that is being written,
//! across containers (where process ids mean nothing) and, on network file systems that carry locks, across hosts.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::failpoint;

const PREFIX: &str = ".lmcached-";
const SUFFIX: &str = ".tmp";
/// Without locks, a file this old has no writer.
const ABANDONED: Duration = Duration::from_secs(3600);

/// A temporary file; unlinked when dropped, unless it was renamed.
#[derive(Debug)]
pub(super) struct Temp {
    file: Arc<File>,
    /// `None` once renamed.
    path: Option<PathBuf>,
}

impl Temp {
    /// A new file in `dir`, for direct I/O if the file system can.
    pub(super) fn create(dir: &Path, direct: bool) -> io::Result<Temp> {
        loop {
            let mut random = [0; 8];
            getrandom::fill(&mut random).map_err(io::Error::other)?;
            let path = dir.join(format!("{PREFIX}{:016x}{SUFFIX}", u64::from_ne_bytes(random)));
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o644);
            let created =
                match options.clone().custom_flags(if direct { libc::O_DIRECT } else { 0 }).open(&path) {
                    Err(error) if direct && error.kind() == io::ErrorKind::InvalidInput => {
                        // The kernel may have made the file before it found that it cannot.
                        let _ = fs::remove_file(&path);
                        options.open(&path)
                    }
                    result => result,
                };
            let file = match created {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                result => result?,
            };
            failpoint::hit("l2.fs.created");
            let temp = Temp { file: Arc::new(file), path: Some(path) };
            match flock(&*temp.file, FlockOperation::NonBlockingLockExclusive) {
                // Somebody who cleans up was faster: its name goes, we take another.
                Err(rustix::io::Errno::WOULDBLOCK) => continue,
                Ok(()) if temp.file.metadata()?.nlink() == 0 => continue,
                // A file system without locks: age decides there.
                Ok(()) | Err(_) => return Ok(temp),
            }
        }
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) fn rename(&mut self, to: &Path) -> io::Result<()> {
        if let Some(path) = &self.path {
            failpoint::hit("l2.fs.rename");
            fs::rename(path, to)?;
            failpoint::hit("l2.fs.renamed");
            self.path = None;
        }
        Ok(())
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            failpoint::hit("l2.fs.given_up");
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes what writers that died have left; how many, and how many others somebody still writes to. Blocks.
pub(super) fn remove_abandoned(dir: &Path) -> (usize, usize) {
    let Ok(entries) = fs::read_dir(dir) else { return (0, 0) };
    let (mut removed, mut busy) = (0, 0);
    for entry in entries.flatten() {
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        if !ours {
            continue;
        }
        let Ok(file) = File::open(entry.path()) else { continue };
        let abandoned = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => true,
            Err(rustix::io::Errno::WOULDBLOCK) => false,
            Err(_) => file
                .metadata()
                .and_then(|meta| meta.modified())
                .is_ok_and(|time| time.elapsed().is_ok_and(|age| age > ABANDONED)),
        };
        // Still locked while it is unlinked: see `Temp::create`.
        if !abandoned {
            busy += 1;
        } else if fs::remove_file(entry.path()).is_ok() {
            removed += 1;
        }
    }
    (removed, busy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> usize {
        fs::read_dir(dir).expect("a directory").count()
    }

    #[test]
    fn only_abandoned_files_are_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let busy = Temp::create(dir.path(), false).expect("a file");
        fs::write(dir.path().join(".lmcached-00000000deadbeef.tmp"), "half").expect("writes");
        fs::write(dir.path().join("x@0x01000100@0@00.tmp"), "the peer's").expect("writes");
        assert_eq!(remove_abandoned(dir.path()), (1, 1));
        assert_eq!(names(dir.path()), 2);
        drop(busy);
        assert_eq!(names(dir.path()), 1);
    }

    #[test]
    fn a_renamed_file_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut temp = Temp::create(dir.path(), true).expect("a file");
        temp.rename(&dir.path().join("a")).expect("renames");
        drop(temp);
        assert!(dir.path().join("a").exists());
        assert_eq!(names(dir.path()), 1);
    }
}

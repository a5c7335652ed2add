//! The files behind segments: where they are, under which names, and whose.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use lmcache_proto::shm::names;

use super::segment::SegmentError;
use crate::failpoint;

/// Where Linux keeps POSIX shared memory; `shm_open("/x")` is a file here.
pub(crate) const SHM_DIR: &str = "/dev/shm";

pub(super) fn shm_path(name: &str) -> PathBuf {
    Path::new(SHM_DIR).join(name)
}

pub(super) fn keeper_path(name: &str) -> PathBuf {
    Path::new(SHM_DIR).join(names::keeper(name))
}

/// What there is of the segment `name`, under either of its names.
pub(crate) fn left_behind(name: &str) -> Option<fs::Metadata> {
    let own = |path: &Path| fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file);
    own(&shm_path(name)).or_else(|| {
        let us = nix::unistd::geteuid().as_raw();
        own(&keeper_path(name)).filter(|meta| meta.uid() == us)
    })
}

/// Gives a segment its name back which a client has removed, if the daemon died before it could: the segment is whole, and
/// workers may still have it mapped.
pub(super) fn revive(name: &str, len: u64) -> io::Result<()> {
    let path = shm_path(name);
    if fs::symlink_metadata(&path).is_ok() || left_behind(name).is_none_or(|meta| meta.len() != len) {
        return Ok(());
    }
    failpoint::hit("segment.revive.before");
    match fs::hard_link(keeper_path(name), path) {
        Ok(()) => tracing::warn!(
            name,
            "a client had removed the name of this shared memory, and the daemon died before it could restore it; restored"
        ),
        // Somebody else was faster; the lock decides.
        Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {}
        Err(error) => return Err(error),
    }
    failpoint::hit("segment.revive.linked");
    Ok(())
}

pub(super) fn names_inode(path: &Path, inode: u64) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_file() && meta.ino() == inode)
}

pub(super) fn open_existing(path: &Path) -> io::Result<Option<File>> {
    match fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
    {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The group, if it is not `group`, whose members may have a segment mapped: they go on with its memory.
pub(crate) fn other_group(meta: &fs::Metadata, group: Option<u32>) -> Option<u32> {
    (meta.mode() & 0o070 != 0).then(|| meta.gid()).filter(|gid| group != Some(*gid))
}

/// Opens a segment to a group, or to nobody else.
pub(super) fn give_to_group(file: &File, name: &str, group: Option<u32>) -> Result<(), SegmentError> {
    let Some(gid) = group else { return Ok(()) };
    // The group before the mode: never open to another group, not even for a moment.
    let given =
        fchown(file, None, Some(gid)).and_then(|()| file.set_permissions(fs::Permissions::from_mode(0o660)));
    given.map_err(|source| SegmentError::Group { name: name.to_owned(), gid, source })
}

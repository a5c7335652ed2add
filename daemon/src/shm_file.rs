//! Files in shared memory that an earlier daemon left beside its pool, read as bytes and never mapped.
#![forbid(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// At most `most` bytes of a file; `None` if there is none.
///
/// # Errors
/// `PermissionDenied` if it is not ours alone: what it says would be somebody else's word.
pub(crate) fn read_own(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let meta = file.metadata()?;
    let ours = meta.is_file()
        && meta.uid() == nix::unistd::geteuid().as_raw()
        && meta.mode() & 0o077 == 0
        && meta.nlink() == 1;
    if !ours {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "{} belongs to user {} with mode {:o}; it must be ours with mode 600: remove it",
                path.display(),
                meta.uid(),
                meta.mode() & 0o777
            ),
        ));
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Removes a file, if there is one.
///
/// # Errors
/// The system call's.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

//! Files with secrets: read once at the start, and only if nobody else can read or change them.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Why such a file is not read.
#[derive(Debug)]
pub(crate) enum SecretFileError {
    /// The system refused, or it is no regular file.
    Read(io::Error),
    /// Others may read or change it: its mode.
    Mode(u32),
}

/// The text of a file of at most `most` bytes (one byte more is read, so that a longer one is seen).
pub(crate) fn read(path: &Path, most: u64) -> Result<String, SecretFileError> {
    // Not blocking: a pipe that nobody writes must not hold the start up.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    let file: File = options.open(path).map_err(SecretFileError::Read)?;
    let meta = file.metadata().map_err(SecretFileError::Read)?;
    if !meta.is_file() {
        return Err(SecretFileError::Read(io::Error::other("not a regular file")));
    }
    let mode = meta.mode() & 0o777;
    if mode & 0o027 != 0 {
        return Err(SecretFileError::Mode(mode));
    }
    let mut text = String::new();
    file.take(most + 1).read_to_string(&mut text).map_err(SecretFileError::Read)?;
    Ok(text)
}

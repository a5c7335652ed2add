//! The checksum beside a file: an extended attribute, which goes where the file goes and dies with it; where there are
//! none, a `.crc` file.
//!
//! A `.crc` file could outlive its file's content: an LMCache server may have replaced it. So it names the inode, size
//! and time that it is about, and counts for nothing else.
#![forbid(unsafe_code)]

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};

use super::super::checksum::Checksum;
use super::temp::Temp;
use crate::failpoint;

const ATTRIBUTE: &str = "user.lmcached.crc";
/// Longer than any checksum's text.
const MOST: usize = 256;

/// A checksum to be put beside a file.
pub(super) struct Sidecar(pub(super) Checksum);

impl Sidecar {
    /// Puts it beside `file`, which will be renamed to `path`. `no_xattr` remembers what the file system cannot.
    pub(super) fn write(
        &self,
        file: &File,
        path: &Path,
        no_xattr: &AtomicBool,
        temp_dir: &Path,
    ) -> io::Result<()> {
        failpoint::hit("l2.fs.sum");
        if !no_xattr.load(Ordering::Relaxed) {
            match fsetxattr(file, ATTRIBUTE, self.0.to_string().as_bytes(), XattrFlags::empty()) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::PERM | rustix::io::Errno::NOSYS) => {
                    no_xattr.store(true, Ordering::Relaxed);
                    tracing::info!(path = %path.display(), "no extended attributes here: checksums go to .crc files");
                }
                // No room in the inode, for one.
                Err(error) => {
                    tracing::debug!(path = %path.display(), %error, "no extended attribute, using a .crc file")
                }
            }
        }
        let line = format!("{} {}\n", self.0, identity(&file.metadata()?));
        let mut temp = Temp::create(temp_dir, false)?;
        io::Write::write_all(&mut &**temp.file(), line.as_bytes())?;
        temp.rename(&crc_path(path))
    }
}

/// The checksum that was stored with the file, if any.
pub(super) fn read(file: &File, meta: &Metadata, path: &Path) -> Option<Checksum> {
    let mut value = [0; MOST];
    if let Ok(len) = fgetxattr(file, ATTRIBUTE, &mut value[..]) {
        return Checksum::parse(&value[..len]);
    }
    of_line(&read_line(&crc_path(path)).ok()?, &identity(meta))
}

/// The checksum of a `.crc` file's line, if it is about the file of this identity.
fn of_line(line: &str, identity: &str) -> Option<Checksum> {
    let (sum, about) = line.trim_end().split_once(' ')?;
    (about == identity).then(|| Checksum::parse(sum.as_bytes()))?
}

/// A `.crc` file that holds anything.
#[cfg(feature = "fuzzing")]
pub(in crate::l2) fn fuzz_crc_line(text: &[u8]) {
    const ABOUT: &str = "ino=1 size=2 mtime=3.000000004";
    let Ok(line) = std::str::from_utf8(text) else { return };
    if let Some(sum) = of_line(line, ABOUT) {
        assert_eq!(of_line(&format!("{sum} {ABOUT}\n"), ABOUT), Some(sum));
        assert_eq!(of_line(line, "ino=1 size=2 mtime=3.000000005"), None, "another file's");
    }
}

fn read_line(path: &Path) -> io::Result<String> {
    let mut line = String::new();
    io::Read::read_to_string(&mut io::Read::take(File::open(path)?, MOST as u64), &mut line)?;
    Ok(line)
}

/// Removes a `.crc` file, if there is one.
pub(super) fn remove(path: &Path) {
    let _ = fs::remove_file(crc_path(path));
}

fn identity(meta: &Metadata) -> String {
    format!("ino={} size={} mtime={}.{:09}", meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec())
}

fn crc_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".crc");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &Path, name: &str) -> (PathBuf, File) {
        let path = dir.join(name);
        fs::write(&path, name).expect("writes");
        let file = File::options().read(true).write(true).open(&path).expect("opens");
        (path, file)
    }

    #[test]
    fn a_crc_file_is_about_one_content() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, data) = file(dir.path(), "a.data");
        let meta = || data.metadata().expect("metadata");
        Sidecar(Checksum(5)).write(&data, &path, &AtomicBool::new(true), dir.path()).expect("writes");
        assert_eq!(read(&data, &meta(), &path), Some(Checksum(5)));
        let (_, other) = file(dir.path(), "b.data");
        assert_eq!(read(&other, &other.metadata().expect("metadata"), &path), None, "another inode");
        io::Write::write_all(&mut &data, b"longer than before").expect("writes");
        assert_eq!(read(&data, &meta(), &path), None, "another size");
        remove(&path);
        assert!(!crc_path(&path).exists());
    }

    #[test]
    fn an_attribute_is_used_where_there_is_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, data) = file(dir.path(), "a.data");
        let no_xattr = AtomicBool::new(false);
        Sidecar(Checksum(7)).write(&data, &path, &no_xattr, dir.path()).expect("writes");
        assert_eq!(read(&data, &data.metadata().expect("metadata"), &path), Some(Checksum(7)));
        assert_eq!(crc_path(&path).exists(), no_xattr.into_inner());
    }
}

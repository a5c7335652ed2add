//! The roster's file.
//!
//! Crash rule: an entry counts when its seal fits, so a half-written one is not there. Rewriting makes a new file beside the
//! old one and renames it: at any instant one of them is there whole. The page cache of shared memory outlives the process;
//! nothing needs a sync.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustc_hash::FxHashMap;

use super::PoolFile;
use super::record::{Kept, Mode, Record};
use crate::failpoint;
use crate::l1::pool::SHM_DIR;
use crate::shm_file;

const MAGIC: [u8; 8] = *b"LMCDWRK\0";
/// Changes with the format of the file or of an entry.
const VERSION: u32 = 3;
/// Magic, version, reserved, inode and bytes of the pool.
const HEADER: usize = 32;
/// Most bytes of registrations in force; a thousand of the largest that vLLM sends are less.
const MAX_LIVE: u64 = 64 << 20;
/// A file is rewritten when the stale part is larger than the part in force and this.
const SLACK: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    pool: PoolFile,
    file: File,
    end: u64,
    /// Where the entries in force are.
    live: FxHashMap<(u64, Mode), (u64, u64)>,
    live_bytes: u64,
}

impl Log {
    /// Opens the file and reads what is in force for `pool`. What is not ours or not for that pool is replaced.
    pub(super) fn open(name: &str, pool: PoolFile) -> io::Result<(Log, Vec<Kept>)> {
        let path = Path::new(SHM_DIR).join(name);
        let kept = read(&path, pool)?;
        let mut log = Log::create(path, pool)?;
        for kept in &kept {
            log.append(kept)?;
        }
        log.publish()?;
        Ok((log, kept))
    }

    /// A file with no entries, not yet under its name.
    fn create(path: PathBuf, pool: PoolFile) -> io::Result<Log> {
        let new = beside(&path);
        shm_file::remove(&new)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&new)?;
        failpoint::hit("roster.created");
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&pool.inode.to_le_bytes());
        header.extend_from_slice(&pool.bytes.to_le_bytes());
        file.write_all_at(&header, 0)?;
        Ok(Log { path, pool, file, end: HEADER as u64, live: FxHashMap::default(), live_bytes: 0 })
    }

    fn publish(&self) -> io::Result<()> {
        failpoint::hit("roster.publish");
        fs::rename(beside(&self.path), &self.path)?;
        failpoint::hit("roster.published");
        Ok(())
    }

    pub(super) fn keep(&mut self, kept: &Kept) -> io::Result<()> {
        self.append(kept)?;
        self.tidy()
    }

    pub(super) fn forget(&mut self, instance: u64, mode: Mode) -> io::Result<()> {
        if !self.live.contains_key(&(instance, mode)) {
            return Ok(());
        }
        failpoint::hit("roster.forget");
        self.write(&Record::Forget(instance, mode).encode())?;
        failpoint::hit("roster.forgotten");
        self.drop_live(instance, mode);
        self.tidy()
    }

    fn append(&mut self, kept: &Kept) -> io::Result<()> {
        let bytes = Record::Keep(Cow::Borrowed(kept)).encode();
        let length = bytes.len() as u64;
        let replaced = self.live.get(&(kept.instance, kept.mode)).map_or(0, |(_, length)| *length);
        if self.live_bytes - replaced + length > MAX_LIVE {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("the registrations of all workers have more than {MAX_LIVE} bytes"),
            ));
        }
        let at = self.write(&bytes)?;
        self.drop_live(kept.instance, kept.mode);
        self.live.insert((kept.instance, kept.mode), (at, length));
        self.live_bytes += length;
        Ok(())
    }

    /// Appends bytes and returns where they are. What is half written is cut off again.
    fn write(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let at = self.end;
        if let Err(error) = self.file.write_all_at(bytes, at) {
            self.file.set_len(at)?;
            return Err(error);
        }
        self.end += bytes.len() as u64;
        failpoint::hit("roster.written");
        Ok(at)
    }

    fn drop_live(&mut self, instance: u64, mode: Mode) {
        if let Some((_, length)) = self.live.remove(&(instance, mode)) {
            self.live_bytes -= length;
        }
    }

    /// Rewrites the file when most of it is stale, so that it stays within twice of what is in force.
    fn tidy(&mut self) -> io::Result<()> {
        if self.end - HEADER as u64 <= 2 * self.live_bytes + SLACK {
            return Ok(());
        }
        let mut new = Log::create(self.path.clone(), self.pool)?;
        for (key, (at, length)) in &self.live {
            let mut bytes = vec![0; *length as usize];
            self.file.read_exact_at(&mut bytes, *at)?;
            let at = new.write(&bytes)?;
            new.live.insert(*key, (at, *length));
            new.live_bytes += length;
        }
        new.publish()?;
        *self = new;
        Ok(())
    }

    pub(super) fn unlink(&self) {
        let _ = fs::remove_file(&self.path);
        failpoint::hit("roster.unlinked");
        let _ = fs::remove_file(beside(&self.path));
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

/// What is in force in a file of ours for `pool`; nothing if it is none.
fn read(path: &Path, pool: PoolFile) -> io::Result<Vec<Kept>> {
    // Twice of what may be in force, and what may be stale besides: see `tidy`.
    let bytes = shm_file::read_own(path, 3 * MAX_LIVE)?;
    Ok(bytes.map_or_else(Vec::new, |bytes| parse(&bytes, pool)))
}

/// What is in force in the bytes of a file.
pub(super) fn parse(bytes: &[u8], pool: PoolFile) -> Vec<Kept> {
    let header = bytes.split_at_checked(HEADER).filter(|(header, _)| {
        header[..8] == MAGIC
            && header[8..12] == VERSION.to_le_bytes()
            && header[16..24] == pool.inode.to_le_bytes()
    });
    let Some((header, mut rest)) = header else { return Vec::new() };
    let mut live: Vec<Kept> = Vec::new();
    let mut at: FxHashMap<(u64, Mode), usize> = FxHashMap::default();
    while let Some((record, length)) = Record::decode(rest) {
        rest = &rest[length..];
        match record {
            Record::Keep(kept) => {
                let key = (kept.instance, kept.mode);
                match at.get(&key) {
                    Some(place) => live[*place] = kept.into_owned(),
                    None => {
                        at.insert(key, live.len());
                        live.push(kept.into_owned());
                    }
                }
            }
            Record::Forget(instance, mode) => {
                if let Some(place) = at.remove(&(instance, mode)) {
                    live.swap_remove(place);
                    if let Some(moved) = live.get(place) {
                        at.insert((moved.instance, moved.mode), place);
                    }
                }
            }
        }
    }
    if header[24..] != pool.bytes.to_le_bytes() {
        // They have mapped the pool as it was, and must not be given what lies behind.
        live.retain(|kept| kept.mode != Mode::EngineDriven);
    }
    live
}

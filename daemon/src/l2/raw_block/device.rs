//! Opening a device: whose it is, whether it is ours, and what is on it.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};

use super::super::error::Trouble;
use super::super::io::{read_at, write_at};
use super::super::memory::{SourceBuf, TargetBuf};
use super::layout::{BLOCK, Layout, PER_BLOCK, RECORD, Record};

/// Index blocks read at a time.
const READ: u32 = 1024;
/// How long a start waits for an earlier daemon to let go.
const LOCK_WAIT: Duration = Duration::from_secs(3);

pub(super) struct Device {
    pub(super) file: File,
    pub(super) layout: Layout,
    /// Of every slot.
    pub(super) records: Vec<Option<Record>>,
    /// Opened for direct I/O.
    pub(super) direct: bool,
}

impl Device {
    /// Opens and, if it is empty or `format` says so, formats it. A file that is missing or too short is made as long as
    /// `capacity`.
    pub(super) fn open(
        path: &Path,
        capacity: Option<u64>,
        slot_bytes: u64,
        direct: bool,
        format: bool,
    ) -> Result<Device, Trouble> {
        let failed =
            |doing: &str, error: &io::Error| Trouble::from_io(&format!("{doing} {}", path.display()), error);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(capacity.is_some()).mode(0o600);
        let (mut file, direct) = match options.clone().custom_flags(libc::O_DIRECT).open(path) {
            Ok(file) if direct => (file, true),
            Err(error) if direct && error.kind() != io::ErrorKind::InvalidInput => {
                return Err(failed("opening", &error));
            }
            _ => (options.open(path).map_err(|error| failed("opening", &error))?, false),
        };
        lock(&file).map_err(|_| Trouble::Denied(format!("another process uses {}", path.display())))?;
        let kind = file.metadata().map_err(|error| failed("looking at", &error))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Trouble::Denied(format!("{} is neither a file nor a block device", path.display())));
        }
        let mut size = file.seek(SeekFrom::End(0)).map_err(|error| failed("looking at", &error))?;
        if let Some(capacity) = capacity.filter(|capacity| kind.is_file() && *capacity > size) {
            // All of it now: a disk that fills later must not surprise a store.
            fallocate(&file, FallocateFlags::empty(), 0, capacity)
                .map_err(|error| failed("reserving the space of", &error.into()))?;
            size = capacity;
        }
        let usable = capacity.unwrap_or(size).min(size);
        let mut block = TargetBuf::with_len(BLOCK as usize);
        let read = read_at(&file, 0, &mut block).map_err(|error| failed("reading", &error))?;
        let block = &block.to_vec()[..read];
        match Layout::parse(block) {
            Some(layout) if !format => {
                if layout.slot_bytes != slot_bytes || layout.bytes() > size {
                    return Err(Trouble::Denied(format!(
                        "{} was formatted for slots of {} bytes and {} bytes in all; give it these, or \"format\": true to \
                         lose what it holds",
                        path.display(),
                        layout.slot_bytes,
                        layout.bytes()
                    )));
                }
                let records =
                    read_records(&file, &layout).map_err(|error| failed("reading the index of", &error))?;
                Ok(Device { file, layout, records, direct })
            }
            None if !format && block.iter().any(|byte| *byte != 0) => {
                let whose = if block.starts_with(b"LMCIDX01") { " (an LMCache raw_block store)" } else { "" };
                Err(Trouble::Denied(format!(
                    "{} holds other data{whose}; give another device, or \"format\": true to lose it",
                    path.display()
                )))
            }
            _ => {
                let mut random = [0; 8];
                getrandom::fill(&mut random)
                    .map_err(|error| failed("formatting", &io::Error::other(error)))?;
                let layout =
                    Layout::fit(usable, slot_bytes, u64::from_le_bytes(random)).ok_or_else(|| {
                        Trouble::Denied(format!(
                            "{}: {usable} bytes are too few for one slot",
                            path.display()
                        ))
                    })?;
                // The identity is new, so old records count no more: the index need not be cleared.
                write_at(&file, 0, &SourceBuf::copy_of(&layout.superblock()))
                    .and_then(|()| file.sync_data())
                    .map_err(|error| failed("formatting", &error))?;
                let records = vec![None; layout.slots as usize];
                Ok(Device { file, layout, records, direct })
            }
        }
    }
}

/// Waits a little: the kernel lets go of the file of a daemon that was killed with transfers in its ring only after they
/// are over, which may be after its process is gone.
fn lock(file: &File) -> rustix::io::Result<()> {
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                // A start-up waits here, no request does; there is no event to wait for with a bound.
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

fn read_records(file: &File, layout: &Layout) -> io::Result<Vec<Option<Record>>> {
    let mut records = Vec::with_capacity(layout.slots as usize);
    for first in (0..layout.index_blocks()).step_by(READ as usize) {
        let blocks = READ.min(layout.index_blocks() - first);
        let mut bytes = TargetBuf::with_len(blocks as usize * PER_BLOCK * RECORD);
        if read_at(file, Layout::index_offset(first), &mut bytes)? < bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let slots = first * PER_BLOCK as u32..layout.slots;
        records.extend(
            slots.zip(bytes.to_vec().chunks_exact(RECORD)).map(|(slot, record)| layout.decode(slot, record)),
        );
    }
    Ok(records)
}

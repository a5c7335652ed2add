//! A worker's view of the pool: reads and writes through the file, as another process would through its mapping.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use lmcache_proto::shm::names;
use lmcache_proto::wire::Slot;

/// Removes everything that is there of the pool of `--shm-name=name`.
pub fn remove(name: &str) {
    for file in names::all(&format!("{}{name}", names::POOL_PREFIX)) {
        let _ = std::fs::remove_file(Path::new("/dev/shm").join(file));
    }
}

/// The pool, opened by name, as long as it was then: a mapping does not grow with its file.
#[derive(Debug)]
pub struct Pool {
    file: File,
    bytes: u64,
}

impl Pool {
    /// Opens the segment at `path`.
    ///
    /// # Panics
    /// If it is not there.
    pub fn open(path: &Path) -> Pool {
        Pool::try_open(path).expect("the pool is there")
    }

    /// Opens the segment at `path`.
    ///
    /// # Errors
    /// The open call's.
    pub fn try_open(path: &Path) -> std::io::Result<Pool> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Pool { file, bytes })
    }

    fn offset(&self, slot: &Slot) -> u64 {
        let end = slot.offset.saturating_add(slot.length);
        assert!(end <= self.bytes, "slot up to {end} inside the {} bytes that are mapped", self.bytes);
        slot.offset
    }

    /// Fills a slot with a pattern made from `seed`.
    ///
    /// # Panics
    /// If the slot is outside the pool.
    pub fn fill(&self, slot: &Slot, seed: u64) {
        self.file.write_all_at(&pattern(seed, slot.length), self.offset(slot)).expect("slot inside the pool");
    }

    /// Whether a slot holds the pattern of `seed`.
    ///
    /// # Panics
    /// If the slot is outside the pool.
    pub fn holds(&self, slot: &Slot, seed: u64) -> bool {
        let mut bytes = vec![0; slot.length as usize];
        self.file.read_exact_at(&mut bytes, self.offset(slot)).expect("slot inside the pool");
        bytes == pattern(seed, slot.length)
    }
}

fn pattern(seed: u64, length: u64) -> Vec<u8> {
    (0..length).map(|i| (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(i * 31) >> 7) as u8).collect()
}

//! Bytes of an object, for those who copy.
#![allow(unsafe_code)]

use std::marker::PhantomData;

/// Bytes that go through private memory at a time: stays in the first-level cache.
const PIECE: usize = 16 << 10;

/// Bytes of a reserved object, for its one writer.
#[derive(Debug)]
pub struct SlotMut<'p> {
    start: *mut u8,
    len: usize,
    pool: PhantomData<&'p mut [u8]>,
}

/// Bytes of a pinned object.
#[derive(Clone, Copy, Debug)]
pub struct SlotRef<'p> {
    start: *const u8,
    len: usize,
    pool: PhantomData<&'p [u8]>,
}

impl SlotMut<'_> {
    /// # Safety
    /// `len` bytes from `start` are in the pool's mapping for the lifetime, below its frontier, and reserved for the caller.
    pub(super) unsafe fn new(start: *mut u8, len: usize) -> Self {
        SlotMut { start, len, pool: PhantomData }
    }

    /// First byte. Valid for the value's lifetime; other processes may have the pool mapped, so no Rust reference may be
    /// made of it, only raw copies.
    pub fn as_ptr(&mut self) -> *mut u8 {
        self.start
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.len
    }
}

impl SlotRef<'_> {
    /// # Safety
    /// `len` bytes from `start` are in the pool's mapping for the lifetime, below its frontier, pinned, and written by nobody
    /// in this process.
    pub(super) unsafe fn new(start: *const u8, len: usize) -> Self {
        SlotRef { start, len, pool: PhantomData }
    }

    /// First byte; see [`SlotMut::as_ptr`].
    pub fn as_ptr(&self) -> *const u8 {
        self.start
    }

    /// Shows copies of the bytes, piece by piece.
    pub fn pieces(&self, see: impl FnMut(&[u8])) {
        // SAFETY: mapped for the lifetime, and written by nobody in this process (the contract of `new`).
        unsafe { in_pieces(self.start, self.len, see) }
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.len
    }
}

/// Shows copies of memory piece by piece: other processes may write it meanwhile, so no Rust reference is made of it.
///
/// # Safety
/// `len` bytes from `start` are mapped and readable, and nobody in this process writes them meanwhile.
pub(crate) unsafe fn in_pieces(start: *const u8, len: usize, mut see: impl FnMut(&[u8])) {
    let mut piece = [0u8; PIECE];
    let mut offset = 0;
    while offset < len {
        let part = PIECE.min(len - offset);
        // SAFETY: inside the memory of the caller's contract; `piece` is private.
        unsafe { std::ptr::copy_nonoverlapping(start.add(offset), piece.as_mut_ptr(), part) };
        see(&piece[..part]);
        offset += part;
    }
}

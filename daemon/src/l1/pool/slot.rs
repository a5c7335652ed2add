//! Bytes of an object, for those who copy.
#![allow(unsafe_code)]

use std::marker::PhantomData;

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
    /// `len` bytes from `start` are in the pool's mapping for the lifetime, below its frontier, committed, and pinned.
    pub(super) unsafe fn new(start: *const u8, len: usize) -> Self {
        SlotRef { start, len, pool: PhantomData }
    }

    /// First byte; see [`SlotMut::as_ptr`].
    pub fn as_ptr(&self) -> *const u8 {
        self.start
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.len
    }
}

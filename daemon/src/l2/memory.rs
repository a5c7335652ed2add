//! The caller's memory, as adapters see it.
//!
//! Unsafe room. The pool is mapped by other processes as well, so no Rust reference to its bytes is ever made: they are
//! copied, hashed piecewise through a private buffer, or handed to the kernel as an address.
//!
//! The rule that keeps bytes right: whoever may still touch a region owns its buffer, and the buffer owns the guard that
//! keeps the region from being given to somebody else. Dropping the future of an operation that timed out drops nothing
//! that the kernel or a client still uses, because the running operation owns the buffer, not the future.
#![allow(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use bytes::BufMut;

use crate::l1::pool::in_pieces;
use crate::l1::{SlotMut, SlotRef};

/// One page. Own buffers are made of pages, so that direct I/O can use them.
#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; 4096]);

fn pages(bytes: usize) -> Vec<Page> {
    vec![Page([0; 4096]); bytes.div_ceil(4096)]
}

struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an address and a length; what may be done with them from which thread is the business of the two buffers below.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn copy_out(&self, offset: usize, out: &mut [u8]) {
        assert!(offset.checked_add(out.len()).is_some_and(|end| end <= self.len), "inside the region");
        // SAFETY: in the region (checked), which is readable while its buffer lives; `out` is private memory.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr().add(offset), out.as_mut_ptr(), out.len()) }
    }

    fn pieces(&self, see: impl FnMut(&[u8])) {
        // SAFETY: the region is readable while its buffer lives, and the contracts of the buffers keep writers away.
        unsafe { in_pieces(self.start.as_ptr(), self.len, see) }
    }

    fn to_vec(&self) -> Vec<u8> {
        let mut out = vec![0; self.len];
        self.copy_out(0, &mut out);
        out
    }
}

/// An object to store: memory that stays readable and unchanged (by this daemon) while any clone lives.
#[derive(Clone)]
pub struct SourceBuf {
    inner: Arc<Source>,
}

struct Source {
    region: Region,
    _guard: Box<dyn Send + Sync>,
}

impl SourceBuf {
    /// Memory of the caller's.
    ///
    /// # Safety
    /// While `guard` lives, `len` bytes from `start` are mapped and nobody in this process writes them.
    pub unsafe fn new(start: *const u8, len: usize, guard: impl Send + Sync + 'static) -> SourceBuf {
        let start = NonNull::new(start.cast_mut()).unwrap_or(NonNull::dangling());
        SourceBuf { inner: Arc::new(Source { region: Region { start, len }, _guard: Box::new(guard) }) }
    }

    /// An object of the pool; `guard` holds its pin and keeps the pool mapped.
    pub fn of_slot(slot: SlotRef<'_>, guard: impl Send + Sync + 'static) -> SourceBuf {
        // SAFETY: a pinned, committed object's bytes are written by nobody in this process, and stay mapped and pinned
        // while the guard lives (the caller's contract; the two callers are in `control`).
        unsafe { SourceBuf::new(slot.as_ptr(), slot.bytes(), guard) }
    }

    /// A copy of `bytes`, page-aligned.
    pub fn copy_of(bytes: &[u8]) -> SourceBuf {
        let mut target = TargetBuf::with_len(bytes.len());
        target.write_at(0, bytes);
        target.into_source()
    }

    /// Bytes that are private already.
    pub fn from_vec(bytes: Vec<u8>) -> SourceBuf {
        // SAFETY: the vector's heap memory does not move when the vector does, and nobody touches the vector again but
        // to free it.
        unsafe { SourceBuf::new(bytes.as_ptr(), bytes.len(), bytes) }
    }

    /// Bytes of the object.
    pub fn len(&self) -> usize {
        self.inner.region.len
    }

    /// Whether the object has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the object to `out`.
    pub fn append_to(&self, out: &mut impl BufMut) {
        self.inner.region.pieces(|piece| out.put_slice(piece));
    }

    /// A private copy.
    pub fn to_vec(&self) -> Vec<u8> {
        self.inner.region.to_vec()
    }

    /// Shows the bytes piece by piece.
    pub fn pieces(&self, see: impl FnMut(&[u8])) {
        self.inner.region.pieces(see);
    }

    /// First byte, for the kernel. Whoever uses it keeps a clone until the kernel is done.
    pub(super) fn as_ptr(&self) -> *const u8 {
        self.inner.region.start.as_ptr()
    }
}

impl fmt::Debug for SourceBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceBuf").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// Memory for one object to be loaded: its owner is the only one in this process who may touch the bytes.
pub struct TargetBuf {
    region: Region,
    guard: Box<dyn Any + Send + Sync>,
}

impl TargetBuf {
    /// Memory of the caller's.
    ///
    /// # Safety
    /// While `guard` lives, `len` bytes from `start` are mapped and writable, and nobody else in this process touches
    /// them.
    pub unsafe fn new(start: *mut u8, len: usize, guard: impl Any + Send + Sync) -> TargetBuf {
        let start = NonNull::new(start).unwrap_or(NonNull::dangling());
        TargetBuf { region: Region { start, len }, guard: Box::new(guard) }
    }

    /// A reserved object of the pool; `guard` holds its reservation and keeps the pool mapped.
    pub fn of_slot(mut slot: SlotMut<'_>, guard: impl Any + Send + Sync) -> TargetBuf {
        let (start, len) = (slot.as_ptr(), slot.bytes());
        // SAFETY: a reserved object's bytes are touched by nobody else in this process, and stay mapped and reserved while
        // the guard lives (the caller's contract; the one caller is in `control`).
        unsafe { TargetBuf::new(start, len, guard) }
    }

    /// Memory of its own, zeroed and page-aligned.
    pub fn with_len(len: usize) -> TargetBuf {
        let mut pages = pages(len);
        let start = pages.as_mut_ptr().cast::<u8>();
        // SAFETY: the vector's heap memory does not move when the vector does, is at least `len` bytes, and nobody looks
        // at the vector again but to free it.
        unsafe { TargetBuf::new(start, len, pages) }
    }

    /// Bytes of the object that is expected.
    pub fn len(&self) -> usize {
        self.region.len
    }

    /// Whether the expected object has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Panics
    /// Outside the buffer: adapters check lengths before they write.
    pub fn write_at(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len()), "inside the buffer");
        // SAFETY: in the region (checked), which is writable and ours while `self` lives.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.region.start.as_ptr().add(offset),
                bytes.len(),
            );
        }
    }

    /// A private copy.
    pub fn to_vec(&self) -> Vec<u8> {
        self.region.to_vec()
    }

    /// Shows the bytes piece by piece.
    pub fn pieces(&self, see: impl FnMut(&[u8])) {
        self.region.pieces(see);
    }

    /// The caller's guard back; nothing of the adapter touches the bytes any more.
    pub fn into_guard(self) -> Box<dyn Any + Send + Sync> {
        self.guard
    }

    /// The same memory as an object to store.
    pub fn into_source(self) -> SourceBuf {
        let TargetBuf { region, guard } = self;
        SourceBuf { inner: Arc::new(Source { region, _guard: Box::new(guard) }) }
    }

    /// First byte, for the kernel. Whoever uses it keeps `self` until the kernel is done.
    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.region.start.as_ptr()
    }
}

impl fmt::Debug for TargetBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetBuf").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_lives_as_long_as_any_owner() {
        let guard = Arc::new(());
        let mut bytes = vec![0u8; 100_000];
        // SAFETY: `bytes` outlives the buffer and is not touched meanwhile.
        let mut target = unsafe { TargetBuf::new(bytes.as_mut_ptr(), bytes.len(), guard.clone()) };
        target.write_at(99_990, &[7; 10]);
        let source = target.into_source();
        let clone = source.clone();
        drop(source);
        assert_eq!(Arc::strong_count(&guard), 2);
        assert_eq!(clone.to_vec()[99_989..], [0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]);
        let mut out = Vec::new();
        clone.append_to(&mut out);
        assert_eq!(out, clone.to_vec());
        drop(clone);
        assert_eq!(Arc::strong_count(&guard), 1);
        assert_eq!(bytes[99_999], 7);
    }

    #[test]
    fn own_memory_is_aligned_for_direct_io() {
        let mut target = TargetBuf::with_len(5000);
        assert_eq!(target.as_mut_ptr() as usize % 4096, 0);
        assert_eq!(TargetBuf::with_len(0).to_vec(), Vec::<u8>::new());
    }

    #[test]
    #[should_panic(expected = "inside the buffer")]
    fn writing_past_the_end_is_refused() {
        TargetBuf::with_len(10).write_at(8, &[0; 3]);
    }
}

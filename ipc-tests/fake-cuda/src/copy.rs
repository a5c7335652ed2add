//! Copies, one by one, strided, and in batches.

use std::ffi::{c_uint, c_void};

use crate::code::*;
use crate::inject::entered;
use crate::memory::{self, Host, host, is_device, with_both};
use crate::stream::{Op, Stream, stream};

/// One copy; either side is the device's or the host's.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    to: u64,
    from: u64,
    bytes: u64,
    /// What the host's side had when the call was made: memory that is not pinned is read then.
    staged: Option<Vec<u8>>,
}

/// Copies that belong together, done in the order of the list.
pub(crate) type Batch = Vec<Piece>;

/// # Safety
/// 8 mapped and aligned bytes.
pub(crate) unsafe fn word(at: *mut u8) -> u64 {
    // SAFETY: the caller's.
    unsafe { std::sync::atomic::AtomicU64::from_ptr(at.cast()) }.load(std::sync::atomic::Ordering::Acquire)
}

/// # Safety
/// As [`word`].
pub(crate) unsafe fn set_word(at: *mut u8, value: u64) {
    // SAFETY: the caller's.
    unsafe { std::sync::atomic::AtomicU64::from_ptr(at.cast()) }
        .store(value, std::sync::atomic::Ordering::Release);
}

/// Does them. `false`: an address was not there.
pub(crate) fn execute(batch: &Batch) -> bool {
    batch.iter().all(|piece| {
        let bytes = piece.bytes as usize;
        match &piece.staged {
            // SAFETY: the device's side is mapped meanwhile, and the other is private.
            Some(staged) => memory::with(piece.to, piece.bytes, |to| unsafe {
                to.copy_from_nonoverlapping(staged.as_ptr(), bytes);
            }),
            // SAFETY: the device's side is mapped meanwhile, the host's is the caller's business.
            None => {
                with_both(piece.to, piece.from, piece.bytes, |to, from| unsafe { to.copy_from(from, bytes) })
            }
        }
        .is_some()
    })
}

/// Whether a side of a copy may be given to the driver as it is; the host's side, if there is one.
fn side(at: u64, bytes: u64) -> Result<Host, u32> {
    match if is_device(at) { Host::Pinned } else { host(at, bytes) } {
        Host::Mixed => Err(INVALID_VALUE),
        side => Ok(side),
    }
}

/// Enqueues rows of one copy as the driver does: host memory that is not pinned is read at once, or waited for.
fn enqueue(stream: &Stream, rows: Vec<(u64, u64, u64)>) -> u32 {
    let mut batch = Batch::new();
    let mut waits = false;
    for (to, from, bytes) in rows {
        let (into, out_of) = match (side(to, bytes), side(from, bytes)) {
            (Ok(into), Ok(out_of)) => (into, out_of),
            (Err(code), _) | (_, Err(code)) => return code,
        };
        waits |= into == Host::Pageable;
        let staged = (out_of == Host::Pageable && is_device(to)).then(|| {
            let mut bytes = vec![0; bytes as usize];
            // SAFETY: the caller's memory of that length.
            unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(from as *const u8, bytes.len()) };
            bytes
        });
        batch.push(Piece { to, from, bytes, staged });
    }
    stream.push(Op::Copy(batch));
    if waits { stream.drain() } else { SUCCESS }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: *mut c_void) -> u32 {
    entered!("cuMemcpyAsync", context);
    enqueue(&*stream!(stream), vec![(to, from, bytes as u64)])
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    bytes: usize,
    stream: *mut c_void,
) -> u32 {
    entered!("cuMemcpyHtoDAsync_v2", context);
    if !is_device(to) {
        return INVALID_VALUE;
    }
    enqueue(&*stream!(stream), vec![(to, from as u64, bytes as u64)])
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: u64,
    bytes: usize,
    stream: *mut c_void,
) -> u32 {
    entered!("cuMemcpyDtoHAsync_v2", context);
    if !is_device(from) {
        return INVALID_VALUE;
    }
    enqueue(&*stream!(stream), vec![(to as u64, from, bytes as u64)])
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> u32 {
    entered!("cuMemcpyHtoD_v2", context);
    let piece = Piece { to, from: from as u64, bytes: bytes as u64, staged: None };
    if is_device(to) && execute(&vec![piece]) { SUCCESS } else { INVALID_VALUE }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> u32 {
    entered!("cuMemcpyDtoH_v2", context);
    let piece = Piece { to: to as u64, from, bytes: bytes as u64, staged: None };
    if is_device(from) && execute(&vec![piece]) { SUCCESS } else { INVALID_VALUE }
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
pub struct Copy2D {
    src_x: usize,
    src_y: usize,
    src_type: c_uint,
    src_host: u64,
    src_device: u64,
    src_array: u64,
    src_pitch: usize,
    dst_x: usize,
    dst_y: usize,
    dst_type: c_uint,
    dst_host: u64,
    dst_device: u64,
    dst_array: u64,
    dst_pitch: usize,
    width: usize,
    height: usize,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpy2DAsync_v2(copy: *const Copy2D, stream: *mut c_void) -> u32 {
    entered!("cuMemcpy2DAsync_v2", context);
    // SAFETY: the caller's pointer.
    let copy = unsafe { &*copy };
    let side = |kind, on_host, on_device| match kind {
        1 => Some(on_host),
        2 => Some(on_device),
        _ => None,
    };
    let from = side(copy.src_type, copy.src_host, copy.src_device);
    let to = side(copy.dst_type, copy.dst_host, copy.dst_device);
    let (Some(from), Some(to)) = (from, to) else { return INVALID_VALUE };
    if copy.width > copy.src_pitch || copy.width > copy.dst_pitch {
        return INVALID_VALUE;
    }
    let from = from + (copy.src_y * copy.src_pitch + copy.src_x) as u64;
    let to = to + (copy.dst_y * copy.dst_pitch + copy.dst_x) as u64;
    let row =
        |row: u64| (to + row * copy.dst_pitch as u64, from + row * copy.src_pitch as u64, copy.width as u64);
    enqueue(&*stream!(stream), (0..copy.height as u64).map(row).collect())
}

/// Only by `cuGetProcAddress`, for the version whose form this is.
pub(crate) unsafe extern "C" fn cuMemcpyBatchAsync(
    to: *const u64,
    from: *const u64,
    bytes: *const usize,
    count: usize,
    attributes: *const c_uint,
    first_of: *const usize,
    attribute_count: usize,
    fail: *mut usize,
    stream: *mut c_void,
) -> u32 {
    entered!("cuMemcpyBatchAsync", context);
    let stream = stream!(stream);
    if count == 0 || attribute_count != 1 || attributes.is_null() || first_of.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller's arrays.
    let (first, order) = unsafe { (*first_of, *attributes) };
    if first != 0 || !(1..=3).contains(&order) {
        return INVALID_VALUE;
    }
    let mut batch = Batch::new();
    for at in 0..count {
        // SAFETY: the caller's arrays of `count` elements.
        let (to, from, bytes) = unsafe { (*to.add(at), *from.add(at), *bytes.add(at) as u64) };
        let pinned = |at| side(at, bytes) == Ok(Host::Pinned);
        if bytes == 0 || !pinned(to) || !pinned(from) {
            // SAFETY: the caller's pointer.
            unsafe { *fail = at };
            return INVALID_VALUE;
        }
        batch.push(Piece { to, from, bytes, staged: None });
    }
    // Copies of a batch have no order.
    batch.reverse();
    stream.push(Op::Copy(batch));
    SUCCESS
}

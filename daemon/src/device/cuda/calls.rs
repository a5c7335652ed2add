//! Copies by a call of the driver's each.
#![allow(unsafe_code)]

use std::ffi::c_void;

use cudarc::driver::sys::{CUDA_MEMCPY2D, CUmemorytype};

use super::context::Context;
use super::driver::cuda;
use super::error::CudaError;
use super::pieces::Piece;
use super::stream::Stream;
use crate::device::transfer::Direction;

/// Where copies are enqueued, and which way they go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Calls<'c> {
    pub(super) context: &'c Context,
    pub(super) stream: &'c Stream,
    pub(super) direction: Direction,
}

impl Calls<'_> {
    /// A piece.
    ///
    /// # Safety
    /// Both sides stay mapped, and the pool's side is held, until the stream has passed them. The context is current.
    pub(super) unsafe fn piece(self, piece: &Piece) -> Result<(), CudaError> {
        // SAFETY: the caller's contract.
        unsafe {
            if piece.rows > 1 {
                self.rectangle(piece)
            } else {
                self.row(piece.device, piece.host, piece.bytes)
            }
        }
    }

    /// Bytes between two addresses.
    ///
    /// # Safety
    /// As [`Calls::piece`].
    pub(super) unsafe fn row(self, device: u64, host: u64, bytes: u64) -> Result<(), CudaError> {
        let (driver, bytes, stream) = (self.context.driver, bytes as usize, self.stream.raw());
        // SAFETY: the caller's contract.
        unsafe {
            match self.direction {
                Direction::Store => {
                    cuda!(driver, cuMemcpyDtoHAsync_v2(host as *mut c_void, device, bytes, stream))
                }
                Direction::Retrieve => {
                    cuda!(driver, cuMemcpyHtoDAsync_v2(device, host as *const c_void, bytes, stream))
                }
            }
        }
    }

    /// # Safety
    /// As [`Calls::piece`].
    unsafe fn rectangle(self, piece: &Piece) -> Result<(), CudaError> {
        let (on_host, on_device) = (CUmemorytype::CU_MEMORYTYPE_HOST, CUmemorytype::CU_MEMORYTYPE_DEVICE);
        let store = self.direction == Direction::Store;
        let (source, destination) = if store { (on_device, on_host) } else { (on_host, on_device) };
        let (host, device) = (piece.host_step as usize, piece.device_step as usize);
        let copy = CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: source,
            srcHost: piece.host as *const c_void,
            srcDevice: piece.device,
            srcArray: std::ptr::null_mut(),
            srcPitch: if store { device } else { host },
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: destination,
            dstHost: piece.host as *mut c_void,
            dstDevice: piece.device,
            dstArray: std::ptr::null_mut(),
            dstPitch: if store { host } else { device },
            WidthInBytes: piece.bytes as usize,
            Height: piece.rows as usize,
        };
        // SAFETY: a pointer to our own, which is read during the call; the rest is the caller's contract.
        unsafe { cuda!(self.context.driver, cuMemcpy2DAsync_v2(&copy, self.stream.raw())) }
    }
}

//! Pieces → calls of the driver.
#![allow(unsafe_code)]

use std::ffi::c_void;

use cudarc::driver::sys::{CUDA_MEMCPY2D, CUmemorytype};

use super::context::Context;
use super::driver::{BatchCopy, CopyAttributes, checked, cuda};
use super::error::{CudaError, code};
use super::pieces::Piece;
use super::pin::Pin;
use super::stream::Stream;
use crate::device::transfer::Direction;

/// Enqueues copies; remembers whether the driver takes batches.
#[derive(Debug)]
pub(super) struct Enqueuer {
    direction: Direction,
    batch: Option<BatchCopy>,
    to: Vec<u64>,
    from: Vec<u64>,
    bytes: Vec<usize>,
}

impl Enqueuer {
    pub(super) fn new(context: &Context, direction: Direction) -> Enqueuer {
        let batch = context.driver.batch;
        Enqueuer { direction, batch, to: Vec::new(), from: Vec::new(), bytes: Vec::new() }
    }

    /// Enqueues all pieces, in no order among each other. The context is current.
    ///
    /// # Safety
    /// Both sides of every piece stay mapped, and the pool's side is held, until the stream has passed them.
    ///
    /// # Errors
    /// The driver's. Some of the pieces may be enqueued then.
    pub(super) unsafe fn enqueue(
        &mut self,
        context: &Context,
        stream: &Stream,
        pin: &Pin,
        pieces: &[Piece],
    ) -> Result<(), CudaError> {
        self.to.clear();
        self.from.clear();
        self.bytes.clear();
        for piece in pieces {
            // SAFETY: the caller's contract.
            unsafe {
                if piece.rows > 1 {
                    self.rectangle(context, stream, piece)?;
                } else if self.batch.is_some() && pin.is_pinned(piece.host) {
                    self.keep(piece);
                } else {
                    self.single(context, stream, piece)?;
                }
            }
        }
        // SAFETY: the caller's contract.
        unsafe { self.flush(context, stream, pieces, pin) }
    }

    fn keep(&mut self, piece: &Piece) {
        let (to, from) = match self.direction {
            Direction::Store => (piece.host, piece.device),
            Direction::Retrieve => (piece.device, piece.host),
        };
        self.to.push(to);
        self.from.push(from);
        self.bytes.push(piece.bytes as usize);
    }

    /// # Safety
    /// As [`Enqueuer::enqueue`].
    unsafe fn flush(
        &mut self,
        context: &Context,
        stream: &Stream,
        pieces: &[Piece],
        pin: &Pin,
    ) -> Result<(), CudaError> {
        let Some(batch) = self.batch.filter(|_| !self.to.is_empty()) else { return Ok(()) };
        let attributes =
            CopyAttributes { source_order: 1, source_hint: [0; 2], destination_hint: [0; 2], flags: 0 };
        let (first, mut failed) = (0, usize::MAX);
        // SAFETY: three arrays of one length and one set of attributes for all; the rest is the caller's contract.
        let answer = unsafe {
            let (to, from, bytes) = (self.to.as_ptr(), self.from.as_ptr(), self.bytes.as_ptr());
            batch(to, from, bytes, self.to.len(), &attributes, &first, 1, &mut failed, stream.raw())
        };
        match checked("cuMemcpyBatchAsync", answer) {
            Err(error @ CudaError { code: code::INVALID_VALUE | 801, .. }) => {
                // Nothing of a batch that is refused has been enqueued.
                tracing::warn!(
                    device = context.device.label,
                    %error,
                    failed,
                    "the driver refuses batched copies; they are made one by one from here on"
                );
                self.batch = None;
                for piece in pieces.iter().filter(|piece| piece.rows == 1 && pin.is_pinned(piece.host)) {
                    // SAFETY: the caller's contract.
                    unsafe { self.single(context, stream, piece) }?;
                }
                Ok(())
            }
            answer => answer,
        }
    }

    /// # Safety
    /// As [`Enqueuer::enqueue`].
    unsafe fn single(&self, context: &Context, stream: &Stream, piece: &Piece) -> Result<(), CudaError> {
        let Piece { device, host, bytes, .. } = *piece;
        let bytes = bytes as usize;
        // SAFETY: the caller's contract.
        unsafe {
            match self.direction {
                Direction::Store => {
                    cuda!(
                        context.driver,
                        cuMemcpyDtoHAsync_v2(host as *mut c_void, device, bytes, stream.raw())
                    )
                }
                Direction::Retrieve => {
                    cuda!(
                        context.driver,
                        cuMemcpyHtoDAsync_v2(device, host as *const c_void, bytes, stream.raw())
                    )
                }
            }
        }
    }

    /// # Safety
    /// As [`Enqueuer::enqueue`].
    unsafe fn rectangle(&self, context: &Context, stream: &Stream, piece: &Piece) -> Result<(), CudaError> {
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
        unsafe { cuda!(context.driver, cuMemcpy2DAsync_v2(&copy, stream.raw())) }
    }
}

//! Pieces → calls of the driver.
//!
//! Pieces in one row are copied in a batch where the driver can. What remains is copied one by one if it is long, and through a
//! staging buffer if it is short or strided; strided and single copies stand in where there is no such buffer.
#![allow(unsafe_code)]

use std::ffi::c_void;

use cudarc::driver::sys::{CUDA_MEMCPY2D, CUmemorytype};

use super::Copies;
use super::context::Context;
use super::driver::{BatchCopy, CopyAttributes, checked, cuda};
use super::error::{CudaError, code};
use super::kernel::Staging;
use super::pieces::Piece;
use super::pin::Pin;
use super::staging::Plan;
use super::stream::Stream;
use crate::device::transfer::Direction;

/// A piece of which a copy of its own is worth the call.
const LONG: u64 = 256 << 10;

/// Enqueues copies; remembers how the driver lets it.
#[derive(Debug)]
pub(super) struct Enqueuer {
    direction: Direction,
    batch: Option<BatchCopy>,
    staging: Buffer,
    plan: Plan,
    short: Vec<Piece>,
    to: Vec<u64>,
    from: Vec<u64>,
    bytes: Vec<usize>,
}

/// A lane's staging buffer.
#[derive(Debug)]
enum Buffer {
    /// Nothing was to be staged yet.
    Unasked,
    Have(Staging),
    /// There is none to be had.
    Without,
}

impl Enqueuer {
    pub(super) fn new(context: &Context, direction: Direction, copies: Copies) -> Enqueuer {
        let batch = context.driver.batch.filter(|_| copies == Copies::Auto);
        let staging = if copies == Copies::Plain { Buffer::Without } else { Buffer::Unasked };
        let (plan, short) = (Plan::default(), Vec::new());
        let (to, from, bytes) = (Vec::new(), Vec::new(), Vec::new());
        Enqueuer { direction, batch, staging, plan, short, to, from, bytes }
    }

    /// Lets the staging buffer go. Nothing that was enqueued is under way.
    pub(super) fn finish(&mut self, context: &Context) {
        if let Buffer::Have(staging) = std::mem::replace(&mut self.staging, Buffer::Without) {
            context.stagings.put_back(staging);
        }
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
        self.short.clear();
        for piece in pieces {
            if piece.rows == 1 && self.batch.is_some() && pin.is_pinned(piece.host) {
                self.keep(piece);
            } else if piece.total() < LONG || piece.rows > 1 {
                self.short.push(*piece);
            } else {
                // SAFETY: the caller's contract.
                unsafe { self.plain(context, stream, piece) }?;
            }
        }
        // SAFETY: the caller's contract.
        unsafe {
            self.staged(context, stream, pin)?;
            self.flush(context, stream, pieces, pin)
        }
    }

    /// Enqueues the short pieces.
    ///
    /// # Safety
    /// As [`Enqueuer::enqueue`].
    unsafe fn staged(&mut self, context: &Context, stream: &Stream, pin: &Pin) -> Result<(), CudaError> {
        if self.short.is_empty() {
            return Ok(());
        }
        if matches!(self.staging, Buffer::Unasked) {
            self.staging = match context.stagings.take(context) {
                Ok(staging) => Buffer::Have(staging),
                Err(error) if error.sticks() => return Err(error),
                Err(error) => {
                    tracing::warn!(
                        device = context.device.label,
                        %error,
                        direction = ?self.direction,
                        "no staging buffer on the GPU: short pieces of a worker's blocks are copied one by one, which is slow"
                    );
                    Buffer::Without
                }
            };
        }
        let Buffer::Have(Staging { kernel, address }) = &self.staging else {
            return self.short.iter().try_for_each(|piece| {
                // SAFETY: the caller's contract.
                unsafe { self.plain(context, stream, piece) }
            });
        };
        self.plan.make(self.direction, &mut self.short, pin.borders(), *address);
        // The stream keeps the rounds apart: the buffer is used again when it is free.
        for round in self.plan.rounds() {
            let across = || {
                round.stretches.iter().try_for_each(|stretch| {
                    // SAFETY: the buffer lives as long as the context; the rest is the caller's contract.
                    unsafe { self.row(context, stream, stretch.staged, stretch.host, stretch.bytes) }
                })
            };
            // SAFETY: as above.
            let within = || unsafe { kernel.launch(context, stream, round.moves) };
            match self.direction {
                Direction::Store => within().and_then(|()| across())?,
                Direction::Retrieve => across().and_then(|()| within())?,
            }
        }
        self.plan.left.iter().try_for_each(|piece| {
            // SAFETY: the caller's contract.
            unsafe { self.plain(context, stream, piece) }
        })
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
                    unsafe { self.plain(context, stream, piece) }?;
                }
                Ok(())
            }
            answer => answer,
        }
    }

    /// A piece by a call of its own.
    ///
    /// # Safety
    /// As [`Enqueuer::enqueue`].
    unsafe fn plain(&self, context: &Context, stream: &Stream, piece: &Piece) -> Result<(), CudaError> {
        // SAFETY: the caller's contract.
        unsafe {
            if piece.rows > 1 {
                self.rectangle(context, stream, piece)
            } else {
                self.row(context, stream, piece.device, piece.host, piece.bytes)
            }
        }
    }

    /// # Safety
    /// As [`Enqueuer::enqueue`].
    unsafe fn row(
        &self,
        context: &Context,
        stream: &Stream,
        device: u64,
        host: u64,
        bytes: u64,
    ) -> Result<(), CudaError> {
        let (bytes, stream) = (bytes as usize, stream.raw());
        // SAFETY: the caller's contract.
        unsafe {
            match self.direction {
                Direction::Store => {
                    cuda!(context.driver, cuMemcpyDtoHAsync_v2(host as *mut c_void, device, bytes, stream))
                }
                Direction::Retrieve => {
                    cuda!(context.driver, cuMemcpyHtoDAsync_v2(device, host as *const c_void, bytes, stream))
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

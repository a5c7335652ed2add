//! Pieces → what the driver is asked for.
//!
//! Pieces in one row are copied in a batch where the driver can. What remains is copied one by one if it is long, and through a
//! staging buffer if it is short or strided; where there is no such buffer, one by one as well.
#![allow(unsafe_code)]

use std::time::{Duration, Instant};

use super::Copies;
use super::calls::Calls;
use super::context::Context;
use super::driver::{BatchCopy, CopyAttributes, checked};
use super::error::{CudaError, code};
use super::kernel::{Kernel, Staging};
use super::pieces::Piece;
use super::pin::Pin;
use super::staging::{Plan, STAGING_BYTES};
use super::stream::Stream;
use crate::device::transfer::Direction;

/// A piece of which a copy of its own is worth the call.
const LONG: u64 = 256 << 10;
/// Until memory for a staging buffer is asked for again.
const AGAIN: Duration = Duration::from_secs(60);

/// Enqueues copies of one direction; remembers how the driver lets it.
#[derive(Debug)]
pub(super) struct Enqueuer {
    direction: Direction,
    batch: Option<BatchCopy>,
    /// Pieces for the batch, and its arguments.
    together: Vec<Piece>,
    to: Vec<u64>,
    from: Vec<u64>,
    bytes: Vec<usize>,
    /// Pieces to be staged.
    short: Vec<Piece>,
    kernel: Option<Kernel>,
    buffer: Option<Staging>,
    /// When a buffer may be asked for: at once, and a while after there was no room for one.
    ask_from: Instant,
    plan: Plan,
}

impl Enqueuer {
    pub(super) fn new(context: &Context, direction: Direction, copies: Copies) -> Enqueuer {
        Enqueuer {
            direction,
            batch: context.driver.batch.filter(|_| copies == Copies::Auto),
            together: Vec::new(),
            to: Vec::new(),
            from: Vec::new(),
            bytes: Vec::new(),
            short: Vec::new(),
            kernel: context.kernel.get().copied().filter(|_| copies != Copies::Plain),
            buffer: None,
            ask_from: Instant::now(),
            plan: Plan::default(),
        }
    }

    /// Lets the staging buffer go. Nothing that was enqueued is under way.
    pub(super) fn finish(&mut self, context: &Context) {
        if let Some(staging) = self.buffer.take() {
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
        let calls = Calls { context, stream, direction: self.direction };
        self.together.clear();
        self.short.clear();
        for piece in pieces {
            if piece.rows == 1 && self.batch.is_some() && pin.is_pinned(piece.host) {
                self.together.push(*piece);
            } else if piece.rows > 1 || piece.bytes < LONG {
                self.short.push(*piece);
            } else {
                // SAFETY: the caller's contract.
                unsafe { calls.piece(piece) }?;
            }
        }
        // SAFETY: the caller's contract.
        unsafe {
            self.batched(calls)?;
            self.staged(calls, pin)
        }
    }

    /// Enqueues the batch. If the driver does not take it, its pieces become some of the short ones.
    ///
    /// # Safety
    /// As [`Enqueuer::enqueue`].
    unsafe fn batched(&mut self, calls: Calls<'_>) -> Result<(), CudaError> {
        let Some(batch) = self.batch.filter(|_| !self.together.is_empty()) else { return Ok(()) };
        let Enqueuer { together, to, from, bytes, .. } = self;
        let (hosts, devices) = match self.direction {
            Direction::Store => (&mut *to, &mut *from),
            Direction::Retrieve => (&mut *from, &mut *to),
        };
        hosts.clear();
        hosts.extend(together.iter().map(|piece| piece.host));
        devices.clear();
        devices.extend(together.iter().map(|piece| piece.device));
        bytes.clear();
        bytes.extend(together.iter().map(|piece| piece.bytes as usize));
        let attributes =
            CopyAttributes { source_order: 1, source_hint: [0; 2], destination_hint: [0; 2], flags: 0 };
        let (first, mut failed) = (0, usize::MAX);
        // SAFETY: three arrays of one length and one set of attributes for all; the rest is the caller's contract.
        let answer = unsafe {
            let (to, from, sizes) = (to.as_ptr(), from.as_ptr(), bytes.as_ptr());
            let stream = calls.stream.raw();
            batch(to, from, sizes, bytes.len(), &attributes, &first, 1, &mut failed, stream)
        };
        match checked("cuMemcpyBatchAsync", answer) {
            Err(error @ CudaError { code: code::INVALID_VALUE | 801, .. }) => {
                // Nothing of a batch that is refused has been enqueued.
                tracing::warn!(
                    device = calls.context.device.label,
                    %error,
                    failed,
                    "the driver refuses batched copies; a worker's are made without from here on"
                );
                self.batch = None;
                self.short.append(&mut self.together);
                Ok(())
            }
            answer => answer,
        }
    }

    /// Enqueues the short pieces.
    ///
    /// # Safety
    /// As [`Enqueuer::enqueue`].
    unsafe fn staged(&mut self, calls: Calls<'_>, pin: &Pin) -> Result<(), CudaError> {
        if self.short.is_empty() {
            return Ok(());
        }
        if let Some((kernel, staging)) = self.staging(calls.context)? {
            let Enqueuer { plan, short, direction, .. } = self;
            plan.make(*direction, short, pin.borders(), (staging, STAGING_BYTES));
            // SAFETY: the caller's contract.
            match unsafe { through_the_buffer(calls, kernel, plan) } {
                Ok(()) => return Ok(()),
                Err(error) if error.sticks() => return Err(error),
                Err(error) => {
                    // Some may be enqueued: the stream copies the same bytes once more behind them. The buffer is still used by
                    // them, and goes with the context.
                    tracing::warn!(
                        device = calls.context.device.label,
                        %error,
                        direction = ?self.direction,
                        "short pieces of a worker's blocks cannot be staged: they are copied one by one from here on, which is slow"
                    );
                    self.kernel = None;
                    self.buffer = None;
                }
            }
        }
        self.short.iter().try_for_each(|piece| {
            // SAFETY: the caller's contract.
            unsafe { calls.piece(piece) }
        })
    }

    /// The kernel, and the address of the buffer; `None` where one of them is not to be had.
    fn staging(&mut self, context: &Context) -> Result<Option<(Kernel, u64)>, CudaError> {
        let Some(kernel) = self.kernel else { return Ok(None) };
        if let Some(staging) = &self.buffer {
            return Ok(Some((kernel, staging.address)));
        }
        if Instant::now() < self.ask_from {
            return Ok(None);
        }
        match context.stagings.take(context) {
            Ok(staging) => {
                let address = staging.address;
                self.buffer = Some(staging);
                Ok(Some((kernel, address)))
            }
            Err(error) if error.sticks() => Err(error),
            Err(error) => {
                tracing::warn!(
                    device = context.device.label,
                    %error,
                    direction = ?self.direction,
                    "no staging buffer on the GPU: for a minute short pieces of a worker's blocks are copied one by one, which is slow"
                );
                self.ask_from = Instant::now() + AGAIN;
                Ok(None)
            }
        }
    }
}

/// Enqueues what was planned. The stream keeps the rounds apart: the buffer is used again when it is free.
///
/// # Safety
/// As [`Enqueuer::enqueue`]; the buffer of the plan is this stream's alone.
unsafe fn through_the_buffer(calls: Calls<'_>, kernel: Kernel, plan: &Plan) -> Result<(), CudaError> {
    for round in plan.rounds() {
        let across = || {
            round.stretches.iter().try_for_each(|stretch| {
                // SAFETY: the buffer lives as long as the context; the rest is the caller's contract.
                unsafe { calls.row(stretch.staged, stretch.host, stretch.bytes) }
            })
        };
        // SAFETY: as above.
        let within = || unsafe { kernel.launch(calls.context, calls.stream, round.moves) };
        match calls.direction {
            Direction::Store => within().and_then(|()| across())?,
            Direction::Retrieve => across().and_then(|()| within())?,
        }
    }
    plan.left.iter().try_for_each(|piece| {
        // SAFETY: the caller's contract.
        unsafe { calls.piece(piece) }
    })
}

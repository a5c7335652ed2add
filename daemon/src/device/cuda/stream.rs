//! Streams and events of ours.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys::{CUevent, CUipcEventHandle, CUstream};

use super::context::Context;
use super::driver::cuda;
use super::error::{CudaError, code};

const NON_BLOCKING: u32 = 1;
const DISABLE_TIMING: u32 = 2;
const INTERPROCESS: u32 = 4;

/// A stream. All calls but the drop are made with its context current.
#[derive(Debug)]
pub(super) struct Stream {
    context: Arc<Context>,
    raw: CUstream,
}

// SAFETY: a stream is used from any thread whose current context is its own; the pointer is only a name.
unsafe impl Send for Stream {}

impl Stream {
    pub(super) fn new(context: &Arc<Context>) -> Result<Stream, CudaError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: a pointer to our own.
        unsafe { cuda!(context.driver, cuStreamCreate(&mut raw, NON_BLOCKING)) }?;
        Ok(Stream { context: context.clone(), raw })
    }

    pub(super) fn raw(&self) -> CUstream {
        self.raw
    }

    /// What follows waits for an event.
    pub(super) fn wait(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: both live.
        unsafe { cuda!(self.context.driver, cuStreamWaitEvent(self.raw, event.raw, 0)) }
    }

    /// What follows waits until the word at `address` is at least `value`.
    pub(super) fn wait_value(&self, address: u64, value: u64) -> Result<(), CudaError> {
        const AT_LEAST: u32 = 0;
        // SAFETY: the caller has the memory open until the stream has passed it.
        unsafe { cuda!(self.context.driver, cuStreamWaitValue64_v2(self.raw, address, value, AT_LEAST)) }
    }

    /// Writes a word when all before it is done.
    pub(super) fn write_value(&self, address: u64, value: u64) -> Result<(), CudaError> {
        // SAFETY: the caller has the memory open until the stream has passed it.
        unsafe { cuda!(self.context.driver, cuStreamWriteValue64_v2(self.raw, address, value, 0)) }
    }

    /// Calls `tell` on a thread of the driver's when all before it is done. After an error of the context it is never called.
    pub(super) fn tell(&self, tell: impl FnOnce() + Send + 'static) -> Result<(), CudaError> {
        unsafe extern "C" fn call(data: *mut c_void) {
            // SAFETY: boxed below, and called once.
            let tell = unsafe { Box::from_raw(data.cast::<Box<dyn FnOnce() + Send>>()) };
            // A panic must not leave through the driver.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(tell));
        }
        let boxed: Box<Box<dyn FnOnce() + Send>> = Box::new(Box::new(tell));
        let data = Box::into_raw(boxed);
        // SAFETY: the function takes what it is given, once.
        let launched = unsafe { cuda!(self.context.driver, cuLaunchHostFunc(self.raw, call, data.cast())) };
        if launched.is_err() {
            // SAFETY: not launched, so it is still ours.
            drop(unsafe { Box::from_raw(data) });
        }
        launched
    }

    /// Whether all is done.
    pub(super) fn is_idle(&self) -> Result<bool, CudaError> {
        // SAFETY: it lives.
        done(unsafe { cuda!(self.context.driver, cuStreamQuery(self.raw)) })
    }

    /// Waits on the calling thread until all is done.
    pub(super) fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: it lives.
        unsafe { cuda!(self.context.driver, cuStreamSynchronize(self.raw)) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // What is enqueued is still done; the driver does not wait for it here. SAFETY: nobody has it any more.
        let _ = unsafe { cuda!(self.context.driver, cuStreamDestroy_v2(self.raw)) };
    }
}

/// What a question whether something is over was answered.
fn done(answer: Result<(), CudaError>) -> Result<bool, CudaError> {
    match answer {
        Ok(()) => Ok(true),
        Err(CudaError { code: code::NOT_READY, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// An event, ours or a worker's.
#[derive(Debug)]
pub(super) struct Event {
    context: Arc<Context>,
    raw: CUevent,
}

// SAFETY: as for `Stream`.
unsafe impl Send for Event {}

impl Event {
    /// One that measures time.
    pub(super) fn timing(context: &Arc<Context>) -> Result<Event, CudaError> {
        Event::create(context, 0)
    }

    /// One that other processes can wait for.
    pub(super) fn exported(context: &Arc<Context>) -> Result<Event, CudaError> {
        Event::create(context, DISABLE_TIMING | INTERPROCESS)
    }

    fn create(context: &Arc<Context>, flags: u32) -> Result<Event, CudaError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: a pointer to our own.
        unsafe { cuda!(context.driver, cuEventCreate(&mut raw, flags)) }?;
        Ok(Event { context: context.clone(), raw })
    }

    /// A worker's.
    pub(super) fn import(context: &Arc<Context>, handle: &[u8; 64]) -> Result<Event, CudaError> {
        let mut raw = std::ptr::null_mut();
        let handle = CUipcEventHandle { reserved: handle.map(|byte| byte as std::ffi::c_char) };
        // SAFETY: the driver checks the handle.
        unsafe { cuda!(context.driver, cuIpcOpenEventHandle(&mut raw, handle)) }?;
        Ok(Event { context: context.clone(), raw })
    }

    /// What another process opens it by.
    pub(super) fn handle(&self) -> Result<[u8; 64], CudaError> {
        let mut handle = CUipcEventHandle { reserved: [0; 64] };
        // SAFETY: a pointer to our own, and an event that can be exported.
        unsafe { cuda!(self.context.driver, cuIpcGetEventHandle(&mut handle, self.raw)) }?;
        Ok(handle.reserved.map(|byte| byte as u8))
    }

    /// Fires when the stream gets here.
    pub(super) fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both live.
        unsafe { cuda!(self.context.driver, cuEventRecord(self.raw, stream.raw)) }
    }

    /// Whether it has fired.
    pub(super) fn fired(&self) -> Result<bool, CudaError> {
        // SAFETY: it lives.
        done(unsafe { cuda!(self.context.driver, cuEventQuery(self.raw)) })
    }

    /// Time from `start` to this one; both have fired.
    pub(super) fn since(&self, start: &Event) -> Result<Duration, CudaError> {
        let mut milliseconds = 0f32;
        // SAFETY: a pointer to our own, and events that live.
        unsafe { cuda!(self.context.driver, cuEventElapsedTime(&mut milliseconds, start.raw, self.raw)) }?;
        Ok(Duration::try_from_secs_f64(f64::from(milliseconds) / 1e3).unwrap_or_default())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody has it any more; a stream that still waits for it goes on doing so.
        let _ = unsafe { cuda!(self.context.driver, cuEventDestroy_v2(self.raw)) };
    }
}

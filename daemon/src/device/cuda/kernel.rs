//! The kernel that moves pieces within GPU memory, and the staging buffers that it works with.
//!
//! `kernel/move.ptx` is what the driver is given; `kernel/move.cu` is its source, and `kernel/build.py` makes the one of the other.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::sync::Arc;

use cudarc::driver::sys::CUfunction;
use parking_lot::Mutex;

use super::context::Context;
use super::driver::cuda;
use super::error::CudaError;
use super::staging::{Move, PIECES, STAGING_BYTES};
use super::stream::Stream;

/// Ends with a zero, as the driver wants it.
const PTX: &str = concat!(include_str!("kernel/move.ptx"), "\0");
const NAME: &CStr = c"lmcached_move";
/// Threads of a block.
const THREADS: u32 = 256;
/// Blocks of threads for each piece, at most: then a thread has several accesses.
const MAX_BLOCKS: u64 = 64;

/// The kernel, in one context.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    function: CUfunction,
}

// SAFETY: the pointer is only a name, of something that goes with its context.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Loads it into the current context, which compiles it for the device: about a tenth of a second. It goes with the context.
    ///
    /// To be called before anything else is under way in the context. Loading waits for all of it, and drivers that load lazily
    /// do so at the first launch, of which one is made here; later it could be kept waiting by a worker's event that never fires.
    pub(super) fn load(context: &Arc<Context>) -> Result<Kernel, CudaError> {
        let (mut module, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: pointers to our own, and texts with an end.
        unsafe {
            cuda!(context.driver, cuModuleLoadData(&mut module, PTX.as_ptr().cast()))?;
            cuda!(context.driver, cuModuleGetFunction(&mut function, module, NAME.as_ptr()))?;
        }
        let (kernel, stream) = (Kernel { function }, Stream::new(context)?);
        // SAFETY: a move of no bytes touches nothing.
        unsafe { kernel.launch(context, &stream, &[Move::default()]) }?;
        stream.synchronize()?;
        Ok(kernel)
    }

    /// Enqueues moves, in no order among each other.
    ///
    /// # Safety
    /// Both sides of every move are GPU memory that stays open until the stream has passed them; the context is current.
    ///
    /// # Errors
    /// The driver's. Some of the moves may be enqueued then.
    pub(super) unsafe fn launch(
        self,
        context: &Context,
        stream: &Stream,
        moves: &[Move],
    ) -> Result<(), CudaError> {
        for moves in moves.chunks(PIECES) {
            let mut parameter = [Move::default(); PIECES];
            parameter[..moves.len()].copy_from_slice(moves);
            let mut parameters = [(&raw mut parameter).cast::<c_void>()];
            let (pieces, parameters) = (moves.len() as u32, parameters.as_mut_ptr());
            // So that the largest has one access of 16 bytes for each thread.
            let largest = moves.iter().map(Move::total).max().unwrap_or(0);
            let blocks = largest.div_ceil(u64::from(THREADS) * 16).clamp(1, MAX_BLOCKS) as u32;
            let (raw, none) = (stream.raw(), std::ptr::null_mut());
            // SAFETY: the kernel has one parameter of that size, which is read during the call; it touches what the first
            // `pieces` moves say, for which the caller stands.
            unsafe {
                cuda!(
                    context.driver,
                    cuLaunchKernel(self.function, pieces, blocks, 1, THREADS, 1, 1, 0, raw, parameters, none)
                )
            }?;
        }
        Ok(())
    }
}

/// Staging buffers of a context that nobody uses. They are freed with it alone: the driver would wait for everything that is under
/// way there, and that may be a worker's event that never fires.
#[derive(Debug, Default)]
pub(super) struct Stagings {
    free: Mutex<Vec<Staging>>,
}

/// GPU memory of [`STAGING_BYTES`].
#[derive(Debug)]
pub(super) struct Staging {
    pub(super) address: u64,
}

impl Stagings {
    /// A free buffer, or a new one. The context is current.
    pub(super) fn take(&self, context: &Context) -> Result<Staging, CudaError> {
        if let Some(free) = self.free.lock().pop() {
            return Ok(free);
        }
        let mut address = 0;
        // SAFETY: a pointer to our own.
        unsafe { cuda!(context.driver, cuMemAlloc_v2(&mut address, STAGING_BYTES as usize)) }?;
        Ok(Staging { address })
    }

    /// For the next one. Nothing that uses it is under way.
    pub(super) fn put_back(&self, staging: Staging) {
        self.free.lock().push(staging);
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn digest(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_ptx_is_of_its_source() {
        let ptx = PTX.trim_end_matches('\0');
        let (of_source, rest) = ptx.split_once('\n').expect("a line");
        let (of_ptx, body) = rest.split_once('\n').expect("another");
        let source = digest(include_bytes!("kernel/move.cu"));
        assert!(
            of_source.ends_with(&format!("sha256 {source}.")),
            "run kernel/build.py: {of_source}, not {source}"
        );
        let body_digest = digest(body.as_bytes());
        assert!(
            of_ptx.ends_with(&format!("sha256 {body_digest}.")),
            "changed by hand: {of_ptx}, not {body_digest}"
        );
        assert!(body.contains(".visible .entry lmcached_move("));
        // The oldest driver that is used reads version 8.0.
        assert!(body.contains("\n.version 8.0\n"));
        let parameter = format!(".param .align 8 .b8 lmcached_move_param_0[{}]", size_of::<[Move; PIECES]>());
        assert!(body.contains(&parameter), "{parameter}");
    }
}

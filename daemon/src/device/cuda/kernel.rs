//! The kernel that moves pieces within GPU memory, and the staging buffers that it works with.
//!
//! `kernel/move.ptx` is what the driver is given; `kernel/move.cu` is its source, and `kernel/build.py` makes the one of the other.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};

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
/// Blocks of threads for each piece: a piece of 16 KiB is one access of 16 bytes for each of their threads.
const BLOCKS: u32 = 4;

/// The kernel, in one context.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    function: CUfunction,
}

// SAFETY: the pointer is only a name, of something that goes with its context.
unsafe impl Send for Kernel {}

impl Kernel {
    /// Loads it into the current context, which compiles it for the device: some milliseconds. It goes with the context.
    pub(super) fn load(context: &Context) -> Result<Kernel, CudaError> {
        let (mut module, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: pointers to our own, and texts with an end.
        unsafe {
            cuda!(context.driver, cuModuleLoadData(&mut module, PTX.as_ptr().cast()))?;
            cuda!(context.driver, cuModuleGetFunction(&mut function, module, NAME.as_ptr()))?;
        }
        Ok(Kernel { function })
    }

    /// Enqueues moves, in no order among each other.
    ///
    /// # Safety
    /// Both sides of every move are GPU memory that stays open until the stream has passed them; the context is current.
    pub(super) unsafe fn launch(
        &self,
        context: &Context,
        stream: &Stream,
        moves: &[Move],
    ) -> Result<(), CudaError> {
        for moves in moves.chunks(PIECES) {
            let mut parameter = [Move::default(); PIECES];
            parameter[..moves.len()].copy_from_slice(moves);
            let mut parameters = [(&raw mut parameter).cast::<c_void>()];
            let (pieces, parameters) = (moves.len() as u32, parameters.as_mut_ptr());
            let (raw, none) = (stream.raw(), std::ptr::null_mut());
            // SAFETY: the kernel has one parameter of that size, which is read during the call; it touches what the moves in
            // `pieces` say, for which the caller stands.
            unsafe {
                cuda!(
                    context.driver,
                    cuLaunchKernel(self.function, pieces, BLOCKS, 1, THREADS, 1, 1, 0, raw, parameters, none)
                )
            }?;
        }
        Ok(())
    }
}

/// The kernel and the staging buffers of a context. They are freed with it alone: the driver would wait for everything that is
/// under way there, and that may be a worker's event that never fires.
#[derive(Debug, Default)]
pub(super) struct Stagings {
    kernel: Mutex<Option<Kernel>>,
    free: Mutex<Vec<Staging>>,
}

/// GPU memory of [`STAGING_BYTES`], and the kernel that fills and empties it.
#[derive(Debug)]
pub(super) struct Staging {
    pub(super) kernel: Kernel,
    pub(super) address: u64,
}

impl Stagings {
    /// A buffer that nobody uses, or a new one. The context is current.
    pub(super) fn take(&self, context: &Context) -> Result<Staging, CudaError> {
        if let Some(free) = self.free.lock().pop() {
            return Ok(free);
        }
        let kernel = {
            let mut kernel = self.kernel.lock();
            match *kernel {
                Some(loaded) => loaded,
                None => *kernel.insert(Kernel::load(context)?),
            }
        };
        let mut address = 0;
        // SAFETY: a pointer to our own.
        unsafe { cuda!(context.driver, cuMemAlloc_v2(&mut address, STAGING_BYTES as usize)) }?;
        Ok(Staging { kernel, address })
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

    #[test]
    fn the_ptx_is_of_its_source() {
        let digest: String = Sha256::digest(include_bytes!("kernel/move.cu"))
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let first = PTX.lines().next().expect("a line");
        assert!(
            first.ends_with(&format!("sha256 {digest}.")),
            "run kernel/build.py: {first}, but it is {digest}"
        );
        assert!(PTX.contains(".visible .entry lmcached_move("));
        // The oldest driver that is used reads version 8.0.
        assert!(PTX.contains("\n.version 8.0\n"));
        let parameter = format!(".param .align 8 .b8 lmcached_move_param_0[{}]", size_of::<[Move; PIECES]>());
        assert!(PTX.contains(&parameter), "{parameter}");
    }
}

//! The driver's functions, loaded when they are first wanted.
//!
//! `cudarc` finds the library and declares its types. Its own wrappers are not called: they panic where a symbol is missing,
//! and take every answer for one of an enum's, which a newer driver's need not be. Here all symbols are looked for once, an
//! old driver is refused with the name of the first that it lacks, and an answer is a number.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys::{
    CUDA_MEMCPY2D, CUcontext, CUevent, CUfunction, CUipcEventHandle, CUipcMemHandle, CUmodule, CUstream,
    CUuuid, culib, is_culib_present,
};

use super::error::{CudaError, code};

/// Called by a stream when it gets there. No function of the driver may be called in it.
pub(super) type HostFunction = unsafe extern "C" fn(*mut c_void);

/// `cuMemcpyBatchAsync` of CUDA 12.8.
pub(super) type BatchCopy = unsafe extern "C" fn(
    *const u64,
    *const u64,
    *const usize,
    usize,
    *const CopyAttributes,
    *const usize,
    usize,
    *mut usize,
    CUstream,
) -> u32;

/// `CUmemcpyAttributes`, which the declarations for the oldest driver do not have.
#[repr(C)]
#[derive(Debug)]
pub(super) struct CopyAttributes {
    /// 1: the source is read in stream order.
    pub(super) source_order: c_uint,
    /// Type and id of a location; zeros give no hint.
    pub(super) source_hint: [c_int; 2],
    pub(super) destination_hint: [c_int; 2],
    pub(super) flags: c_uint,
}

macro_rules! functions {
    ($($name:ident ( $($argument:ty),* );)*) => {
        /// What every supported driver has.
        #[expect(non_snake_case, reason = "the driver's names")]
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> u32,)*
        }

        impl Functions {
            /// # Safety
            /// The library is the driver's, of at least CUDA 12.0.
            unsafe fn load() -> Result<Functions, LoadError> {
                // SAFETY: whether it is there was asked before; its initialisers are the driver's.
                let library = unsafe { culib() };
                Ok(Functions {
                    // SAFETY: the symbol has this type in every driver since CUDA 12.0.
                    $($name: *unsafe { library.get(stringify!($name).as_bytes()) }
                        .map_err(|_| LoadError::TooOld(stringify!($name)))?,)*
                })
            }
        }
    };
}

functions! {
    cuInit(c_uint);
    cuDriverGetVersion(*mut c_int);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut c_int, c_int);
    cuDeviceGetUuid_v2(*mut CUuuid, c_int);
    cuDevicePrimaryCtxRetain(*mut CUcontext, c_int);
    cuDevicePrimaryCtxRelease_v2(c_int);
    cuDevicePrimaryCtxReset_v2(c_int);
    cuDevicePrimaryCtxGetState(c_int, *mut c_uint, *mut c_int);
    cuCtxPushCurrent_v2(CUcontext);
    cuCtxPopCurrent_v2(*mut CUcontext);
    cuMemAlloc_v2(*mut u64, usize);
    cuMemGetAddressRange_v2(*mut u64, *mut usize, u64);
    cuMemHostRegister_v2(*mut c_void, usize, c_uint);
    cuMemHostUnregister(*mut c_void);
    cuMemsetD8Async(u64, u8, usize, CUstream);
    cuMemcpyDtoH_v2(*mut c_void, u64, usize);
    cuMemcpyHtoDAsync_v2(u64, *const c_void, usize, CUstream);
    cuMemcpyDtoHAsync_v2(*mut c_void, u64, usize, CUstream);
    cuMemcpy2DAsync_v2(*const CUDA_MEMCPY2D, CUstream);
    cuIpcGetMemHandle(*mut CUipcMemHandle, u64);
    cuIpcOpenMemHandle_v2(*mut u64, CUipcMemHandle, c_uint);
    cuIpcCloseMemHandle(u64);
    cuIpcGetEventHandle(*mut CUipcEventHandle, CUevent);
    cuIpcOpenEventHandle(*mut CUevent, CUipcEventHandle);
    cuEventCreate(*mut CUevent, c_uint);
    cuEventDestroy_v2(CUevent);
    cuEventRecord(CUevent, CUstream);
    cuEventQuery(CUevent);
    cuEventElapsedTime(*mut f32, CUevent, CUevent);
    cuStreamCreate(*mut CUstream, c_uint);
    cuStreamDestroy_v2(CUstream);
    cuStreamSynchronize(CUstream);
    cuStreamQuery(CUstream);
    cuStreamWaitEvent(CUstream, CUevent, c_uint);
    cuStreamWaitValue64_v2(CUstream, u64, u64, c_uint);
    cuStreamWriteValue64_v2(CUstream, u64, u64, c_uint);
    cuLaunchHostFunc(CUstream, HostFunction, *mut c_void);
    cuModuleLoadData(*mut CUmodule, *const c_void);
    cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
    cuLaunchKernel(
        CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream, *mut *mut c_void, *mut *mut c_void
    );
    cuGetProcAddress_v2(*const c_char, *mut *mut c_void, c_int, u64, *mut c_int);
}

/// Why there is no driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LoadError {
    #[error("no libcuda.so.1 is installed")]
    NoLibrary,
    #[error("the driver is older than CUDA 12.0: it has no {0}")]
    TooOld(&'static str),
    #[error(transparent)]
    Init(#[from] CudaError),
}

/// The driver, ready to be used.
pub(super) struct Driver {
    pub(super) call: Functions,
    /// Copies in batches, if it can.
    pub(super) batch: Option<BatchCopy>,
    /// As it says itself: 12080 is 12.8.
    pub(super) version: i32,
    /// GPUs that this process sees.
    pub(super) devices: i32,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("version", &self.version).field("devices", &self.devices).finish()
    }
}

/// Calls a function of the driver and checks its answer.
macro_rules! cuda {
    ($driver:expr, $name:ident ( $($argument:expr),* $(,)? )) => {
        $crate::device::cuda::driver::checked(stringify!($name), ($driver.call.$name)($($argument),*))
    };
}
pub(super) use cuda;

/// What an answer means.
pub(super) fn checked(call: &'static str, answer: u32) -> Result<(), CudaError> {
    if answer == code::SUCCESS { Ok(()) } else { Err(CudaError::new(call, answer)) }
}

impl Driver {
    /// The driver of this process, loaded and initialised by the first call. No context is made.
    pub(super) fn get() -> Result<&'static Driver, LoadError> {
        static DRIVER: OnceLock<Result<Driver, LoadError>> = OnceLock::new();
        DRIVER.get_or_init(Driver::load).as_ref().map_err(|error| *error)
    }

    fn load() -> Result<Driver, LoadError> {
        // SAFETY: opens the library if it is there, which runs its initialisers: the driver's are made for that.
        if !unsafe { is_culib_present() } {
            return Err(LoadError::NoLibrary);
        }
        // SAFETY: it is the library of the name that the driver has.
        let call = unsafe { Functions::load() }?;
        let mut driver = Driver { call, batch: None, version: 0, devices: 0 };
        // SAFETY: plain numbers, and pointers to our own.
        unsafe {
            cuda!(driver, cuInit(0))?;
            cuda!(driver, cuDriverGetVersion(&mut driver.version))?;
            cuda!(driver, cuDeviceGetCount(&mut driver.devices))?;
        }
        driver.batch = driver.batched();
        Ok(driver)
    }

    /// The batched copy in the form of CUDA 12.8, which later drivers still give to who asks for that version.
    fn batched(&self) -> Option<BatchCopy> {
        const NAME: &CStr = c"cuMemcpyBatchAsync";
        let (mut function, mut status) = (std::ptr::null_mut(), 0);
        // SAFETY: a text with an end, and pointers to our own. An answer, not a failure: an older driver has none.
        let answer =
            unsafe { (self.call.cuGetProcAddress_v2)(NAME.as_ptr(), &mut function, 12_080, 0, &mut status) };
        if answer != code::SUCCESS || function.is_null() {
            return None;
        }
        // SAFETY: for this version the function has this type.
        Some(unsafe { std::mem::transmute::<*mut c_void, BatchCopy>(function) })
    }

    /// Whether a libcuda is installed, without loading what needs a GPU.
    pub(super) fn present() -> bool {
        // SAFETY: as in `load`.
        unsafe { is_culib_present() }
    }
}

//! What can go wrong with a GPU, worded for whoever reads the log.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;

use parking_lot::Mutex;

/// Failed calls, by function and answer. Few ever have an entry: functions are named in this program.
static FAILED: Mutex<BTreeMap<(&'static str, u32), u64>> = Mutex::new(BTreeMap::new());

/// Calls of the driver that have failed in this process: function, what its answer means, how often.
pub fn failed_calls() -> Vec<(&'static str, String, u64)> {
    FAILED.lock().iter().map(|((call, code), count)| (*call, name(*code).into_owned(), *count)).collect()
}

/// A call of the driver that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed: {} ({code})", name(*code))]
pub struct CudaError {
    /// The driver's function.
    pub call: &'static str,
    /// Its answer.
    pub code: u32,
}

/// Answers that the code tells apart.
pub(super) mod code {
    pub const SUCCESS: u32 = 0;
    pub const INVALID_VALUE: u32 = 1;
    pub const NOT_READY: u32 = 600;
}

impl CudaError {
    /// A failure, which is counted.
    pub(super) fn new(call: &'static str, code: u32) -> CudaError {
        // What is not over yet is asked for again; nothing has failed.
        if code != code::NOT_READY {
            *FAILED.lock().entry((call, code)).or_default() += 1;
        }
        CudaError { call, code }
    }

    /// Whether the context is of no use any more: every later call would fail with the same.
    pub(super) fn sticks(self) -> bool {
        // Illegal address, launch timeout, assert, hardware stack, illegal instruction, misaligned and invalid address space,
        // invalid pc, launch failure, ECC, unrecoverable.
        matches!(self.code, 214 | 220 | 226 | 700 | 702 | 710 | 714..=719 | 999)
    }
}

/// Names of the codes that occur here. Not asked of the driver: a newer one knows more, but it is not always there.
fn name(code: u32) -> Cow<'static, str> {
    Cow::Borrowed(match code {
        1 => "invalid value",
        2 => "out of GPU memory",
        3 => "not initialized",
        4 => "the driver is shutting down",
        34 => "a stub of libcuda without a driver behind it",
        100 => "no GPU",
        101 => "invalid device",
        200 => "invalid kernel image",
        201 => "invalid context",
        205 => "the memory cannot be mapped",
        208 => "already mapped",
        209 => "no binary for this GPU",
        214 => "uncorrectable ECC error",
        217 => "no peer access between the GPUs",
        218 => "the PTX is not accepted",
        221 => "no PTX compiler: libnvidia-ptxjitcompiler.so.1 is missing",
        222 => "the PTX is newer than the driver",
        223 => "compiling PTX is switched off",
        400 => "invalid handle",
        500 => "not found",
        600 => "not ready",
        700 => "illegal address",
        701 => "out of resources for a launch",
        702 => "launch timeout",
        709 => "the context was destroyed",
        712 => "host memory is registered already",
        713 => "host memory is not registered",
        719 => "launch failure",
        800 => "not permitted",
        801 => "not supported",
        802 => "the system is not ready (fabric manager?)",
        803 => "driver and libcuda are of different versions",
        804 => "forward compatibility is not supported here",
        999 => "unknown error",
        other => return Cow::Owned(format!("CUDA error {other}")),
    })
}

/// Why a worker's GPU memory cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum OpenError {
    #[error("this daemon has no GPU: {0}")]
    NoDriver(String),
    #[error("tensor {tensor}: {what}")]
    Descriptor { tensor: usize, what: String },
    #[error(
        "tensor {0} is in an expandable segment of torch's allocator, whose memory cannot be shared by a CUDA IPC handle"
    )]
    Expandable(usize),
    #[error(
        "tensor {0} is in memory of the virtual memory API, for whose descriptor there is no way to this daemon"
    )]
    Vmm(usize),
    #[error("tensor {tensor}: its view ends at byte {end}, its memory at {bytes}")]
    View { tensor: usize, end: u64, bytes: u64 },
    #[error("the tensors of one worker are on several GPUs ({0} and {1})")]
    Devices(String, String),
    #[error("GPU {uuid} is not visible to this daemon; it sees {seen}")]
    NotVisible { uuid: String, seen: String },
    #[error("tensor {tensor}: {bytes} bytes are announced, its allocation has {allocated}")]
    Allocation { tensor: usize, bytes: u64, allocated: u64 },
    #[error("GPU {0} had an error that it does not recover from, and its context is still being let go")]
    Failed(String),
    #[error("cannot open the GPU memory of tensor {tensor} on {device}: {source}")]
    Map { tensor: usize, device: String, source: CudaError },
    #[error("cannot start a thread for its transfers: {0}")]
    Thread(String),
    #[error(
        "GPU {device} has {lanes} workers, most of which have gone and left events that have not fired since"
    )]
    Lanes { device: String, lanes: usize },
    #[error("cannot use GPU {device}: {source}")]
    Driver { device: String, source: CudaError },
}

impl OpenError {
    /// What an operator can do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            OpenError::NoDriver(_) => {
                "Run the daemon where the engine's GPU is, with the driver's libcuda.so.1 (in a container: with the NVIDIA runtime)"
            }
            OpenError::Expandable(_) => {
                "Unset expandable_segments in PYTORCH_CUDA_ALLOC_CONF of the engine, or use lmcache.mp.mp_transfer_mode=engine_driven"
            }
            OpenError::Vmm(_) => {
                "Switch sleep mode (the cumem allocator) of the engine off, or use lmcache.mp.mp_transfer_mode=engine_driven"
            }
            OpenError::Devices(..) => "Register each GPU's tensors as a worker of its own",
            OpenError::NotVisible { .. } => {
                "Show the daemon all GPUs of the node: unset CUDA_VISIBLE_DEVICES for it"
            }
            OpenError::Failed(_) => {
                "The worker registers again by itself; if it stays so, look at the kernel log for Xid errors"
            }
            OpenError::Map { .. } => {
                "The engine must be alive, on this machine and of another process id than the daemon's; in containers both need access to the same GPU"
            }
            OpenError::Thread(_) => {
                "Raise the daemon's limit of threads (TasksMax of its unit, or pids of its container)"
            }
            OpenError::Lanes { .. } => {
                "An engine's kernels hang: restart it; if its events do not fire then either, restart the daemon"
            }
            OpenError::Driver { .. } => "Look at nvidia-smi and at the kernel log for Xid errors",
            OpenError::Descriptor { .. } | OpenError::View { .. } | OpenError::Allocation { .. } => {
                "Check that engine and daemon speak the same LMCache release"
            }
        }
    }
}

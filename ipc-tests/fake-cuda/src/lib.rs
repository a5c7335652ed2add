//! A `libcuda.so.1` for tests, on machines without a GPU. Never part of a release.
//!
//! GPU memory is POSIX shared memory at addresses that no CPU may use, so that a confused pointer faults as a real one does.
//! Streams are threads: what is not ordered by an event runs in any order. IPC handles have 64 bytes and are refused where the
//! driver refuses them: in the process that exported them, and when that is dead. An access outside of GPU memory is an
//! error that sticks to the context, and every call can be made to fail (`inject`).
//!
//! What it is told by its environment:
//!
//! * `FAKE_CUDA_NAME`: prefix of its segments in `/dev/shm`;
//! * `FAKE_CUDA_DEVICES`: how many there are (1), of which `CUDA_VISIBLE_DEVICES` shows a part;
//! * `FAKE_CUDA_FAULTS`: a file of failures, read at every call;
//! * `FAKE_CUDA_DELAY_US`: pause before every operation of a stream;
//! * `FAKE_CUDA_VERSION`: what the driver says it is (12080); before 12.8 there are no batched copies;
//! * `FAKE_CUDA_PTX=0`: it takes none, as if it were too new;
//! * `FAKE_CUDA_OPEN=once`: a handle that is open is refused, as older drivers do, and not counted;
//! * `FAKE_CUDA_CLOSE=all`: one close unmaps an allocation for everybody in the process.
#![allow(non_snake_case, clippy::missing_safety_doc, reason = "the names and contracts are the driver's")]

mod context;
mod copy;
mod event;
mod inject;
mod kernel;
mod memory;
mod state;
mod stream;
#[cfg(test)]
mod tests;

/// Codes of the driver.
pub(crate) mod code {
    pub const SUCCESS: u32 = 0;
    pub const INVALID_VALUE: u32 = 1;
    pub const OUT_OF_MEMORY: u32 = 2;
    pub const NOT_INITIALIZED: u32 = 3;
    pub const NO_DEVICE: u32 = 100;
    pub const INVALID_DEVICE: u32 = 101;
    pub const INVALID_IMAGE: u32 = 200;
    pub const INVALID_CONTEXT: u32 = 201;
    pub const ALREADY_MAPPED: u32 = 208;
    pub const PEER_ACCESS_UNSUPPORTED: u32 = 217;
    pub const UNSUPPORTED_PTX_VERSION: u32 = 222;
    pub const INVALID_HANDLE: u32 = 400;
    pub const NOT_FOUND: u32 = 500;
    pub const NOT_READY: u32 = 600;
    pub const ILLEGAL_ADDRESS: u32 = 700;
    pub const ALREADY_REGISTERED: u32 = 712;
    pub const NOT_REGISTERED: u32 = 713;
}

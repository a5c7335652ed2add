//! GPU memory: allocations, imported ones, and host memory that is pinned.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_uint, c_void};
use std::sync::LazyLock;

use parking_lot::{Mutex, RwLock};

use crate::code::*;
use crate::inject::entered;
use crate::state::{Handle, MEMORY, RawHandle, fresh, map, unlink};

/// Added to where memory really is: an address with it set is none that a CPU can use.
const DEVICE_BIT: u64 = 1 << 60;

#[derive(Debug)]
struct Allocation {
    bytes: u64,
    handle: Handle,
    context: u64,
    imported: bool,
    /// Opens that were not closed.
    opens: u64,
}

#[derive(Debug, Default)]
struct Memory {
    /// By device pointer.
    allocations: BTreeMap<u64, Allocation>,
    imported: HashMap<(u64, Handle), u64>,
}

static MEMORIES: LazyLock<RwLock<Memory>> = LazyLock::new(RwLock::default);
/// Pinned ranges of the host: start, bytes, context.
static PINNED: LazyLock<Mutex<BTreeMap<u64, (u64, u64)>>> = LazyLock::new(Mutex::default);

/// Whether a pointer is one of the device's.
pub(crate) fn is_device(pointer: u64) -> bool {
    pointer & DEVICE_BIT != 0
}

impl Memory {
    fn real(&self, pointer: u64, bytes: u64) -> Option<*mut u8> {
        let (start, allocation) = self.allocations.range(..=pointer).next_back()?;
        (pointer - start + bytes <= allocation.bytes).then_some((pointer - DEVICE_BIT) as *mut u8)
    }
}

/// Gives where device memory really is; nothing is unmapped meanwhile. `None` is an illegal address.
pub(crate) fn with<T>(pointer: u64, bytes: u64, work: impl FnOnce(*mut u8) -> T) -> Option<T> {
    let memory = MEMORIES.read();
    memory.real(pointer, bytes).map(work)
}

/// The same for two places, either of which may be the host's.
pub(crate) fn with_both<T>(
    a: u64,
    b: u64,
    bytes: u64,
    work: impl FnOnce(*mut u8, *mut u8) -> T,
) -> Option<T> {
    let memory = MEMORIES.read();
    let real = |at: u64| if is_device(at) { memory.real(at, bytes) } else { Some(at as *mut u8) };
    Some(work(real(a)?, real(b)?))
}

/// The same for many places of the device.
pub(crate) fn with_all<T>(places: &[(u64, u64)], work: impl FnOnce(&[*mut u8]) -> T) -> Option<T> {
    let memory = MEMORIES.read();
    let real: Option<Vec<*mut u8>> = places.iter().map(|&(at, bytes)| memory.real(at, bytes)).collect();
    real.map(|real| work(&real))
}

/// How the driver takes a range of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Pinned,
    Pageable,
    /// Partly pinned, or in two pieces: the driver refuses it.
    Mixed,
}

pub(crate) fn host(start: u64, bytes: u64) -> Host {
    let pinned = PINNED.lock();
    let end = start + bytes.max(1);
    let before = pinned.range(..=start).next_back();
    if before.is_some_and(|(at, (len, _))| end <= at + len) {
        return Host::Pinned;
    }
    let touches =
        before.is_some_and(|(at, (len, _))| start < at + len) || pinned.range(start..end).next().is_some();
    if touches { Host::Mixed } else { Host::Pageable }
}

/// A context was destroyed, and what was in it.
pub(crate) fn context_gone(context: u64) {
    let mut memory = MEMORIES.write();
    let gone: Vec<u64> = memory
        .allocations
        .iter()
        .filter(|(_, allocation)| allocation.context == context)
        .map(|(at, _)| *at)
        .collect();
    for at in gone {
        unmap(&mut memory, at);
    }
    PINNED.lock().retain(|_, (_, owner)| *owner != context);
}

fn unmap(memory: &mut Memory, at: u64) {
    let Some(allocation) = memory.allocations.remove(&at) else { return };
    memory.imported.remove(&(allocation.context, allocation.handle));
    // SAFETY: the mapping of this allocation, which nobody finds any more; users hold the lock.
    unsafe { libc::munmap((at - DEVICE_BIT) as *mut c_void, allocation.bytes as usize) };
    if !allocation.imported {
        unlink(&allocation.handle.segment());
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(pointer: *mut u64, bytes: usize) -> u32 {
    let context = entered!("cuMemAlloc_v2", context);
    if bytes == 0 {
        return INVALID_VALUE;
    }
    let handle = Handle::new(MEMORY, context.device, fresh(), bytes as u64);
    let Some(start) = map(&handle.segment(), bytes, true) else { return OUT_OF_MEMORY };
    let at = start as u64 + DEVICE_BIT;
    let allocation =
        Allocation { bytes: bytes as u64, handle, context: context.id, imported: false, opens: 0 };
    MEMORIES.write().allocations.insert(at, allocation);
    // SAFETY: the caller's pointer.
    unsafe { *pointer = at };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(pointer: u64) -> u32 {
    entered!("cuMemFree_v2", context);
    let mut memory = MEMORIES.write();
    if memory.allocations.get(&pointer).is_none_or(|allocation| allocation.imported) {
        return INVALID_VALUE;
    }
    unmap(&mut memory, pointer);
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetAddressRange_v2(base: *mut u64, bytes: *mut usize, pointer: u64) -> u32 {
    entered!("cuMemGetAddressRange_v2", context);
    let memory = MEMORIES.read();
    let found = memory.allocations.range(..=pointer).next_back();
    let Some((start, allocation)) = found.filter(|(start, allocation)| pointer - **start < allocation.bytes)
    else {
        return INVALID_VALUE;
    };
    // SAFETY: the caller's pointers.
    unsafe {
        if !base.is_null() {
            *base = *start;
        }
        if !bytes.is_null() {
            *bytes = allocation.bytes as usize;
        }
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuIpcGetMemHandle(handle: *mut [u8; 64], pointer: u64) -> u32 {
    entered!("cuIpcGetMemHandle", context);
    let memory = MEMORIES.read();
    let Some(allocation) = memory.allocations.get(&pointer).filter(|allocation| !allocation.imported) else {
        return INVALID_VALUE;
    };
    // SAFETY: the caller's pointer.
    unsafe { *handle = allocation.handle.encode() };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuIpcOpenMemHandle_v2(pointer: *mut u64, handle: RawHandle, _flags: c_uint) -> u32 {
    let context = entered!("cuIpcOpenMemHandle_v2", context);
    let handle = Handle::decode(&handle.0);
    if handle.kind != MEMORY {
        return INVALID_VALUE;
    }
    if handle.pid == std::process::id() {
        return INVALID_CONTEXT;
    }
    if handle.device != context.device {
        return PEER_ACCESS_UNSUPPORTED;
    }
    let mut memory = MEMORIES.write();
    let key = (context.id, handle);
    if let Some(at) = memory.imported.get(&key).copied() {
        if std::env::var("FAKE_CUDA_OPEN").is_ok_and(|how| how == "once") {
            return ALREADY_MAPPED;
        }
        if let Some(allocation) = memory.allocations.get_mut(&at) {
            allocation.opens += 1;
        }
        // SAFETY: the caller's pointer.
        unsafe { *pointer = at };
        return SUCCESS;
    }
    if !handle.alive() {
        return INVALID_HANDLE;
    }
    let Some(start) = map(&handle.segment(), handle.size as usize, false) else { return INVALID_HANDLE };
    let at = start as u64 + DEVICE_BIT;
    memory.imported.insert(key, at);
    let allocation = Allocation { bytes: handle.size, handle, context: context.id, imported: true, opens: 1 };
    memory.allocations.insert(at, allocation);
    // SAFETY: the caller's pointer.
    unsafe { *pointer = at };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuIpcCloseMemHandle(pointer: u64) -> u32 {
    let context = entered!("cuIpcCloseMemHandle", context);
    let mut memory = MEMORIES.write();
    let Some(allocation) = memory.allocations.get_mut(&pointer).filter(|allocation| allocation.imported)
    else {
        return INVALID_VALUE;
    };
    if allocation.context != context.id {
        return INVALID_CONTEXT;
    }
    allocation.opens -= 1;
    if allocation.opens == 0 || std::env::var("FAKE_CUDA_CLOSE").is_ok_and(|how| how == "all") {
        unmap(&mut memory, pointer);
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostRegister_v2(start: *mut c_void, bytes: usize, _flags: c_uint) -> u32 {
    let context = entered!("cuMemHostRegister_v2", context);
    let start = start as u64;
    if bytes == 0 || !start.is_multiple_of(4096) {
        return INVALID_VALUE;
    }
    match host(start, bytes as u64) {
        Host::Pageable => {
            PINNED.lock().insert(start, (bytes as u64, context.id));
            SUCCESS
        }
        Host::Pinned | Host::Mixed => ALREADY_REGISTERED,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostUnregister(start: *mut c_void) -> u32 {
    entered!("cuMemHostUnregister", context);
    if PINNED.lock().remove(&(start as u64)).is_some() { SUCCESS } else { NOT_REGISTERED }
}

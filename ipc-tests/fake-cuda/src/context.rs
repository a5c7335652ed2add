//! Devices and their primary contexts.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;

use crate::code::*;
use crate::inject::entered;
use crate::state::{fresh, number};

/// A device's primary context, from its first retain to its last release.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) id: u64,
    /// Number of the device on the machine.
    pub(crate) device: u32,
    sticky: AtomicU32,
    gone: AtomicBool,
}

impl Context {
    /// The error that sticks to it.
    pub(crate) fn error(&self) -> u32 {
        self.sticky.load(Ordering::Acquire)
    }

    /// From now on everything fails with this.
    pub(crate) fn fault(&self, code: u32) {
        let _ = self.sticky.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Whether its streams must not go on.
    pub(crate) fn stopped(&self) -> bool {
        self.error() != 0 || self.gone.load(Ordering::Acquire)
    }
}

#[derive(Default)]
struct Contexts {
    initialized: bool,
    /// By device, with the number of retains.
    primary: HashMap<u32, (Arc<Context>, u32)>,
}

static CONTEXTS: LazyLock<Mutex<Contexts>> = LazyLock::new(Mutex::default);
/// The devices of the machine that this process sees, in its own order.
static VISIBLE: LazyLock<Vec<u32>> = LazyLock::new(|| {
    let all = number("FAKE_CUDA_DEVICES", if cfg!(test) { 2 } else { 1 }) as u32;
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(list) => {
            list.split(',').map_while(|at| at.trim().parse().ok()).take_while(|at| *at < all).collect()
        }
        Err(_) => (0..all).collect(),
    }
});

thread_local! {
    static STACK: RefCell<Vec<Arc<Context>>> = const { RefCell::new(Vec::new()) };
}

/// The calling thread's context.
pub(crate) fn current() -> Option<Arc<Context>> {
    STACK.with(|stack| stack.borrow().last().cloned())
}

fn find(raw: *mut c_void) -> Option<Arc<Context>> {
    let contexts = CONTEXTS.lock();
    contexts.primary.values().map(|(context, _)| context).find(|context| context.id == raw as u64).cloned()
}

fn marker(device: u32) -> String {
    format!("/dev/shm/{}_context_{}_{device}", *crate::state::NAME, std::process::id())
}

fn physical(device: c_int) -> Option<u32> {
    CONTEXTS.lock().initialized.then_some(())?;
    VISIBLE.get(usize::try_from(device).ok()?).copied()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuInit(_flags: c_uint) -> u32 {
    entered!("cuInit");
    if VISIBLE.is_empty() {
        return NO_DEVICE;
    }
    CONTEXTS.lock().initialized = true;
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> u32 {
    entered!("cuDriverGetVersion");
    // SAFETY: the caller's pointer.
    unsafe { *version = number("FAKE_CUDA_VERSION", 12_080) as c_int };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> u32 {
    entered!("cuDeviceGetCount");
    if !CONTEXTS.lock().initialized {
        return NOT_INITIALIZED;
    }
    // SAFETY: the caller's pointer.
    unsafe { *count = VISIBLE.len() as c_int };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> u32 {
    entered!("cuDeviceGet");
    if physical(ordinal).is_none() {
        return INVALID_DEVICE;
    }
    // SAFETY: the caller's pointer.
    unsafe { *device = ordinal };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) -> u32 {
    entered!("cuDeviceGetUuid_v2");
    let Some(device) = physical(device) else { return INVALID_DEVICE };
    // SAFETY: the caller's pointer.
    unsafe { *uuid = [0xfa, 0x4e, 0xc0, 0xda, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, device as u8] };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) -> u32 {
    entered!("cuDeviceGetName");
    if physical(device).is_none() {
        return INVALID_DEVICE;
    }
    let text = b"Fake GPU\0";
    let len = text.len().min(usize::try_from(len).unwrap_or(0));
    // SAFETY: the caller's buffer has `len` bytes.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), name.cast(), len) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, _attribute: c_int, device: c_int) -> u32 {
    entered!("cuDeviceGetAttribute");
    if physical(device).is_none() {
        return INVALID_DEVICE;
    }
    // SAFETY: the caller's pointer.
    unsafe { *value = 1 };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, device: c_int) -> u32 {
    entered!("cuDevicePrimaryCtxRetain");
    let Some(device) = physical(device) else { return INVALID_DEVICE };
    let mut contexts = CONTEXTS.lock();
    let (primary, retains) = contexts.primary.entry(device).or_insert_with(|| {
        let context =
            Context { id: fresh() << 4, device, sticky: AtomicU32::new(0), gone: AtomicBool::new(false) };
        // For who wants to know from outside whether there is one.
        let _ = std::fs::write(marker(device), "");
        (Arc::new(context), 0)
    });
    *retains += 1;
    // SAFETY: the caller's pointer.
    unsafe { *context = primary.id as *mut c_void };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> u32 {
    entered!("cuDevicePrimaryCtxRelease_v2");
    let Some(device) = physical(device) else { return INVALID_DEVICE };
    let mut contexts = CONTEXTS.lock();
    let Some((context, retains)) = contexts.primary.get_mut(&device) else { return INVALID_CONTEXT };
    *retains -= 1;
    if *retains == 0 {
        context.gone.store(true, Ordering::Release);
        let id = context.id;
        contexts.primary.remove(&device);
        let _ = std::fs::remove_file(marker(device));
        drop(contexts);
        crate::memory::context_gone(id);
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxReset_v2(device: c_int) -> u32 {
    entered!("cuDevicePrimaryCtxReset_v2");
    let Some(device) = physical(device) else { return INVALID_DEVICE };
    let destroyed = CONTEXTS.lock().primary.remove(&device);
    if let Some((context, _)) = destroyed {
        context.gone.store(true, Ordering::Release);
        let _ = std::fs::remove_file(marker(device));
        crate::memory::context_gone(context.id);
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxGetState(
    device: c_int,
    flags: *mut c_uint,
    active: *mut c_int,
) -> u32 {
    entered!("cuDevicePrimaryCtxGetState");
    let Some(device) = physical(device) else { return INVALID_DEVICE };
    // SAFETY: the caller's pointers.
    unsafe {
        *flags = 0;
        *active = c_int::from(CONTEXTS.lock().primary.contains_key(&device));
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxPushCurrent_v2(context: *mut c_void) -> u32 {
    entered!("cuCtxPushCurrent_v2");
    let Some(context) = find(context) else { return INVALID_CONTEXT };
    STACK.with(|stack| stack.borrow_mut().push(context));
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxPopCurrent_v2(context: *mut *mut c_void) -> u32 {
    entered!("cuCtxPopCurrent_v2");
    let Some(popped) = STACK.with(|stack| stack.borrow_mut().pop()) else { return INVALID_CONTEXT };
    if !context.is_null() {
        // SAFETY: the caller's pointer.
        unsafe { *context = popped.id as *mut c_void };
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> u32 {
    entered!("cuCtxSetCurrent");
    let found = find(context);
    if !context.is_null() && found.is_none() {
        return INVALID_CONTEXT;
    }
    STACK.with(|stack| {
        let mut stack = stack.borrow_mut();
        stack.pop();
        stack.extend(found);
    });
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut *mut c_void) -> u32 {
    entered!("cuCtxGetCurrent");
    // SAFETY: the caller's pointer.
    unsafe { *context = current().map_or(0, |context| context.id) as *mut c_void };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: u32, name: *mut *const c_char) -> u32 {
    let text: &[u8] = match code {
        INVALID_VALUE => b"CUDA_ERROR_INVALID_VALUE\0",
        OUT_OF_MEMORY => b"CUDA_ERROR_OUT_OF_MEMORY\0",
        INVALID_CONTEXT => b"CUDA_ERROR_INVALID_CONTEXT\0",
        INVALID_HANDLE => b"CUDA_ERROR_INVALID_HANDLE\0",
        ILLEGAL_ADDRESS => b"CUDA_ERROR_ILLEGAL_ADDRESS\0",
        _ => return INVALID_VALUE,
    };
    // SAFETY: the caller's pointer; the text lives for ever.
    unsafe { *name = text.as_ptr().cast() };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetProcAddress_v2(
    symbol: *const c_char,
    function: *mut *mut c_void,
    version: c_int,
    _flags: u64,
    status: *mut c_int,
) -> u32 {
    entered!("cuGetProcAddress_v2");
    // SAFETY: the caller's text with an end.
    let name = unsafe { std::ffi::CStr::from_ptr(symbol) };
    let known = name.to_bytes() == b"cuMemcpyBatchAsync"
        && (12_080..13_000).contains(&version)
        && number("FAKE_CUDA_VERSION", 12_080) >= 12_080;
    // SAFETY: the caller's pointers.
    unsafe {
        *function = if known { crate::copy::cuMemcpyBatchAsync as *mut c_void } else { std::ptr::null_mut() };
        if !status.is_null() {
            *status = c_int::from(!known);
        }
    }
    if known { SUCCESS } else { NOT_FOUND }
}

//! Modules and kernels. PTX is not executed: a kernel that this library knows by name is done in its place.

use std::ffi::{CStr, c_char, c_uint, c_void};

use crate::code::*;
use crate::inject::entered;
use crate::memory;
use crate::stream::{Op, stream};

const GATHER: u64 = 0x10;
const SCATTER: u64 = 0x20;

/// One launch: rows between a buffer and places, `(base, row of the buffer, rows, bytes, step here, step there)` each.
pub(crate) struct Launch {
    gather: bool,
    table: u64,
    count: u64,
    buffer: u64,
}

/// Words of one entry of the table.
const ENTRY: u64 = 6;

/// Does it. `false`: an address was not there.
pub(crate) fn execute(launch: &Launch) -> bool {
    (0..launch.count).all(|at| {
        let entry = memory::with(launch.table + at * ENTRY * 8, ENTRY * 8, |real| {
            // SAFETY: mapped meanwhile; the table is of 8-byte words.
            std::array::from_fn::<u64, 6, _>(|word| unsafe { real.cast::<u64>().add(word).read_unaligned() })
        });
        let Some([tensor, offset, bytes, rows, tensor_step, buffer_step]) = entry else { return false };
        (0..rows).all(|row| {
            let (there, here) = (tensor + row * tensor_step, launch.buffer + offset + row * buffer_step);
            let (to, from) = if launch.gather { (here, there) } else { (there, here) };
            // SAFETY: both are mapped meanwhile.
            memory::with_both(to, from, bytes, |to, from| unsafe { to.copy_from(from, bytes as usize) })
                .is_some()
        })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut *mut c_void, image: *const c_void) -> u32 {
    entered!("cuModuleLoadData", context);
    // SAFETY: the caller's text with an end.
    let text = unsafe { CStr::from_ptr(image.cast()) };
    if !text.to_bytes().windows(7).any(|word| word == b".target") {
        return INVALID_IMAGE;
    }
    // SAFETY: the caller's pointer.
    unsafe { *module = 0x30 as *mut c_void };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(_module: *mut c_void) -> u32 {
    entered!("cuModuleUnload");
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut *mut c_void,
    _module: *mut c_void,
    name: *const c_char,
) -> u32 {
    entered!("cuModuleGetFunction", context);
    // SAFETY: the caller's text with an end.
    let known = match unsafe { CStr::from_ptr(name) }.to_bytes() {
        b"lmcached_gather" => GATHER,
        b"lmcached_scatter" => SCATTER,
        _ => return NOT_FOUND,
    };
    // SAFETY: the caller's pointer.
    unsafe { *function = known as *mut c_void };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: *mut c_void,
    grid_x: c_uint,
    _grid_y: c_uint,
    _grid_z: c_uint,
    block_x: c_uint,
    _block_y: c_uint,
    _block_z: c_uint,
    _shared: c_uint,
    stream: *mut c_void,
    parameters: *const *const u64,
    _extra: *mut *mut c_void,
) -> u32 {
    entered!("cuLaunchKernel", context);
    if grid_x == 0 || block_x == 0 || block_x > 1024 {
        return INVALID_VALUE;
    }
    // SAFETY: the kernel has three parameters of 8 bytes.
    let [table, count, buffer] = std::array::from_fn(|at| unsafe { **parameters.add(at) });
    let launch = Launch { gather: function as u64 == GATHER, table, count, buffer };
    stream!(stream).push(Op::Kernel(launch));
    SUCCESS
}

//! Modules and launches: of one kernel, the daemon's, whose source is compiled for the CPU.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_uint, c_void};
use std::sync::LazyLock;

use parking_lot::Mutex;

use crate::code::*;
use crate::inject::entered;
use crate::memory;
use crate::state::{fresh, number};
use crate::stream::{Op, stream};

/// `PIECES` in the kernel's source.
const PIECES: usize = 127;

/// `struct piece` in the kernel's source.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Piece {
    to: u64,
    from: u64,
    bytes: u32,
    rows: u32,
    to_step: u32,
    from_step: u32,
}

/// The kernel's parameter.
type Pieces = [Piece; PIECES];

/// A launch: the parameter as it was, and its size.
#[derive(Debug)]
pub(crate) struct Launch {
    pieces: Box<Pieces>,
    count: u32,
    blocks: u32,
    threads: u32,
}

unsafe extern "C" {
    fn lmcached_move_on_cpu(pieces: *const Pieces, count: c_uint, blocks: c_uint, threads: c_uint);
}

/// What modules were loaded from, and the functions that were found in them.
#[derive(Default)]
struct Loaded {
    modules: HashMap<u64, String>,
    functions: HashMap<u64, (String, usize)>,
}

static LOADED: LazyLock<Mutex<Loaded>> = LazyLock::new(Mutex::default);

/// Bytes of a function's parameter, as its PTX declares it.
fn parameter_bytes(ptx: &str, name: &str) -> Option<usize> {
    let (_, rest) = ptx.split_once(&format!(".visible .entry {name}("))?;
    let (declared, _) = rest.split_once(')')?;
    let (_, bytes) = declared.rsplit_once('[')?;
    bytes.trim_end().trim_end_matches(']').parse().ok()
}

/// Does it. `false`: an address was not there.
pub(crate) fn execute(launch: &Launch) -> bool {
    let mut pieces = launch.pieces.clone();
    let count = launch.count as usize;
    let spans = |piece: &Piece| {
        let span =
            |step: u32| u64::from(piece.rows.saturating_sub(1)) * u64::from(step) + u64::from(piece.bytes);
        [(piece.to, span(piece.to_step)), (piece.from, span(piece.from_step))]
    };
    let asked: Vec<(u64, u64)> = pieces[..count].iter().flat_map(spans).collect();
    // Nothing is unmapped while the kernel runs.
    memory::with_all(&asked, |real| {
        for (piece, real) in pieces.iter_mut().zip(real.chunks(2)) {
            (piece.to, piece.from) = (real[0] as u64, real[1] as u64);
        }
        // SAFETY: all that the first `count` pieces touch is mapped, as was just looked up.
        unsafe { lmcached_move_on_cpu(&*pieces, launch.count, launch.blocks, launch.threads) };
    })
    .is_some()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut *mut c_void, image: *const c_char) -> u32 {
    entered!("cuModuleLoadData", context);
    // SAFETY: the caller's text with an end.
    let text = unsafe { CStr::from_ptr(image) }.to_string_lossy().into_owned();
    if !text.contains("\n.version ") || !text.contains("\n.target sm_") {
        return INVALID_IMAGE;
    }
    if number("FAKE_CUDA_PTX", 1) == 0 {
        return UNSUPPORTED_PTX_VERSION;
    }
    let id = fresh() << 4;
    LOADED.lock().modules.insert(id, text);
    // SAFETY: the caller's pointer.
    unsafe { *module = id as *mut c_void };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut *mut c_void,
    module: *mut c_void,
    name: *const c_char,
) -> u32 {
    entered!("cuModuleGetFunction", context);
    // SAFETY: the caller's text with an end.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    let mut loaded = LOADED.lock();
    let Some(ptx) = loaded.modules.get(&(module as u64)) else { return INVALID_HANDLE };
    let Some(bytes) = parameter_bytes(ptx, &name) else { return NOT_FOUND };
    let id = fresh() << 4;
    loaded.functions.insert(id, (name, bytes));
    // SAFETY: the caller's pointer.
    unsafe { *function = id as *mut c_void };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: *mut c_void,
    blocks_x: c_uint,
    blocks_y: c_uint,
    blocks_z: c_uint,
    threads_x: c_uint,
    threads_y: c_uint,
    threads_z: c_uint,
    _shared_bytes: c_uint,
    stream: *mut c_void,
    parameters: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> u32 {
    entered!("cuLaunchKernel", context);
    let stream = stream!(stream);
    match LOADED.lock().functions.get(&(function as u64)) {
        None => return INVALID_HANDLE,
        Some((name, bytes)) if name == "lmcached_move" && *bytes == size_of::<Pieces>() => {}
        Some(_) => return INVALID_IMAGE,
    }
    let threads = threads_x.saturating_mul(threads_y).saturating_mul(threads_z);
    let sane = (1..=PIECES as u32).contains(&blocks_x) && blocks_y > 0 && (1..=1024).contains(&threads);
    if !sane || blocks_z != 1 || threads != threads_x {
        return INVALID_VALUE;
    }
    // SAFETY: the caller's parameter, of the declared size.
    let pieces = unsafe { Box::new(**parameters.cast::<*const Pieces>()) };
    stream.push(Op::Launch(Launch { pieces, count: blocks_x, blocks: blocks_y, threads }));
    SUCCESS
}

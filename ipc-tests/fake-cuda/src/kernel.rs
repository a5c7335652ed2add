//! Modules and launches: of one kernel, the daemon's, whose source is compiled for the CPU.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_uint, c_void};
use std::sync::LazyLock;

use parking_lot::Mutex;

use crate::code::*;
use crate::inject::entered;
use crate::memory;
use crate::state::{fresh, number};
use crate::stream::{Op, drain_all, stream};

/// `PIECES` in the kernel's source.
const PIECES: usize = 85;

/// `struct piece` in the kernel's source.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Piece {
    to: u64,
    from: u64,
    bytes: u32,
    rows: u32,
    tiles: u32,
    to_row: u32,
    from_row: u32,
    to_tile: u32,
    from_tile: u32,
    unused: u32,
}

impl Piece {
    /// What it touches on both sides: nothing, or from where how much.
    fn spans(&self) -> [(u64, u64); 2] {
        let span =
            |row: u32, tile: u32| match (self.bytes, self.rows.checked_sub(1), self.tiles.checked_sub(1)) {
                (1.., Some(rows), Some(tiles)) => {
                    u64::from(tiles) * u64::from(tile)
                        + u64::from(rows) * u64::from(row)
                        + u64::from(self.bytes)
                }
                _ => 0,
            };
        [(self.to, span(self.to_row, self.to_tile)), (self.from, span(self.from_row, self.from_tile))]
    }
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

/// A function that was found, in which context, and the bytes of its parameter.
#[derive(Debug)]
struct Function {
    context: u64,
    name: String,
    bytes: usize,
    /// Loaded when it is first launched, as drivers do it.
    is_loaded: bool,
}

/// What modules were loaded from, with their contexts, and the functions that were found in them.
#[derive(Default)]
struct Loaded {
    modules: HashMap<u64, (u64, String)>,
    functions: HashMap<u64, Function>,
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
    // One that moves nothing has no addresses.
    let moving: Vec<usize> = (0..launch.count as usize)
        .filter(|at| pieces[*at].spans().iter().all(|(_, bytes)| *bytes > 0))
        .collect();
    let asked: Vec<(u64, u64)> = moving.iter().flat_map(|at| pieces[*at].spans()).collect();
    // Nothing is unmapped while the kernel runs.
    memory::with_all(&asked, |real| {
        for (at, real) in moving.iter().zip(real.chunks(2)) {
            (pieces[*at].to, pieces[*at].from) = (real[0] as u64, real[1] as u64);
        }
        // SAFETY: all that the first `count` pieces touch is mapped, as was just looked up; the others touch nothing.
        unsafe { lmcached_move_on_cpu(&*pieces, launch.count, launch.blocks, launch.threads) };
    })
    .is_some()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut *mut c_void, image: *const c_char) -> u32 {
    let context = entered!("cuModuleLoadData", context);
    // SAFETY: the caller's text with an end.
    let text = unsafe { CStr::from_ptr(image) }.to_string_lossy().into_owned();
    if !text.contains("\n.version ") || !text.contains("\n.target sm_") {
        return INVALID_IMAGE;
    }
    if number("FAKE_CUDA_PTX", 1) == 0 {
        return UNSUPPORTED_PTX_VERSION;
    }
    // Loading waits for whatever is under way.
    drain_all(&context);
    let id = fresh() << 4;
    LOADED.lock().modules.insert(id, (context.id, text));
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
    let context = entered!("cuModuleGetFunction", context);
    // SAFETY: the caller's text with an end.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    let mut loaded = LOADED.lock();
    let found = loaded.modules.get(&(module as u64)).filter(|(of, _)| *of == context.id);
    let Some((_, ptx)) = found else { return INVALID_HANDLE };
    let Some(bytes) = parameter_bytes(ptx, &name) else { return NOT_FOUND };
    let id = fresh() << 4;
    loaded.functions.insert(id, Function { context: context.id, name, bytes, is_loaded: false });
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
    let context = entered!("cuLaunchKernel", context);
    let stream = stream!(stream);
    let was_loaded = {
        let mut loaded = LOADED.lock();
        let found = loaded.functions.get_mut(&(function as u64)).filter(|found| found.context == context.id);
        let Some(found) = found else { return INVALID_HANDLE };
        if found.name != "lmcached_move" || found.bytes != size_of::<Pieces>() {
            return INVALID_IMAGE;
        }
        std::mem::replace(&mut found.is_loaded, true)
    };
    if !was_loaded {
        drain_all(&context);
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

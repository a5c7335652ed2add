//! Survives a worker that shrinks its shared memory while we copy.
//!
//! A file mapping raises SIGBUS when a page is touched that the file no longer has, and the default action ends the
//! daemon with every worker's cache. As libwayland's compositor side does for its clients' buffers, a process-wide
//! handler looks the fault address up in a table of guarded regions, puts anonymous zero pages over the whole region
//! and marks it poisoned; the interrupted copy then runs to its end on zeros. Whoever copied must ask
//! `Guard::poisoned` afterwards: a poisoned copy is a failed copy.
//!
//! A hole of the file that tmpfs cannot fill any more (`/dev/shm` full) raises the same signal and ends the same way.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

use parking_lot::Mutex;

/// Regions that can be guarded at once. A worker has one segment as a rule, and one per layer at most.
const SLOTS: usize = 4096;

/// One guarded region. The handler reads it without a lock: `version` is odd while the other fields change, and
/// differs after they have (a sequence lock).
struct Slot {
    version: AtomicUsize,
    /// Address of the region; 0 for a free slot.
    start: AtomicUsize,
    len: AtomicUsize,
    poisoned: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        version: AtomicUsize::new(0),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        poisoned: AtomicBool::new(false),
    }
}; SLOTS];

/// Slots in use are all below this mark, so that the handler need not search the whole table.
static HIGH_WATER: AtomicUsize = AtomicUsize::new(0);

/// Serialises writers of [`TABLE`]; the handler never takes it.
static WRITERS: Mutex<()> = Mutex::new(());

/// The action that SIGBUS had before ours.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Why a region cannot be guarded.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The handler could not be installed.
    #[error("cannot install the SIGBUS handler: {0}")]
    Install(#[source] io::Error),
    /// All slots are taken.
    #[error("all {SLOTS} slots for mapped segments are in use")]
    Full,
}

/// Guards one mapping for as long as it lives.
#[derive(Debug)]
pub struct Guard {
    slot: usize,
}

impl Guard {
    /// Guards `len` bytes from `start`, installing the handler the first time.
    ///
    /// # Safety
    /// `start` begins a mapping of `len` bytes that the caller owns, keeps mapped until the guard is dropped, and
    /// touches only through raw pointers and only while it holds the guard: its pages may become zeros at any time.
    pub(crate) unsafe fn new(start: *mut u8, len: usize) -> Result<Guard, GuardError> {
        install().map_err(GuardError::Install)?;
        let _writers = WRITERS.lock();
        let free = TABLE.iter().position(|slot| slot.start.load(Ordering::Relaxed) == 0);
        let slot = free.ok_or(GuardError::Full)?;
        write(&TABLE[slot], start as usize, len);
        HIGH_WATER.fetch_max(slot + 1, Ordering::Release); // read by `region_of`
        Ok(Guard { slot })
    }

    /// True once a page of the region was missing. Everything read from the region by then may be zeros, and
    /// everything written may be lost. Stays true.
    pub(crate) fn poisoned(&self) -> bool {
        // The handler sets the flag before it maps zeros; a copy that saw those zeros must see the flag, also when
        // another thread faulted.
        fence(Ordering::SeqCst);
        TABLE[self.slot].poisoned.load(Ordering::SeqCst)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _writers = WRITERS.lock();
        write(&TABLE[self.slot], 0, 0);
    }
}

/// Sets a slot; the caller holds [`WRITERS`].
fn write(slot: &Slot, start: usize, len: usize) {
    let version = slot.version.load(Ordering::Relaxed);
    slot.version.store(version.wrapping_add(1), Ordering::Relaxed);
    fence(Ordering::Release); // pairs with the Acquire fence in `region_of`
    slot.start.store(start, Ordering::Relaxed);
    slot.len.store(len, Ordering::Relaxed);
    slot.poisoned.store(false, Ordering::Relaxed);
    slot.version.store(version.wrapping_add(2), Ordering::Release); // pairs with the Acquire load in `region_of`
}

/// The guarded region around an address. Async-signal-safe.
///
/// A slot that changes under the search belongs to somebody else: the region of a fault is being copied from by the
/// faulting thread, which keeps its guard alive, so its slot is stable.
fn region_of(address: usize) -> Option<(&'static Slot, usize, usize)> {
    let used = HIGH_WATER.load(Ordering::Acquire).min(SLOTS); // written by `Guard::new`
    TABLE[..used].iter().find_map(|slot| {
        let before = slot.version.load(Ordering::Acquire);
        let (start, len) = (slot.start.load(Ordering::Relaxed), slot.len.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let stable = before.is_multiple_of(2) && slot.version.load(Ordering::Relaxed) == before;
        let inside = start != 0 && address.checked_sub(start).is_some_and(|offset| offset < len);
        (stable && inside).then_some((slot, start, len))
    })
}

fn install() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock();
    if *installed {
        return Ok(());
    }
    // SAFETY: an all-zero sigaction is a valid value of that plain C struct.
    let (mut previous, mut ours): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
    // SAFETY: asks for the current action only; `previous` is valid for writes.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut previous) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Known before the handler can run, so that it never chains to nothing.
    let _ = PREVIOUS.set(previous);
    ours.sa_sigaction = handler as *const () as usize;
    // On the alternate stack where a thread has one, as Rust's own stack-overflow handler asks for.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `ours` is fully initialised; the handler has the signature that SA_SIGINFO asks for and is
    // async-signal-safe.
    if unsafe { libc::sigemptyset(&mut ours.sa_mask) } != 0
        || unsafe { libc::sigaction(libc::SIGBUS, &ours, std::ptr::null_mut()) } != 0
    {
        return Err(io::Error::last_os_error());
    }
    *installed = true;
    Ok(())
}

/// Runs on the faulting thread. Only atomics and system calls: no lock, no allocation, no panic.
extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: errno of this thread; the interrupted code must find it as it was.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel passes a valid siginfo.
    let code = unsafe { (*info).si_code };
    // Only what this thread's own access raised: a missing page, or one with broken memory. Another process may send
    // the signal too, and has no address then.
    let region = if matches!(code, libc::BUS_ADRERR | libc::BUS_MCEERR_AR) {
        // SAFETY: a SIGBUS of these codes carries an address.
        region_of(unsafe { (*info).si_addr() } as usize)
    } else {
        None
    };
    if !region.is_some_and(|(slot, start, len)| poison(slot, start, len)) {
        chain(signal, info, context, code);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Puts zero pages over a region. Async-signal-safe: `mmap` is a bare system call on Linux.
fn poison(slot: &Slot, start: usize, len: usize) -> bool {
    // Before the zeros are there to be read; see `Guard::poisoned`.
    slot.poisoned.store(true, Ordering::SeqCst);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: by the contract of `Guard::new`, the range is a mapping whose owner allows this.
    let mapped =
        unsafe { libc::mmap(start as *mut c_void, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

/// Not our fault: do what would have been done without us.
fn chain(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void, code: c_int) {
    let sent = code <= 0;
    let action = PREVIOUS.get().map_or(libc::SIG_DFL, |previous| previous.sa_sigaction);
    let with_info = PREVIOUS.get().is_some_and(|previous| previous.sa_flags & libc::SA_SIGINFO != 0);
    match action {
        libc::SIG_IGN if sent => return,
        // Ignoring a fault would repeat it for ever; the kernel takes the default action then, and so do we.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: plain values; async-signal-safe.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        handler if with_info => {
            // SAFETY: the previous owner installed this address with SA_SIGINFO, hence with this signature.
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: the previous owner installed this address without SA_SIGINFO, hence with this signature.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
    // A fault repeats on return and meets the default action if that is what is set now (Rust's own handler sets it). A
    // sent signal would be lost, and our handler with it: send it again. It stays pending until this handler returns.
    // SAFETY: an all-zero sigaction is valid and is valid for writes; the calls are async-signal-safe.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        let default =
            libc::sigaction(signal, std::ptr::null(), &mut now) == 0 && now.sa_sigaction == libc::SIG_DFL;
        if sent && default {
            libc::raise(signal);
        }
    }
}

//! Events: how often recorded, how often reached; shared between processes for those that are exported.

use std::collections::HashMap;
use std::ffi::{c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;

use crate::code::*;
use crate::inject::entered;
use crate::state::{EVENT, Handle, RawHandle, fresh, map, now, unlink};
use crate::stream::{Op, stream};

const DISABLE_TIMING: c_uint = 2;
const INTERPROCESS: c_uint = 4;

#[repr(C)]
struct Shared {
    recorded: AtomicU64,
    completed: AtomicU64,
}

/// An event; its memory lives as long as anybody uses it.
pub(crate) struct Event {
    shared: *const Shared,
    handle: Option<Handle>,
    own: bool,
    timing: bool,
    at: AtomicU64,
    /// Id of the context that it was made in, the only one whose streams may record it.
    context: u64,
}

// SAFETY: what is shared is atomic.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

static EVENTS: LazyLock<Mutex<HashMap<u64, Arc<Event>>>> = LazyLock::new(Mutex::default);

impl Event {
    fn shared(&self) -> &Shared {
        // SAFETY: mapped or boxed until the drop, and zeroed atomics are valid.
        unsafe { &*self.shared }
    }

    pub(crate) fn complete(&self, number: u64) {
        self.at.store(now(), Ordering::Release);
        self.shared().completed.fetch_max(number, Ordering::AcqRel);
    }

    pub(crate) fn completed(&self, number: u64) -> bool {
        self.shared().completed.load(Ordering::Acquire) >= number
    }

    fn recorded(&self) -> u64 {
        self.shared().recorded.load(Ordering::Acquire)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        match &self.handle {
            // SAFETY: the mapping is this event's.
            Some(handle) => unsafe {
                libc::munmap(self.shared as *mut c_void, size_of::<Shared>());
                if self.own {
                    unlink(&handle.segment());
                }
            },
            // SAFETY: boxed in `cuEventCreate`.
            None => drop(unsafe { Box::from_raw(self.shared.cast_mut()) }),
        }
    }
}

fn find(raw: *mut c_void) -> Option<Arc<Event>> {
    EVENTS.lock().get(&(raw as u64)).cloned()
}

/// Finds the event, or ends the call.
macro_rules! event {
    ($raw:expr) => {
        match find($raw) {
            Some(event) => event,
            None => return INVALID_HANDLE,
        }
    };
}

fn keep(event: Event, into: *mut *mut c_void) -> u32 {
    let id = fresh() << 4;
    EVENTS.lock().insert(id, Arc::new(event));
    // SAFETY: the pointer of a caller of the functions below.
    unsafe { *into = id as *mut c_void };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut *mut c_void, flags: c_uint) -> u32 {
    let context = entered!("cuEventCreate", context);
    let timing = flags & DISABLE_TIMING == 0;
    if flags & INTERPROCESS == 0 {
        let shared =
            Box::into_raw(Box::new(Shared { recorded: AtomicU64::new(0), completed: AtomicU64::new(0) }));
        let (at, context) = (AtomicU64::new(0), context.id);
        return keep(Event { shared, handle: None, own: true, timing, at, context }, event);
    }
    if timing {
        return INVALID_VALUE;
    }
    let handle = Handle::new(EVENT, context.device, fresh(), size_of::<Shared>() as u64);
    let Some(shared) = map(&handle.segment(), size_of::<Shared>(), true) else { return OUT_OF_MEMORY };
    let (shared, handle, at, context) = (shared.cast(), Some(handle), AtomicU64::new(0), context.id);
    keep(Event { shared, handle, own: true, timing, at, context }, event)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(event: *mut c_void) -> u32 {
    entered!("cuEventDestroy_v2");
    if EVENTS.lock().remove(&(event as u64)).is_some() { SUCCESS } else { INVALID_HANDLE }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(event: *mut c_void, stream: *mut c_void) -> u32 {
    entered!("cuEventRecord", context);
    let (event, stream) = (event!(event), stream!(stream));
    if !event.own || event.context != stream.context() {
        return INVALID_HANDLE;
    }
    let number = event.shared().recorded.fetch_add(1, Ordering::AcqRel) + 1;
    stream.push(Op::Record(event, number));
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventQuery(event: *mut c_void) -> u32 {
    entered!("cuEventQuery", context);
    let event = event!(event);
    if event.completed(event.recorded()) { SUCCESS } else { NOT_READY }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventSynchronize(event: *mut c_void) -> u32 {
    let context = entered!("cuEventSynchronize", context);
    let event = event!(event);
    let number = event.recorded();
    while !event.completed(number) && !context.stopped() {
        std::thread::sleep(Duration::from_micros(50));
    }
    context.error()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(
    milliseconds: *mut f32,
    start: *mut c_void,
    end: *mut c_void,
) -> u32 {
    entered!("cuEventElapsedTime", context);
    let (start, end) = (event!(start), event!(end));
    if start.context != end.context {
        return INVALID_HANDLE;
    }
    if !start.timing || !end.timing || start.recorded() == 0 || end.recorded() == 0 {
        return INVALID_HANDLE;
    }
    if !start.completed(start.recorded()) || !end.completed(end.recorded()) {
        return NOT_READY;
    }
    let took = end.at.load(Ordering::Acquire).saturating_sub(start.at.load(Ordering::Acquire));
    // SAFETY: the caller's pointer.
    unsafe { *milliseconds = took as f32 / 1e6 };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitEvent(stream: *mut c_void, event: *mut c_void, _flags: c_uint) -> u32 {
    entered!("cuStreamWaitEvent", context);
    let (event, stream) = (event!(event), stream!(stream));
    let number = event.recorded();
    stream.push(Op::Wait(event, number));
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuIpcGetEventHandle(handle: *mut [u8; 64], event: *mut c_void) -> u32 {
    entered!("cuIpcGetEventHandle", context);
    let event = event!(event);
    let Some(own) = event.handle.filter(|_| event.own) else { return INVALID_HANDLE };
    // SAFETY: the caller's pointer.
    unsafe { *handle = own.encode() };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuIpcOpenEventHandle(event: *mut *mut c_void, handle: RawHandle) -> u32 {
    let context = entered!("cuIpcOpenEventHandle", context);
    let handle = Handle::decode(&handle.0);
    if handle.kind != EVENT || handle.pid == std::process::id() || !handle.alive() {
        return INVALID_HANDLE;
    }
    let Some(shared) = map(&handle.segment(), size_of::<Shared>(), false) else { return INVALID_HANDLE };
    let imported = Event {
        shared: shared.cast(),
        handle: Some(handle),
        own: false,
        timing: false,
        at: AtomicU64::new(0),
        context: context.id,
    };
    keep(imported, event)
}

//! Streams: a thread each.

use std::collections::{HashMap, VecDeque};
use std::ffi::{c_uint, c_void};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::code::*;
use crate::context::{Context, current};
use crate::copy::Batch;
use crate::event::Event;
use crate::inject::{self, Later, entered};
use crate::kernel::Launch;
use crate::state::{DELAY, fresh};
use crate::{copy, kernel, memory};

/// Between two looks at what an operation waits for.
const LOOK: Duration = Duration::from_micros(50);

/// A function of the caller's and what it is given.
pub(crate) struct HostFunction(pub(crate) unsafe extern "C" fn(*mut c_void), pub(crate) *mut c_void);

// SAFETY: the caller hands both over to whatever thread calls it; that is what the driver does.
unsafe impl Send for HostFunction {}

pub(crate) enum Op {
    Copy(Batch),
    Launch(Launch),
    Fill {
        at: u64,
        bytes: u64,
        value: u8,
    },
    Record(Arc<Event>, u64),
    Wait(Arc<Event>, u64),
    WaitValue {
        at: u64,
        value: u64,
    },
    WriteValue {
        at: u64,
        value: u64,
    },
    Host(HostFunction),
    /// Spoils the context.
    Fault(u32),
    /// Not begun before the line has gone from the file of failures.
    Held(Box<Op>, String),
    Stop,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Op>,
    busy: bool,
}

pub(crate) struct Stream {
    context: Arc<Context>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

static STREAMS: LazyLock<Mutex<HashMap<u64, Arc<Stream>>>> = LazyLock::new(Mutex::default);

impl Stream {
    fn new(context: Arc<Context>) -> Arc<Stream> {
        let stream = Arc::new(Stream { context, queue: Mutex::default(), changed: Condvar::new() });
        let runs = stream.clone();
        std::thread::spawn(move || runs.run());
        stream
    }

    pub(crate) fn push(&self, op: Op) {
        let op = match inject::later() {
            None => op,
            Some(Later::Fails(code)) => Op::Fault(code),
            Some(Later::Held(line)) => Op::Held(Box::new(op), line),
        };
        self.queue.lock().waiting.push_back(op);
        self.changed.notify_all();
    }

    /// Id of its context.
    pub(crate) fn context(&self) -> u64 {
        self.context.id
    }

    /// Waits until all is done; the context's error, if it has one.
    pub(crate) fn drain(&self) -> u32 {
        let mut queue = self.queue.lock();
        while (queue.busy || !queue.waiting.is_empty()) && self.context.error() == 0 {
            self.changed.wait_for(&mut queue, Duration::from_millis(5));
        }
        self.context.error()
    }

    fn idle(&self) -> bool {
        let queue = self.queue.lock();
        !queue.busy && queue.waiting.is_empty()
    }

    fn run(&self) {
        loop {
            let op = {
                let mut queue = self.queue.lock();
                queue.busy = false;
                self.changed.notify_all();
                while queue.waiting.is_empty() {
                    self.changed.wait(&mut queue);
                }
                queue.busy = true;
                queue.waiting.pop_front()
            };
            let Some(op) = op else { continue };
            if !DELAY.is_zero() {
                std::thread::sleep(*DELAY);
            }
            if matches!(op, Op::Stop) {
                return;
            }
            // After an error nothing is executed, and no host function is called.
            if !self.context.stopped() {
                self.execute(op);
            }
        }
    }

    fn execute(&self, op: Op) {
        let illegal = || self.context.fault(ILLEGAL_ADDRESS);
        match op {
            Op::Copy(batch) => {
                if !copy::execute(&batch) {
                    illegal();
                }
            }
            Op::Launch(launch) => {
                if !kernel::execute(&launch) {
                    illegal();
                }
            }
            Op::Fill { at, bytes, value } => {
                // SAFETY: the memory is mapped while `with` runs.
                let filled =
                    memory::with(at, bytes, |real| unsafe { real.write_bytes(value, bytes as usize) });
                if filled.is_none() {
                    illegal();
                }
            }
            Op::Record(event, number) => event.complete(number),
            Op::Wait(event, number) => self.until(|| Some(event.completed(number))),
            // SAFETY: 8 mapped and aligned bytes; other processes write them as one.
            Op::WaitValue { at, value } => {
                self.until(|| memory::with(at, 8, |real| unsafe { copy::word(real) >= value }));
            }
            Op::WriteValue { at, value } => {
                // SAFETY: as above.
                if memory::with(at, 8, |real| unsafe { copy::set_word(real, value) }).is_none() {
                    illegal();
                }
            }
            // SAFETY: the caller's contract.
            Op::Host(HostFunction(function, data)) => unsafe { function(data) },
            Op::Fault(code) => self.context.fault(code),
            Op::Held(op, line) => {
                self.until(|| Some(!inject::holds(&line)));
                if !self.context.stopped() {
                    self.execute(*op);
                }
            }
            Op::Stop => {}
        }
    }

    fn until(&self, done: impl Fn() -> Option<bool>) {
        while !self.context.stopped() {
            match done() {
                Some(true) => return,
                Some(false) => std::thread::sleep(LOOK),
                None => self.context.fault(ILLEGAL_ADDRESS),
            }
        }
    }
}

/// Waits until all streams of a context have done all.
pub(crate) fn drain_all(context: &Context) {
    let streams: Vec<Arc<Stream>> =
        STREAMS.lock().values().filter(|stream| stream.context.id == context.id).cloned().collect();
    for stream in streams {
        stream.drain();
    }
}

/// A stream of the current context; one of another is an invalid handle.
pub(crate) fn of(raw: *mut c_void) -> Result<Arc<Stream>, u32> {
    let stream = STREAMS.lock().get(&(raw as u64)).cloned().ok_or(INVALID_HANDLE)?;
    match current() {
        Some(context) if context.id == stream.context.id => Ok(stream),
        _ => Err(INVALID_HANDLE),
    }
}

/// Finds the stream, or ends the call.
macro_rules! stream {
    ($raw:expr) => {
        match crate::stream::of($raw) {
            Ok(stream) => stream,
            Err(code) => return code,
        }
    };
}
pub(crate) use stream;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut *mut c_void, _flags: c_uint) -> u32 {
    let context = entered!("cuStreamCreate", context);
    let id = fresh() << 4;
    STREAMS.lock().insert(id, Stream::new(context));
    // SAFETY: the caller's pointer.
    unsafe { *stream = id as *mut c_void };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: *mut c_void) -> u32 {
    entered!("cuStreamDestroy_v2");
    let Some(stream) = STREAMS.lock().remove(&(stream as u64)) else { return INVALID_HANDLE };
    stream.push(Op::Stop);
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamQuery(stream: *mut c_void) -> u32 {
    entered!("cuStreamQuery", context);
    if stream!(stream).idle() { SUCCESS } else { NOT_READY }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(stream: *mut c_void) -> u32 {
    entered!("cuStreamSynchronize", context);
    stream!(stream).drain()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchHostFunc(
    stream: *mut c_void,
    function: unsafe extern "C" fn(*mut c_void),
    data: *mut c_void,
) -> u32 {
    entered!("cuLaunchHostFunc", context);
    stream!(stream).push(Op::Host(HostFunction(function, data)));
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitValue64_v2(
    stream: *mut c_void,
    at: u64,
    value: u64,
    _flags: c_uint,
) -> u32 {
    entered!("cuStreamWaitValue64_v2", context);
    stream!(stream).push(Op::WaitValue { at, value });
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWriteValue64_v2(
    stream: *mut c_void,
    at: u64,
    value: u64,
    _flags: c_uint,
) -> u32 {
    entered!("cuStreamWriteValue64_v2", context);
    stream!(stream).push(Op::WriteValue { at, value });
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8Async(at: u64, value: u8, bytes: usize, stream: *mut c_void) -> u32 {
    entered!("cuMemsetD8Async", context);
    stream!(stream).push(Op::Fill { at, bytes: bytes as u64, value });
    SUCCESS
}

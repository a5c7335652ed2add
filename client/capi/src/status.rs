//! Codes, the last error of each thread, and the boundary that no panic crosses.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use lmcache_client::ClientError;

/// What came of a call.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// A null pointer, a text that is not UTF-8, a range that is not made of chunks: the call was not made.
    InvalidArgument = 1,
    /// The daemon cannot be reached. Try again later.
    Unreachable = 2,
    /// No answer in time. Try again later.
    Deadline = 3,
    /// The daemon answered something that the protocol does not have, or slots that cannot be. Nothing was touched.
    Protocol = 4,
    /// The daemon said no: the pool is full, a chunk has gone, the time for a commit was over.
    Refused = 5,
    /// `lmcache_register` comes first.
    NotRegistered = 6,
    /// The pool cannot be mapped: the worker runs without cache.
    Pool = 7,
    /// A lookup that still goes on.
    Pending = 8,
    /// A bug in this library.
    Internal = 9,
}

/// Why a call failed.
#[derive(Debug)]
pub(crate) enum Failure {
    Null(&'static str),
    Text(&'static str),
    Enum(&'static str),
    NoSuchSlot,
    Pending,
    Client(ClientError),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure::Client(error)
    }
}

impl Failure {
    fn status(&self) -> Status {
        match self {
            Failure::Null(_) | Failure::Text(_) | Failure::Enum(_) | Failure::NoSuchSlot => {
                Status::InvalidArgument
            }
            Failure::Pending => Status::Pending,
            Failure::Client(error) => match error {
                ClientError::Endpoint(_) | ClientError::Request(_) | ClientError::Range { .. } => {
                    Status::InvalidArgument
                }
                ClientError::Connect { .. } | ClientError::Transport(_) | ClientError::Closed => {
                    Status::Unreachable
                }
                ClientError::Deadline(_) => Status::Deadline,
                ClientError::Refused(_) => Status::Refused,
                ClientError::NotRegistered => Status::NotRegistered,
                ClientError::Pool(_) => Status::Pool,
                ClientError::InsideRuntime | ClientError::Runtime(_) => Status::Internal,
                // Handshake, frames, answers, slots.
                _ => Status::Protocol,
            },
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Null(what) => write!(f, "{what} is null"),
            Failure::Text(what) => write!(f, "{what} is not UTF-8"),
            Failure::Enum(what) => write!(f, "{what} has no such value"),
            Failure::NoSuchSlot => f.write_str("no such slot"),
            Failure::Pending => f.write_str("the lookup still goes on"),
            Failure::Client(error) => error.fmt(f),
        }
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

fn remember(message: &str) {
    let clean: Vec<u8> = message.bytes().filter(|byte| *byte != 0).collect();
    // Zeros are gone, so this cannot fail; and if it did, no message is better than no answer.
    let message = CString::new(clean).unwrap_or_default();
    // A thread that is ending has no last error any more.
    let _ = LAST.try_with(|last| last.replace(message));
}

pub(crate) fn last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Runs a call: no panic leaves it, and its failure is remembered.
pub(crate) fn bound(call: impl FnOnce() -> Result<(), Failure>) -> Status {
    // What a panic leaves half done is behind locks without poisoning, in values that are valid at every step.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => Status::Ok,
        Ok(Err(failure)) => {
            remember(&failure.to_string());
            failure.status()
        }
        Err(_) => {
            remember("a bug in the lmcached client (it panicked); please report it");
            Status::Internal
        }
    }
}

/// A C string as text.
///
/// # Safety
/// Null, or a string that lives and is not written for `'a`.
pub(crate) unsafe fn text<'a>(pointer: *const c_char, what: &'static str) -> Result<&'a str, Failure> {
    if pointer.is_null() {
        return Err(Failure::Null(what));
    }
    // SAFETY: the caller's contract.
    unsafe { CStr::from_ptr(pointer) }.to_str().map_err(|_| Failure::Text(what))
}

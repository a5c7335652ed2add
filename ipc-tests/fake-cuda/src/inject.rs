//! Failures on demand.
//!
//! A line of the file is `FUNCTION CODE [behind=OTHER] [skip=N] [times=N] [sticky|late|held]`: the call after the first N ones
//! returns the code, once or `times` times; with `behind` only calls count that follow one of OTHER on their thread. A counter begins
//! anew when its line changes.
//!
//! * `sticky`: the error stays in the current context;
//! * `late`: the call succeeds, and what it enqueued fails when the stream gets there, which spoils the context: so do faults of a
//!   kernel or a copy arrive;
//! * `held`: the call succeeds, and what it enqueued is not begun before the line has gone.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::LazyLock;

use parking_lot::Mutex;

use crate::context;

static CALLS: LazyLock<Mutex<HashMap<String, u64>>> = LazyLock::new(Mutex::default);
static FILE: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("FAKE_CUDA_FAULTS").ok());

/// What becomes of what a call enqueues.
pub(crate) enum Later {
    /// It spoils the context with this code.
    Fails(u32),
    /// It is not begun before this line has gone.
    Held(String),
}

thread_local! {
    static LATER: RefCell<Option<Later>> = const { RefCell::new(None) };
    static LAST: Cell<&'static str> = const { Cell::new("") };
}

/// What becomes of what the current call enqueues; once.
pub(crate) fn later() -> Option<Later> {
    LATER.take()
}

/// Whether a line is still in the file.
pub(crate) fn holds(line: &str) -> bool {
    let lines = FILE.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
    lines.is_some_and(|lines| lines.lines().any(|held| held == line))
}

/// What a call of `function` must return instead of being done.
pub(crate) fn fault(function: &'static str) -> Option<u32> {
    LATER.set(None);
    let last = LAST.replace(function);
    let lines = std::fs::read_to_string(FILE.as_ref()?).ok()?;
    let of_function = lines.lines().filter(|line| line.split_whitespace().next() == Some(function));
    // All count, and the first that says something holds.
    let failures: Vec<Failure> = of_function.filter_map(|line| Failure::of(line, last)).collect();
    let Failure { code, sticky, later } = failures.into_iter().next()?;
    if later.is_some() {
        LATER.set(later);
        return None;
    }
    if sticky && let Some(context) = context::current() {
        context.fault(code);
    }
    Some(code)
}

/// What a line says of the current call.
struct Failure {
    code: u32,
    sticky: bool,
    later: Option<Later>,
}

impl Failure {
    fn of(line: &str, last: &str) -> Option<Failure> {
        let mut words = line.split_whitespace().skip(1);
        let code: u32 = words.next()?.parse().ok()?;
        let (mut skip, mut times, mut sticky, mut later) = (0, 1, false, None);
        for word in words {
            match word.split_once('=') {
                Some(("skip", n)) => skip = n.parse().ok()?,
                Some(("times", n)) => times = n.parse().ok()?,
                Some(("behind", other)) if other != last => return None,
                _ => match word {
                    "sticky" => sticky = true,
                    "late" => later = Some(Later::Fails(code)),
                    "held" => later = Some(Later::Held(line.to_owned())),
                    _ => {}
                },
            }
        }
        let mut calls = CALLS.lock();
        let seen = calls.entry(line.to_owned()).or_default();
        *seen += 1;
        (*seen > skip && *seen <= skip + times).then_some(Failure { code, sticky, later })
    }
}

/// The beginning of every function of the driver.
macro_rules! entered {
    ($name:literal) => {
        if let Some(code) = crate::inject::fault($name) {
            return code;
        }
    };
    // One that needs a current context; gives it.
    ($name:literal, context) => {{
        entered!($name);
        match crate::context::current() {
            None => return crate::code::INVALID_CONTEXT,
            Some(context) => match context.error() {
                0 => context,
                code => return code,
            },
        }
    }};
}
pub(crate) use entered;

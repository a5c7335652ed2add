//! Failures on demand.
//!
//! A line of the file is `FUNCTION CODE [skip=N] [times=N] [sticky]`: the call after the first N ones returns the code, once or
//! `times` times; `sticky` leaves the error in the current context. A counter begins anew when its line changes.

use std::collections::HashMap;
use std::sync::LazyLock;

use parking_lot::Mutex;

use crate::context;

static CALLS: LazyLock<Mutex<HashMap<String, u64>>> = LazyLock::new(Mutex::default);
static FILE: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("FAKE_CUDA_FAULTS").ok());

/// What a call of `function` must return instead of being done.
pub(crate) fn fault(function: &str) -> Option<u32> {
    let lines = std::fs::read_to_string(FILE.as_ref()?).ok()?;
    let line = lines.lines().find(|line| line.split_whitespace().next() == Some(function))?;
    let mut words = line.split_whitespace().skip(1);
    let code: u32 = words.next()?.parse().ok()?;
    let (mut skip, mut times, mut sticky) = (0, 1, false);
    for word in words {
        match word.split_once('=') {
            Some(("skip", n)) => skip = n.parse().ok()?,
            Some(("times", n)) => times = n.parse().ok()?,
            _ => sticky |= word == "sticky",
        }
    }
    let mut calls = CALLS.lock();
    let seen = calls.entry(line.to_owned()).or_default();
    *seen += 1;
    if *seen <= skip || *seen > skip + times {
        return None;
    }
    if sticky && let Some(context) = context::current() {
        context.fault(code);
    }
    Some(code)
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

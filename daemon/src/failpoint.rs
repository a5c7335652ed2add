//! Places at which a test may kill the daemon: every step between two states of what outlives it; and where it may stop it.
//!
//! Without the feature `failpoints` there are none: [`hit`] is empty, and what is shipped is built without. The feature comes
//! with the tests' dependency on this package. With it, `LMCACHED_FAILPOINT=name:count` makes the daemon kill itself, with
//! SIGKILL, when it comes to the point `name` for the `count`th time. `ipc-tests/tests/crash_matrix.rs` has a case for each. At
//! those that only [`stop`] it stops itself, with SIGSTOP, until somebody lets it go on, and at those that [`panic`] a thread does.
#![forbid(unsafe_code)]

/// A step is done here, or is about to be; kills the process if a test has asked for it.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit(_name: &'static str) {}

/// A step is done here, or is about to be; kills the process if a test has asked for it.
#[cfg(feature = "failpoints")]
pub fn hit(name: &'static str) {
    signal_at(name, nix::sys::signal::Signal::SIGKILL);
}

/// Nothing is at stake here but time; stops the process if a test has asked for it.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn stop(_name: &'static str) {}

/// Nothing is at stake here but time; stops the process if a test has asked for it.
#[cfg(feature = "failpoints")]
pub fn stop(name: &'static str) {
    signal_at(name, nix::sys::signal::Signal::SIGSTOP);
}

/// What a bug might do here; panics if a test has asked for it.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn panic(_name: &'static str) {}

/// What a bug might do here; panics if a test has asked for it.
#[cfg(feature = "failpoints")]
#[expect(clippy::panic, reason = "what it is for")]
pub fn panic(name: &'static str) {
    if is_at(name) {
        std::panic!("at {name}, as a test has asked for");
    }
}

#[cfg(feature = "failpoints")]
fn signal_at(name: &str, signal: nix::sys::signal::Signal) {
    if is_at(name) {
        // A signal to this very thread takes effect before the call returns. One to the process might stop another thread first.
        let _ = nix::sys::signal::raise(signal);
    }
}

/// Whether this is where and when a test wants something to happen.
#[cfg(feature = "failpoints")]
fn is_at(name: &str) -> bool {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static ARMED: LazyLock<Option<(String, AtomicU64)>> = LazyLock::new(|| {
        let armed = std::env::var("LMCACHED_FAILPOINT").ok()?;
        let (name, count) = armed.rsplit_once(':')?;
        Some((name.to_owned(), AtomicU64::new(count.parse().ok()?)))
    });
    let Some((armed, left)) = &*ARMED else { return false };
    armed == name && left.fetch_sub(1, Ordering::Relaxed) == 1
}

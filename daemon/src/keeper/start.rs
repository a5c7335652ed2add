//! Starts the daemon with the descriptors that are kept for it: sd_listen_fds(3).
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::Pid;

use super::Options;
use super::store::Store;

/// Bytes of all names together; execve(2) takes no variable of 128 KiB.
const NAMES: usize = 120 << 10;

/// Starts it. Whoever waits for children hears of its end.
///
/// # Errors
/// The system call's.
pub(super) fn start(options: &Options, store: &Store) -> io::Result<Pid> {
    let (first, copies) = in_a_row(store)?;
    let names: Vec<&str> = store.kept().take(copies.len()).map(|(name, _)| name).collect();
    let mut command = Command::new(&options.program);
    command
        .args(&options.args)
        .env("NOTIFY_SOCKET", store.path())
        .env("FDSTORE", options.connections.to_string())
        // It is the process that is meant: there is no other number to compare with.
        .env_remove("LISTEN_PID")
        .env_remove("WATCHDOG_PID")
        .env("LISTEN_FDS", copies.len().to_string())
        .env("LISTEN_FDS_FIRST_FD", first.to_string())
        .env("LISTEN_FDNAMES", names.join(":"));
    match options.watchdog {
        Some(limit) => command.env("WATCHDOG_USEC", limit.as_micros().to_string()),
        None => command.env_remove("WATCHDOG_USEC"),
    };
    let child = command.spawn()?;
    Pid::from_raw(child.id() as i32).ok_or_else(|| io::Error::other("a process without a number"))
}

/// Copies of what is kept, at consecutive numbers above all others, which a process that is started inherits; and the first of
/// the numbers. Nothing else is opened meanwhile: there is one thread.
fn in_a_row(store: &Store) -> io::Result<(i32, Vec<OwnedFd>)> {
    let highest = store.kept().map(|(_, kept)| kept.as_raw_fd()).max().unwrap_or(0);
    let first = highest.max(64) + 1;
    let mut copies: Vec<OwnedFd> = Vec::new();
    let mut names = 0;
    for ((name, kept), number) in store.kept().zip(first..) {
        names += name.len() + 1;
        let copy = match fcntl_dupfd_cloexec(kept, number) {
            Ok(copy) if copy.as_raw_fd() == number && names <= NAMES => copy,
            refused => {
                let error = refused.err().map_or_else(String::new, |error| error.to_string());
                tracing::error!(
                    name,
                    error,
                    "there are too many connections to hand this one and those after it to the daemon; raise the limit of open files, or lower --connections. Their clients connect again"
                );
                break;
            }
        };
        fcntl_setfd(&copy, FdFlags::empty())?;
        copies.push(copy);
    }
    Ok((first, copies))
}

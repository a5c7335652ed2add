//! Identity of a process: a pid alone is reused, a pid with its start time is not.
#![forbid(unsafe_code)]

use std::fs;
use std::io::ErrorKind;

use lmcache_proto::wire::ProcessIdentity;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// A process, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot (field 22 of `/proc/pid/stat`).
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has `pid` now.
    pub fn of(pid: i32) -> Option<ProcessId> {
        let pid = u32::try_from(pid).ok().filter(|pid| *pid != 0)?;
        match look(pid) {
            Look::Lives(start_time) => Some(ProcessId { pid, start_time }),
            Look::Gone | Look::Unknown => None,
        }
    }

    /// The process that a worker says it is, if what it says fits what is seen here. A worker in another pid namespace, or
    /// on another machine, is nobody we could watch.
    pub fn declared(identity: &ProcessIdentity) -> Option<ProcessId> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
        if boot.trim() != identity.boot_id || namespace.to_str()? != identity.pid_namespace {
            return None;
        }
        let process = ProcessId::of(i32::try_from(identity.pid).ok()?)?;
        (process.start_time == identity.start_time).then_some(process)
    }

    /// Whether it still exists. A zombie is gone: it cannot touch memory any more. Where the system does not say (no
    /// descriptor left, /proc not mounted), the answer is yes: bytes are given to nobody else on a guess.
    pub fn alive(&self) -> bool {
        match look(self.pid) {
            Look::Lives(start_time) => start_time == self.start_time,
            Look::Gone => false,
            Look::Unknown => true,
        }
    }
}

/// Raises this process's limit of open files to what the system allows it. Returns the limit.
///
/// # Errors
/// The system call's.
pub fn raise_descriptor_limit() -> nix::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// Nice value, above that of the daemon, of the threads that tell what happened, and of those that serve peers which always have
/// more to ask.
const BEHIND: i32 = 10;

/// Runs `make`; the threads that it starts run behind those that answer requests: where the daemon's cores are busy, a
/// request waits for a core and telling of it can wait longer.
///
/// nice(2): on Linux the value is a thread's own, and what the thread starts inherits it. Raising it needs no rights.
///
/// # Panics
/// If the system gives no thread, or `make` panics.
pub fn behind<T: Send>(make: impl FnOnce() -> T + Send) -> T {
    let made = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Err(error) = rustix::process::nice(BEHIND) {
                tracing::debug!(%error, "threads that should run behind those that answer requests have the same priority");
            }
            make()
        });
        thread.join()
    });
    made.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The file `stat` of a process or a thread; proc_pid_stat(5) numbers its fields, from 1.
#[derive(Debug)]
pub struct Stat<'a> {
    /// Field 2, the command's name.
    pub name: &'a str,
    /// From field 3 on.
    fields: Vec<&'a str>,
}

impl<'a> Stat<'a> {
    /// Takes the file's text apart. `None`: it is not such a file.
    pub fn parse(text: &'a str) -> Option<Stat<'a>> {
        // The name may contain anything, spaces and parentheses too; it ends at the last ')'.
        let (head, rest) = text.rsplit_once(')')?;
        let (_, name) = head.split_once('(')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        (!fields.is_empty()).then_some(Stat { name, fields })
    }

    /// Field 3, the state.
    pub fn state(&self) -> &'a str {
        self.fields.first().copied().unwrap_or_default()
    }

    /// A field that is a number, by its number there.
    pub fn number(&self, field: usize) -> Option<u64> {
        self.fields.get(field.checked_sub(3)?)?.parse().ok()
    }
}

enum Look {
    /// There is such a process, started then.
    Lives(u64),
    Gone,
    Unknown,
}

fn look(pid: u32) -> Look {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        // ESRCH: it went between the open and the read. Without /proc nothing can be said.
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
            return if fs::exists("/proc/self/stat").unwrap_or(false) { Look::Gone } else { Look::Unknown };
        }
        Err(_) => return Look::Unknown,
    };
    let Some(stat) = Stat::parse(&stat) else { return Look::Unknown };
    let (Some(threads), Some(start_time)) = (stat.number(20), stat.number(22)) else {
        return Look::Unknown;
    };
    // The first thread may have ended and the others go on: then the state is Z, and the process lives.
    let zombie = matches!(stat.state(), "Z" | "X") && threads <= 1;
    if zombie { Look::Gone } else { Look::Lives(start_time) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declared_identity_must_fit() {
        let own = ProcessId::of(std::process::id() as i32).expect("identity");
        let identity = ProcessIdentity {
            pid: own.pid,
            start_time: own.start_time,
            pid_namespace: fs::read_link("/proc/self/ns/pid").expect("link").display().to_string(),
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("file").trim().to_owned(),
        };
        assert_eq!(ProcessId::declared(&identity), Some(own));
        for wrong in [
            ProcessIdentity { start_time: own.start_time + 1, ..identity.clone() },
            ProcessIdentity { pid_namespace: "pid:[1]".into(), ..identity.clone() },
            ProcessIdentity { boot_id: String::new(), ..identity.clone() },
            ProcessIdentity { pid: u32::MAX, ..identity.clone() },
            ProcessIdentity { pid: 0, ..identity.clone() },
        ] {
            assert_eq!(ProcessId::declared(&wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_name_with_parentheses_is_read_whole() {
        let stat = Stat::parse("7 (a) (b) S 1 2 3 4 5 6 7 8 9 10 40 2 0 0").expect("parsed");
        assert_eq!((stat.name, stat.state()), ("a) (b", "S"));
        assert_eq!(
            (stat.number(14), stat.number(15), stat.number(40), stat.number(2)),
            (Some(40), Some(2), None, None)
        );
        assert!(Stat::parse("7 (x").is_none());
    }

    #[test]
    fn what_starts_behind_stays_behind() {
        let nice = || rustix::process::nice(0).expect("read");
        let before = nice();
        let started = behind(|| std::thread::spawn(nice));
        assert_eq!(started.join().expect("no panic"), (before + BEHIND).min(19));
        assert_eq!(nice(), before);
    }

    #[test]
    fn a_child_lives_and_dies() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("spawn");
        let id = ProcessId::of(child.id() as i32).expect("identity");
        assert!(id.alive());
        assert!(!ProcessId { start_time: id.start_time + 1, ..id }.alive(), "same pid, other process");
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(!id.alive());
        assert_eq!(ProcessId::of(0), None);
    }
}

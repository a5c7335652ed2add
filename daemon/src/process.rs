//! Identity of a process: a pid alone is reused, a pid with its start time is not.
#![forbid(unsafe_code)]

use std::fs;

use lmcache_proto::wire::ProcessIdentity;

/// A process, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
        Some(ProcessId { pid, start_time: start_time(pid)? })
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

    /// Whether it still exists. A zombie is gone: it cannot touch memory any more.
    pub fn alive(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may contain anything, spaces and parentheses too; it ends at the last ')'.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
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

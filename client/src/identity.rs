//! Who we are, and what time it is.

use std::fs;

use lmcache_proto::wire::ProcessIdentity;
use rustix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in nanoseconds: the clock of ring records. Reads the vDSO; no system call.
pub fn monotonic_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither is negative: the clock starts at boot.
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}

/// This process, in words that the daemon can check; `None` where `/proc` does not tell. A [`crate::Client`] says it to the daemon by
/// itself; who speaks over a bare [`crate::Connection`] may.
pub fn own_process() -> Option<ProcessIdentity> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The command name may contain anything; it ends at the last ')'. Field 22 is the 20th after it.
    let start_time = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    Some(ProcessIdentity {
        pid: std::process::id(),
        start_time,
        pid_namespace: fs::read_link("/proc/self/ns/pid").ok()?.to_str()?.to_owned(),
        boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_know_ourselves() {
        let own = own_process().expect("/proc is mounted");
        assert_eq!(own.pid, std::process::id());
        assert!(own.start_time > 0 && own.pid_namespace.starts_with("pid:["));
        let first = monotonic_nanos();
        assert!(monotonic_nanos() >= first);
    }
}

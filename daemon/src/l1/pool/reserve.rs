//! How much memory there is, asked before any is taken: a clear error at start instead of a SIGBUS at night.
#![forbid(unsafe_code)]

use std::fs;

use thiserror::Error;

use super::segment::SHM_DIR;

/// Why a pool of the wanted size cannot be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CapacityError {
    /// The tmpfs is too small.
    #[error(
        "the pool needs {want} but {SHM_DIR} has {have} free; make it larger (mount -o remount,size=... {SHM_DIR}, or a \
         medium: Memory volume in a pod) or lower --l1-size-gb"
    )]
    Tmpfs {
        /// Wanted, in GiB.
        want: String,
        /// Free, in GiB.
        have: String,
    },
    /// The cgroup is too small.
    #[error(
        "the pool needs {want} but this cgroup may use {have} more ({file}); shared memory is charged to it: raise the \
         limit (MemoryMax=, resources.limits.memory) or lower --l1-size-gb"
    )]
    Cgroup {
        /// Wanted, in GiB.
        want: String,
        /// Left, in GiB.
        have: String,
        /// Which limit.
        file: String,
    },
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1u32 << 30))
}

/// Checks that `bytes` more of shared memory fit; `already` bytes of them exist (a pool that is taken over).
///
/// # Errors
/// Which limit is in the way, and what to do.
pub fn check_capacity(bytes: u64, already: u64) -> Result<(), CapacityError> {
    let need = bytes.saturating_sub(already);
    if let Some(free) = tmpfs_free()
        && need > free
    {
        return Err(CapacityError::Tmpfs { want: gib(need), have: gib(free) });
    }
    if let Some((left, file)) = cgroup_left()
        && need > left
    {
        return Err(CapacityError::Cgroup { want: gib(need), have: gib(left), file });
    }
    Ok(())
}

/// Pool size when the user names none: half of what is free in memory, tmpfs and cgroup, in whole GiB where
/// there is more than one, at least 256 MiB.
pub fn default_pool_bytes() -> u64 {
    let available = mem_available().unwrap_or(1 << 30);
    let free =
        tmpfs_free().unwrap_or(u64::MAX).min(cgroup_left().map_or(u64::MAX, |(left, _)| left)).min(available);
    let half = free / 2;
    let gib = 1u64 << 30;
    if half >= gib { half / gib * gib } else { half.max(256 << 20) / (1 << 20) * (1 << 20) }
}

fn tmpfs_free() -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(SHM_DIR).ok()?;
    Some(stat.blocks_available() * stat.fragment_size())
}

fn mem_available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Memory that this process's cgroup, or the tightest of its ancestors, may still use.
fn cgroup_left() -> Option<(u64, String)> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut tightest: Option<(u64, String)> = None;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (hierarchy, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let (root, limit_file, used_file) = if hierarchy == "0" {
            ("/sys/fs/cgroup", "memory.max", "memory.current")
        } else if controllers.split(',').any(|name| name == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
        } else {
            continue;
        };
        let mut dir = std::path::PathBuf::from(format!("{root}{path}"));
        loop {
            let read =
                |name: &str| -> Option<u64> { fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok() };
            // "max" (v2) does not parse and means no limit; v1 says it with a number near i64::MAX.
            if let (Some(limit), Some(used)) = (read(limit_file), read(used_file))
                && limit < 1 << 60
            {
                let left = limit.saturating_sub(used);
                if tightest.as_ref().is_none_or(|(least, _)| left < *least) {
                    tightest = Some((left, dir.join(limit_file).display().to_string()));
                }
            }
            if dir.as_os_str() == root || !dir.pop() {
                break;
            }
        }
    }
    tightest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absurd_pool_is_refused_with_a_way_out() {
        let error = check_capacity(1 << 60, 0).expect_err("no machine has an exbibyte");
        assert!(error.to_string().contains("--l1-size-gb"), "{error}");
        assert_eq!(check_capacity(1 << 60, 1 << 60), Ok(()));
    }

    #[test]
    fn the_default_fits() {
        let bytes = default_pool_bytes();
        assert!(bytes >= 256 << 20);
    }
}

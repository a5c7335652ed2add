//! How much memory there is, asked before any is taken: a clear error at start instead of a SIGBUS at night.
#![forbid(unsafe_code)]

use std::fs;

use thiserror::Error;

use super::file::{SHM_DIR, left_behind};

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

/// Memory that an empty object table takes: its header and the first stretch of each kind of record.
const TABLE_BYTES: u64 = 12 << 20;

/// Checks that a pool of `bytes` and its table fit; `already` bytes of the pool exist (it is taken over).
///
/// # Errors
/// Which limit is in the way, and what to do.
pub fn check_capacity(bytes: u64, already: u64) -> Result<(), CapacityError> {
    let need = match bytes.saturating_sub(already) {
        // Its table exists, too.
        0 => 0,
        // A small pool's table is smaller than the usual first stretch.
        rest => rest.saturating_add(TABLE_BYTES.min(bytes / 8)),
    };
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

/// Pool size when the user names none: that of the pool `name` if an earlier daemon left one, so that it is taken over;
/// or else half of what is free in memory, tmpfs and cgroup, in whole GiB where there is more than one. Where little is
/// free (64 MiB in a container's /dev/shm), up to 256 MiB and at most three quarters of it: the daemon still starts.
pub fn default_pool_bytes(name: &str) -> u64 {
    let left_behind = left_behind(name).map(|meta| meta.len());
    if let Some(bytes) = left_behind.filter(|bytes| *bytes > 0) {
        return bytes;
    }
    let available = mem_available().unwrap_or(1 << 30);
    let free =
        tmpfs_free().unwrap_or(u64::MAX).min(cgroup_left().map_or(u64::MAX, |(left, _)| left)).min(available);
    size_for(free)
}

fn size_for(free: u64) -> u64 {
    let (mib, gib) = (1u64 << 20, 1u64 << 30);
    let half = free / 2;
    let bytes = match half {
        _ if half >= gib => half / gib * gib,
        _ if half >= 256 * mib => half / mib * mib,
        _ => (free / 4 * 3).min(256 * mib) / mib * mib,
    };
    bytes.max(mib)
}

/// What the kernel says when it will give no huge pages for shared memory, whatever is asked.
pub fn huge_pages_refused() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").ok()?;
    ["[never]", "[deny]"].into_iter().find(|word| text.contains(word)).map(str::to_owned)
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
                // Cached file pages count as used, and go when memory is wanted.
                let left = limit.saturating_sub(used.saturating_sub(inactive_file(&dir)));
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

/// Bytes of the cgroup that are file pages nobody has used lately.
fn inactive_file(dir: &std::path::Path) -> u64 {
    let text = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    // v1 counts the descendants in `total_…` only.
    ["total_inactive_file ", "inactive_file "]
        .into_iter()
        .find_map(|name| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()))
        .unwrap_or(0)
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
    fn the_default_never_wants_more_than_is_free() {
        let (mib, gib) = (1 << 20, 1 << 30);
        assert_eq!(size_for(64 * mib), 48 * mib, "a container's /dev/shm");
        assert_eq!(size_for(400 * mib), 256 * mib);
        assert_eq!(size_for(gib), 512 * mib);
        assert_eq!(size_for(64 * gib + 5), 32 * gib);
        for free in [8 * mib, 64 * mib, 300 * mib, 511 * mib, 513 * mib, 3 * gib] {
            assert!(size_for(free) < free);
        }
    }

    #[test]
    fn a_pool_that_is_there_keeps_its_size() {
        let name = format!("lmcached_test_default_{}", std::process::id());
        let path = format!("{SHM_DIR}/{name}");
        fs::write(&path, [0; 8192]).expect("a file in shared memory");
        assert_eq!(default_pool_bytes(&name), 8192);
        fs::remove_file(path).expect("removed");
    }
}

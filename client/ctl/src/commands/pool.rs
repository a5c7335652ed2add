//! `pool`: the pools in this machine's shared memory. They outlive their daemons, so this needs none.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lmcache_proto::shm::names::{self, POOL_PREFIX as PREFIX};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::statvfs;
use serde_json::{Value, json};

use crate::cli::Pool;
use crate::error::CtlError;
use crate::show::{self, bytes, name, rows, table};

/// Where Linux keeps POSIX shared memory.
pub(super) const SHM_DIR: &str = "/dev/shm";

pub(super) fn run(action: Pool, json: bool) -> Result<(), CtlError> {
    match action {
        Pool::Show => show(json),
        Pool::Rm { name } => remove(&name, json),
    }
}

/// The files of a pool, itself first.
fn files(name: &str) -> [PathBuf; 8] {
    names::all(name).map(|name| Path::new(SHM_DIR).join(name))
}

/// Process that holds a lock on the file, from `/proc/locks`: trying the lock ourselves could stop a daemon that starts.
fn holder(inode: u64, locks: &str) -> Option<i64> {
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = fields[..] else { return None };
        (file.rsplit(':').next()?.parse::<u64>().ok()? == inode).then(|| pid.parse().unwrap_or(0))
    })
}

/// Pools and who uses them.
pub(super) fn pools() -> Vec<Value> {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let mut pools: Vec<Value> = std::fs::read_dir(SHM_DIR)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok().filter(|name| name.starts_with(PREFIX))?;
            let meta = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
            let others: u64 = files(&name)[1..]
                .iter()
                .filter_map(|file| std::fs::symlink_metadata(file).ok())
                // A keeper is another name of the pool's own file.
                .filter(|other| other.ino() != meta.ino())
                .map(|other| other.blocks() * 512)
                .sum();
            Some(json!({
                "name": name,
                "bytes": meta.len(),
                "real_bytes": meta.blocks() * 512,
                "table_and_ring_bytes": others,
                "uid": meta.uid(),
                "used_by_pid": holder(meta.ino(), &locks),
            }))
        })
        .collect();
    pools.sort_by(|one, other| one["name"].as_str().cmp(&other["name"].as_str()));
    pools
}

/// Bytes of `/dev/shm`, and those that are free.
pub(super) fn room() -> Option<(u64, u64)> {
    let stat = statvfs(SHM_DIR).ok()?;
    Some((stat.blocks() * stat.fragment_size(), stat.blocks_available() * stat.fragment_size()))
}

fn show(json: bool) -> Result<(), CtlError> {
    let (size, free) = room().unwrap_or_default();
    let document = json!({"pools": pools(), "shm_bytes": size, "shm_free_bytes": free});
    show::document(json, &document, |document| {
        let rows = rows(&document["pools"], |pool| {
            vec![
                name(&pool["name"]),
                bytes(&pool["bytes"]),
                bytes(&pool["real_bytes"]),
                bytes(&pool["table_and_ring_bytes"]),
                match &pool["used_by_pid"] {
                    Value::Null => "nobody".into(),
                    pid => format!("process {pid}"),
                },
            ]
        });
        let mut text = table(&["POOL", "SIZE", "REAL MEMORY", "BESIDES", "USED BY"], &rows);
        text.push_str(&format!(
            "{SHM_DIR}: {} of {} free\n",
            bytes(&document["shm_free_bytes"]),
            bytes(&document["shm_bytes"])
        ));
        text
    })
}

fn remove(name: &str, json: bool) -> Result<(), CtlError> {
    if !name.starts_with(PREFIX) || name.contains('/') {
        return Err(CtlError::Usage(format!("a pool is called {PREFIX}…; lmcache-ctl pool show lists them")));
    }
    let refused = |what: &Path, error: &dyn std::fmt::Display| {
        CtlError::Refused(format!("{}: {error}", what.display()))
    };
    let [pool, others @ ..] = files(name);
    let file = File::open(&pool).map_err(|error| refused(&pool, &error))?;
    // Held until the files are gone: a daemon that starts meanwhile finds either the pool or none.
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        CtlError::Refused(format!("{name} is used by a running daemon; lmcache-ctl drain ends it"))
    })?;
    let freed = lock.metadata().map(|meta| meta.blocks() * 512).unwrap_or(0);
    std::fs::remove_file(&pool).map_err(|error| refused(&pool, &error))?;
    let mut removed = vec![pool.display().to_string()];
    for other in others {
        match std::fs::remove_file(&other) {
            Ok(()) => removed.push(other.display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(refused(&other, &error)),
        }
    }
    drop(lock);
    show::document(json, &json!({"removed": removed, "freed_bytes": freed}), |document| {
        format!("{name} is gone, {} are free again", bytes(&document["freed_bytes"]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_found_by_its_inode() {
        let locks =
            "1: POSIX  ADVISORY  READ 10 00:01:42 0 EOF\n2: FLOCK  ADVISORY  WRITE 77 00:18:42 0 EOF\n";
        assert_eq!(holder(42, locks), Some(77));
        assert_eq!(holder(4, locks), None);
    }
}

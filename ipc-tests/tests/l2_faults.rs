//! What disks and processes do to the local L2 stores.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ipc_tests::eventually;
use ipc_tests::l2_suite::{bytes, get, key, list_all, open, put};
use lmcache_proto::object_key::ObjectKey;
use lmcached::l2::adapter::L2Adapter;
use lmcached::l2::error::{LoadError, Trouble};
use lmcached::l2::memory::TargetBuf;
use serde_json::{Value, json};

const WRITER: &str = env!("CARGO_BIN_EXE_l2-writer");
/// uid and gid of `nobody`.
const NOBODY: u32 = 65534;

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("lists");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
}

/// Runs the writer to its end; its lines, and what it logged.
fn run(mut command: Command) -> (Vec<String>, String) {
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().expect("runs");
    let lines = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    (lines, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Kills writers at moments that nobody chose; what is found afterwards is whole and right.
async fn survives_kills(json: &Value, dir: Option<&Path>) {
    const LEN: usize = 300_000;
    let mut acknowledged = std::collections::BTreeSet::new();
    for round in 0..8u64 {
        let mut writer = Command::new(WRITER)
            .args([&json.to_string(), &LEN.to_string(), "300"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(writer.stdout.take().expect("a pipe")).lines();
        // After a few stores, in the middle of the next ones.
        let mut heard = Vec::new();
        for _ in 0..=round * 3 {
            heard.extend(lines.next().map(|line| line.expect("a line")));
        }
        tokio::time::sleep(Duration::from_micros(round * 700)).await;
        writer.kill().expect("kill");
        writer.wait().expect("wait");
        heard.extend(lines.map_while(Result::ok));
        for line in heard {
            let (n, result) = line.split_once(' ').expect("a number and a result");
            assert_eq!(result, "stored", "{line}");
            acknowledged.insert(n.parse::<u32>().expect("a number"));
        }
        let tier = open(json);
        for (key, _) in list_all(&tier, 50).await {
            let n = u32::from_be_bytes(key.chunk_hash[..4].try_into().expect("four"));
            assert!(get(&tier, &key, LEN).await.expect("a whole object") == bytes(LEN, n), "object {n}");
        }
        for n in &acknowledged {
            assert!(get(&tier, &key("writer", *n, ""), LEN).await.is_ok(), "object {n} was acknowledged");
        }
        if let Some(dir) = dir {
            eventually("half-written files are gone", async || {
                names(dir).iter().all(|name| name.ends_with(".data")).then_some(())
            })
            .await;
        }
        tier.close().await;
    }
    assert!(!acknowledged.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fs_writers_are_killed() {
    for engine in ["posix", "auto"] {
        let dir = tempfile::tempdir().expect("a directory");
        let json = json!({"type": "fs", "base_path": dir.path(), "io_engine": engine});
        survives_kills(&json, Some(dir.path())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_block_writers_are_killed() {
    let dir = tempfile::tempdir().expect("a directory");
    let json = json!({"type": "raw_block", "device_path": dir.path().join("device"), "slot_bytes": 512 << 10,
                      "capacity_bytes": 200 << 20});
    survives_kills(&json, None).await;
}

fn expect_full(lines: &[String], log: &str, dir: &Path, what: &str) {
    // They are written several at a time, and end in any order.
    assert!(lines.iter().any(|line| line.ends_with(" stored")), "{what}: {lines:?}\n{log}");
    let full = lines.iter().filter(|line| line.contains("full:") && line.contains(what)).count();
    assert!(full > 0, "{what}: {lines:?}\n{log}");
    assert!(lines.iter().all(|line| line.ends_with("stored") || line.contains("full:")), "{lines:?}\n{log}");
    assert!(log.contains("storing org/writer") && log.contains("free space"), "{log}");
    let left = names(dir);
    assert!(left.iter().all(|name| name.ends_with(".data")), "no half file stays: {left:?}");
}

/// A disk that is really full, in a mount namespace of our own.
#[test]
fn a_full_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let json = json!({"type": "fs", "base_path": dir.path().join("disk/kv")}).to_string();
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs -o size=4m none \"$1/disk\" || exit 42; \"$2\" \"$3\" 1000000 8; ls -A \"$1/disk/kv\" >&2";
    std::fs::create_dir(dir.path().join("disk")).expect("makes");
    command.args(["-r", "-m", "sh", "-c", script, "sh"]).arg(dir.path()).args([WRITER, &json]);
    let output = match command.output() {
        Ok(output) if output.status.code() == Some(0) => output,
        refused => {
            eprintln!("SKIPPED: no mount namespace to be had here: {refused:?}");
            return;
        }
    };
    let lines: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains(".data") && !log.contains(".lmcached-"), "{log}");
    // The files went with the namespace.
    let empty = tempfile::tempdir().expect("a directory");
    expect_full(&lines, &log, empty.path(), "No space left");
}

/// The same without any rights: a limit on the size of files, which strikes in the middle of a write.
#[test]
fn a_file_that_may_not_grow() {
    for engine in ["posix", "auto"] {
        let dir = tempfile::tempdir().expect("a directory");
        let json = json!({"type": "fs", "base_path": dir.path(), "io_engine": engine}).to_string();
        let mut command = Command::new("sh");
        let script = "\"$1\" \"$2\" 1000 1; ulimit -f 100; trap '' XFSZ; exec \"$1\" \"$2\" 1000000 4";
        command.args(["-c", script, "sh", WRITER, &json]);
        let (lines, log) = run(command);
        // The first object is there already, in another size; replacing it fails like the rest.
        expect_full(&lines, &log, dir.path(), "File too large");
    }
}

/// As somebody who may not write there.
fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new(program);
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// The writer where anybody may run it.
fn writer_for_all(dir: &Path) -> PathBuf {
    let copy = dir.join("l2-writer");
    std::fs::copy(WRITER, &copy).expect("copies");
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).expect("permits");
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).expect("permits");
    copy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permission_denied() {
    let dir = tempfile::tempdir().expect("a directory");
    let writer = writer_for_all(dir.path());
    let closed = dir.path().join("closed");
    std::fs::create_dir(&closed).expect("makes");
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o555)).expect("permits");
    for base in [closed.join("new"), closed] {
        let mut command = as_nobody(&writer);
        command.args([&json!({"type": "fs", "base_path": base}).to_string(), "100", "1"]);
        let (lines, log) = run(command);
        assert!(
            lines[0].starts_with("open: permission denied") && lines[0].contains("owner"),
            "{lines:?}\n{log}"
        );
    }
    // Values that may not be read, in a directory that may be written.
    let open_dir = dir.path().join("open");
    std::fs::create_dir(&open_dir).expect("makes");
    let json = json!({"type": "fs", "base_path": open_dir, "breaker": {"failures": 2}});
    let tier = open(&json);
    put(&tier, &key("denied", 1, ""), b"value").await;
    if nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED the second half: root reads everything");
        return;
    }
    let path = open_dir.join(key("denied", 1, "").fs_filename());
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).expect("permits");
    for _ in 0..2 {
        let error = get(&tier, &key("denied", 1, ""), 5).await.expect_err("denied");
        assert!(matches!(error, LoadError::Store(Trouble::Denied(_))), "{error:?}");
    }
    assert_eq!(tier.status()["is_healthy"], false);
}

#[allow(unsafe_code)] // Memory with a guard that the test can watch.
fn guarded(len: usize, guard: &Arc<()>) -> TargetBuf {
    let mut memory = vec![0u8; len];
    let start = memory.as_mut_ptr();
    // SAFETY: the vector is in the guard, so it lives as long; its heap memory does not move.
    unsafe { TargetBuf::new(start, len, (guard.clone(), memory)) }
}

/// A file system that hangs: opening a pipe that nobody writes to blocks the thread, as a dead NFS server does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_hangs() {
    let dir = tempfile::tempdir().expect("a directory");
    let json = json!({"type": "fs", "base_path": dir.path(), "num_workers": 2, "request_timeout": 0.3,
                      "breaker": {"failures": 4, "first_probe_seconds": 0.2, "max_probe_seconds": 0.2}});
    let tier = open(&json);
    let hanging: Vec<ObjectKey> = (0..4).map(|n| key("hangs", n, "")).collect();
    let pipes: Vec<PathBuf> = hanging.iter().map(|key| dir.path().join(key.fs_filename())).collect();
    for pipe in &pipes {
        nix::unistd::mkfifo(pipe, nix::sys::stat::Mode::S_IRWXU).expect("makes a pipe");
    }
    let guard = Arc::new(());
    for key in &hanging {
        let outcome = tier.load(key, guarded(5000, &guard)).await;
        assert!(matches!(outcome.result, Err(LoadError::Store(Trouble::Timeout(_)))), "{:?}", outcome.result);
        assert!(outcome.target.is_none());
    }
    // Two threads hang and hold their memory; who came later never got a thread, and holds none.
    assert_eq!(Arc::strong_count(&guard), 3);
    assert_eq!(tier.status()["breaker"]["position"], "open");
    for pipe in &pipes {
        // Opens for reading too, so that it does not wait; the thread's end comes up and finds no file.
        drop(std::fs::File::options().read(true).write(true).open(pipe).expect("opens"));
    }
    eventually("the threads are back", async || (Arc::strong_count(&guard) == 1).then_some(())).await;
    for pipe in &pipes {
        std::fs::remove_file(pipe).expect("removes");
    }
    eventually("the tier is back", async || (tier.status()["is_healthy"] == true).then_some(())).await;
    put(&tier, &hanging[0], b"value").await;
    assert_eq!(get(&tier, &hanging[0], 5).await.expect("loads"), b"value");
}

/// `LMCACHED_MANY_FILES=1000000` for the big one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_with_many_entries_delays_nobody() {
    let count: u32 = std::env::var("LMCACHED_MANY_FILES").ok().and_then(|n| n.parse().ok()).unwrap_or(30_000);
    let dir = tempfile::tempdir().expect("a directory");
    for n in 0..count {
        std::fs::File::create(dir.path().join(key("crowd", n, "").fs_filename())).expect("makes");
    }
    let json = json!({"type": "fs", "base_path": dir.path(), "max_capacity_gb": 1, "eviction": {"eviction_policy": "LRU"}});
    let before = std::time::Instant::now();
    let tier = open(&json);
    let opened = before.elapsed();
    let key = key("guest", 1, "");
    put(&tier, &key, b"value").await;
    assert_eq!(get(&tier, &key, 5).await.expect("loads"), b"value");
    let served = before.elapsed();
    let usage = eventually("the entries have been counted", async || {
        Some(tier.usage()).filter(|usage| usage.counted)
    })
    .await;
    eprintln!(
        "{count} entries: open {opened:?}, first store and load {served:?}, counted {:?}",
        before.elapsed()
    );
    assert_eq!((usage.objects, usage.bytes), (u64::from(count) + 1, 5));
    assert_eq!(list_all(&tier, 20_000).await.len(), count as usize + 1);
}

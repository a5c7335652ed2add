//! LMCache's own command line against this daemon: exit codes and printed values.
//!
//! `LMCACHED_PEER_PYTHON` names a Python that has `lmcache` (the conformance run makes one); its `lmcache` command is beside
//! it. Without the variable the tests say so and return; the gate sets it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ipc_tests::daemon::{Daemon, free_port};
use ipc_tests::pool::Pool;
use ipc_tests::worker::{Model, lookup, prompt, store};

fn lmcache() -> Option<PathBuf> {
    let python = std::env::var("LMCACHED_PEER_PYTHON").ok();
    if python.is_none() {
        eprintln!("SKIPPED: LMCACHED_PEER_PYTHON names no Python with lmcache");
    }
    python.map(|python| Path::new(&python).with_file_name("lmcache"))
}

/// Runs it; exit code and everything it printed.
async fn run(program: &Path, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .env("LMCACHE_TRACK_USAGE", "false")
        .env("LMCACHE_DISABLE_BANNER", "1");
    let output: Output = tokio::task::spawn_blocking(move || command.output().expect("the peer runs"))
        .await
        .expect("no panic");
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.code(), text)
}

/// The value behind a label; the peer pads with dots or spaces.
fn value(text: &str, label: &str) -> String {
    let line = text.lines().find(|line| line.trim_start().starts_with(label));
    let line = line.unwrap_or_else(|| panic!("{label:?} in {text}"));
    let rest = line.trim_start().strip_prefix(label).expect("the label");
    rest.trim_start_matches([':', '.', ' ', '\t']).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ping_describe_and_clear() {
    let Some(lmcache) = lmcache() else { return };
    let daemon = Daemon::start(&["--eviction-policy=LRU"]).await;
    let (model, pool) = (Model::small("m"), Pool::open(&daemon.pool_path()));
    let mut client = daemon.connect().await;
    client.call(&model.registration(1)).await.expect("register");
    let tokens = prompt(1, 4);
    store(&mut client, &pool, &model, "s", &tokens, 1, 0).await;
    assert_eq!(lookup(&mut client, &model, "r", &tokens[..256], 1).await, 1);
    let url = format!("http://127.0.0.1:{}", daemon.http_port());

    let (code, text) = run(&lmcache, &["ping", "kvcache", "--url", &url]).await;
    assert_eq!((code, value(&text, "Status").as_str()), (Some(0), "OK"), "{text}");
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let (code, text) = run(&lmcache, &["ping", "kvcache", "--url", &nowhere]).await;
    assert_eq!((code, value(&text, "Status").as_str()), (Some(1), "FAIL"), "{text}");

    let (code, text) = run(&lmcache, &["describe", "kvcache", "--url", &url]).await;
    assert_eq!(code, Some(0), "{text}");
    for (label, wanted) in [
        ("Health", "OK"),
        ("URL", url.as_str()),
        ("Engine type", "MPCacheServer"),
        ("Chunk size", "256"),
        ("L1 capacity (GB)", "0.06"),
        ("L1 used (GB)", "0.00 (1.6%)"),
        ("Eviction policy", "LRU"),
        ("Cached objects", "4"),
        ("Active sessions", "1"),
    ] {
        assert_eq!(value(&text, label), wanted, "{label} in {text}");
    }

    let (code, text) = run(&lmcache, &["kvcache", "clear", "--url", &url]).await;
    assert_eq!((code, value(&text, "Status").as_str()), (Some(0), "OK"), "{text}");
    // The lease of the lookup keeps one.
    let objects = daemon.status().await["storage_manager"]["l1_manager"]["total_object_count"].clone();
    assert_eq!(objects, 1);
    let (code, text) = run(&lmcache, &["kvcache", "clear", "--url", &nowhere]).await;
    assert_eq!(code, Some(1), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quota_set_get_list_delete() {
    let Some(lmcache) = lmcache() else { return };
    let daemon = Daemon::start(&[]).await;
    let url = format!("http://127.0.0.1:{}", daemon.http_port());
    let (code, text) = run(&lmcache, &["quota", "set", "alice", "--limit-gb", "1.5", "--url", &url]).await;
    assert_eq!(code, Some(0), "{text}");
    for (label, wanted) in [("Cache salt", "alice"), ("Limit (GB)", "1.50"), ("Status", "ok")] {
        assert_eq!(value(&text, label), wanted, "{label} in {text}");
    }
    let (code, text) = run(&lmcache, &["quota", "get", "alice", "--url", &url]).await;
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(value(&text, "Limit (GB)"), "1.50");
    assert!(value(&text, "Current usage (GB)").starts_with('0'));
    assert_eq!(value(&text, "Exists"), "True");
    let (code, text) = run(&lmcache, &["quota", "set", "_default", "--limit-gb", "2", "--url", &url]).await;
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = run(&lmcache, &["quota", "list", "--url", &url]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("Salt: alice") && text.contains("Salt: _default"), "{text}");
    let (code, text) = run(&lmcache, &["quota", "delete", "alice", "--url", &url]).await;
    assert_eq!((code, value(&text, "Status").as_str()), (Some(0), "removed"), "{text}");
    let (code, text) = run(&lmcache, &["quota", "delete", "alice", "--url", &url]).await;
    assert_eq!((code, value(&text, "Status").as_str()), (Some(0), "not_found"), "{text}");
    let (code, text) = run(&lmcache, &["quota", "set", "alice", "--limit-gb", "-1", "--url", &url]).await;
    assert_eq!(code, Some(1), "{text}");
}

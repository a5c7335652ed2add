//! Recordings and the real LMCache: what this daemon records, its `lmcache trace info` and `trace replay` take.
//!
//! `LMCACHED_PEER_PYTHON` names a Python that has `lmcache` (the conformance run makes one). Without it the tests say so and
//! return; the gate sets it.

use std::path::Path;
use std::process::Command;

use ipc_tests::daemon::Daemon;
use ipc_tests::pool::Pool;
use ipc_tests::worker::{Model, commit_retrieve, lookup, prepare_retrieve, prompt, store};
use lmcache_proto::wire::Request;

fn python() -> Option<String> {
    let python = std::env::var("LMCACHED_PEER_PYTHON").ok();
    if python.is_none() {
        eprintln!("SKIPPED: LMCACHED_PEER_PYTHON names no Python with lmcache");
    }
    python
}

/// Runs `lmcache trace …`; what it said on standard output.
fn lmcache(python: &str, args: &[&str], dir: &Path) -> String {
    // What the command on the path is.
    let script = "import sys; from lmcache.cli.main import main; sys.argv[0] = 'lmcache'; sys.exit(main())";
    let output = Command::new(python)
        .args(["-B", "-c", script, "trace"])
        .args(args)
        .current_dir(dir)
        .env("LMCACHE_LOG_LEVEL", "WARNING")
        .env("LMCACHE_TRACK_USAGE", "false")
        .output()
        .expect("Python runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[tokio::test]
async fn lmcache_reads_and_replays_what_this_daemon_recorded() {
    let Some(python) = python() else { return };
    let mut daemon =
        Daemon::start(&["--trace-level=storage", "--trace-output={dir}/run.lct", "--chunk-size=256"]).await;
    let mut client = daemon.connect().await;
    let model = Model::small("org/model");
    client.call(&model.registration(7)).await.expect("register");
    let pool = Pool::open(&daemon.pool_path());
    let tokens = prompt(1, 4);
    assert_eq!(lookup(&mut client, &model, "cold", &tokens, 1).await, 0);
    assert_eq!(store(&mut client, &pool, &model, "cold", &tokens, 7, 100).await, 4);
    assert_eq!(lookup(&mut client, &model, "warm", &tokens, 1).await, 4);
    let frame = model.key("warm", &tokens).frame(Some(0), 0, 1024);
    assert!(prepare_retrieve(&mut client, &frame, 7).await.is_some());
    assert!(commit_retrieve(&mut client, &frame, 7).await);
    client.call(&Request::EndSession { request_id: "warm" }).await.expect("end");
    assert_eq!(daemon.terminate(), Some(0));

    let path = daemon.dir().join("run.lct");
    let file = path.to_str().expect("a path");
    let info = lmcache(&python, &["info", file], daemon.dir());
    let value = |text: &str, label: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(label));
        line.and_then(|line| line.split_whitespace().last()).map(str::to_owned).unwrap_or_default()
    };
    let digest = lmcached::trace::info(&path).expect("readable").header.config_digest;
    assert_eq!(value(&info, "level:"), "storage", "{info}");
    assert_eq!(value(&info, "sm_config_digest:"), digest, "{info}");
    assert_eq!(
        (value(&info, "complete:"), value(&info, "lost_events:")),
        ("True".into(), "0".into()),
        "{info}"
    );
    assert_eq!(value(&info, "total_records:"), "5", "{info}");

    let flags = ["--l1-size-gb", "1", "--eviction-policy", "LRU", "--no-l1-use-lazy", "--json"];
    let out = daemon.dir().join("out");
    let args = [&["replay", file, "--output-dir", out.to_str().expect("a path")], &flags[..]].concat();
    let replay = lmcache(&python, &args, daemon.dir());
    for (label, count) in [("Records replayed", "5"), ("Records skipped", "0"), ("Records failed", "0")] {
        assert_eq!(value(&replay, label), count, "{replay}");
    }
    let summary = std::fs::read_to_string(out.join("trace_replay_summary.json")).expect("its summary");
    let summary: serde_json::Value = serde_json::from_str(&summary).expect("JSON");
    for operation in lmcached::trace::Operation::all().take(4) {
        let op = &summary["ops"][operation.qualname()];
        assert_eq!(op["errors"], 0, "{summary}");
        assert!(op["count"].as_u64() >= Some(1), "{summary}");
    }
}

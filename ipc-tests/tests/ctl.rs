//! `lmcache-ctl` against real daemons: what each subcommand prints, for people and as JSON, and its exit codes.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use ipc_tests::daemon::{Daemon, ctl, free_port};
use ipc_tests::pool::Pool;
use ipc_tests::worker::{Model, lookup, prompt, store};
use lmcache_client::Connection;
use serde_json::{Value, json};

const TOKEN: &str = "0123456789abcdef";

/// Runs the program without anything of our own environment that it would read.
fn run(args: &[&str]) -> Output {
    let mut command = Command::new(ctl());
    command.args(args).stdin(Stdio::null());
    for name in ["LMCACHED_URL", "LMCACHED_TOKEN_FILE", "LMCACHED_ENDPOINT"] {
        command.env_remove(name);
    }
    command.output().expect("runs")
}

async fn run_async(args: Vec<String>) -> Output {
    tokio::task::spawn_blocking(move || run(&args.iter().map(String::as_str).collect::<Vec<_>>()))
        .await
        .expect("no panic")
}

/// What a good run printed.
async fn good(daemon: &Daemon, args: &[&str]) -> String {
    let output = with(daemon, args).await;
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(output.status.code(), Some(0), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

async fn with(daemon: &Daemon, args: &[&str]) -> Output {
    let mut all = vec![format!("--url=http://127.0.0.1:{}", daemon.http_port())];
    all.extend(args.iter().map(|arg| (*arg).to_owned()));
    run_async(all).await
}

async fn json_of(daemon: &Daemon, args: &[&str]) -> Value {
    let text = good(daemon, &[args, &["--json"]].concat()).await;
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
}

/// Exit code and the one line on standard error.
fn failed(output: &Output) -> (Option<i32>, String) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    (output.status.code(), text)
}

/// A daemon with a worker, four objects in both tiers, and a lease on three of them.
async fn busy() -> (Daemon, Connection) {
    let daemon = Daemon::start(&[r#"--l2-adapter={"type":"fs","base_path":"{dir}/l2"}"#]).await;
    let (model, pool) = (Model::small("org/model"), Pool::open(&daemon.pool_path()));
    let mut client = daemon.connect().await;
    client.call(&model.registration(4711)).await.expect("register");
    let tokens = prompt(1, 3);
    store(&mut client, &pool, &model, "first", &tokens, 4711, 0).await;
    store(&mut client, &pool, &model, "second", &prompt(2, 1), 4711, 0).await;
    assert_eq!(lookup(&mut client, &model, "holder", &tokens, 1).await, 3);
    // A tier that is being written holds what it writes.
    let of = async |tier: &str| json_of(&daemon, &["objects", "list", tier]).await["entries"].clone();
    ipc_tests::eventually("L2 has all, and holds none", async || {
        let held = |entry: &Value| entry["pins"] != 0;
        let (l2, l1) = (of("--tier=l2").await, of("--tier=l1").await);
        (l2.as_array()?.len() == 4 && !l1.as_array()?.iter().any(held)).then_some(())
    })
    .await;
    (daemon, client)
}

#[tokio::test]
async fn what_is_shown_is_what_the_daemon_has() {
    let (daemon, _client) = busy().await;
    assert!(good(&daemon, &["ping"]).await.starts_with("OK"));
    assert_eq!(json_of(&daemon, &["ping"]).await["ready"], true);
    let status = json_of(&daemon, &["status"]).await;
    assert_eq!(status["storage_manager"]["l1_manager"]["total_object_count"], 4);
    let text = good(&daemon, &["status"]).await;
    for part in
        ["objects       4", "leases, pins  3, 0", "workers       1", "1.0 MiB of 64.0 MiB (1.6 %)", "fs"]
    {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    let text = good(&daemon, &["workers"]).await;
    assert!(text.contains("4711") && text.contains("org/model") && text.contains("engine_driven"), "{text}");
    assert_eq!(json_of(&daemon, &["workers"]).await["workers"][0]["instance"], 4711);
    let text = good(&daemon, &["sessions"]).await;
    assert!(text.contains("holder") && text.contains("3/3"), "{text}");
    assert_eq!(json_of(&daemon, &["sessions", "--limit", "1"]).await["total"], 1);
    let text = good(&daemon, &["locks"]).await;
    assert!(text.contains("Leases of lookups: 3") && text.contains("holder"), "{text}");
    assert_eq!(json_of(&daemon, &["locks"]).await["leases"][0]["objects"], 3);
    let text = good(&daemon, &["queue"]).await;
    assert!(text.contains("of 10000 waiting") && text.contains("TIER"), "{text}");
    assert_eq!(json_of(&daemon, &["queue"]).await["wire"]["connections"], 1);
    let text = good(&daemon, &["config"]).await;
    assert!(text.contains("mp.chunk_size") && text.contains("256"), "{text}");
    assert_eq!(json_of(&daemon, &["config"]).await["mp"]["chunk_size"], 256);
    let top = json_of(&daemon, &["top", "--interval", "0.2"]).await;
    assert_eq!((&top["objects"], &top["leases"]), (&json!(4), &json!(3)));
    assert_eq!(top["hit_rate_since_start"], 1.0);
    assert!(good(&daemon, &["top", "--interval=0.2"]).await.contains("100.0 % since the start"));
}

#[tokio::test]
async fn objects_are_found_and_deleted() {
    let (daemon, _client) = busy().await;
    let listed = json_of(&daemon, &["objects", "list"]).await;
    let entries = listed["entries"].as_array().expect("entries");
    assert_eq!((entries.len(), &listed["more"]), (4, &json!(false)));
    assert_eq!(json_of(&daemon, &["objects", "list", "--limit=3"]).await["more"], true);
    assert!(good(&daemon, &["objects", "list", "--model=org/model"]).await.contains("256.0 KiB"));
    assert_eq!(good(&daemon, &["objects", "list", "--model=other"]).await, "none\n");
    let free = entries.iter().find(|entry| entry["leases"] == 0).expect("one is free");
    let held = entries.iter().find(|entry| entry["leases"] == 1).expect("three are held");
    let hash = |entry: &Value| entry["key"]["chunk_hash_hex"].as_str().expect("hex").to_owned();
    let text = good(&daemon, &["objects", "inspect", &hash(free)[..10]]).await;
    assert!(text.contains(&hash(free)) && text.contains("committed"), "{text}");
    assert!(good(&daemon, &["objects", "delete", &hash(free)]).await.contains("1 deleted"));
    let (code, line) = failed(&with(&daemon, &["objects", "inspect", &hash(free)]).await);
    assert!(code == Some(1) && line.contains("no object of L1"), "{line}");
    let output = with(&daemon, &["objects", "delete", &hash(held)]).await;
    assert_eq!(failed(&output), (Some(1), "lmcache-ctl: nothing was deleted\n".into()));
    assert!(good(&daemon, &["objects", "delete", &hash(held), "--force"]).await.contains("1 deleted"));
    assert!(good(&daemon, &["objects", "delete", &hash(free), "--tier=l2"]).await.contains("1 deleted"));
    assert_eq!(failed(&with(&daemon, &["objects", "delete", "abc"]).await).0, Some(2));
    assert_eq!(failed(&with(&daemon, &["objects", "inspect", "XYZ"]).await).0, Some(2));
    assert!(good(&daemon, &["clear", "--force"]).await.contains("cleared"));
    assert_eq!(json_of(&daemon, &["status"]).await["storage_manager"]["l1_manager"]["total_object_count"], 0);
}

#[tokio::test]
async fn adapters_and_tokens() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o400)).expect("mode");
        path.display().to_string()
    };
    let (right, wrong) = (file("right", TOKEN), file("wrong", "fedcba9876543210"));
    let daemon = Daemon::start(&[&format!("--http-token-file={right}")]).await;
    assert_eq!(failed(&with(&daemon, &["status"]).await).0, Some(4));
    let (code, line) = failed(&with(&daemon, &["status", "--token-file", &wrong]).await);
    assert!(code == Some(4) && line.contains("token"), "{line}");
    assert_eq!(failed(&with(&daemon, &["status", "--token-file=/nowhere"]).await).0, Some(4));
    let flag = format!("--token-file={right}");
    good(&daemon, &["status", &flag]).await;
    good(&daemon, &["ping"]).await;
    let place = dir.path().join("l2");
    let adapter = json!({"type": "fs", "base_path": place}).to_string();
    assert!(good(&daemon, &["adapters", "add", &adapter, &flag]).await.contains("adapter 0"));
    let text = good(&daemon, &["adapters", "list", &flag]).await;
    assert!(text.contains("active") && text.contains("OK"), "{text}");
    assert!(good(&daemon, &["adapters", "drain", "0", &flag]).await.contains("drains"));
    assert_eq!(json_of(&daemon, &["adapters", "list", &flag]).await["adapters"][0]["state"], "draining");
    assert!(good(&daemon, &["adapters", "remove", "0", &flag]).await.contains("removed"));
    assert_eq!(failed(&with(&daemon, &["adapters", "remove", "0", &flag]).await).0, Some(1));
    assert_eq!(failed(&with(&daemon, &["adapters", "add", "{", &flag]).await).0, Some(2));
    let output = with(&daemon, &["adapters", "add", r#"{"type":"nonsense"}"#, &flag]).await;
    assert_eq!(failed(&output).0, Some(1));
}

#[tokio::test]
async fn events_come_as_they_happen() {
    let daemon = Daemon::start(&[]).await;
    let args = ["--json", "events", "tail", "--prefix=l1_write_finished", "--count=2"];
    let url = format!("--url=http://127.0.0.1:{}", daemon.http_port());
    let child = Command::new(ctl())
        .arg(url)
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    ipc_tests::eventually("the reader is known", async || {
        (json_of(&daemon, &["queue"]).await["event_streams"]["open"] == 1).then_some(())
    })
    .await;
    let (model, pool) = (Model::small("m"), Pool::open(&daemon.pool_path()));
    let mut client = daemon.connect().await;
    client.call(&model.registration(1)).await.expect("register");
    for seed in 1..3 {
        store(&mut client, &pool, &model, &format!("r{seed}"), &prompt(seed, 1), 1, 0).await;
    }
    let output =
        tokio::task::spawn_blocking(move || child.wait_with_output().expect("ends")).await.expect("no panic");
    assert_eq!(output.status.code(), Some(0));
    let lines: Vec<Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|event| event["event"] == "l1_write_finished"), "{lines:?}");
}

#[tokio::test]
async fn a_bench_measures_and_cleans_up() {
    let daemon = Daemon::start(&[]).await;
    let endpoint = format!("--endpoint={}", daemon.endpoint());
    let args = ["bench", &endpoint, "--cycles=5", "--workers=2", "--chunks=2"];
    let result = json_of(&daemon, &args).await;
    assert_eq!((&result["cycles"], &result["refused"]), (&json!(10), &json!(0)));
    for call in [
        "lookup (miss)",
        "prepare store",
        "commit store",
        "lookup (hit)",
        "prepare retrieve",
        "commit retrieve",
    ] {
        assert_eq!(result["calls"][call]["count"], 10, "{call}");
    }
    assert_eq!(result["stored_bytes"], result["retrieved_bytes"]);
    assert_eq!(result["left_behind"], Value::Null);
    assert_eq!(json_of(&daemon, &["objects", "list"]).await["entries"], json!([]));
    let text = good(&daemon, &args).await;
    assert!(text.contains("P99") && text.contains('█') && text.contains("10 cycles"), "{text}");
    let nowhere = format!("--endpoint=tcp://127.0.0.1:{}", free_port());
    assert_eq!(failed(&with(&daemon, &["bench", &nowhere, "--cycles=1"]).await).0, Some(3));
}

#[tokio::test]
async fn a_drain_ends_the_daemon_and_its_pool_can_be_removed() {
    let mut daemon = Daemon::start(&[]).await;
    let name = daemon.pool_path().file_name().expect("a name").to_string_lossy().into_owned();
    let pool_of = |document: &Value| {
        document["pools"].as_array().expect("pools").iter().find(|pool| pool["name"] == *name).cloned()
    };
    let pool = pool_of(&json_of(&daemon, &["pool", "show"]).await).expect("the daemon's pool");
    assert_eq!(pool["bytes"], 64 << 20);
    assert_eq!(pool["used_by_pid"], daemon.pid());
    let (code, line) = failed(&with(&daemon, &["pool", "rm", &name]).await);
    assert!(code == Some(1) && line.contains("running daemon"), "{line}");
    assert!(good(&daemon, &["drain", "--within=30"]).await.contains("has ended"));
    assert_eq!(daemon.ends().await, Some(0));
    assert_eq!(failed(&with(&daemon, &["ping"]).await).0, Some(3));
    let pool = pool_of(&json_of(&daemon, &["pool", "show"]).await).expect("kept");
    assert_eq!(pool["used_by_pid"], Value::Null);
    assert!(good(&daemon, &["pool", "rm", &name]).await.contains("is gone"));
    assert!(!daemon.pool_path().exists());
    assert_eq!(failed(&with(&daemon, &["pool", "rm", &name]).await).0, Some(1));
    assert_eq!(failed(&with(&daemon, &["pool", "rm", "passwd"]).await).0, Some(2));
}

#[tokio::test]
async fn a_doctor_says_what_it_sees() {
    let daemon = Daemon::start(&[]).await;
    let output = with(&daemon, &["doctor", "--json", "--python=/nowhere/python"]).await;
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("checks");
    let of = |name: &str| checks.iter().find(|check| check["check"] == name).cloned().expect("the check");
    assert_eq!(of("daemon")["verdict"], "ok");
    assert_eq!(of("lmcache")["verdict"], "note");
    assert!(of("/dev/shm")["found"].as_str().expect("text").contains("free"));
    for name in ["cgroup", "open files", "huge pages", "GPU"] {
        of(name);
    }
    // The machine of the test may be bad; then the exit code says so.
    assert_eq!(output.status.code(), Some(i32::from(report["bad"] != 0)));
    // A Python whose package is of another release.
    let dir = tempfile::tempdir().expect("a directory");
    let python = dir.path().join("python");
    std::fs::write(&python, "#!/bin/sh\necho 0.4.5\n").expect("written");
    std::fs::set_permissions(&python, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    let output = with(&daemon, &["doctor", &format!("--python={}", python.display())]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("has 0.4.5, the daemon speaks 0.5.6") && text.contains("pip install lmcache==0.5.6"),
        "{text}"
    );
}

#[test]
fn what_needs_no_daemon() {
    let nobody = format!("--url=http://127.0.0.1:{}", free_port());
    for command in [
        &["ping"][..],
        &["status"],
        &["objects", "list"],
        &["drain"],
        &["events", "tail"],
        &["quota", "list"],
    ] {
        let (code, line) = failed(&run(&[&[nobody.as_str()], command].concat()));
        assert!(code == Some(3) && line.contains("is lmcached running?"), "{command:?}: {line}");
    }
    for wrong in [
        &["stauts"][..],
        &[],
        &["ping", "--nonsense"],
        &["ping", "--url=https://x"],
        &["top", "--interval=0"],
    ] {
        let (code, line) = failed(&run(wrong));
        assert!(code == Some(2), "{wrong:?}: {code:?} {line}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && text.contains("lmcache-ctl") && text.contains("adapters"),
            "{shell}"
        );
    }
    let man = String::from_utf8_lossy(&run(&["man"]).stdout).into_owned();
    assert!(man.contains(".TH") && man.contains("LMCACHE-CTL DRAIN") && man.contains("Exit codes"), "{man}");
    let help = run(&["--help"]);
    assert!(
        help.status.success()
            && String::from_utf8_lossy(&help.stdout).contains("  3  no daemon answers there")
    );
}

/// Somebody else has the port.
#[tokio::test]
async fn another_server_is_not_taken_for_a_daemon() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(2).flatten() {
            use std::io::{Read, Write};
            let mut stream = stream;
            let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
            let _ = stream.read(&mut [0; 4096]);
            let _ =
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
        }
    });
    for command in ["ping", "status"] {
        let output = run_async(vec![format!("--url=http://127.0.0.1:{port}"), command.into()]).await;
        let (code, line) = failed(&output);
        assert!(code == Some(3) && line.contains("no lmcached"), "{line}");
    }
}

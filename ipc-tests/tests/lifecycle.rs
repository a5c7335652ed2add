//! Starting, failing to start, stopping, and the pool's name.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use ipc_tests::daemon::{Daemon, binary, free_port};
use ipc_tests::worker::Model;
use ipc_tests::{eventually, http};
use lmcache_client::Connection;
use lmcache_proto::wire::{Request, Response};

/// Runs the daemon until it ends by itself; exit code and what it said.
fn fails(args: &[&str]) -> (i32, String) {
    let output = Command::new(binary()).args(args).output().expect("runs");
    (output.status.code().expect("exit code"), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn bad_values_end_with_one_line_and_code_2() {
    for (args, word) in [
        (&["--chunk-size=0"][..], "--chunk-size"),
        (&["--eviction-policy=FIFO"], "FIFO"),
        (&["--transport=grpc"], "--transport"),
        (&["--no-such-flag"], "--no-such-flag"),
        (&["--metrics-sample-rate=0"], "--metrics-sample-rate"),
        (&["server", "--l1-size-gb=-1"], "--l1-size-gb"),
    ] {
        let (code, text) = fails(args);
        assert_eq!(code, 2, "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
        assert!(text.contains(word), "{args:?}: {text}");
    }
}

#[tokio::test]
async fn what_is_taken_ends_with_one_line_and_code_1() {
    let daemon = Daemon::start(&[]).await;
    let port = format!("--port={}", daemon.port());
    let name = daemon.pool_path().file_name().expect("name").to_string_lossy().into_owned();
    let shm = format!("--shm-name={name}");
    let other = |flag: &str| format!("{flag}={}", free_port());
    let http = format!("--http-port={}", daemon.http_port());
    for (args, word) in [
        (vec![port, other("--http-port"), "--shm-name=other".into()], "in use"),
        (vec![other("--port"), http, "--shm-name=other".into()], "--http-port"),
        (vec![other("--port"), other("--http-port"), shm], "owned by a running daemon"),
        (
            vec![
                other("--port"),
                other("--http-port"),
                "--shm-name=other".into(),
                "--l1-size-gb=1000000".into(),
            ],
            "--l1-size-gb",
        ),
    ] {
        let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
        args.push("--prometheus-port=0");
        if !args.iter().any(|arg| arg.starts_with("--l1-size-gb")) {
            args.push("--l1-size-gb=0.0625");
        }
        let (code, text) = fails(&args);
        let last = text.lines().last().unwrap_or_default();
        assert_eq!(code, 1, "{args:?}: {text}");
        assert!(last.starts_with("lmcached: ") && last.contains(word), "{args:?}: {text}");
    }
}

#[tokio::test]
async fn a_stale_ipc_socket_is_replaced_and_a_live_one_is_not() {
    let mut daemon = Daemon::start(&["--bind=ipc://{dir}/sock"]).await;
    let path = daemon.dir().join("sock");
    assert_eq!(std::fs::metadata(&path).expect("socket").permissions().mode() & 0o777, 0o600);
    let endpoint = format!("--bind=ipc://{}", path.display());
    let (code, text) = fails(&[
        &endpoint,
        "--http-port=0",
        "--prometheus-port=0",
        "--shm-name=other",
        "--l1-size-gb=0.0625",
    ]);
    assert_eq!(code, 1);
    assert!(text.contains("in use"), "{text}");
    // After a crash the file is still there and nobody answers.
    daemon.crash_and_restart().await;
    let mut client =
        Connection::connect(&format!("ipc://{}", path.display()), std::time::Duration::from_secs(30))
            .await
            .expect("connect");
    assert_eq!(client.call(&Request::Noop).await.expect("noop"), Response::Text("OK"));
    std::fs::write(daemon.dir().join("file"), "data").expect("file");
    let endpoint = format!("--bind=ipc://{}", daemon.dir().join("file").display());
    let (code, text) = fails(&[
        &endpoint,
        "--http-port=0",
        "--prometheus-port=0",
        "--shm-name=other",
        "--l1-size-gb=0.0625",
    ]);
    assert_eq!(code, 1);
    assert!(text.contains("not a socket"), "{text}");
}

#[tokio::test]
async fn sigterm_keeps_the_pool_and_says_how_to_remove_it() {
    let mut daemon = Daemon::start(&[]).await;
    assert_eq!(daemon.terminate(), Some(0));
    assert!(daemon.pool_path().exists());
    assert!(daemon.log().iter().any(|line| line.contains("rm /dev/shm/")), "{:?}", daemon.log());
    let mut discarding = Daemon::start(&["--discard-on-exit"]).await;
    assert_eq!(discarding.terminate(), Some(0));
    assert!(!discarding.pool_path().exists());
}

#[tokio::test]
async fn a_pool_that_a_client_unlinked_gets_its_name_back() {
    let daemon = Daemon::start(&[]).await;
    let inode = std::fs::metadata(daemon.pool_path()).expect("pool").ino();
    std::fs::remove_file(daemon.pool_path()).expect("unlink");
    std::fs::write(daemon.pool_path(), "an impostor").expect("impostor");
    let mut client = daemon.connect().await;
    client.call(&Model::small("m").registration(7)).await.expect("register");
    assert_eq!(std::fs::metadata(daemon.pool_path()).expect("pool").ino(), inode);
}

#[tokio::test]
async fn ping_is_answered_before_the_pool_is_ready() {
    // A pool of 2 GiB takes a while to become real; `start` waits for that, so this one is started by hand.
    let (port, http_port) = (free_port(), free_port());
    let mut child = Command::new(binary())
        .args([
            format!("--port={port}"),
            format!("--http-port={http_port}"),
            "--prometheus-port=0".into(),
            "--l1-size-gb=2".into(),
            format!("--shm-name=early{}", std::process::id()),
            "--discard-on-exit".into(),
        ])
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("starts");
    let status =
        eventually("the admin API answers", async || http::get(http_port, "/healthcheck").await).await;
    let mut client =
        Connection::connect(&format!("tcp://127.0.0.1:{port}"), std::time::Duration::from_secs(30))
            .await
            .expect("connect");
    assert_eq!(client.call(&Request::Ping { instance_id: None }).await.expect("ping"), Response::Flag(true));
    // Whether the pool was still being reserved is the machine's business; if it was, the answer says so.
    if status.0 != 200 {
        assert_eq!(status.0, 503);
        assert!(status.1.contains("reserving memory"), "{}", status.1);
    }
    eventually("it gets ready", async || {
        http::get(http_port, "/healthcheck").await.filter(|answer| answer.0 == 200).map(|_| ())
    })
    .await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM)
        .expect("stop");
    assert!(child.wait().expect("ends").success());
}

#[tokio::test]
async fn the_admin_api_answers_in_the_peers_shapes() {
    let daemon = Daemon::start(&[]).await;
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("json");
    let (status, text) = http::get(daemon.http_port(), "/status").await.expect("status");
    let page = json(&text);
    assert_eq!(status, 200);
    assert_eq!(page["engine_type"], "MPCacheServer");
    assert_eq!(page["storage_manager"]["l1_manager"]["memory_configured_bytes"], 64 << 20);
    let (status, text) = http::post(daemon.http_port(), "/cache/clear", "{}").await.expect("clear");
    assert_eq!((status, &json(&text)["cleared"]["tier"]), (200, &serde_json::json!("l1")));
    let (status, _) =
        http::post(daemon.http_port(), "/cache/clear", r#"{"tier": "l2"}"#).await.expect("clear");
    assert_eq!(status, 400);
    assert_eq!(http::get(daemon.http_port(), "/nowhere").await.expect("404").0, 404);
}

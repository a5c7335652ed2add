//! The C ABI, from C and from Python, against the real daemon.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ipc_tests::daemon::{Daemon, binary, cargo};
use ipc_tests::{eventually, http};
use serde_json::Value;

/// The shared library, built once.
fn library() -> PathBuf {
    let directory = binary().parent().expect("target/<profile>").to_owned();
    let mut build = cargo();
    // By itself it needs little; with the workspace's features it would need everything.
    build.args(["build", "--quiet", "--package", "lmcache-client-c"]);
    if directory.file_name().is_some_and(|name| name == "release") {
        build.arg("--release");
    }
    assert!(build.status().expect("cargo runs").success(), "the library builds");
    directory.join("liblmcache_client_c.so")
}

fn capi() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/capi")
}

/// Compiles a C program against the header and the library. `cc` is there wherever Rust links.
fn compile(source: &Path, into: &Path) -> PathBuf {
    let library = library();
    let directory = library.parent().expect("a directory");
    let program = into.join(source.file_stem().expect("a name"));
    let status = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-I"])
        .arg(capi().join("include"))
        .arg(source)
        .arg("-L")
        .arg(directory)
        .arg("-llmcache_client_c")
        .arg(format!("-Wl,-rpath,{}", directory.display()))
        .arg("-o")
        .arg(&program)
        .status()
        .expect("cc runs");
    assert!(status.success(), "{} compiles without warnings", source.display());
    program
}

async fn status(daemon: &Daemon) -> Value {
    let (_, page) = http::get(daemon.http_port(), "/status").await.expect("status page");
    serde_json::from_str(&page).expect("JSON")
}

#[tokio::test]
async fn the_c_example_stores_and_retrieves() {
    let daemon = Daemon::start(&["--bind=ipc://{dir}/sock"]).await;
    let program = compile(&capi().join("examples/worker.c"), daemon.dir());
    for endpoint in [daemon.endpoint(), format!("ipc://{}/sock", daemon.dir().display())] {
        let output = Command::new(&program).arg(&endpoint).output().expect("it runs");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{out}\n{err}");
        let stored = if endpoint.starts_with("tcp") { 4 } else { 0 };
        assert_eq!(out, format!("stored {stored}, found 4, wrong bytes 0\n"));
    }
    assert_eq!(daemon.metric("lmcached_l1_pins", &[]).await, 0.0);
    assert_eq!(daemon.metric("lmcached_l1_leases", &[]).await, 0.0);
    let total = status(&daemon).await["ring"]["total"].clone();
    // A store of four records (its start is said twice) and a retrieve of three, then a retrieve of three.
    assert_eq!((&total["matched"], &total["unmatched"]), (&Value::from(10), &Value::from(0)), "{total}");
    // Without a daemon it says so, and ends.
    let output = Command::new(&program).arg("tcp://127.0.0.1:1").output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("connect: cannot connect to"));
}

#[tokio::test]
async fn publishing_makes_no_system_call() {
    let daemon = Daemon::start(&["--ring-slots=1024"]).await;
    let program = compile(&capi().join("tests/no_syscalls.c"), daemon.dir());
    let output = Command::new(&program).arg(daemon.endpoint()).output().expect("it runs");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "published\n", "{:?} {err}", output.status);
}

#[tokio::test]
async fn a_token_is_shown() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "0123456789abcdef-a one\n").expect("written");
    let daemon = Daemon::start(&[&format!("--tenant-tokens-file={}", file.path().display())]).await;
    let program = compile(&capi().join("tests/token.c"), daemon.dir());
    let output =
        Command::new(&program).args([&daemon.endpoint(), "0123456789abcdef-a"]).output().expect("it runs");
    let err = String::from_utf8_lossy(&output.stderr);
    // LMCACHE_STATUS_REFUSED twice, then LMCACHE_STATUS_OK.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "without 5\nunknown 5\ntenant 0\n", "{err}");
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, 1.0);
}

#[tokio::test]
async fn the_python_example_publishes_its_times() {
    let python = Command::new("python3").arg("--version").output();
    if !python.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("LMCACHED_REQUIRE_PYTHON").is_none(), "python3 is required here");
        println!("no python3 on this machine; the Python example is not run");
        return;
    }
    let daemon = Daemon::start(&[]).await;
    let mut child = Command::new("python3")
        .arg(capi().join("examples/publish.py"))
        .arg(daemon.endpoint())
        .env("LMCACHE_CLIENT_LIB", library())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    let nanos: u64 = line
        .strip_prefix("copied 524288 bytes in ")
        .and_then(|rest| rest.trim().strip_suffix(" ns"))
        .and_then(|nanos| nanos.parse().ok())
        .unwrap_or_else(|| panic!("{line:?}"));
    let row = eventually("its records were read", async || {
        let status = status(&daemon).await;
        let row = status["ring"]["workers"].as_array()?.iter().find(|row| row["instance"] == 4713)?.clone();
        (row["records"] == 6).then_some(row)
    })
    .await;
    // Submitted, start (twice), end: the commit took the worker's own times. Its own measurement is known, and nobody's.
    assert_eq!((&row["matched"], &row["open_transfers"]), (&Value::from(4), &Value::from(1)), "{row}");
    let seconds = format!("Stored 512 tokens in {:.3} seconds", nanos as f64 / 1e9);
    // The line comes from the thread that tells subscribers, a moment after the answer.
    eventually("the line is logged", async || {
        daemon.log().iter().any(|line| line.contains(&seconds)).then_some(())
    })
    .await;
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends").success());
}

//! Who may use the admin API, on the addresses that it listens on.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use ipc_tests::daemon::{Daemon, binary};
use ipc_tests::http::{get, request_with};

const TOKEN: &str = "0123456789abcdef-the-token";

/// A token file that the daemon takes.
fn token_file(dir: &tempfile::TempDir, mode: u32) -> String {
    let path = dir.path().join("token");
    std::fs::write(&path, format!("{TOKEN}\n")).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
    path.display().to_string()
}

#[tokio::test]
async fn another_address_without_token_serves_two_pages() {
    let daemon = Daemon::start(&["--http-host=0.0.0.0"]).await;
    let port = daemon.http_port();
    for path in ["/healthcheck", "/metrics"] {
        assert_eq!(get(port, path).await.expect("answer").0, 200, "{path}");
    }
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/status"),
        ("GET", "/config"),
        ("GET", "/openapi.json"),
        ("GET", "/page/data"),
        ("GET", "/lmcached/events"),
        ("POST", "/metrics"),
        ("POST", "/cache/clear"),
        ("POST", "/lmcached/drain"),
        ("POST", "/lmcached/upgrade"),
        ("GET", "/nothing"),
        ("GET", "//healthcheck"),
        ("GET", "/healthcheck/../status"),
    ] {
        let (status, body) = request_with(port, method, path, &[], "").await.expect("answer");
        assert_eq!(status, 403, "{method} {path}: {body}");
        assert!(body.contains("--http-token-file"), "{body}");
    }
    daemon.says("serves only /healthcheck and /metrics").await;
}

#[tokio::test]
async fn the_token_opens_everything_and_nothing_else_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let flag = format!("--http-token-file={}", token_file(&dir, 0o400));
    for host in ["0.0.0.0", "127.0.0.1"] {
        let daemon = Daemon::start(&[&flag, &format!("--http-host={host}")]).await;
        let port = daemon.http_port();
        for path in ["/healthcheck", "/metrics", "/livez", "/readyz"] {
            assert_eq!(get(port, path).await.expect("answer").0, 200, "{host} {path}");
        }
        let good = format!("Bearer {TOKEN}");
        let wrong = format!("Bearer {TOKEN}x");
        for (value, wanted) in [(None, 401), (Some(&wrong), 401), (Some(&good), 200)] {
            let headers: Vec<(&str, &str)> = value.iter().map(|v| ("Authorization", v.as_str())).collect();
            for path in ["/status", "/config", "/lmcached/workers"] {
                let (status, body) = request_with(port, "GET", path, &headers, "").await.expect("answer");
                assert_eq!(status, wanted, "{host} {path} {value:?}: {body}");
                assert!(!body.contains(TOKEN), "the token is never repeated");
            }
            let (status, _) = request_with(port, "POST", "/cache/clear", &headers, "").await.expect("answer");
            assert_eq!(status, wanted, "{host} {value:?}");
        }
        daemon.says("wrong token was refused").await;
        assert!(!daemon.log().iter().any(|line| line.contains(TOKEN)));
    }
}

#[tokio::test]
async fn another_sites_page_cannot_clear_the_cache() {
    let daemon = Daemon::start(&[]).await;
    for headers in [&[("Origin", "http://evil.example")][..], &[("Sec-Fetch-Site", "cross-site")]] {
        let answer =
            request_with(daemon.http_port(), "POST", "/cache/clear", headers, "").await.expect("answer");
        assert_eq!(answer.0, 403);
    }
    let own = [("Origin", "http://localhost"), ("Sec-Fetch-Site", "same-origin")];
    let answer = request_with(daemon.http_port(), "POST", "/cache/clear", &own, "").await.expect("answer");
    assert_eq!(answer.0, 200);
}

#[tokio::test]
async fn the_prometheus_port_serves_its_page_alone() {
    let daemon = Daemon::start(&[]).await;
    let port = daemon.prometheus_port();
    assert_eq!(get(port, "/metrics").await.expect("answer").0, 200);
    for path in ["/", "/status", "/healthcheck", "/config", "/lmcached/queue"] {
        assert_eq!(get(port, path).await.expect("answer").0, 404, "{path}");
    }
    let post = request_with(port, "POST", "/cache/clear", &[], "").await.expect("answer");
    assert_eq!(post.0, 404);
}

#[test]
fn a_token_that_others_can_read_ends_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let start = |file: &str| {
        let output = Command::new(binary())
            .args([
                "--port=0",
                "--http-port=0",
                "--prometheus-port=0",
                "--l1-size-gb=0.03125",
                "--shm-name=guard",
            ])
            .arg(format!("--http-token-file={file}"))
            .output()
            .expect("runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, log) = start(&token_file(&dir, 0o644));
    assert!(code == Some(1) && log.contains("chmod 400"), "{code:?} {log}");
    let (code, log) = start("/nowhere/token");
    assert!(code == Some(1) && log.contains("/nowhere/token"), "{code:?} {log}");
    let (code, log) = start("relative");
    assert!(code == Some(2) && log.contains("--http-token-file"), "{code:?} {log}");
}

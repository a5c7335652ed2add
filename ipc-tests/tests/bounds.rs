//! Every bound on what comes from outside, reached: what is over it is refused with an answer, its metric says so, and what is
//! below it is served as before. (Rate, answers that are not taken and connections: `flood.rs`. Lengths and counts of a single
//! request: `hostile.rs`. Records of a lane: `worker_death.rs`.)

use ipc_tests::daemon::Daemon;
use ipc_tests::{eventually, http};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn an_http_body_has_at_most_so_many_bytes() {
    let daemon = Daemon::start(&["--http-max-body-bytes=2048"]).await;
    let port = daemon.http_port();
    let body = |bytes| format!("{{\"user_id\":\"{}\"}}", "x".repeat(bytes));
    let (status, answer) = http::post(port, "/cache/prefetches", &body(4096)).await.expect("an answer");
    assert_eq!(status, 413, "{answer}");
    let (status, _) = http::post(port, "/cache/prefetches", &body(1024)).await.expect("an answer");
    assert_ne!(status, 413);
    // In pieces, of which none says how many there are.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
    let head = "POST /cache/prefetches HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let pieces = format!("400\r\n{}\r\n", "x".repeat(1024)).repeat(3);
    stream.write_all(format!("{head}{pieces}").as_bytes()).await.expect("send");
    let mut answer = vec![0; 1024];
    let read = stream.read(&mut answer).await.expect("an answer");
    assert!(answer[..read].starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&answer[..read]));
    assert_eq!(daemon.metric("lmcached_http_refused_total", &["body_too_large"]).await, 2.0);
}

#[tokio::test]
async fn an_http_port_has_so_many_connections() {
    let daemon = Daemon::start(&["--http-max-connections=2"]).await;
    let ask = async || {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.http_port())).await.expect("connect");
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("send");
        let mut answer = vec![0; 1024];
        let read = stream.read(&mut answer).await.expect("an answer");
        (stream, String::from_utf8_lossy(&answer[..read]).into_owned())
    };
    // One that says nothing keeps nobody out.
    let _silent = TcpStream::connect(("127.0.0.1", daemon.http_port())).await.expect("connect");
    let ((first, one), (second, two)) = (ask().await, ask().await);
    assert!(one.starts_with("HTTP/1.1 200") && two.starts_with("HTTP/1.1 200"), "{one} {two}");
    let (_third, three) = ask().await;
    assert!(three.starts_with("HTTP/1.1 503") && three.contains("--http-max-connections"), "{three}");
    // The other port has places of its own.
    let page = eventually("the page", async || http::get(daemon.prometheus_port(), "/metrics").await).await.1;
    for line in [
        r#"lmcached_http_refused_total{reason="too_many_connections"} 1"#,
        r#"lmcached_http_refused_total{reason="displaced"} 1"#,
        "lmcached_http_connections 3",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}");
    }
    drop((first, second));
    eventually("there are places again", async || ask().await.1.starts_with("HTTP/1.1 200").then_some(()))
        .await;
}

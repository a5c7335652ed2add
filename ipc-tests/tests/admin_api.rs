//! The admin API: bodies that come in chunks or are too large, and the keys of `/status`.

use ipc_tests::daemon::Daemon;
use ipc_tests::http;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends bytes and returns the status of the answer.
async fn status_of(daemon: &Daemon, pieces: &[&[u8]]) -> u16 {
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.http_port())).await.expect("connect");
    for piece in pieces {
        stream.write_all(piece).await.expect("send");
    }
    let mut head = [0; 12];
    let read = stream.read_exact(&mut head);
    tokio::time::timeout(std::time::Duration::from_secs(60), read)
        .await
        .expect("in time")
        .expect("an answer");
    std::str::from_utf8(&head[9..]).expect("text").parse().expect("a status")
}

#[tokio::test]
async fn bodies_in_chunks_are_read_and_bounded() {
    let daemon = Daemon::start(&[]).await;
    let chunked = b"POST /cache/clear HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    // A tier that cannot be cleared: the answer shows that the body was read.
    let refused = status_of(&daemon, &[chunked, b"7\r\n{\"tier\"\r\n", b"7\r\n: \"l2\"}\r\n0\r\n\r\n"]).await;
    assert_eq!(refused, 400);
    assert_eq!(status_of(&daemon, &[chunked, b"f\r\n{\"force\": true}\r\n0\r\n\r\n"]).await, 200);
    let most = 4 << 20;
    let head = format!("{:x}\r\n", most + 1);
    assert_eq!(status_of(&daemon, &[chunked, head.as_bytes(), &vec![b' '; most + 1]]).await, 413);
    // An announced length is refused before the body comes.
    let announced =
        format!("POST /cache/checksums HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", most + 1);
    assert_eq!(status_of(&daemon, &[announced.as_bytes()]).await, 413);
    // No body at all is fine where every field has a default.
    assert_eq!(status_of(&daemon, &[b"POST /cache/clear HTTP/1.1\r\nHost: x\r\n\r\n"]).await, 200);
    let many = format!(r#"{{"block_ids": [{}0], "chunk_size": 1}}"#, "0,".repeat(1 << 16));
    assert_eq!(http::post(daemon.http_port(), "/cache/checksums", &many).await.expect("answer").0, 400);
}

/// Every key of the peer's page is there, with a value of the same kind.
fn has_keys_of(ours: &Value, peers: &Value, path: &str) {
    match (ours, peers) {
        (Value::Object(ours), Value::Object(peers)) => {
            for (key, value) in peers {
                let path = format!("{path}.{key}");
                has_keys_of(ours.get(key).unwrap_or_else(|| panic!("{path} is missing")), value, &path);
            }
        }
        _ => assert_eq!(
            std::mem::discriminant(ours),
            std::mem::discriminant(peers),
            "{path}: {ours} where the peer has {peers}"
        ),
    }
}

#[tokio::test]
async fn status_has_every_key_of_the_peers_page() {
    let daemon = Daemon::start(&["--eviction-policy=ARC"]).await;
    let (_, text) = http::get(daemon.http_port(), "/status").await.expect("status");
    let ours: Value = serde_json::from_str(&text).expect("json");
    let peers: Value =
        serde_json::from_str(include_str!("vectors/golden_status_056.json")).expect("vectors parse");
    has_keys_of(&ours, &peers, "");
    let storage = &ours["storage_manager"];
    for controller in [
        &storage["eviction_controller"],
        &storage["l1_eviction_controller"],
        &storage["l1_eviction_controllers"]["_default"],
    ] {
        assert_eq!(controller["eviction_policy"], "ARC");
    }
    assert_eq!(ours["p2p_state"], "unregistered");
}

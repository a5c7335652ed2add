//! `moto_server`, an S3 server in Python that keeps everything in memory.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Process, find};
use crate::daemon::free_port;

/// The bucket of the tests.
pub const BUCKET: &str = "kv";

/// A running server with one bucket.
#[derive(Debug)]
pub struct S3Server {
    /// Its process.
    pub process: Process,
    port: u16,
}

impl S3Server {
    /// Starts one; `None`: not installed.
    pub async fn start() -> Option<S3Server> {
        let program = find("moto_server")?;
        let port = free_port();
        let args = ["-H", "127.0.0.1", "-p", &port.to_string()].map(str::to_owned).to_vec();
        let server = S3Server { process: Process::start(program, args, port).await, port };
        server.make_bucket().await;
        Some(server)
    }

    /// Makes the bucket; it forgets everything when it ends.
    pub async fn make_bucket(&self) {
        let (status, body) = self.request("PUT", "", b"").await;
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A request for `path` (quoted, without the leading slash) of the bucket; status and body. The server checks no
    /// signature.
    pub async fn request(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.expect("connects");
        let head = format!(
            "{method} /{BUCKET}/{path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            self.port,
            body.len()
        );
        stream.write_all(head.as_bytes()).await.expect("sends");
        stream.write_all(body).await.expect("sends");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("answers");
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, answer[end + 4..].to_vec())
    }
}

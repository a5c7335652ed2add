//! `moto_server`, an S3 server in Python that keeps everything in memory.

use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Process, find};
use crate::daemon::free_port;

/// The bucket of the tests.
pub const BUCKET: &str = "kv-cache";

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

    /// Starts one that speaks TLS; `None`: not installed. [`Self::request`] does not work with it.
    pub async fn start_tls(certificate: &Path, key: &Path) -> Option<S3Server> {
        let program = find("moto_server")?;
        let python = program.with_file_name("python");
        let port = free_port();
        let text = |path: &Path| path.display().to_string();
        let mut args = ["-H", "127.0.0.1", "-p", &port.to_string(), "-s", "-c"].map(str::to_owned).to_vec();
        args.extend([text(certificate), "-k".to_owned(), text(key)]);
        let server = S3Server { process: Process::start(program, args, port).await, port };
        // The server's own client makes the bucket.
        let script = format!(
            "import boto3; boto3.client('s3', endpoint_url='https://localhost:{port}', verify=r'{}', region_name='us-east-1', \
             aws_access_key_id='id', aws_secret_access_key='secret').create_bucket(Bucket='{BUCKET}')",
            text(certificate)
        );
        let made = std::process::Command::new(python).args(["-c", &script]).output().expect("Python runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Some(server)
    }

    /// Makes the bucket; it forgets everything when it ends.
    pub async fn make_bucket(&self) {
        let (status, body) = self.request("PUT", "", &[], b"").await;
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A request for `path` (quoted, without the leading slash) of the bucket, with `headers`; status and body. The server
    /// checks no signature.
    pub async fn request(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> (u16, Vec<u8>) {
        let (status, _, body) = self.exchange(method, path, headers, body).await;
        (status, body)
    }

    /// The same; status, head and body.
    pub async fn exchange(
        &self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: &[u8],
    ) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.expect("connects");
        let mut head = format!(
            "{method} /{BUCKET}/{path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\nContent-Length: {}\r\n",
            self.port,
            body.len()
        );
        // Nobody checks the signature, but there has to be one.
        let signed = "Authorization: AWS4-HMAC-SHA256 Credential=id/20260101/us-east-1/s3/aws4_request, \
                      SignedHeaders=host, Signature=0";
        for header in headers.iter().chain([&signed]) {
            head.push_str(header);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).await.expect("sends");
        stream.write_all(body).await.expect("sends");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("answers");
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, head, answer[end + 4..].to_vec())
    }
}

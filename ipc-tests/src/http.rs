//! A few lines of HTTP/1.1: enough to ask the daemon's own pages.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// GET; status and body, or `None` if nobody listens.
pub async fn get(port: u16, path: &str) -> Option<(u16, String)> {
    request(port, "GET", path, "").await
}

/// POST with a JSON body.
pub async fn post(port: u16, path: &str, body: &str) -> Option<(u16, String)> {
    request(port, "POST", path, body).await
}

/// PUT with a JSON body.
pub async fn put(port: u16, path: &str, body: &str) -> Option<(u16, String)> {
    request(port, "PUT", path, body).await
}

/// DELETE.
pub async fn delete(port: u16, path: &str) -> Option<(u16, String)> {
    request(port, "DELETE", path, "").await
}

/// Any method with a JSON body.
pub async fn request(port: u16, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    request_with(port, method, path, &[], body).await
}

/// The same with these headers besides.
pub async fn request_with(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n{more}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

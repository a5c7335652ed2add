//! Which address a host name stands for, for every listener alike.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// Connections that the kernel keeps for a listener until they are accepted; it takes less where `net.core.somaxconn` says so.
/// Who comes beyond it over TCP tries again after a second: with the usual 128 a few hundred workers that start together would.
pub(crate) const BACKLOG: u32 = 1024;

/// The address to listen on for `host`: its first IPv4 address, or else its first one. The peer binds `localhost` as IPv4;
/// clients that resolve it to IPv6 first fall back.
///
/// # Errors
/// `NotFound` if the host has no address.
pub(crate) async fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("host {host} has no address"));
    let addresses: Vec<SocketAddr> =
        tokio::net::lookup_host((host, port)).await.map_err(|_| unknown())?.collect();
    addresses.iter().find(|address| address.is_ipv4()).or(addresses.first()).copied().ok_or_else(unknown)
}

/// Listens on `host`.
///
/// # Errors
/// As [`resolve`], and those of the calls to the kernel.
pub(crate) async fn listen(host: &str, port: u16) -> io::Result<TcpListener> {
    let address = resolve(host, port).await?;
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // The port of a daemon that has just ended.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hosts_as_flags_spell_them() {
        for (host, want) in [("127.0.0.1", "127.0.0.1:7"), ("0.0.0.0", "0.0.0.0:7"), ("::1", "[::1]:7")] {
            assert_eq!(resolve(host, 7).await.expect("an address").to_string(), want);
        }
        let error = resolve("no such host", 7).await.expect_err("no address");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}

//! Where workers connect, and host names as the peer's flags spell them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

/// Longest path of a Unix socket: 108 bytes in `sockaddr_un`, one of them the final NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// A place to listen on, in ZeroMQ's spelling.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Endpoint {
    /// `tcp://host:port`.
    Tcp {
        /// Host name or address; IPv6 without brackets.
        host: String,
        /// Port; 0 lets the kernel choose.
        port: u16,
    },
    /// `ipc:///path`.
    Ipc {
        /// Absolute path of the socket.
        path: PathBuf,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Endpoint::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Endpoint::Ipc { path } => write!(f, "ipc://{}", path.display()),
        }
    }
}

/// Reads `tcp://host:port` or `ipc:///path`; the error says what is allowed.
pub(super) fn parse(text: &str) -> Result<Endpoint, &'static str> {
    if let Some(path) = text.strip_prefix("ipc://") {
        return parse_ipc(path);
    }
    let Some(address) = text.strip_prefix("tcp://") else {
        return Err("must be tcp://host:port or ipc:///absolute/path");
    };
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err("must end in a port, as in tcp://host:5555");
    };
    // A sign or blanks would pass `parse`.
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse().ok().filter(|_| digits).ok_or("must end in a port from 0 to 65535")?;
    if host.contains(':') && !host.starts_with('[') {
        return Err("must have its IPv6 address in brackets, as in tcp://[::1]:5555");
    }
    Ok(Endpoint::Tcp { host: parse_host(host)?, port })
}

fn parse_ipc(path: &str) -> Result<Endpoint, &'static str> {
    if !path.starts_with('/') || path.ends_with('/') {
        return Err("must name a socket by an absolute path, as in ipc:///run/lmcached.sock");
    }
    if path.len() > MAX_SOCKET_PATH_BYTES {
        return Err("must have a path of at most 107 bytes, the kernel's limit for sockets");
    }
    Ok(Endpoint::Ipc { path: Path::new(path).to_path_buf() })
}

/// Reads a host: a name, an IPv4 address, an IPv6 address with or without brackets, or ZeroMQ's `*`.
pub(super) fn parse_host(text: &str) -> Result<String, &'static str> {
    if text == "*" {
        return Ok("0.0.0.0".to_owned());
    }
    let bare = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
    let address = bare.split_once('%').map_or(bare, |(address, _zone)| address);
    if address.parse::<Ipv6Addr>().is_ok() {
        return Ok(bare.to_owned());
    }
    let name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if text.is_empty() || text.len() > 253 || !text.bytes().all(name) {
        return Err("must be a bare host name or address, without tcp:// and without a port");
    }
    Ok(text.to_owned())
}

/// Whether both addresses could not be listened on at once. Names are not resolved: `localhost` is taken for
/// 127.0.0.1, any other name only for itself.
pub(super) fn overlap(one: (&str, u16), other: (&str, u16)) -> bool {
    let loopback =
        |host: &str| if host == "localhost" { "127.0.0.1".to_owned() } else { host.to_lowercase() };
    one.1 != 0
        && one.1 == other.1
        && (is_wildcard(one.0) || is_wildcard(other.0) || loopback(one.0) == loopback(other.0))
}

/// Whether listening on `host` covers every address of its kind.
pub(super) fn is_wildcard(host: &str) -> bool {
    matches!(host, "0.0.0.0" | "::")
}

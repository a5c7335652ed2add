//! Name of the pool's segment in shared memory. Workers open it by name, so both sides must build the same one.

use lmcache_proto::shm::names::POOL_PREFIX as PREFIX;

use super::endpoint::Endpoint;
use super::error::ConfigError;

/// Room below NAME_MAX (255) for suffixes of neighbouring segments.
const MAX_NAME_BYTES: usize = 200;

/// The pool's name from `--shm-name`, or from the first endpoint where the flag is absent or empty.
///
/// Empty switches shared memory off in the peer. This daemon's pool always is shared memory, so it gets a name.
pub(super) fn pool_name(flag: Option<&str>, endpoints: &[Endpoint]) -> Result<String, ConfigError> {
    match flag {
        Some(name) if !name.is_empty() => normalise(name),
        _ => from_endpoints(endpoints),
    }
}

fn normalise(given: &str) -> Result<String, ConfigError> {
    // The peer drops leading slashes, POSIX's own spelling of segment names.
    let bare = given.trim_start_matches('/');
    let name = if bare.starts_with(PREFIX) { bare.to_owned() } else { format!("{PREFIX}{bare}") };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if name == PREFIX || !name.bytes().all(allowed) {
        return Err(ConfigError::value(
            "--shm-name",
            given,
            "must be made of letters, digits, '_', '.' and '-'",
        ));
    }
    if name.len() > MAX_NAME_BYTES {
        let allowed = format!("must be at most {MAX_NAME_BYTES} bytes long, {PREFIX} included");
        return Err(ConfigError::value("--shm-name", given, allowed));
    }
    Ok(name)
}

/// The same command line must find the same pool after a restart: the name is made of nothing that changes.
fn from_endpoints(endpoints: &[Endpoint]) -> Result<String, ConfigError> {
    let port = endpoints.iter().find_map(|endpoint| match endpoint {
        Endpoint::Tcp { port, .. } if *port != 0 => Some(*port),
        _ => None,
    });
    if let Some(port) = port {
        return Ok(format!("{PREFIX}{port}"));
    }
    let path = endpoints.iter().find_map(|endpoint| match endpoint {
        Endpoint::Ipc { path } => Some(path),
        Endpoint::Tcp { .. } => None,
    });
    let Some(path) = path else {
        return Err(ConfigError::conflict(
            "--port 0",
            "the pool is named after the port, and a port chosen by the kernel differs at every start: add --shm-name",
        ));
    };
    let keep = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '_' };
    let tail: String = path.to_string_lossy().trim_start_matches('/').chars().map(keep).collect();
    Ok(format!("{PREFIX}{tail}"))
}

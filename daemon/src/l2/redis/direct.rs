//! Loads from a single server without TLS, on connections of their own: a value goes from the socket through one small
//! buffer, which stays in the processor's cache, into the object's memory, and is hashed on the way.
//!
//! The client library collects a value, copies it, and hands it over to be copied again: with values of a megabyte that was
//! half of what the server could give (docs/benchmarks.md). It still does everything else, and all of it in a cluster and
//! behind TLS.
//!
//! A connection carries one load at a time and goes back to the idle ones only when its reply has been read to the end.
//! A load that fails or is given up closes it, so no reply is ever taken for another's.
#![forbid(unsafe_code)]

#[cfg(feature = "fuzzing")]
pub(super) mod fuzzing;

use std::time::Duration;
use std::{fmt, io};

use lmcache_proto::object_key::ObjectKey;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::super::checksum::{Checksum, Hashing};
use super::super::error::{LoadError, Trouble};
use super::super::memory::TargetBuf;
use super::connect::Address;

/// Bytes read at a time: stays in the second-level cache, and a system call is little against copying them.
const PIECE: usize = 64 << 10;
/// Pieces after which other tasks get their turn.
const TURN: u32 = 4;
/// Longest line of a reply, errors included.
const LINE: usize = 4 << 10;
/// Longest checksum: one of an algorithm to come is skipped, not refused.
const SUM: usize = 256;

/// The connections.
pub(super) struct Direct {
    host: String,
    port: u16,
    /// What is sent first on each connection: one command a line of the reply.
    login: Vec<Vec<u8>>,
    connection_timeout: Duration,
    idle: Mutex<Vec<Wire>>,
    room: Semaphore,
}

/// One connection and what was read of it ahead.
struct Wire<S = TcpStream> {
    stream: S,
    buffer: Box<[u8]>,
    /// Unread bytes of the buffer.
    start: usize,
    end: usize,
}

/// Why a load was not done, and whether anything of a reply had come.
struct Failed {
    error: LoadError,
    heard: bool,
}

/// Without the login, which has the password.
impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Direct {
    /// Connections to the first node, at most `connections` at a time. None is made yet.
    pub(super) fn new(address: &Address, connections: usize) -> Option<Direct> {
        if address.cluster || address.tls {
            return None;
        }
        let (host, port) = address.nodes.first()?.clone();
        let mut login = Vec::new();
        match (&address.user, &address.password) {
            (Some(user), Some(password)) => {
                login.push(command(&[b"AUTH", user.as_bytes(), password.as_bytes()]));
            }
            (None, Some(password)) => login.push(command(&[b"AUTH", password.as_bytes()])),
            (_, None) => {}
        }
        if let Some(database) = address.database.filter(|database| *database > 0) {
            login.push(command(&[b"SELECT", database.to_string().as_bytes()]));
        }
        Some(Direct {
            host,
            port,
            login,
            connection_timeout: address.connection_timeout,
            idle: Mutex::new(Vec::new()),
            room: Semaphore::new(connections),
        })
    }

    /// Loads the value of `name` and compares it with the checksum under `sum`, if there is one.
    pub(super) async fn load(
        &self,
        key: &ObjectKey,
        name: &str,
        sum: Option<&str>,
        target: &mut TargetBuf,
    ) -> Result<(), LoadError> {
        let _room = self.room.acquire().await.map_err(|_| Trouble::Unavailable("closed".into()))?;
        let ask = match sum {
            Some(sum) => command(&[b"MGET", name.as_bytes(), sum.as_bytes()]),
            None => command(&[b"GET", name.as_bytes()]),
        };
        let waiting = self.idle.lock().pop();
        if let Some(wire) = waiting {
            match self.one(wire, &ask, sum.is_some(), key, target).await {
                // The server has closed it meanwhile; all the others that wait are no better.
                Err(Failed { error: LoadError::Store(Trouble::Unavailable(_)), heard: false }) => {
                    self.idle.lock().clear();
                }
                other => return other.map_err(|failed| failed.error),
            }
        }
        let wire = self.connect().await?;
        self.one(wire, &ask, sum.is_some(), key, target).await.map_err(|failed| failed.error)
    }

    async fn connect(&self) -> Result<Wire, Trouble> {
        let connecting = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let broken = |error: io::Error| Trouble::Unavailable(format!("connecting: {error}"));
        let login = async {
            let stream = connecting.await.map_err(broken)?;
            let mut wire = Wire { stream, buffer: vec![0; PIECE].into(), start: 0, end: 0 };
            for command in &self.login {
                wire.stream.write_all(command).await.map_err(broken)?;
                match wire.line().await?.as_slice() {
                    [b'+', ..] => {}
                    line => return Err(refused("login", line)),
                }
            }
            Ok(wire)
        };
        timeout(self.connection_timeout, login)
            .await
            .map_err(|_| Trouble::Timeout(self.connection_timeout))?
    }

    async fn one(
        &self,
        mut wire: Wire,
        ask: &[u8],
        with_sum: bool,
        key: &ObjectKey,
        target: &mut TargetBuf,
    ) -> Result<(), Failed> {
        let broken = |error: io::Error| LoadError::from(Trouble::Unavailable(format!("GET: {error}")));
        let sent = wire.stream.write_all(ask).await;
        sent.map_err(|error| Failed { error: broken(error), heard: false })?;
        let first = wire.line().await.map_err(|error| Failed { error: error.into(), heard: false })?;
        let result = wire.reply(first, with_sum, key, target).await;
        match &result {
            // Read to the end.
            Ok(()) | Err(LoadError::NotFound | LoadError::Damaged(_)) => self.idle.lock().push(wire),
            Err(_) => {}
        }
        result.map_err(|error| Failed { error, heard: true })
    }
}

impl<S: AsyncRead + Unpin> Wire<S> {
    /// The rest of a reply whose first line has come.
    async fn reply(
        &mut self,
        first: Vec<u8>,
        with_sum: bool,
        key: &ObjectKey,
        target: &mut TargetBuf,
    ) -> Result<(), LoadError> {
        let head = match (with_sum, first.as_slice()) {
            (true, b"*2") => self.line().await?,
            (false, _) => first,
            (true, other) => return Err(refused("MGET", other).into()),
        };
        let found = match length("GET", &head)? {
            None => None,
            Some(len) if len == target.len() as u64 => Some(self.value(key, target).await?),
            Some(found) => return Err(LoadError::WrongSize { expected: target.len() as u64, found }),
        };
        let expected = if with_sum { self.sum().await? } else { None };
        match (found, expected) {
            (None, _) => Err(LoadError::NotFound),
            (Some(found), Some(expected)) if found != expected => Err(LoadError::checksum(expected, found)),
            (Some(_), _) => Ok(()),
        }
    }

    /// The bytes of the value, into `target`.
    async fn value(&mut self, key: &ObjectKey, target: &mut TargetBuf) -> Result<Checksum, Trouble> {
        let mut hash = Hashing::of(key);
        let (mut done, mut pieces) = (0, 0);
        while done < target.len() {
            if self.start == self.end {
                self.fill().await?;
                pieces += 1;
                if pieces % TURN == 0 {
                    tokio::task::yield_now().await;
                }
            }
            let len = (self.end - self.start).min(target.len() - done);
            let piece = &self.buffer[self.start..self.start + len];
            target.write_at(done, piece);
            hash.update(piece);
            self.start += len;
            done += len;
        }
        self.end_of_line().await?;
        Ok(hash.finish())
    }

    async fn sum(&mut self) -> Result<Option<Checksum>, Trouble> {
        let head = self.line().await?;
        let Some(len) = length("the checksum", &head)? else { return Ok(None) };
        if len > SUM as u64 {
            return Err(Trouble::Unexpected(format!("a checksum of {len} bytes")));
        }
        let mut text = Vec::with_capacity(len as usize);
        while text.len() < len as usize {
            text.push(self.byte().await?);
        }
        self.end_of_line().await?;
        Ok(Checksum::parse(&text))
    }

    async fn end_of_line(&mut self) -> Result<(), Trouble> {
        if [self.byte().await?, self.byte().await?] == *b"\r\n" {
            Ok(())
        } else {
            Err(Trouble::Unexpected("a value does not end where it should".into()))
        }
    }

    /// A line without its end.
    async fn line(&mut self) -> Result<Vec<u8>, Trouble> {
        let mut line = Vec::new();
        loop {
            line.push(self.byte().await?);
            if line.ends_with(b"\r\n") {
                line.truncate(line.len() - 2);
                return Ok(line);
            }
            if line.len() > LINE {
                return Err(Trouble::Unexpected("a line without an end".into()));
            }
        }
    }

    async fn byte(&mut self) -> Result<u8, Trouble> {
        if self.start == self.end {
            self.fill().await?;
        }
        let byte = self.buffer[self.start];
        self.start += 1;
        Ok(byte)
    }

    async fn fill(&mut self) -> Result<(), Trouble> {
        let read = self.stream.read(&mut self.buffer).await;
        let read = read.map_err(|error| Trouble::Unavailable(format!("reading: {error}")))?;
        if read == 0 {
            return Err(Trouble::Unavailable("the server has closed the connection".into()));
        }
        (self.start, self.end) = (0, read);
        Ok(())
    }
}

/// A command in the form of the protocol: an array of bulk strings.
fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// The length of a bulk string; `None`: there is no value.
fn length(doing: &str, head: &[u8]) -> Result<Option<u64>, Trouble> {
    let digits = match head {
        b"$-1" => return Ok(None),
        [b'$', digits @ ..] => std::str::from_utf8(digits).ok(),
        _ => None,
    };
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(len) => Ok(Some(len)),
        None => Err(refused(doing, head)),
    }
}

/// What an answer means that is not the one asked for.
fn refused(doing: &str, line: &[u8]) -> Trouble {
    let [b'-', text @ ..] = line else {
        let shown = String::from_utf8_lossy(&line[..line.len().min(40)]).into_owned();
        return Trouble::Unexpected(format!("{doing} was answered with {shown:?}"));
    };
    let text = String::from_utf8_lossy(text).into_owned();
    let said = format!("{doing}: {text}");
    match text.split(' ').next().unwrap_or_default() {
        "NOAUTH" | "WRONGPASS" | "NOPERM" => Trouble::Denied(said),
        // Of a server whose default user has no password: AUTH without one configured there.
        "ERR" | "WRONGTYPE" | "MOVED" | "CROSSSLOT" => Trouble::Unexpected(said),
        _ => Trouble::Unavailable(said),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_replies_have_the_form_of_the_protocol() {
        assert_eq!(command(&[b"GET", b"a b"]), b"*2\r\n$3\r\nGET\r\n$3\r\na b\r\n");
        assert_eq!(length("GET", b"$-1"), Ok(None));
        assert_eq!(length("GET", b"$1048576"), Ok(Some(1 << 20)));
        for odd in [&b"$"[..], b"$-2", b"$1x", b"+OK", b":1", b"", b"$99999999999999999999999"] {
            assert!(matches!(length("GET", odd), Err(Trouble::Unexpected(_))), "{odd:?}");
        }
        for (line, wanted) in [
            (
                &b"-NOAUTH Authentication required."[..],
                "permission denied: GET: NOAUTH Authentication required.",
            ),
            (b"-LOADING Redis is loading", "not reachable: GET: LOADING Redis is loading"),
            (b"-MOVED 1 a:2", "unexpected answer: GET: MOVED 1 a:2"),
            (b"*3", "unexpected answer: GET was answered with \"*3\""),
        ] {
            assert_eq!(refused("GET", line).to_string(), wanted);
        }
    }
}

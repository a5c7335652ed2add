//! The two halves of a peer's socket, of either kind.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::{Buf, BufMut, BytesMut};
use lmcache_proto::fnv::Fnv;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::{TcpStream, UnixStream, tcp, unix};

use super::budget::READ_BYTES;
use super::endpoint::Stream;
use crate::engine::{Client, Origin};
use crate::journal::Mark;

/// First read buffer of a connection. A read that fills the room it was given doubles it, up to [`READ_BYTES`]: a
/// request of 4 k tokens then takes one read.
pub(super) const QUIET_BUFFER: usize = 8 << 10;

/// The peer's end of the socket, either kind.
pub(super) enum Half {
    Tcp(tcp::OwnedReadHalf),
    Ipc(unix::OwnedReadHalf),
}

pub(super) struct Reader {
    half: Half,
    /// Set before bytes are taken. Kept only where somebody would keep the socket over a crash.
    pub(super) mark: Mark,
    /// Room to offer to the next read: grows while reads fill it.
    room: usize,
}

pub(super) enum Writer {
    Tcp(tcp::OwnedWriteHalf),
    Ipc(unix::OwnedWriteHalf),
}

impl Reader {
    pub(super) fn new(half: Half) -> Reader {
        Reader { half, mark: Mark::reading(None), room: QUIET_BUFFER }
    }

    /// Reads at most `most` bytes; 0 is the end. With `most` at 0 nothing is read and only the end is waited for. `noted`: all
    /// that was read before is.
    pub(super) async fn read(&mut self, buf: &mut BytesMut, most: usize, noted: bool) -> io::Result<usize> {
        if most == 0 {
            self.closed().await;
            return Ok(0);
        }
        let room = self.room.min(most);
        // The buffer grows by doubling, but only over bytes that are here, never from an announced length.
        buf.reserve(room);
        let mut buf = buf.limit(room);
        let read = loop {
            if !self.mark.is_kept() {
                break match &mut self.half {
                    Half::Tcp(half) => half.read_buf(&mut buf).await?,
                    Half::Ipc(half) => half.read_buf(&mut buf).await?,
                };
            }
            // Nothing is said while there is nothing to read: a kill leaves the stream where it is known to be.
            self.heard().await?;
            // From here to where what was read is noted there is no await.
            self.mark.set(true);
            let read = match &self.half {
                Half::Tcp(half) => half.try_read_buf(&mut buf),
                Half::Ipc(half) => half.try_read_buf(&mut buf),
            };
            match read {
                // Nobody else reads it, so this does not happen.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.mark.set(!noted),
                read => break read?,
            }
        };
        if read == self.room {
            self.room = (self.room * 2).min(READ_BYTES);
        }
        Ok(read)
    }

    fn socket(&self) -> BorrowedFd<'_> {
        match &self.half {
            Half::Tcp(half) => half.as_ref().as_fd(),
            Half::Ipc(half) => half.as_ref().as_fd(),
        }
    }

    /// Resolves when there is a byte to read, or the end (`false`), and takes nothing. That a socket is readable is only a hint.
    pub(super) async fn heard(&self) -> io::Result<bool> {
        let peek = || {
            let (peeked, _) =
                rustix::net::recv(self.socket(), &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
            Ok(peeked > 0)
        };
        loop {
            let peeked = match &self.half {
                Half::Tcp(half) => {
                    half.readable().await?;
                    half.as_ref().try_io(Interest::READABLE, peek)
                }
                Half::Ipc(half) => {
                    half.readable().await?;
                    half.as_ref().try_io(Interest::READABLE, peek)
                }
            };
            match peeked {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                peeked => return peeked,
            }
        }
    }

    /// The same socket for the service manager.
    pub(super) fn copy(&self) -> io::Result<OwnedFd> {
        self.socket().try_clone_to_owned()
    }

    /// Ends the connection for the peer, whoever else has the socket open.
    pub(super) fn shut_down(&self) {
        // Fails if the peer has ended it before.
        let _ = rustix::net::shutdown(self.socket(), Shutdown::Both);
    }

    /// Resolves when the peer has closed its end, also while what it sent before that is unread.
    async fn closed(&self) {
        // tokio counts the end of the other side as part of each read interest, and of these two only `READABLE` is met by
        // waiting data as well.
        let ready = match &self.half {
            Half::Tcp(half) => half.ready(Interest::PRIORITY).await,
            Half::Ipc(half) => half.ready(Interest::PRIORITY).await,
        };
        if !ready.is_ok_and(|ready| ready.is_read_closed()) {
            std::future::pending::<()>().await;
        }
    }
}

/// The two halves of a peer's socket, and the client that it is.
pub(super) fn meet(id: u64, stream: Stream) -> (Reader, Writer, Client) {
    match stream {
        Stream::Tcp(stream, address) => {
            let (read, write) = stream.into_split();
            let ip = address.ip().to_canonical();
            let mut host = Fnv::new();
            host.bytes(ip.to_string().as_bytes());
            let origin = Origin { is_local: ip.is_loopback(), host: host.finish(), ..Origin::default() };
            let client = Client::new(id, format!("tcp://{address}"), origin);
            (Reader::new(Half::Tcp(read)), Writer::Tcp(write), client)
        }
        Stream::Ipc(stream, credentials) => {
            let (read, write) = stream.into_split();
            let process = credentials.and_then(|credentials| credentials.process());
            let peer = process.map_or("ipc".into(), |p| format!("ipc pid {}", p.pid));
            let uid = credentials.map(|credentials| credentials.uid);
            let origin = Origin { process, uid, is_local: true, host: 0 };
            (Reader::new(Half::Ipc(read)), Writer::Ipc(write), Client::new(id, peer, origin))
        }
    }
}

/// The same socket, heard by the current runtime from here on.
pub(super) fn moved_here(reader: Reader, writer: Writer) -> io::Result<(Reader, Writer)> {
    let (socket, is_ipc) = into_socket(reader, writer)?;
    let (half, writer) = if is_ipc {
        let (read, write) = UnixStream::from_std(socket.into())?.into_split();
        (Half::Ipc(read), Writer::Ipc(write))
    } else {
        let (read, write) = TcpStream::from_std(socket.into())?.into_split();
        (Half::Tcp(read), Writer::Tcp(write))
    };
    Ok((Reader::new(half), writer))
}

/// The socket of both halves, for another process or another runtime.
pub(super) fn into_socket(reader: Reader, writer: Writer) -> io::Result<(OwnedFd, bool)> {
    let apart = || io::Error::other("halves of two sockets");
    match (reader.half, writer) {
        (Half::Tcp(read), Writer::Tcp(write)) => {
            let stream = read.reunite(write).map_err(|_| apart())?.into_std()?;
            Ok((stream.into(), false))
        }
        (Half::Ipc(read), Writer::Ipc(write)) => {
            let stream = read.reunite(write).map_err(|_| apart())?.into_std()?;
            Ok((stream.into(), true))
        }
        _ => Err(apart()),
    }
}

impl Writer {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let socket = match self {
            Writer::Tcp(half) => half.as_ref().as_fd(),
            Writer::Ipc(half) => half.as_ref().as_fd(),
        };
        // The kernel is asked first: of a socket that it has just been given, tokio knows nothing before its first event, and
        // says that it would block.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match retry_on_intr(|| rustix::net::send(socket, bytes, flags)) {
            // Once more, so that tokio waits for the next event.
            Err(Errno::AGAIN) => match self {
                Writer::Tcp(half) => half.try_write(bytes),
                Writer::Ipc(half) => half.try_write(bytes),
            },
            sent => Ok(sent?),
        }
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Writer::Tcp(half) => half.writable().await,
            Writer::Ipc(half) => half.writable().await,
        }
    }

    /// Writes what the socket takes now.
    pub(super) fn flush_now(&self, out: &mut BytesMut) -> io::Result<()> {
        while !out.is_empty() {
            match self.try_write(out) {
                Ok(n) => out.advance(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes everything.
    pub(super) async fn flush(&self, out: &mut BytesMut) -> io::Result<()> {
        loop {
            self.flush_now(out)?;
            if out.is_empty() {
                return Ok(());
            }
            self.writable().await?;
        }
    }
}

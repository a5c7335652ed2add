//! Messages with descriptors over a pair of Unix sockets.
//!
//! A message is its length and the number of its descriptors (8 bytes each, little-endian), its bytes, and one byte for each
//! descriptor, which comes with it.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Longest message: the prompts of all requests under way.
const MAX_BYTES: u64 = 4 << 30;
/// Most descriptors: connections and listeners.
const MAX_DESCRIPTORS: u64 = 1 << 20;

/// Why a message could not be sent or received.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The other side has gone.
    #[error("the other process has ended")]
    Gone,
    /// Nothing came in time.
    #[error("the other process has said nothing for {0:.0?}")]
    Late(Duration),
    /// The socket.
    #[error("the channel failed: {0}")]
    Io(io::Error),
    /// Not what this release says.
    #[error("the other process said what this release does not understand: {0}")]
    Message(String),
}

/// One end.
#[derive(Debug)]
pub(super) struct Channel(UnixStream);

impl Channel {
    /// Both ends.
    pub(super) fn pair() -> io::Result<(Channel, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Channel(ours), theirs.into()))
    }

    /// An end that was inherited.
    pub(super) fn from_fd(fd: OwnedFd) -> Channel {
        Channel(UnixStream::from(fd))
    }

    pub(super) fn send<T: Serialize>(
        &mut self,
        message: &T,
        descriptors: &[OwnedFd],
    ) -> Result<(), ChannelError> {
        let bytes = rmp_serde::to_vec(message).map_err(|error| ChannelError::Message(error.to_string()))?;
        let mut head = (bytes.len() as u64).to_le_bytes().to_vec();
        head.extend_from_slice(&(descriptors.len() as u64).to_le_bytes());
        self.0.write_all(&head).map_err(io_failed)?;
        self.0.write_all(&bytes).map_err(io_failed)?;
        for descriptor in descriptors {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds = [descriptor.as_fd()];
            control.push(SendAncillaryMessage::ScmRights(&fds));
            sendmsg(&self.0, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)
                .map_err(|errno| io_failed(errno.into()))?;
        }
        Ok(())
    }

    /// Waits for a message, for `limit` after each piece of it.
    pub(super) fn receive<T: DeserializeOwned>(
        &mut self,
        limit: Option<Duration>,
    ) -> Result<(T, Vec<OwnedFd>), ChannelError> {
        self.0.set_read_timeout(limit).map_err(ChannelError::Io)?;
        let failed = |error: io::Error| match (error.kind(), limit) {
            (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, Some(limit)) => ChannelError::Late(limit),
            _ => io_failed(error),
        };
        let mut head = [0; 16];
        self.0.read_exact(&mut head).map_err(failed)?;
        let [bytes, descriptors] = [0, 8].map(|at| {
            let number: [u8; 8] = std::array::from_fn(|byte| head[at + byte]);
            u64::from_le_bytes(number)
        });
        if bytes > MAX_BYTES || descriptors > MAX_DESCRIPTORS {
            return Err(ChannelError::Message(format!("{bytes} bytes and {descriptors} descriptors")));
        }
        let mut message = Vec::new();
        (&self.0).take(bytes).read_to_end(&mut message).map_err(failed)?;
        if message.len() as u64 != bytes {
            return Err(ChannelError::Gone);
        }
        let mut received = Vec::new();
        for _ in 0..descriptors {
            received.push(self.descriptor().map_err(failed)?);
        }
        let message =
            rmp_serde::from_slice(&message).map_err(|error| ChannelError::Message(error.to_string()))?;
        Ok((message, received))
    }

    fn descriptor(&self) -> io::Result<OwnedFd> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let received =
            recvmsg(&self.0, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::other("no descriptor is left; raise LimitNOFILE= (systemd) or ulimit -n"));
        }
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        descriptor.ok_or_else(|| io::Error::other("a descriptor is missing"))
    }
}

fn io_failed(error: io::Error) -> ChannelError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            ChannelError::Gone
        }
        _ => ChannelError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_message_comes_whole_with_its_descriptors() {
        let (mut ours, theirs) = Channel::pair().expect("a pair");
        let mut theirs = Channel::from_fd(theirs);
        let sender = std::thread::spawn(move || {
            let files: Vec<OwnedFd> =
                (0..300).map(|_| File::open("/dev/null").expect("a file").into()).collect();
            ours.send(&vec![7u64; 100_000], &files).expect("sent");
            ours.send(&"end", &[]).expect("sent");
        });
        let (numbers, files) = theirs.receive::<Vec<u64>>(None).expect("a message");
        assert!(numbers == vec![7; 100_000] && files.len() == 300);
        let (end, files) = theirs.receive::<String>(None).expect("a message");
        assert_eq!((end.as_str(), files.len()), ("end", 0));
        sender.join().expect("no panic");
        assert!(matches!(theirs.receive::<String>(None), Err(ChannelError::Gone)));
    }

    #[test]
    fn silence_and_nonsense_are_told_apart() {
        let (mut ours, theirs) = Channel::pair().expect("a pair");
        let mut theirs = Channel::from_fd(theirs);
        let limit = Duration::from_millis(20);
        assert!(matches!(theirs.receive::<String>(Some(limit)), Err(ChannelError::Late(_))));
        ours.send(&7, &[]).expect("sent");
        assert!(matches!(theirs.receive::<String>(None), Err(ChannelError::Message(_))));
        ours.0.write_all(&[0xff; 16]).expect("sent");
        assert!(matches!(theirs.receive::<String>(None), Err(ChannelError::Message(_))));
    }
}

//! What the daemon says, and the descriptors that it gives to keep: the receiving side of sd_notify(3).
#![forbid(unsafe_code)]

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use rustix::process::Pid;
use tempfile::TempDir;
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use super::KeeperError;
use crate::l1::pool::SHM_DIR;

/// Longest message; systemd's limit, too.
const MESSAGE: usize = 4096;
/// Most descriptors with one message. The daemon sends one.
const WITH_ONE: usize = 16;
/// Longest name of a descriptor (sd_pid_notify_with_fds(3)).
const NAME: usize = 255;

/// What concerns whoever keeps the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// `READY=1`.
    Ready,
    /// `WATCHDOG=1`.
    Alive,
    /// `MAINPID=`.
    Main(Pid),
}

/// The descriptors, and the socket on which they come.
#[derive(Debug)]
pub(super) struct Store {
    socket: UnixDatagram,
    /// Only ours: nobody else can say anything.
    dir: TempDir,
    kept: Vec<(String, OwnedFd)>,
    most: usize,
}

impl Store {
    /// An empty one for `most` descriptors. Needs a runtime.
    pub(super) fn open(most: usize) -> Result<Store, KeeperError> {
        let temporary = std::env::temp_dir();
        let failed = |source| KeeperError::Socket { dir: temporary.display().to_string(), source };
        let bind_in = |place: &Path| {
            let dir = tempfile::Builder::new().prefix("lmcached-keeper").tempdir_in(place)?;
            let socket = UnixDatagram::bind(dir.path().join("notify"))?;
            Ok((dir, socket))
        };
        // A container may have nothing to write to but the place where the daemon's pool will be.
        let bound = bind_in(&temporary).or_else(|error| bind_in(Path::new(SHM_DIR)).map_err(|_| error));
        let (dir, socket) = bound.map_err(failed)?;
        Ok(Store { socket, dir, kept: Vec::new(), most })
    }

    /// The socket's name.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join("notify")
    }

    /// Names and descriptors, in the order in which they came.
    pub(super) fn kept(&self) -> impl Iterator<Item = (&str, &OwnedFd)> {
        self.kept.iter().map(|(name, kept)| (name.as_str(), kept))
    }

    /// Drops the connections that have ended on both sides: the daemon shuts down those that it ends, and need not say so.
    pub(super) fn prune(&mut self) {
        self.kept.retain(|(_, kept)| {
            let mut asked = [PollFd::new(kept, PollFlags::empty())];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            // What cannot be asked is kept.
            poll(&mut asked, Some(&now)).is_err()
                || !asked[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL)
        });
    }

    /// How many are kept.
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Waits for the daemon's next message. What it says of descriptors is done.
    ///
    /// # Errors
    /// The socket's.
    pub(super) async fn heard(&mut self) -> io::Result<Vec<Word>> {
        let (said, descriptors) = self.socket.async_io(Interest::READABLE, || receive(&self.socket)).await?;
        Ok(self.take(said, descriptors))
    }

    /// What has been said already.
    pub(super) fn heard_so_far(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Ok((said, descriptors)) = receive(&self.socket) {
            words.extend(self.take(said, descriptors));
        }
        words
    }

    fn take(&mut self, said: Said, descriptors: Vec<OwnedFd>) -> Vec<Word> {
        if said.removes {
            self.kept.retain(|(name, _)| *name != said.name);
        }
        if said.stores {
            // A number that is used again is of a connection that is over.
            self.kept.retain(|(name, _)| *name != said.name);
            for descriptor in descriptors {
                if self.kept.len() >= self.most {
                    self.prune();
                }
                if self.kept.len() >= self.most {
                    tracing::warn!(
                        most = self.most,
                        name = said.name,
                        "a connection is not kept: there are too many; raise --connections. After a crash its client connects again"
                    );
                    break;
                }
                self.kept.push((said.name.clone(), descriptor));
            }
        }
        said.words
    }
}

/// The next message, with the descriptors that came with it.
fn receive(socket: &UnixDatagram) -> io::Result<(Said, Vec<OwnedFd>)> {
    let mut bytes = [0; MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(WITH_ONE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    if received.flags.contains(ReturnFlags::CTRUNC) {
        // The kernel has closed what did not fit into our table of descriptors.
        tracing::warn!(
            "a connection of the daemon could not be taken: this process has too many descriptors open; raise its limit (ulimit -n, LimitNOFILE=). After a crash its client connects again"
        );
    }
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            descriptors.extend(sent);
        }
    }
    Ok((Said::parse(&String::from_utf8_lossy(&bytes[..received.bytes])), descriptors))
}

/// One message.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    words: Vec<Word>,
    name: String,
    stores: bool,
    removes: bool,
}

impl Said {
    fn parse(text: &str) -> Said {
        let mut said = Said { name: "stored".into(), ..Said::default() };
        for (what, value) in text.lines().filter_map(|line| line.split_once('=')) {
            match (what, value) {
                ("READY", "1") => said.words.push(Word::Ready),
                ("WATCHDOG", "1") => said.words.push(Word::Alive),
                ("MAINPID", number) => {
                    let pid = number.parse().ok().filter(|number| *number > 0).and_then(Pid::from_raw);
                    said.words.extend(pid.map(Word::Main));
                }
                ("FDSTORE", "1") => said.stores = true,
                ("FDSTOREREMOVE", "1") => said.removes = true,
                // They are put together with colons.
                ("FDNAME", name) if is_name(name) => name.clone_into(&mut said.name),
                _ => {}
            }
        }
        said
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_understood_as_systemd_does() {
        let said = Said::parse("READY=1\nSTATUS=serving\n");
        assert_eq!((said.words, said.stores), (vec![Word::Ready], false));
        let said = Said::parse("FDSTORE=1\nFDNAME=connection-7\n");
        assert_eq!(
            (said.words.len(), said.name.as_str(), said.stores, said.removes),
            (0, "connection-7", true, false)
        );
        let said = Said::parse("FDSTOREREMOVE=1\nFDNAME=connection-7");
        assert!(said.removes && !said.stores);
        assert_eq!(Said::parse("MAINPID=42").words, [Word::Main(Pid::from_raw(42).expect("a number"))]);
        for nothing in ["", "\n", "READY", "READY=0", "MAINPID=0", "MAINPID=-1", "MAINPID=x", "X=1"] {
            assert_eq!(
                Said::parse(nothing),
                Said { name: "stored".into(), ..Said::default() },
                "{nothing:?}"
            );
        }
        for name in ["", "a:b", "a b", "\u{7f}", "ä"] {
            assert_eq!(Said::parse(&format!("FDNAME={name}")).name, "stored", "{name:?}");
        }
    }
}

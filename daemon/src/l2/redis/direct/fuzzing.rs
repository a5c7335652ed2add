//! Replies that no server of ours would send, in pieces of any length.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use lmcache_proto::fuzzing::Input;
use tokio::io::{AsyncRead, ReadBuf};

use super::super::super::checksum::Checksum;
use super::super::super::error::{LoadError, Trouble};
use super::super::super::fuzzing::key;
use super::super::super::memory::TargetBuf;
use super::{LINE, Wire};

/// A peer that sends `piece` bytes at a time and then closes.
struct Peer<'a> {
    bytes: &'a [u8],
    piece: usize,
}

impl AsyncRead for Peer<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, later) = self.bytes.split_at(self.piece.min(self.bytes.len()).min(buf.remaining()));
        buf.put_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(()))
    }
}

fn read(bytes: &[u8], piece: usize, with_sum: bool, len: usize) -> (Result<(), LoadError>, Vec<u8>, usize) {
    let peer = Peer { bytes, piece: piece.max(1) };
    let mut wire = Wire { stream: peer, buffer: vec![0; 4096].into(), start: 0, end: 0 };
    let mut target = TargetBuf::with_len(len);
    let load = async {
        let first = wire.line().await?;
        wire.reply(first, with_sum, &key(1), &mut target).await
    };
    // The peer is always ready. Below four reads of the socket nobody else gets a turn, so it is one poll.
    let result = load.now_or_never().expect("nothing to wait for");
    let read = bytes.len() - wire.stream.bytes.len() - (wire.end - wire.start);
    (result, target.to_vec(), read)
}

/// `GET` and `MGET` of a value of up to some hundred bytes.
pub(in crate::l2) fn reply(input: &mut Input<'_>) {
    let (with_sum, piece, len) =
        (input.byte() & 1 == 1, 2048 + usize::from(input.byte()), usize::from(input.byte()));
    let bytes = input.rest();
    let bytes = &bytes[..bytes.len().min(2 * LINE)];
    let (result, value, used) = read(bytes, piece, with_sum, len);
    let (again, same, as_much) = read(bytes, usize::MAX, with_sum, len);
    assert_eq!((&again, &same, as_much), (&result, &value, used), "it depends on how it was cut");
    if result.is_ok() {
        // The value is where the protocol says, and a checksum that came with it fits.
        let mut rest = &bytes[..used];
        for _ in 0..1 + usize::from(with_sum) {
            line(&mut rest);
        }
        let (found, after) = rest.split_at(len);
        assert!(found == value && after.starts_with(b"\r\n"));
        rest = &after[2..];
        if with_sum && line(&mut rest) != b"$-1" {
            let text = rest.strip_suffix(b"\r\n").expect("a bulk string's end");
            assert!(Checksum::parse(text).is_none_or(|sum| sum == Checksum::of_bytes(&key(1), &value)));
        } else {
            assert!(rest.is_empty(), "bytes of the next reply were taken");
        }
    }
    if let Err(LoadError::Store(
        Trouble::Denied(said) | Trouble::Unavailable(said) | Trouble::Unexpected(said),
    )) = &result
    {
        assert!(said.len() <= 4 * LINE, "a reply of the server fills the log");
    }
}

/// Takes a line, without its end.
fn line<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let end = rest.windows(2).position(|window| window == b"\r\n").expect("a line has an end");
    let (line, after) = rest.split_at(end);
    *rest = &after[2..];
    line
}

//! ZMTP 3.0/3.1 with the NULL mechanism, both sides. Source: RFC 23 and RFC 37 of the ZeroMQ project.
//!
//! Own code because the pure-Rust crate reserves memory for whatever length a peer announces. Here a frame above the
//! limit ends the connection before anything is reserved, and buffers grow only with bytes that have arrived.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

/// Bytes of a greeting.
pub const GREETING_LEN: usize = 64;
/// Most frames of one message: the largest request has 9.
pub const MAX_FRAMES: usize = 32;
/// Largest command: READY with its metadata, PING with 16 bytes of context.
const MAX_COMMAND: usize = 4096;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Why a peer's greeting or READY was not accepted.
#[derive(Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum HandshakeError {
    #[error("not a ZeroMQ peer (no ZMTP signature)")]
    Signature,
    #[error("ZMTP {0}.x; lmcached speaks 3.0 and 3.1 (libzmq 4.0 or later)")]
    Version(u8),
    #[error("security mechanism {0}; lmcached speaks NULL")]
    Mechanism(String),
    #[error("socket type {0}; clients connect with DEALER")]
    SocketType(String),
    #[error("malformed READY")]
    Ready,
    #[error("peer sent ERROR instead of READY")]
    Refused,
}

/// Why a frame ends the connection.
#[derive(Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum FrameError {
    #[error(
        "message of more than {limit} bytes (frame announces {announced}); raise --max-message-bytes if it is a real client"
    )]
    TooLarge { announced: u64, limit: usize },
    #[error("message of more than {MAX_FRAMES} frames")]
    TooManyFrames,
    #[error("reserved bits in frame flags 0x{0:02x}")]
    Flags(u8),
    #[error("command in the middle of a message, or a command of more than {MAX_COMMAND} bytes")]
    Command,
}

/// Our greeting: signature, version 3.1, NULL, not a server in the mechanism's sense.
pub fn greeting() -> [u8; GREETING_LEN] {
    let mut greeting = [0u8; GREETING_LEN];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[11] = 1;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// Checks a peer's greeting.
///
/// # Errors
/// What is wrong with it.
pub fn check_greeting(greeting: &[u8; GREETING_LEN]) -> Result<(), HandshakeError> {
    if greeting[0] != 0xff || greeting[9] & 1 != 1 {
        return Err(HandshakeError::Signature);
    }
    if greeting[10] < 3 {
        return Err(HandshakeError::Version(greeting[10]));
    }
    let mechanism: Vec<u8> = greeting[12..32].iter().copied().take_while(|byte| *byte != 0).collect();
    if mechanism != b"NULL" {
        let shown =
            mechanism.iter().map(|b| if b.is_ascii_graphic() { char::from(*b) } else { '?' }).collect();
        return Err(HandshakeError::Mechanism(shown));
    }
    Ok(())
}

/// The READY command of the listening side, as a whole frame.
pub fn ready() -> Vec<u8> {
    ready_as(b"ROUTER")
}

/// The READY command of the connecting side.
pub fn ready_dealer() -> Vec<u8> {
    ready_as(b"DEALER")
}

fn ready_as(socket_type: &[u8]) -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    for (name, value) in [("Socket-Type", socket_type), ("Identity", b"")] {
        body.push(name.len() as u8);
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(&(value.len() as u32).to_be_bytes());
        body.extend_from_slice(value);
    }
    let mut frame = vec![COMMAND, body.len() as u8];
    frame.append(&mut body);
    frame
}

/// Checks a peer's READY: DEALER is what LMCache uses, ROUTER is compatible. REQ would wait for an empty delimiter.
///
/// # Errors
/// What is wrong with it.
pub fn check_ready(body: &[u8]) -> Result<(), HandshakeError> {
    if body.starts_with(b"\x05ERROR") {
        return Err(HandshakeError::Refused);
    }
    let mut rest = body.strip_prefix(b"\x05READY").ok_or(HandshakeError::Ready)?;
    let mut socket_type = None;
    while !rest.is_empty() {
        let name_len = usize::from(rest[0]);
        let name = rest.get(1..1 + name_len).ok_or(HandshakeError::Ready)?;
        let value_at = 1 + name_len + 4;
        let len_bytes: [u8; 4] =
            rest.get(1 + name_len..value_at).and_then(|b| b.try_into().ok()).ok_or(HandshakeError::Ready)?;
        let value_len = u32::from_be_bytes(len_bytes) as usize;
        let value = value_at
            .checked_add(value_len)
            .and_then(|end| rest.get(value_at..end))
            .ok_or(HandshakeError::Ready)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            socket_type = Some(value);
        }
        rest = &rest[value_at + value_len..];
    }
    match socket_type {
        Some(b"DEALER" | b"ROUTER") => Ok(()),
        Some(other) => {
            Err(HandshakeError::SocketType(other[..other.len().min(16)].escape_ascii().to_string()))
        }
        None => Err(HandshakeError::Ready),
    }
}

/// What the decoder found.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    /// A whole message.
    Message(Vec<Bytes>),
    /// A command's body.
    Command(Bytes),
}

/// Takes messages and commands out of a byte stream.
#[derive(Debug)]
pub struct Decoder {
    frames: Vec<Bytes>,
    frame_bytes: usize,
    last_bytes: usize,
    limit: usize,
}

impl Decoder {
    /// A decoder for messages of at most `limit` bytes.
    pub fn new(limit: usize) -> Decoder {
        Decoder { frames: Vec::new(), frame_bytes: 0, last_bytes: 0, limit }
    }

    /// Bytes of the message that has begun.
    pub fn pending(&self) -> usize {
        self.frame_bytes
    }

    /// Frames of the message that has begun.
    pub fn pending_frames(&self) -> usize {
        self.frames.len()
    }

    /// Bytes that the last item had on the wire.
    pub fn last_bytes(&self) -> usize {
        self.last_bytes
    }

    /// The next item, or `None` until more bytes have come.
    ///
    /// # Errors
    /// A frame that ends the connection.
    ///
    /// # Panics
    /// Never: lengths are checked first.
    pub fn next(&mut self, buf: &mut BytesMut) -> Result<Option<Item>, FrameError> {
        loop {
            let Some(&flags) = buf.first() else { return Ok(None) };
            if flags & !(MORE | LONG | COMMAND) != 0 || flags & (MORE | COMMAND) == MORE | COMMAND {
                return Err(FrameError::Flags(flags));
            }
            let (head, len) = if flags & LONG == 0 {
                let Some(&len) = buf.get(1) else { return Ok(None) };
                (2, u64::from(len))
            } else {
                let Some(bytes) = buf.get(1..9) else { return Ok(None) };
                (9, u64::from_be_bytes(bytes.try_into().expect("8 bytes")))
            };
            if flags & COMMAND != 0 {
                if len > MAX_COMMAND as u64 || !self.frames.is_empty() {
                    return Err(FrameError::Command);
                }
            } else if len > (self.limit - self.frame_bytes.min(self.limit)) as u64 {
                return Err(FrameError::TooLarge { announced: len, limit: self.limit });
            }
            // Fits in usize: it is at most the limit.
            let len = len as usize;
            if buf.len() < head + len {
                return Ok(None);
            }
            buf.advance(head);
            let body = buf.split_to(len).freeze();
            if flags & COMMAND != 0 {
                self.last_bytes = head + len;
                return Ok(Some(Item::Command(body)));
            }
            if self.frames.len() == MAX_FRAMES {
                return Err(FrameError::TooManyFrames);
            }
            // A frame counts its head too: a message of empty frames is not free.
            self.frame_bytes += len + head;
            self.frames.push(body);
            if flags & MORE == 0 {
                self.last_bytes = std::mem::take(&mut self.frame_bytes);
                return Ok(Some(Item::Message(std::mem::take(&mut self.frames))));
            }
        }
    }
}

impl Decoder {
    /// What was taken out of the stream and belongs to a message that is not whole, as it came: in front of the rest of the
    /// stream, another decoder finds the same.
    pub fn into_unread(self) -> BytesMut {
        let mut unread = BytesMut::new();
        for frame in &self.frames {
            head(&mut unread, MORE, frame.len());
            unread.extend_from_slice(frame);
        }
        unread
    }
}

/// Appends a message.
pub fn encode(out: &mut BytesMut, frames: &[&[u8]]) {
    for (position, frame) in frames.iter().enumerate() {
        let more = if position + 1 < frames.len() { MORE } else { 0 };
        head(out, more, frame.len());
        out.extend_from_slice(frame);
    }
}

/// Appends the answer to a command, if it wants one. PING carries a time-to-live and a context; PONG echoes the context.
pub fn answer_command(out: &mut BytesMut, body: &[u8]) {
    if let Some(ping) = body.strip_prefix(b"\x04PING")
        && ping.len() >= 2
    {
        // RFC 37: at most 16 bytes of context.
        let context = &ping[2..ping.len().min(18)];
        head(out, COMMAND, 5 + context.len());
        out.extend_from_slice(b"\x04PONG");
        out.extend_from_slice(context);
    }
}

fn head(out: &mut BytesMut, flags: u8, len: usize) {
    if let Ok(len) = u8::try_from(len) {
        out.extend_from_slice(&[flags, len]);
    } else {
        out.extend_from_slice(&[flags | LONG]);
        out.extend_from_slice(&(len as u64).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_announced_giant_is_refused_before_it_is_awaited() {
        let mut decoder = Decoder::new(1 << 20);
        let mut buf = BytesMut::from(&[LONG, 0x40, 0, 0, 0, 0, 0, 0, 0][..]);
        assert_eq!(decoder.next(&mut buf), Err(FrameError::TooLarge { announced: 1 << 62, limit: 1 << 20 }));
    }

    #[test]
    fn a_message_cannot_exceed_the_limit_in_pieces() {
        let mut decoder = Decoder::new(100);
        let mut buf = BytesMut::new();
        for _ in 0..3 {
            buf.extend_from_slice(&[MORE, 40]);
            buf.extend_from_slice(&[0; 40]);
        }
        assert!(matches!(decoder.next(&mut buf), Err(FrameError::TooLarge { .. })));
        let mut many = BytesMut::from(&[MORE, 0].repeat(40)[..]);
        assert_eq!(Decoder::new(1000).next(&mut many), Err(FrameError::TooManyFrames));
    }

    #[test]
    fn greetings_and_ready() {
        assert_eq!(check_greeting(&greeting()), Ok(()));
        let mut old = greeting();
        old[10] = 1;
        assert_eq!(check_greeting(&old), Err(HandshakeError::Version(1)));
        let mut curve = greeting();
        curve[12..17].copy_from_slice(b"CURVE");
        assert_eq!(check_greeting(&curve), Err(HandshakeError::Mechanism("CURVE".into())));
        assert_eq!(check_ready(&ready()[2..]), Ok(()));
        assert_eq!(
            check_ready(b"\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB"),
            Err(HandshakeError::SocketType("SUB".into()))
        );
        assert_eq!(check_ready(b"\x05READY\x0bSocket-Type\xff\xff\xff\xffSUB"), Err(HandshakeError::Ready));
    }

    #[test]
    fn ping_is_answered_with_its_context() {
        let mut out = BytesMut::new();
        answer_command(&mut out, b"\x04PING\x00\x0actx");
        assert_eq!(&out[..], b"\x04\x08\x04PONGctx");
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_in_any_slices(
            messages in proptest::collection::vec(
                proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..400), 1..6), 1..6),
            cut in 1usize..64,
        ) {
            let mut wire = BytesMut::new();
            for message in &messages {
                let frames: Vec<&[u8]> = message.iter().map(Vec::as_slice).collect();
                encode(&mut wire, &frames);
            }
            let mut decoder = Decoder::new(1 << 16);
            let mut buf = BytesMut::new();
            let mut got = Vec::new();
            for piece in wire.chunks(cut) {
                buf.extend_from_slice(piece);
                while let Some(item) = decoder.next(&mut buf).expect("own bytes are valid") {
                    let Item::Message(frames) = item else { panic!("no commands were sent") };
                    got.push(frames.iter().map(|f| f.to_vec()).collect::<Vec<_>>());
                }
            }
            prop_assert_eq!(got, messages);
        }

        #[test]
        fn another_decoder_goes_on_where_one_stopped(
            message in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..400), 1..6),
            cut in 0usize..2000,
        ) {
            let mut wire = BytesMut::new();
            encode(&mut wire, &message.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let rest = wire.split_off(cut.min(wire.len().saturating_sub(1)));
            let mut first = Decoder::new(1 << 16);
            prop_assert_eq!(first.next(&mut wire), Ok(None));
            let mut unread = first.into_unread();
            unread.extend_from_slice(&wire);
            unread.extend_from_slice(&rest);
            let whole = message.into_iter().map(Bytes::from).collect();
            prop_assert_eq!(Decoder::new(1 << 16).next(&mut unread), Ok(Some(Item::Message(whole))));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::new(4096);
            let mut buf = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decoder.next(&mut buf) {}
        }
    }
}

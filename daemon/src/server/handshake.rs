//! Greeting and READY, both ways.

use bytes::BytesMut;

use super::socket::{Reader, Writer};
use super::zmtp::{self, Decoder, Item};

/// Most bytes read at once before the peer is known to be one.
const READ: usize = 4 << 10;

/// How a handshake ended without a peer.
pub(super) enum Stranger {
    /// It went before it said anything: a port check.
    Silent,
    /// What is wrong with it.
    Refused(String),
}

/// Greets; bytes that came after the peer's READY are left in `inbuf`.
pub(super) async fn greet(
    reader: &mut Reader,
    writer: &Writer,
    inbuf: &mut BytesMut,
) -> Result<(), Stranger> {
    let mut hello = BytesMut::from(&zmtp::greeting()[..]);
    hello.extend_from_slice(&zmtp::ready());
    writer.flush(&mut hello).await.map_err(refused)?;
    while inbuf.len() < zmtp::GREETING_LEN {
        // A wrong signature shows in the first bytes; a peer of another protocol need not send 64 of them.
        if inbuf.first().is_some_and(|byte| *byte != 0xff) {
            return Err(refused(zmtp::HandshakeError::Signature));
        }
        read_some(reader, inbuf).await?;
    }
    let greeting = inbuf.split_to(zmtp::GREETING_LEN);
    let greeting: &[u8; zmtp::GREETING_LEN] = greeting[..].try_into().expect("64 bytes were split off");
    zmtp::check_greeting(greeting).map_err(refused)?;
    // No message is allowed yet: its limit is 0 bytes.
    let mut decoder = Decoder::new(0);
    loop {
        match decoder.next(inbuf).map_err(refused)? {
            Some(Item::Command(body)) => return zmtp::check_ready(&body).map_err(refused),
            Some(Item::Message(_)) => return Err(refused(zmtp::HandshakeError::Ready)),
            None => read_some(reader, inbuf).await?,
        }
    }
}

async fn read_some(reader: &mut Reader, inbuf: &mut BytesMut) -> Result<(), Stranger> {
    match reader.read(inbuf, READ, true).await {
        Ok(0) | Err(_) if inbuf.is_empty() => Err(Stranger::Silent),
        Ok(0) => Err(refused("closed during the handshake")),
        Ok(_) => Ok(()),
        Err(error) => Err(refused(error)),
    }
}

fn refused(why: impl ToString) -> Stranger {
    Stranger::Refused(why.to_string())
}

//! What becomes of a message: a request, which is noted and executed in its turn, or a word about a stream.
#![forbid(unsafe_code)]

use std::fmt::Display;

use bytes::Bytes;
use lmcache_proto::wire::{ForeignRelease, OpCode};
use tokio::time::Instant;

use super::connection::Connection;
use super::queue::{Call, Message};
use super::stats::BadMessage;

/// Longest correlation id; LMCache's are msgpack integers of at most 9 bytes.
const MAX_UID: usize = 64;

impl Connection<'_> {
    /// One message that is no stream's ack or cancel: a request, which is noted. `None`: it is none that could be executed.
    pub(super) fn message(&mut self, mut frames: Vec<Bytes>) -> Option<Message> {
        let stats = &self.server.stats;
        let bad = |what, detail: &dyn Display| {
            stats.bad_message(&self.client, what, detail);
            None
        };
        if frames.len() < 2 {
            return bad(BadMessage::TooShort, &"fewer than two frames");
        }
        if frames[0].len() > MAX_UID {
            return bad(BadMessage::OverlongId, &format!("a correlation id of {} bytes", frames[0].len()));
        }
        let bytes = frames.iter().map(Bytes::len).sum();
        let payload = frames.split_off(2);
        let (op_frame, uid) = (frames.pop()?, frames.pop()?);
        // An old release's ids mean other operations here, so the hint comes whatever the id is called now.
        if let Some(release) = ForeignRelease::guess(&op_frame, payload.len()) {
            stats.foreign(&self.client, release);
        }
        let operation = match OpCode::decode(&op_frame) {
            Ok(OpCode::Known(operation)) => operation,
            Ok(OpCode::Unserved(name)) => return bad(BadMessage::Unserved, &name),
            Ok(OpCode::Unknown(name)) => return bad(BadMessage::Unknown, &name),
            Err(error) => return bad(BadMessage::Operation, &error),
        };
        let ticket = self.client.asks(operation, &uid, &op_frame);
        let call = Call { uid, op_frame, ticket };
        Some(Message { call, operation, payload, bytes, arrived: Instant::now().into_std() })
    }

    /// Executes what may start, in the order sent; the rest waits in the queue.
    pub(super) fn execute(&mut self, batch: &mut Vec<Message>) {
        for message in batch.drain(..) {
            let first = self.queue.is_empty() && self.may_start();
            if message.operation.is_unordered() || (first && !message.is_heavy()) {
                self.execute_here(message);
            } else {
                // A heavy one goes through the queue too, for memory of its own; it starts at once if nothing is before it.
                self.queue.push(message);
                self.advance(&mut 1);
            }
        }
    }

    /// A stream's ack or cancel.
    pub(super) fn control(&mut self, frames: &[Bytes]) {
        match frames.get(2).map(|frame| &frame[..]) {
            Some(b"ack") => {
                if let Some(stream) = self.streams.get(&frames[0]) {
                    stream.grant();
                }
            }
            Some(b"cancel") => drop(self.streams.remove(&frames[0])),
            _ => self.server.stats.bad_message(&self.client, BadMessage::Control, "neither ack nor cancel"),
        }
    }

    /// Starts what is queued, as far as it may start.
    pub(super) fn advance(&mut self, turn: &mut usize) {
        while *turn > 0
            && self.may_start()
            && let Some(message) = self.queue.pop()
        {
            *turn -= 1;
            self.start(message);
        }
    }
}

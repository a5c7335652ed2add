//! Requests of one client that wait for their turn.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use lmcache_proto::wire::Operation;

use super::budget::{FRAME_OVERHEAD, MESSAGE_OVERHEAD};
use crate::journal::Ticket;

/// Most requests of one client that may wait. LMCache's clients have some tens under way.
pub(super) const MAX_QUEUED: usize = 1024;
/// Requests above this are decoded and hashed on the compute threads. 32 KiB is about 10 k tokens, some 40 µs.
pub(super) const INLINE_BYTES: usize = 32 << 10;

/// What an answer is an answer to.
#[derive(Debug)]
pub(super) struct Call {
    /// Correlation id.
    pub(super) uid: Bytes,
    /// Operation, as it was spelt.
    pub(super) op_frame: Bytes,
    /// Until the answer is with the kernel; `None` if the request is not noted.
    pub(super) ticket: Option<Ticket>,
}

impl Call {
    /// Gives it memory of its own, if it is to be kept for long: slices would keep the read buffer alive (see
    /// [`Message::detach`]).
    pub(super) fn own(&mut self) {
        self.uid = Bytes::copy_from_slice(&self.uid);
        self.op_frame = Bytes::copy_from_slice(&self.op_frame);
    }
}

/// A request as it came.
pub(super) struct Message {
    pub(super) call: Call,
    pub(super) operation: Operation,
    pub(super) payload: Vec<Bytes>,
    /// Bytes of all its frames.
    pub(super) bytes: usize,
    /// When its last byte was there.
    pub(super) arrived: Instant,
}

impl Message {
    /// Whether it may take long enough to hold up other clients on the I/O thread.
    pub(super) fn is_heavy(&self) -> bool {
        self.bytes > INLINE_BYTES || self.operation.is_copy()
    }

    /// What it costs to keep.
    pub(super) fn cost(&self) -> usize {
        self.bytes + MESSAGE_OVERHEAD + FRAME_OVERHEAD * (2 + self.payload.len())
    }

    /// Gives a message that is kept memory of its own.
    ///
    /// Frames are slices of the read buffer: one of a few bytes would keep a whole buffer alive, and what is kept would be
    /// many times what is counted. Large messages fill their buffers and stay as they are.
    fn detach(&mut self) {
        if self.bytes > INLINE_BYTES {
            return;
        }
        let mut own = BytesMut::with_capacity(self.bytes);
        let frames = [&mut self.call.uid, &mut self.call.op_frame].into_iter().chain(&mut self.payload);
        for frame in frames {
            own.extend_from_slice(frame);
            *frame = own.split().freeze();
        }
    }
}

/// The requests that wait, in the order sent.
#[derive(Default)]
pub(super) struct Queue {
    messages: VecDeque<Message>,
    cost: usize,
}

impl Queue {
    pub(super) fn push(&mut self, mut message: Message) {
        message.detach();
        self.cost += message.cost();
        self.messages.push_back(message);
    }

    pub(super) fn pop(&mut self) -> Option<Message> {
        let message = self.messages.pop_front()?;
        self.cost -= message.cost();
        Some(message)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether, with `more`, no more may be added before one is taken out.
    pub(super) fn is_full_with(&self, more: usize) -> bool {
        self.messages.len() + more >= MAX_QUEUED
    }

    /// Bytes that the waiting requests cost.
    pub(super) fn cost(&self) -> usize {
        self.cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(block: &Bytes, at: usize, len: usize) -> Message {
        let slice = |from: usize, len: usize| block.slice(at + from..at + from + len);
        Message {
            arrived: Instant::now(),
            call: Call { uid: slice(0, 1), op_frame: slice(1, 1), ticket: None },
            operation: Operation::EndSession,
            payload: vec![slice(2, len - 2), Bytes::new()],
            bytes: len,
        }
    }

    #[test]
    fn a_small_message_does_not_keep_the_read_buffer() {
        let block = Bytes::from(vec![7; 64 << 10]);
        let mut queue = Queue::default();
        queue.push(message(&block, 100, 10));
        assert!(block.is_unique(), "the queue holds a copy");
        let kept = queue.pop().expect("a message");
        assert_eq!((&kept.call.uid[..], &kept.payload[0][..]), (&[7][..], &[7; 8][..]));
        queue.push(message(&block, 0, INLINE_BYTES + 1));
        assert!(!block.is_unique(), "a large one is not copied");
    }

    #[test]
    fn costs_add_up_and_come_back() {
        let block = Bytes::from(vec![0; 64 << 10]);
        let mut queue = Queue::default();
        for n in 0..MAX_QUEUED {
            assert!(!queue.is_full_with(0), "{n}");
            queue.push(message(&block, 0, 3));
        }
        assert!(queue.is_full_with(0));
        assert_eq!(queue.cost(), MAX_QUEUED * (3 + MESSAGE_OVERHEAD + 4 * FRAME_OVERHEAD));
        while queue.pop().is_some() {}
        assert_eq!(queue.cost(), 0);
    }
}

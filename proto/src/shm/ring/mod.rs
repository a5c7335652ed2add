//! The shared ring: one lane per worker, through which it tells the daemon what it did and when.
//!
//! A segment of its own (0600, owned by the daemon, new at every daemon start): one page of [`RingHeader`], then the
//! lanes. A lane is a queue with one writer, the worker, and one reader, the daemon. Nobody waits for anybody: a writer
//! that finds its lane full counts a loss and goes on, and a reader takes what is there.
//!
//! * `layout`: where everything lies, and what a record means;
//! * `lane`: the algorithm, generic over its cells so that a model checker runs the code that ships.
//!
//! What the reader believes: nothing. Positions are masked before they index, every slot proves its position, and its
//! seal covers the epoch and all words. A lane that holds arbitrary bytes yields at most one lane's worth of records per
//! drain, each of which passed its seal, and counts for the rest.

mod lane;
mod layout;

#[cfg(feature = "fuzzing")]
pub(crate) use lane::fuzzing;
pub use lane::{Cell, Drained, Lane, LaneHeader, Published, Reader, Slot, Writer};
pub use layout::{Kind, RING_MAGIC, RING_VERSION, Record, RingHeader, RingLayout};

//! An upgrade in place: the daemon starts its successor, and leaves it the sockets, the connections and the pool.
//!
//! 1. The successor reads its configuration and says what it is ([`Hello`]). Until then nothing has changed here, and a program
//!    that cannot even do that is refused.
//! 2. This daemon lets all requests that have begun end, and stops. What clients send from then on waits in their sockets.
//! 3. It sends its [`Estate`] and the descriptors, and touches the pool no more.
//! 4. The successor takes over as after a crash, but with the connections, the leases and the prepared transfers, and says
//!    that it serves. Then this process ends.
//!
//! A successor that fails after step 3 has changed what this process knows, so this one does not go on itself: it leaves
//! everything to one more process, of the program that it runs itself (`/proc/self/exe` is that one, whatever has its name).
//!
//! * `channel`: one message with descriptors, over a pair of sockets;
//! * `estate`: what the messages say;
//! * `successor`: the new process, as the old one sees it;
//! * `heir`: the old one, as the new process sees it.
#![forbid(unsafe_code)]

mod channel;
mod estate;
mod heir;
mod successor;

pub use channel::ChannelError;
pub use estate::{Estate, Hello, PoolFacts, SocketRole};
pub use heir::{Heir, HeirError};
pub use successor::{Program, Successor, SuccessorError};

/// Changes with what the messages say. Both sides must have the same.
const FORMAT: u32 = 2;

/// In the environment of a successor, whose standard input is the channel.
const VARIABLE: &str = "LMCACHED_TAKE_OVER";

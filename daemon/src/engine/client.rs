//! One connection, as the engine knows it.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use lmcache_proto::wire::{Operation, TokenMemo};
use parking_lot::Mutex;

use super::prompt::Prompt;
use crate::journal::{self, Journal, Lane, Owed, Peer, Ticket};
use crate::process::ProcessId;
use crate::tenants::TokenHash;

/// Where a client is, as far as the transport says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin {
    /// The process at the other end.
    pub process: Option<ProcessId>,
    /// Its user.
    pub uid: Option<u32>,
    /// It is on this machine.
    pub is_local: bool,
    /// Stands for its address; 0 on a Unix socket.
    pub host: u64,
}

/// One connection, which is one client.
#[derive(Debug)]
pub struct Client {
    /// Unique for the daemon's life, from 1.
    pub id: u64,
    /// For logs.
    pub peer: String,
    /// The process at the other end, where the transport or the client tells.
    pub(super) process: OnceLock<ProcessId>,
    pub(super) origin: Origin,
    /// Where its requests are noted while they are under way.
    pub(crate) lane: Option<Arc<Lane>>,
    /// The number of its first request, where it counts them.
    pub(super) first: OnceLock<Option<u64>>,
    /// What an earlier daemon owes it, found since the connection asked last.
    pub(super) owed: Mutex<Vec<Owed>>,
    pub(super) owes: AtomicBool,
    /// The token that it has shown.
    pub(super) token: OnceLock<TokenHash>,
    pub(super) memo: Mutex<TokenMemo>,
    /// The prompt of its last transfer whose request had no session.
    pub(super) prompt: Mutex<Prompt>,
}

/// Longest prompt that a connection remembers, in bytes: some 80 k tokens.
pub(super) const CLIENT_PROMPT_BYTES: usize = 256 << 10;

impl Client {
    /// A client that has sent nothing yet.
    pub fn new(id: u64, peer: String, origin: Origin) -> Client {
        let process = origin.process.map_or_else(OnceLock::new, OnceLock::from);
        Client {
            id,
            peer,
            process,
            origin,
            token: OnceLock::new(),
            lane: None,
            first: OnceLock::new(),
            owed: Mutex::default(),
            owes: AtomicBool::new(false),
            memo: Mutex::default(),
            prompt: Mutex::default(),
        }
    }

    /// The same client, whose requests are noted in `journal`.
    pub fn noted_in(mut self, journal: &Journal) -> Client {
        self.lane = journal.lane(self.id, self.as_peer());
        self
    }

    pub(super) fn as_peer(&self) -> Peer {
        Peer { process: self.process(), host: self.origin.host }
    }

    /// A request has been read, before it is executed.
    pub(crate) fn asks(&self, operation: Operation, uid: &[u8], op_frame: &[u8]) -> Option<Ticket> {
        self.first.get_or_init(|| journal::uid_number(uid));
        self.lane.as_ref()?.note(operation, uid, op_frame)
    }

    /// Requests of an earlier connection of this client that nobody will answer any more, each once.
    pub(crate) fn take_owed(&self) -> Vec<Owed> {
        // Relaxed: set by the request that was executed last, in whose answer's way the caller is.
        if !self.owes.load(Ordering::Relaxed) {
            return Vec::new();
        }
        self.owes.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.owed.lock())
    }

    /// The user that shared memory which the client names must belong to; `None`: any.
    ///
    /// The daemon opens it with its own rights, so a client must not be able to name what only the daemon may open. Over TCP
    /// nobody says who the client is: it gets no more than the daemon's own, unless the daemon is root, for whom that would be
    /// nothing that engines make.
    pub(super) fn owner_of_segments(&self) -> Option<u32> {
        let own = || nix::unistd::geteuid().as_raw();
        Some(self.origin.uid.unwrap_or_else(own)).filter(|uid| *uid != 0)
    }

    /// The process at the other end, if it is known.
    pub fn process(&self) -> Option<ProcessId> {
        self.process.get().copied()
    }

    /// Notes the process at the other end. Returns whether it was unknown before; it never changes.
    pub(crate) fn set_process(&self, process: ProcessId) -> bool {
        let new = self.process.set(process).is_ok();
        if let (true, Some(lane)) = (new, &self.lane) {
            lane.is_process(process);
        }
        new
    }

    /// Runs `work` as if a key of the client were being decoded all the while.
    #[cfg(test)]
    pub(crate) fn while_decoding<T>(&self, work: impl FnOnce() -> T) -> T {
        let _decoding = self.memo.lock();
        work()
    }

    /// Forgets the client's last key and prompt unless `keep` says so of the bytes they take. Does nothing while they are
    /// in use.
    pub(crate) fn remember_if(&self, keep: impl FnOnce(usize) -> bool) {
        if let (Some(mut memo), Some(mut prompt)) = (self.memo.try_lock(), self.prompt.try_lock())
            && !keep(memo.bytes() + prompt.bytes())
        {
            *memo = TokenMemo::default();
            prompt.forget();
        }
    }
}

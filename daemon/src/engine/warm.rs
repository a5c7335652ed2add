//! Prefetches that an operator asks for: from the tiers into L1, kept there, held by nobody.
//!
//! One is a lookup's job without a request: it has a place in the table below where a lookup has one in its session.

use std::collections::VecDeque;

use lmcache_proto::hash::Chain;
use lmcache_proto::wire::{CacheKey, KeyBuilder};
use rustc_hash::FxHashMap;
use thiserror::Error;

use super::Engine;
use super::prefetch::{Ask, Found, Job};

/// Prefetches remembered, done or not. The oldest done one goes for a new one.
const MAX_WARM: usize = 256;
/// Tokens of one: the longest prompts there are.
const MAX_TOKENS: usize = 1 << 20;
/// Workers of one model that a key has room for.
const MAX_WORLD: u32 = 255;

/// Why a prefetch is not begun.
#[derive(Debug, Error)]
pub enum WarmError {
    /// The request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// No worker says what the model's objects look like.
    #[error("no worker of that model and world_size is registered, so the layout of its objects is unknown")]
    UnknownModel,
    /// Not now.
    #[error("{0}")]
    Unavailable(String),
}

/// A prefetch that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// To ask for it; `None`: there is no whole chunk, and nothing to do.
    pub id: Option<String>,
    /// Whole chunks of the prompt.
    pub chunks: usize,
}

/// How far a prefetch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarmState {
    /// Under way.
    Pending,
    /// Over.
    Completed {
        /// Objects that are in L1 now.
        found: u64,
        /// Objects that the prompt has.
        total: u64,
    },
}

#[derive(Debug)]
struct Warm {
    /// Dropped, and with it given up, when the entry goes.
    _job: Job,
    total: u64,
    found: Option<u64>,
}

/// The prefetches.
#[derive(Debug, Default)]
pub(super) struct Warmed {
    map: FxHashMap<String, Warm>,
    order: VecDeque<String>,
}

impl Warmed {
    /// Makes room for one more; `false` if all are under way.
    fn make_room(&mut self) -> bool {
        if self.map.len() < MAX_WARM {
            return true;
        }
        let done = |id: &String| self.map.get(id).is_none_or(|warm| warm.found.is_some());
        let Some(at) = self.order.iter().position(done) else { return false };
        if let Some(id) = self.order.remove(at) {
            self.map.remove(&id);
        }
        true
    }
}

impl Engine {
    /// Begins to load a prompt's objects from the tiers into L1.
    ///
    /// # Errors
    /// See [`WarmError`].
    pub fn warm(&self, model: &str, world_size: u32, tokens: &[u32], salt: &str) -> Result<Begun, WarmError> {
        let invalid = |line: String| WarmError::Invalid(line);
        if !(1..=MAX_WORLD).contains(&world_size) {
            return Err(invalid(format!("world_size must be 1 to {MAX_WORLD}")));
        }
        if tokens.len() > MAX_TOKENS {
            return Err(invalid(format!("more than {MAX_TOKENS} token_ids")));
        }
        let id = format!("warm-{}", uuid::Uuid::new_v4().simple());
        let frame = KeyBuilder::new(model, world_size, &id, tokens).salt(salt).readers(1).frame(
            None,
            0,
            tokens.len() as u64,
        );
        let key = CacheKey::decode(&frame).map_err(|error| invalid(error.to_string()))?;
        let (rows, shapes) = self.rows(&key);
        if rows.is_empty() {
            return Err(WarmError::UnknownModel);
        }
        let chunks = tokens.len() / self.hasher.chunk_size();
        if chunks == 0 {
            return Ok(Begun { id: None, chunks: 0 });
        }
        let Some(l2) = self.l2.as_ref().filter(|l2| l2.opened.tiers.any_usable()) else {
            return Err(WarmError::Unavailable("no L2 adapter is in use".into()));
        };
        let mut chain = Chain::default();
        self.hasher.extend(&mut chain, &key.tokens, chunks).map_err(|error| invalid(error.to_string()))?;
        let total = (rows.len() * chain.hashes.len()) as u64;
        let ask = Ask {
            request_id: id.as_str().into(),
            session: id.as_str().into(),
            model: self.instances.shared_model(model),
            salt: self.shared_salt(salt),
            tokens: self.kv_events.enabled().then(|| key.tokens.bytes().into()),
            chain,
            rows,
            shapes,
            readers: 1,
        };
        let mut warmed = self.warmed.lock();
        if !warmed.make_room() {
            return Err(WarmError::Unavailable(format!("{MAX_WARM} prefetches are under way already")));
        }
        let started = self.start_prefetch(l2, ask);
        let (job, gate) = started.map_err(|reason| WarmError::Unavailable(reason.to_string()))?;
        warmed.map.insert(id.clone(), Warm { _job: job, total, found: None });
        warmed.order.push_back(id.clone());
        drop(warmed);
        let _ = gate.send(());
        Ok(Begun { id: Some(id), chunks })
    }

    /// How far a prefetch is. One that is over is told once, and then forgotten.
    pub fn warm_state(&self, id: &str) -> Option<WarmState> {
        let mut warmed = self.warmed.lock();
        let warm = warmed.map.get(id)?;
        let Some(found) = warm.found else { return Some(WarmState::Pending) };
        let total = warm.total;
        warmed.map.remove(id);
        warmed.order.retain(|other| other != id);
        Some(WarmState::Completed { found, total })
    }

    /// A job without a session is over: if it was an operator's, what it found stays. Returns whether it was.
    pub(super) fn warm_done(&self, ask: &Ask, found: &Found) -> bool {
        let mut warmed = self.warmed.lock();
        let Some(warm) = warmed.map.get_mut(&*ask.request_id) else { return false };
        self.l1.retain(found.hit.cells.iter().map(|cell| cell.object));
        warm.found = Some(found.hit.cells.len() as u64);
        true
    }
}

//! Daemons and workers that are killed in the middle of work, and what must be true afterwards.
//!
//! * `points`: the steps at which the daemon is killed, and how each is reached;
//! * `workload`: what a worker process does, chosen by a seed;
//! * `journal`: what it was told, written down before anything else happens;
//! * `model`: compares what is served with what was told;
//! * `case`: one kill, from the first start to the last look; `crew`, `quotas`: its workers and quotas; `link`: calls that fail;
//! * `hang`: what a daemon does that does not answer.
//!
//! What an object's bytes are is a function of its name ([`Content::pattern`]), so everybody can tell right bytes from wrong
//! ones, whoever wrote them.

pub mod case;
pub mod crew;
pub mod hang;
pub mod journal;
pub mod link;
pub mod model;
pub mod points;
pub mod quotas;
pub mod workload;

use crate::worker::{CHUNK, Model, prompt};

/// Models of the workload.
pub const MODELS: u8 = 2;
/// Salts of each model.
pub const SALTS: u8 = 4;
/// Prompts of each salt.
pub const PROMPTS: u8 = 4;
/// Whole chunks of each prompt.
pub const CHUNKS: u8 = 3;
/// Bytes of an object.
pub const OBJECT: u64 = 16 << 10;

/// One chunk of one prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Content {
    /// Model.
    pub model: u8,
    /// Salt.
    pub salt: u8,
    /// Prompt.
    pub prompt: u8,
    /// Chunk of the prompt.
    pub chunk: u8,
}

impl Content {
    /// Seed of its bytes.
    pub fn pattern(self) -> u64 {
        u64::from(u32::from_le_bytes([self.chunk, self.prompt, self.salt, self.model])) + 1
    }

    /// Everything that the workload may store.
    pub fn all() -> impl Iterator<Item = Content> {
        let of_model = |model| {
            (0..SALTS).flat_map(move |salt| {
                (0..PROMPTS).flat_map(move |prompt| {
                    (0..CHUNKS).map(move |chunk| Content { model, salt, prompt, chunk })
                })
            })
        };
        (0..MODELS).flat_map(of_model)
    }
}

/// A model whose objects have [`OBJECT`] bytes, or twice that many.
pub fn model(number: u8, wide: bool) -> Model {
    Model { name: format!("m{number}"), world_size: 1, layers: 1, width: if wide { 32 } else { 16 } }
}

/// Name of a salt; the first is the empty one.
pub fn salt(number: u8) -> String {
    if number == 0 { String::new() } else { format!("tenant-{number}") }
}

/// A key frame for chunks `from..to` of a prompt: of rank 0, as a worker sends it, or of all ranks, as a scheduler does.
pub fn frame(of: Content, request: &str, rank: Option<u32>, from: u8, to: u8) -> Vec<u8> {
    let tokens = prompt(u32::from(of.prompt) + 100 * u32::from(of.model), usize::from(CHUNKS));
    let key = model(of.model, false).key(request, &tokens).salt(&salt(of.salt));
    key.frame(rank, u64::from(from) * CHUNK as u64, u64::from(to) * CHUNK as u64)
}

/// Numbers that look random and follow from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers of `seed`; of another `stream`, others.
    pub fn new(seed: u64, stream: u64) -> Random {
        let mut random = Random(seed ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// The same, for small numbers.
    pub fn small(&mut self, bound: u8) -> u8 {
        self.below(u64::from(bound)) as u8
    }

    /// Whether one of `in_` chances comes.
    pub fn one_in(&mut self, in_: u64) -> bool {
        self.below(in_) == 0
    }
}

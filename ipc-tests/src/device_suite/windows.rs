//! Workers with a sliding window beside full attention: what is stored, found and retrieved of it, and what an object holds
//! where the window is shorter than a chunk.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use lmcache_client::Connection;
use lmcache_proto::wire::{EngineGroupInfo, RegisterKvCache, Request, Response};

use super::layout::{BLOCKS, SLOTS};
use super::{Subject, model, scattered};
use crate::daemon::Daemon;
use crate::worker::{CHUNK, lookup, prompt};
use crate::{eventually, fs_tier};

/// Blocks of a chunk.
const PER_CHUNK: u64 = CHUNK as u64 / SLOTS;
/// The block that the engine names where it has none.
const NULL: u64 = 0;
/// Engine groups: full attention, and the window.
const GROUPS: Range<usize> = 0..2;

/// A worker whose layers are by turns of full attention and of a sliding window: two engine groups.
pub struct Hybrid<'b> {
    /// Its memory and its layers, at least two.
    pub subject: Subject<'b>,
    /// Tokens of the window.
    pub window: u64,
    /// Whether the daemon makes objects of their own for the window (`--separate-object-groups`).
    pub separate: bool,
}

/// A list of blocks for each engine group.
type Lists = Vec<Vec<u64>>;

impl Hybrid<'_> {
    fn layers_of(&self, group: usize) -> impl Iterator<Item = usize> {
        (group..self.subject.layers).step_by(GROUPS.len())
    }

    fn registration(&self, model: &str) -> RegisterKvCache {
        let info = |group: usize| EngineGroupInfo {
            engine_group_id: group as u32,
            layer_indices: self.layers_of(group).map(|layer| layer as u32).collect(),
            tokens_per_block: SLOTS,
            sw_size_tokens: if group == 0 { -1 } else { self.window as i64 },
            extra_object_group_tag: 0,
            recurrent_state: false,
        };
        RegisterKvCache { engine_group_infos: GROUPS.map(info).collect(), ..self.subject.registration(model) }
    }

    /// Which blocks of each chunk are copied: the last ones.
    fn kept(&self, group: usize) -> Range<u64> {
        let blocks = if group == 0 { PER_CHUNK } else { PER_CHUNK.min(self.window / SLOTS) };
        PER_CHUNK - blocks..PER_CHUNK
    }

    /// Which groups share an object.
    fn object_groups(&self) -> Vec<Vec<usize>> {
        if self.separate { vec![vec![0], vec![1]] } else { vec![vec![0, 1]] }
    }

    /// Which of `chunks` chunks are read of a group: all, or those that the window reaches into from the end.
    fn read_of(&self, group: usize, chunks: u64) -> Range<u64> {
        let reach = if self.separate && group == 1 { self.window.div_ceil(CHUNK as u64) } else { chunks };
        chunks.saturating_sub(reach)..chunks
    }

    /// The objects that a store of `chunks` chunks makes, by object group: slots in the prompt's order, and zeros where there
    /// is room for a whole chunk and the window is shorter.
    fn objects(&self, memory: &[Vec<u8>], lists: &Lists, chunks: u64) -> Vec<Vec<Vec<u8>>> {
        let layout = self.subject.layout;
        let object = |members: &[usize], chunk: u64| {
            let mut object = Vec::new();
            for &group in members {
                let begin = object.len();
                let layers = self.layers_of(group).count();
                let room = layout.planes() as usize * layers * CHUNK * layout.slot_bytes();
                for plane in 0..layout.planes() {
                    for layer in self.layers_of(group) {
                        for position in self.kept(group) {
                            let block = lists[group][(chunk * PER_CHUNK + position) as usize];
                            let slot = |slot| layout.slot(&memory[layer], plane, block, slot);
                            object.extend((0..SLOTS).flat_map(slot));
                        }
                    }
                }
                object.resize(begin + room, 0);
            }
            object
        };
        // What has no block at all is not stored.
        let is_null = |members: &[usize], chunk: u64| {
            let blocks = chunk * PER_CHUNK..(chunk + 1) * PER_CHUNK;
            members.iter().all(|&group| blocks.clone().all(|at| lists[group][at as usize] == NULL))
        };
        let of_group = |members: Vec<usize>| {
            let stored = (0..chunks).filter(|chunk| !is_null(&members, *chunk));
            stored.map(|chunk| object(&members, chunk)).collect()
        };
        self.object_groups().into_iter().map(of_group).collect()
    }

    /// What the memory, wiped before, is after a retrieve of what was stored from the blocks `from` of `memory`.
    fn retrieved(
        &self,
        memory: &[Vec<u8>],
        (from, into): (&Lists, &Lists),
        chunks: u64,
        skip: u64,
    ) -> Vec<Vec<u8>> {
        let (layout, mut after) = (self.subject.layout, self.subject.wiped());
        for group in GROUPS {
            for chunk in self.read_of(group, chunks) {
                for position in self.kept(group) {
                    let at = chunk * PER_CHUNK + position;
                    // A block of which one token is wanted is written.
                    if (at + 1) * SLOTS <= skip {
                        continue;
                    }
                    for layer in self.layers_of(group) {
                        for plane in 0..layout.planes() {
                            let source = layout.at(plane, from[group][at as usize]);
                            let target = layout.at(plane, into[group][at as usize]);
                            let bytes = layout.block_bytes();
                            after[layer][target..target + bytes]
                                .copy_from_slice(&memory[layer][source..source + bytes]);
                        }
                    }
                }
            }
        }
        after
    }

    /// Zeroes what is in the null block: nobody reads it, and which of a request's chunks is last there is not said.
    fn forget_null(&self, memory: &mut [Vec<u8>]) {
        let layout = self.subject.layout;
        for layer in memory {
            for plane in 0..layout.planes() {
                layer[layout.at(plane, NULL)..][..layout.block_bytes()].fill(0);
            }
        }
    }
}

/// Leaves something in every slot of the pool, as objects do that are gone.
async fn soil(daemon: &Daemon) {
    // What the tier is still to be given may be picked up between the two, and stays.
    eventually("nobody's bytes are spoilt", async || {
        daemon.clear().await;
        (daemon.metric("lmcached_l1_objects", &[]).await == 0.0).then_some(())
    })
    .await;
    let pool = File::options().write(true).open(daemon.pool_path()).expect("the pool");
    let bytes = pool.metadata().expect("its size").len();
    pool.write_all_at(&vec![0xff; bytes as usize], 0).expect("a pool that is writable");
}

async fn end(client: &mut Connection, request: &str) {
    client.call(&Request::EndSession { request_id: request }).await.expect("ended");
}

/// Stores, looks up and retrieves with the blocks that an engine names for a window; objects are looked at where the daemon's
/// tier of files, in `tier`, has them.
///
/// # Panics
/// When the memory does not do what it must.
pub async fn run_windows(daemon: &Daemon, hybrid: &Hybrid<'_>, name: &str, tier: &Path) {
    let mut client = daemon.connect().await;
    let (subject, model) = (&hybrid.subject, model(name));
    soil(daemon).await;
    subject.fill(subject.instance);
    let registration = Request::RegisterKvCache(Box::new(hybrid.registration(name)));
    assert_eq!(client.call(&registration).await.expect("register"), Response::Nothing);
    let before = subject.backing.read();

    // Of the window's group, the first chunk has no block any more and the second only its last ones.
    let tokens = prompt(subject.instance as u32, 3);
    let mut from = vec![scattered(1, 3 * PER_CHUNK), scattered(2, 3 * PER_CHUNK)];
    from[1][..28].fill(NULL);
    let frame = model.key("a", &tokens).frame(Some(0), 0, 768);
    let (event, done) = subject.store_groups(&mut client, &frame, from.clone()).await;
    assert!(done && subject.backing.fired(&event), "an answered store is over");
    assert!(subject.backing.read() == before, "a store reads only");
    end(&mut client, "a").await;
    has_objects(daemon, tier, name, &hybrid.objects(&before, &from, 3)).await;

    // The end of a prefix is all that a reader needs of a window, and the first chunk has none of it.
    let reaches_back = hybrid.window > CHUNK as u64;
    let of_its_own = [0, if reaches_back { 0 } else { 2 }, 3];
    for (chunks, found) in (1..).zip(if hybrid.separate { of_its_own } else { [1, 2, 3] }) {
        let hit = lookup(&mut client, &model, "l", &tokens[..chunks * CHUNK], 1).await;
        assert_eq!(hit, found, "{chunks} chunks");
        end(&mut client, "l").await;
    }

    // Skips of nothing, of parts of the full group's first chunk, and of parts of the window in the last chunk.
    let fewer = if hybrid.separate && reaches_back { 3 } else { 2 };
    for (chunks, skip, nulls) in [(3, 0, false), (3, 40, true), (fewer, 469, false), (3, 725, true)] {
        let mut into: Lists = vec![(10..58).rev().collect(), (12..60).collect()];
        if nulls {
            into[1][..(3 * PER_CHUNK - hybrid.window / SLOTS) as usize].fill(NULL);
        }
        into.iter_mut().for_each(|list| list.truncate((chunks * PER_CHUNK) as usize));
        subject.wipe();
        let tokens = &tokens[..chunks as usize * CHUNK];
        assert_eq!(lookup(&mut client, &model, "r", tokens, 1).await, chunks);
        let frame = model.key("r", tokens).frame(Some(0), 0, tokens.len() as u64);
        let (event, done) = subject.retrieve_groups(&mut client, &frame, into.clone(), skip).await;
        assert!(done && subject.backing.fired(&event), "an answered retrieve is over");
        end(&mut client, "r").await;
        let mut after = subject.backing.read();
        let mut expected = hybrid.retrieved(&before, (&from, &into), chunks, skip);
        if nulls {
            hybrid.forget_null(&mut after);
            hybrid.forget_null(&mut expected);
        }
        assert!(after == expected, "{chunks} chunks, {skip} tokens skipped, null blocks: {nulls}");
    }
    null_chunks(&mut client, hybrid, name).await;
    refusals(&mut client, hybrid, name).await;
    daemon.metric_becomes("lmcached_l1_writing_objects", &[], 0.0).await;
    daemon.metric_becomes("lmcached_l1_pins", &[], 0.0).await;
}

/// The model's objects are these, in L1 as in the tier.
async fn has_objects(daemon: &Daemon, tier: &Path, name: &str, expected: &[Vec<Vec<u8>>]) {
    let count = expected.iter().map(Vec::len).sum();
    let stored = fs_tier::objects(tier, name, count).await;
    assert_eq!(daemon.metric("lmcached_l1_objects", &[]).await, count as f64, "no more than that");
    for (group, expected) in expected.iter().enumerate() {
        let of_group = stored.iter().filter(|(key, _)| key.object_group_id == group as u32);
        let mut objects: Vec<&Vec<u8>> = of_group.map(|(_, bytes)| bytes).collect();
        let mut expected: Vec<&Vec<u8>> = expected.iter().collect();
        // Which file is which chunk, its bytes tell.
        objects.sort_unstable();
        expected.sort_unstable();
        assert_eq!(objects.len(), expected.len(), "objects of group {group}");
        for (object, expected) in objects.iter().zip(expected) {
            assert_eq!(object.len(), expected.len(), "bytes of an object of group {group}");
            let differs = object.iter().zip(expected).position(|(ours, theirs)| ours != theirs);
            let what = differs.map(|at| (at, object[at], expected[at]));
            assert_eq!(what, None, "group {group}: byte, what it is, what it must be");
        }
    }
}

/// A chunk without a block in any group of an object is not stored, and not found.
async fn null_chunks(client: &mut Connection, hybrid: &Hybrid<'_>, name: &str) {
    let (subject, model) = (&hybrid.subject, model(name));
    for (number, (nulls, found)) in
        [(vec![0, 1], 1), (vec![1], if hybrid.separate { 1 } else { 2 })].into_iter().enumerate()
    {
        let tokens = prompt(1000 * (number as u32 + 1) + subject.instance as u32, 2);
        let mut lists = vec![scattered(3, 2 * PER_CHUNK), scattered(4, 2 * PER_CHUNK)];
        nulls.iter().for_each(|group: &usize| lists[*group][PER_CHUNK as usize..].fill(NULL));
        let frame = model.key("n", &tokens).frame(Some(0), 0, 512);
        assert!(subject.store_groups(client, &frame, lists).await.1);
        assert_eq!(lookup(client, &model, "n", &tokens, 1).await, found, "null in groups {nulls:?}");
        end(client, "n").await;
    }
}

/// What is not copied need not exist. Lists that do not fit are refused, and leave everything as it was.
async fn refusals(client: &mut Connection, hybrid: &Hybrid<'_>, name: &str) {
    let (subject, model) = (&hybrid.subject, model(name));
    let with = |change: &dyn Fn(&mut Lists)| {
        let mut lists = vec![scattered(5, 2 * PER_CHUNK), scattered(6, 2 * PER_CHUNK)];
        change(&mut lists);
        lists
    };
    let tokens = prompt(3000 + subject.instance as u32, 2);
    let frame = model.key("e", &tokens).frame(Some(0), 0, 512);
    let first = hybrid.kept(1).start as usize;
    let before_window = with(&|lists| lists[1][..first].fill(BLOCKS + 1));
    assert!(
        subject.store_groups(client, &frame, before_window).await.1,
        "what is not copied is not looked at"
    );
    end(client, "e").await;

    let before = subject.backing.read();
    let bad: [(&str, Lists); 3] = [
        ("a list is missing", with(&|lists| lists.truncate(1))),
        ("too few blocks", with(&|lists| lists[1].truncate(31))),
        ("a block that does not exist", with(&|lists| lists[1][31] = BLOCKS)),
    ];
    let others = prompt(4000 + subject.instance as u32, 2);
    for (why, lists) in bad {
        let new = model.key("f", &others).frame(Some(0), 0, 512);
        assert!(!subject.store_groups(client, &new, lists.clone()).await.1, "{why}");
        assert_eq!(lookup(client, &model, "f", &others, 1).await, 0, "{why}");
        end(client, "f").await;
        assert_eq!(lookup(client, &model, "e", &tokens, 1).await, 2);
        assert!(!subject.retrieve_groups(client, &frame, lists, 0).await.1, "{why}");
        end(client, "e").await;
    }
    assert!(subject.backing.read() == before, "nothing refused has written");
}

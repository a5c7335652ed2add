//! What every kind of worker memory must do, over the wire: one suite for CPU shared memory and for GPUs.

mod layout;
mod memory;
mod subject;
mod windows;

pub use layout::{LAYOUTS, Layout, layer_bytes};
pub use memory::{Announce, Backing, CpuMemory, GpuMemory};
pub use subject::Subject;
pub use windows::{Hybrid, run_windows};

use lmcache_proto::wire::Request;

use self::layout::BLOCKS;
use crate::daemon::Daemon;
use crate::http;
use crate::worker::{Model, lookup, prompt};

/// A model by the name alone: lookups need no more.
pub fn model(name: &str) -> Model {
    Model { name: name.into(), world_size: 1, layers: 1, width: 1 }
}

/// Blocks in an order with neighbours and without.
fn scattered(seed: u64, count: u64) -> Vec<u64> {
    (0..count).map(|at| 1 + (at + at / 5 * 3 + seed * 5) % (BLOCKS - 1)).collect()
}

/// Stores, wipes, and retrieves into other blocks; also what is skipped, cached already, null, and refused.
///
/// # Panics
/// When the memory does not do what it must.
pub async fn run(daemon: &Daemon, subject: &Subject<'_>, name: &str) {
    let mut client = daemon.connect().await;
    let model = model(name);
    subject.fill(subject.instance);
    subject.register(&mut client, name).await;
    let before = subject.blocks();
    let filled = subject.backing.read();
    let tokens = prompt(subject.instance as u32, 3);
    let frame = model.key("a", &tokens).frame(Some(0), 0, 768);
    let from = scattered(1, 48);
    let (event, done) = subject.store(&mut client, &frame, from.clone()).await;
    assert!(done && subject.backing.fired(&event), "an answered store is over");
    assert!(subject.backing.read() == filled, "a store reads only");
    assert_eq!(lookup(&mut client, &model, "b", &tokens, 1).await, 3);

    // Into other blocks, and without the first 40 tokens: two whole blocks are left alone.
    subject.wipe();
    let into: Vec<u64> = (10..58).rev().collect();
    let frame = model.key("b", &tokens).frame(Some(0), 0, 768);
    let (event, done) = subject.retrieve(&mut client, &frame, into.clone(), 40).await;
    assert!(done && subject.backing.fired(&event), "an answered retrieve is over");
    let after = subject.blocks();
    for (position, (from, to)) in from.iter().zip(&into).enumerate() {
        if position < 2 {
            assert!(after[*to as usize].iter().all(|byte| *byte == 0), "block {position} was to be skipped");
        } else {
            assert!(after[*to as usize] == before[*from as usize], "block {position}");
        }
    }
    let untouched = (0..BLOCKS).filter(|block| !into.contains(block));
    for block in untouched {
        assert!(after[block as usize].iter().all(|byte| *byte == 0), "block {block} was not asked for");
    }
    assert!(subject.padding_is_intact(), "padding belongs to no block");

    // What is cached is not copied again, and null blocks are not stored.
    let (_, done) = subject.store(&mut client, &frame, scattered(2, 48)).await;
    assert!(done, "cached already");
    let more = prompt(1000 + subject.instance as u32, 2);
    let frame = model.key("c", &more).frame(Some(0), 0, 512);
    let (_, done) = subject.store(&mut client, &frame, [vec![5; 16], vec![0; 16]].concat()).await;
    assert!(done);
    assert_eq!(lookup(&mut client, &model, "d", &more, 1).await, 1, "the null chunk is not there");
    client.call(&Request::EndSession { request_id: "d" }).await.expect("ended");

    // Refused, and nothing is left of it.
    let other = prompt(2000 + subject.instance as u32, 2);
    let frame = model.key("e", &other).frame(Some(0), 0, 512);
    assert!(!subject.store(&mut client, &frame, scattered(3, 31)).await.1, "too few blocks");
    assert!(!subject.store(&mut client, &frame, vec![BLOCKS; 32]).await.1, "blocks that do not exist");
    assert!(!subject.retrieve(&mut client, &frame, scattered(3, 32), 0).await.1, "nothing is cached");
    daemon.metric_becomes("lmcached_l1_writing_objects", &[], 0.0).await;
    daemon.metric_becomes("lmcached_l1_pins", &[], 0.0).await;
}

/// Digests of blocks over the admin API.
///
/// # Panics
/// If the daemon does not answer.
pub async fn checksums(daemon: &Daemon, instance: u64) -> serde_json::Value {
    let body = format!(r#"{{"instance_id": {instance}, "block_ids": [3, 1, 0, 7], "chunk_size": 2}}"#);
    let (status, page) = http::post(daemon.http_port(), "/cache/checksums", &body).await.expect("an answer");
    assert_eq!(status, 200, "{page}");
    let page: serde_json::Value = serde_json::from_str(&page).expect("JSON");
    page["chunk_checksums"].clone()
}

//! How fast an L2 tier is: `l2-bench JSON BYTES OBJECTS AT-A-TIME [ROUNDS]`.
//!
//! Stores OBJECTS objects of BYTES bytes, AT-A-TIME at a time, loads them again, and prints GB/s of both, round by round.
//! Objects are deleted before each round, so every store writes. For a comparison run `fio` or `redis-benchmark` with the
//! same sizes and concurrency on the same machine, in turns.

use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use ipc_tests::l2_suite::{bytes, key, open};
use lmcached::l2::adapter::L2Adapter;
use lmcached::l2::memory::{SourceBuf, TargetBuf};
use lmcached::l2::tier::Tier;
use parking_lot::Mutex;

fn main() {
    // One thread asks, as in the tools that it is compared with; the daemon's jobs run beside each other.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(bench());
}

async fn bench() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| args.get(at).map_or(default, |n| n.parse().expect("a number"));
    let json = args.first().expect("l2-bench JSON BYTES OBJECTS AT-A-TIME [ROUNDS]");
    let (len, objects, at_a_time, rounds) = (number(1, 8 << 20), number(2, 64), number(3, 8), number(4, 3));
    let tier = open(&serde_json::from_str(json).expect("JSON"));
    let gigabytes = (len * objects) as f64 / 1e9;
    // As in the daemon, the memory is there already and has been touched.
    let sources: Vec<SourceBuf> = (0..at_a_time as u32).map(|n| SourceBuf::copy_of(&bytes(len, n))).collect();
    for round in 0..rounds {
        each(&tier, objects, at_a_time, async |tier, n| {
            let _ = tier.delete(&key("bench", n as u32, "")).await;
        })
        .await;
        let started = Instant::now();
        each(&tier, objects, at_a_time, async |tier, n| {
            let stored = tier.store(&key("bench", n as u32, ""), sources[n % at_a_time].clone()).await;
            assert!(stored.expect("stores").written);
        })
        .await;
        let store = gigabytes / started.elapsed().as_secs_f64();
        let targets = Mutex::new((0..at_a_time).map(|n| touched(len, n)).collect::<Vec<_>>());
        let started = Instant::now();
        each(&tier, objects, at_a_time, async |tier, n| {
            let target = targets.lock().pop().expect("as many as loads at a time");
            let outcome = tier.load(&key("bench", n as u32, ""), target).await;
            outcome.result.expect("loads");
            targets.lock().extend(outcome.target);
        })
        .await;
        let load = gigabytes / started.elapsed().as_secs_f64();
        println!(
            "round {round}: store {store:.2} GB/s, load {load:.2} GB/s ({objects} objects of {len} bytes, {at_a_time} at a time)"
        );
    }
}

fn touched(len: usize, n: usize) -> TargetBuf {
    let mut target = TargetBuf::with_len(len);
    target.write_at(0, &bytes(len, n as u32));
    target
}

async fn each(tier: &Arc<Tier>, objects: usize, at_a_time: usize, work: impl AsyncFn(&Tier, usize)) {
    futures_util::stream::iter(0..objects).for_each_concurrent(at_a_time, |n| work(tier, n)).await;
}

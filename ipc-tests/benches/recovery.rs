//! How long a daemon takes to take over a full pool.
//!
//!     cargo bench --workspace --bench recovery -- [OBJECTS]
//!
//! A pool of objects of one page each, a million unless told otherwise, is filled, given up as a daemon that dies gives it up,
//! and opened again: five times as it is, five times with every object's bytes held against its checksum.
#![forbid(unsafe_code)]

use std::time::Instant;

use lmcache_proto::hash::ChunkHash;
use lmcache_proto::shm::PAGE;
use lmcached::l1::{L1, L1Config, Pin};

/// Objects of one request.
const REQUEST: u64 = 1000;
const ROUNDS: usize = 5;

fn hash(number: u64) -> ChunkHash {
    let mut hash = [0x5a; 32];
    hash[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    hash
}

fn main() {
    // `cargo test` and clippy run or build benches as well; only `cargo bench` means it.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let objects: u64 = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    let mut config = L1Config {
        fresh: true,
        checksums: true,
        ..L1Config::new(
            format!("lmcache_l1_pool_recovery{}", std::process::id()),
            (objects * PAGE).next_multiple_of(64 << 20),
        )
    };
    let (l1, _) = L1::open(&config).expect("memory for the pool");
    l1.reserve_memory().expect("memory for the pool");
    for first in (0..objects).step_by(REQUEST as usize) {
        let cells = (first..(first + REQUEST).min(objects)).map(|number| (hash(number), 0, 0));
        let reserved = l1.reserve("m", "", cells, 7, PAGE, None).expect("room");
        let pins: Vec<Pin> = reserved.iter().map(|object| object.pin).collect();
        l1.seal(&pins);
        assert!(l1.commit(&pins).into_iter().all(|done| done));
    }
    drop(l1);
    config.fresh = false;
    config.require_warm = true;
    println!("taking over {objects} objects, ms, {ROUNDS} rounds");
    println!("| | least | median | most |");
    println!("|---|---|---|---|");
    for verify in [false, true] {
        config.verify_payload = verify;
        let mut times: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let began = Instant::now();
                let (l1, recovered) = L1::open(&config).expect("the same pool");
                let took = began.elapsed().as_secs_f64() * 1e3;
                assert_eq!((recovered.objects, recovered.dropped), (objects, 0));
                drop(l1);
                took
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let name = if verify { "with --verify-payload" } else { "as it is" };
        println!("| {name} | {:.0} | {:.0} | {:.0} |", times[0], times[ROUNDS / 2], times[ROUNDS - 1]);
    }
    let (l1, _) = L1::open(&config).expect("the same pool");
    l1.discard();
}

//! What publishing a record costs a worker, with a real daemon that drains the lane.
//!
//!     cargo bench -p ipc-tests --bench ring_publish
//!
//! Batches of 64 records, each batch timed as a whole (a clock read costs as much as a record); the lane is drained between
//! batches, and half the time during them. No record may be lost: a full lane would be cheaper than a record.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use ipc_tests::daemon::Daemon;
use lmcache_client::{Client, Kind, Options, Publication, Record, Registration, monotonic_nanos};

const BATCH: u32 = 64;
const BATCHES: usize = 20_000;

#[tokio::main]
async fn main() {
    // `cargo test` and clippy run or build benches as well; only `cargo bench` means it.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let daemon = Daemon::start(&["--ring-slots=65536"]).await;
    let client = Client::connect(&daemon.endpoint(), Options::default()).await.expect("connect");
    client.register(Registration::new(7, "m").geometry(2, 128, "float16")).await.expect("register");
    let record = Record {
        kind: Kind::MpStoreStart,
        transfer: 1,
        nanos: monotonic_nanos(),
        bytes: 4096,
        tokens: 256,
        count: 1,
        success: true,
        request: 2,
    };
    println!("ns per record over batches of {BATCH}, {BATCHES} batches");
    println!("| | median | p99 |");
    println!("|---|---|---|");
    for (name, clock) in [("publish", false), ("publish with its clock read", true)] {
        let mut samples = Vec::with_capacity(BATCHES);
        for batch in 0..BATCHES {
            if batch % 500 == 0 {
                // A request of the worker drains its lane.
                client.ping().await.expect("ping");
            }
            let mut record = record;
            let started = Instant::now();
            for transfer in 0..u64::from(BATCH) {
                record.transfer = transfer % 8;
                if clock {
                    record.nanos = monotonic_nanos();
                }
                let published = client.publisher().publish(std::hint::black_box(&record));
                assert_eq!(published, Publication::Queued);
            }
            samples.push(started.elapsed() / BATCH);
        }
        samples.sort_unstable();
        let at = |share: f64| samples[((samples.len() - 1) as f64 * share) as usize];
        let ns = |time: Duration| time.as_nanos();
        println!("| {name} | {} | {} |", ns(at(0.5)), ns(at(0.99)));
    }
}

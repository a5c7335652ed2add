//! Opens an L2 tier in a process of its own and stores objects, for tests that kill the process or take its rights away.
//!
//! `l2-writer JSON LENGTH COUNT`: stores COUNT objects of LENGTH bytes (0: without an end), several at a time, and prints a
//! line for each: its number and `stored`, or the error.

use futures_util::StreamExt;
use ipc_tests::l2_suite::{bytes, key};
use lmcached::l2::adapter::L2Adapter;
use lmcached::l2::memory::SourceBuf;
use lmcached::l2::registry;

/// Stores at a time.
const AT_A_TIME: usize = 4;

#[tokio::main]
async fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().expect("l2-writer JSON LENGTH COUNT");
    let (json, length, count) = (next(), next(), next());
    let (length, count): (usize, u32) = (length.parse().expect("a length"), count.parse().expect("a count"));
    let parsed = lmcached::config::parse(["lmcached".into(), "--l2-adapter".into(), json.into()])
        .expect("well-formed");
    let plan = registry::plan(1, &parsed.config.l2.adapters[0]).expect("well-formed");
    let tier = match plan.open() {
        Ok(tier) => tier,
        Err(error) => {
            println!("open: {error}; {}", error.advice());
            return;
        }
    };
    let end = if count == 0 { u32::MAX } else { count };
    futures_util::stream::iter(0..end)
        .for_each_concurrent(AT_A_TIME, |n| {
            let tier = tier.clone();
            async move {
                match tier.store(&key("writer", n, ""), SourceBuf::copy_of(&bytes(length, n))).await {
                    Ok(_) => println!("{n} stored"),
                    Err(error) => println!("{n} {error}; {}", error.advice()),
                }
            }
        })
        .await;
}

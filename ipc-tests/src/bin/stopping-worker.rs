//! A worker that stops between a prepare and its copy, as a debugger, a cgroup freezer or a long garbage collection would
//! stop it, and goes on when it is continued.
//!
//! Arguments: endpoint, path of the pool, `store` or `retrieve`. Prints `prepared N`, stops itself; after SIGCONT writes its
//! slots, or reads them and prints `read true` if they hold what it has stored there itself; commits, and prints
//! `committed true` or `committed false`.
#![forbid(unsafe_code)]

use std::time::Duration;

use ipc_tests::pool::Pool;
use ipc_tests::worker::{
    Model, commit_retrieve, commit_store, lookup, prepare_retrieve, prepare_store, prompt, store,
};
use lmcache_client::Connection;
use nix::sys::signal::{Signal, raise};

/// A pattern that nobody else writes.
const PATTERN: u64 = 0xdead_beef;
const ID: u64 = 4242;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let pool = Pool::open(args[2].as_ref());
    let mut client = Connection::connect(&args[1], Duration::from_secs(5)).await.expect("connect");
    let (model, tokens) = (Model::small("m"), prompt(77, 4));
    client.call(&model.registration(ID)).await.expect("register");
    let frame = model.key("stopped", &tokens).frame(Some(0), 0, 1024);
    if args[3] == "store" {
        let context = prepare_store(&mut client, &frame, ID).await.expect("slots");
        println!("prepared {}", context.slots.len());
        raise(Signal::SIGSTOP).expect("stop");
        for slot in &context.slots {
            pool.fill(slot, PATTERN);
        }
        println!("committed {}", commit_store(&mut client, &frame, ID).await);
    } else {
        assert_eq!(store(&mut client, &pool, &model, "before", &tokens, ID, PATTERN).await, 4);
        assert_eq!(lookup(&mut client, &model, "stopped", &tokens, 1).await, 4);
        let slots = prepare_retrieve(&mut client, &frame, ID).await.expect("slots");
        println!("prepared {}", slots.len());
        raise(Signal::SIGSTOP).expect("stop");
        let right = slots.iter().zip(0..).all(|(slot, chunk)| pool.holds(slot, PATTERN + chunk));
        println!("read {right}");
        println!("committed {}", commit_retrieve(&mut client, &frame, ID).await);
    }
}

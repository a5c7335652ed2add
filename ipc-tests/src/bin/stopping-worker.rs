//! A worker that stops between `prepare_store` and its copy, as a debugger, a cgroup freezer or a long garbage
//! collection would stop it, and goes on when it is continued.
//!
//! Arguments: endpoint, path of the pool. Prints `prepared N`, stops itself; after SIGCONT writes its slots, commits,
//! and prints `committed true` or `committed false`.
#![forbid(unsafe_code)]

use std::time::Duration;

use ipc_tests::pool::Pool;
use ipc_tests::worker::{Model, commit_store, prepare_store, prompt};
use lmcache_client::Connection;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let pool = Pool::open(args[2].as_ref());
    let mut client = Connection::connect(&args[1], Duration::from_secs(5)).await.expect("connect");
    let model = Model::small("m");
    client.call(&model.registration(4242)).await.expect("register");
    let frame = model.key("stopped", &prompt(77, 4)).frame(Some(0), 0, 1024);
    let context = prepare_store(&mut client, &frame, 4242).await.expect("slots");
    println!("prepared {}", context.slots.len());
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP).expect("stop");
    for slot in &context.slots {
        // A pattern that nobody else writes.
        pool.fill(slot, 0xdead_beef);
    }
    println!("committed {}", commit_store(&mut client, &frame, 4242).await);
}

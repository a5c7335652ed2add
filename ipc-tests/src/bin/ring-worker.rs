//! A worker of ours that holds things, or writes into its lane without end, until it is killed.
//!
//! Arguments: endpoint, instance id, `hold` or `flood`. Prints `ready` when it holds all it is going to hold.
#![forbid(unsafe_code)]

use std::time::Duration;

use ipc_tests::worker::{CHUNK, prompt};
use lmcache_client::blocking::Client;
use lmcache_client::{Kind, Options, Prompt, Record, Registration, monotonic_nanos};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let instance: u64 = args[2].parse().expect("a number");
    let client = Client::connect(&args[1], Options::default()).expect("connect");
    client.register(Registration::new(instance, "m").geometry(2, 128, "float16")).expect("register");
    assert!(client.publisher().is_attached(), "{:?}", client.ring_error());
    let tokens = prompt(instance as u32, 4);
    let all = tokens.len() as u64;
    let first = Prompt::new("first", &tokens);
    let mut store = client.prepare_store(&first, 0..(all - CHUNK as u64)).expect("slots");
    store.slots_mut().for_each(|(_, bytes)| bytes.fill(1));
    store.commit().expect("commit");
    // Three leases, three read pins, one write pin, one lane.
    let held = Prompt::new("held", &tokens);
    assert_eq!(client.lookup(&held, Duration::from_secs(30)).expect("lookup"), Some(3));
    let _reading = client.prepare_retrieve(&held, 0..(all - CHUNK as u64)).expect("pinned");
    let _writing = client.prepare_store(&first, (all - CHUNK as u64)..all).expect("slot");
    println!("ready");
    let mut transfer = 0;
    loop {
        if args[3] == "hold" {
            std::thread::sleep(Duration::from_secs(3600));
        }
        transfer += 1;
        client.publisher().publish(&Record {
            kind: Kind::MpStoreStart,
            transfer,
            nanos: monotonic_nanos(),
            bytes: 0,
            tokens: 0,
            count: 0,
            success: true,
            request: 0,
        });
    }
}

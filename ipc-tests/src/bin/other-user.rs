//! A worker that is another user: becomes it, connects, and says what came of each step on a line of its own.
//!
//! Arguments: uid, gid, other groups (`-` or numbers with commas), endpoint, then what to do: `noop`, `pool PATH` (open the
//! pool for reading and writing), `store` (a chunk, as a client of the library), `kv NAME BYTES` (register a KV segment). Prints `served`, `refused`
//! or what the step says.
#![forbid(unsafe_code)]

use std::time::Duration;

use ipc_tests::kv_cache::{KvCache, Shape};
use ipc_tests::worker::{CHUNK, Model, key, prompt};
use lmcache_client::blocking::Client;
use lmcache_client::{Connection, Options, Prompt, Registration};
use lmcache_proto::wire::{Request, Response};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |text: &str| text.parse().expect("a number");
    let groups: Vec<Gid> =
        args[3].split(',').filter(|text| *text != "-").map(|g| Gid::from_raw(number(g))).collect();
    setgroups(&groups).expect("setgroups");
    setgid(Gid::from_raw(number(&args[2]))).expect("setgid");
    setuid(Uid::from_raw(number(&args[1]))).expect("setuid");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let mut rest = args[5..].iter().map(String::as_str);
    while let Some(step) = rest.next() {
        let said = match step {
            "noop" => runtime.block_on(noop(&args[4])),
            "pool" => open(rest.next().expect("a path")),
            "store" => store(&args[4]),
            "kv" => {
                let tag = rest.next().expect("a tag");
                runtime.block_on(register_kv(&args[4], tag))
            }
            other => panic!("{other}"),
        };
        println!("{step} {said}");
    }
}

async fn noop(endpoint: &str) -> String {
    let Ok(mut client) = Connection::connect(endpoint, Duration::from_secs(60)).await else {
        return "refused".into();
    };
    match client.call(&Request::Noop).await {
        Ok(Response::Text("OK")) => "served".into(),
        Ok(other) => format!("{other:?}"),
        Err(_) => "refused".into(),
    }
}

fn open(path: &str) -> String {
    match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => "served".into(),
        Err(error) => format!("{}", error.kind()),
    }
}

fn store(endpoint: &str) -> String {
    let stored = || -> Result<String, Box<dyn std::error::Error>> {
        let client = Client::connect(endpoint, Options::default())?;
        client.register(Registration::new(7, "m").geometry(2, 128, "float16"))?;
        let tokens = prompt(1, 1);
        let prompt = Prompt::new("r", &tokens);
        let mut store = client.prepare_store(&prompt, 0..CHUNK as u64)?;
        store.slots_mut().for_each(|(_, bytes)| bytes.fill(1));
        store.commit()?;
        let ring = if client.publisher().is_attached() { "with" } else { "without" };
        Ok(format!("served {ring} a lane"))
    };
    stored().unwrap_or_else(|error| format!("{error}"))
}

/// Registers the KV segments of `tag` that this process, or another one before it, has made, and stores from them.
async fn register_kv(endpoint: &str, tag: &str) -> String {
    let shape = Shape { layers: 1, blocks: 32, block: 16, heads: 2, head: 32 };
    let kv = KvCache::named(tag, shape);
    let mut client = Connection::connect(endpoint, Duration::from_secs(60)).await.expect("connect");
    client.call(&Request::RegisterKvCache(Box::new(kv.registration(8, "kv")))).await.expect("acknowledged");
    let model = Model { name: "kv".into(), world_size: 1, layers: 1, width: shape.heads * shape.head };
    let frame = model.key("r", &prompt(1, 1)).frame(Some(0), 0, CHUNK as u64);
    let blocks = vec![(1..17).collect()];
    let request = Request::Store { key: key(&frame), instance_id: 8, block_ids: blocks, event: b"ev" };
    match client.call(&request).await.expect("an answer") {
        Response::Transfer(_, true) => "served".into(),
        _ => "refused".into(),
    }
}

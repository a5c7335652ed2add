//! What a tier costs lookups: those that L1 can answer, and those of which L1 has a half.

use std::path::Path;
use std::time::{Duration, Instant};

use ipc_tests::http;
use ipc_tests::worker::{Model, await_lookup, commit_store, prepare_store, prompt, start_lookup};
use lmcache_client::Connection;
use lmcache_proto::wire::{Request, Response};

use super::cost::{median, start};
use super::target::Target;

/// Chunks of the prompt of which L1 has a half.
const CHUNKS: usize = 1000;
/// Chunks of the prompt that L1 has.
const SHORT: usize = 64;
/// Chunks of one store request: a prompt of a thousand is stored as an engine stores it, piece by piece.
const PIECE: usize = 250;

/// Prints the medians of `rounds` lookups each, in turns.
pub(crate) async fn run(daemon: &Path, rounds: usize) {
    let dir = tempfile::tempdir().expect("a directory");
    let tier = format!(r#"--l2-adapter={{"type":"fs","base_path":"{}"}}"#, dir.path().display());
    let (bare, tiered) = (start(daemon, &[]).await, start(daemon, &[&tier]).await);
    // 64 KiB an object: what counts here is their number.
    let model = Model { name: "m".into(), world_size: 1, layers: 2, width: 32 };
    let mut clients = Vec::new();
    for target in [&bare, &tiered] {
        let mut client = connect(target).await;
        client.call(&model.registration(1)).await.expect("register");
        store(&mut client, &model, &prompt(1, SHORT)).await;
        clients.push(client);
    }
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..rounds * 20 {
        for (client, times) in clients.iter_mut().zip(&mut times) {
            times.push(answered(client, &model, &format!("w{round}"), &prompt(1, SHORT), SHORT as u64).await);
        }
    }
    let [without, with] = times.map(median);
    println!("| lookup of {SHORT} chunks that L1 has | median, µs |\n|---|---|");
    println!("| without L2 | {without:.0} |\n| with an fs tier | {with:.0} ({:.2} ×) |\n", with / without);

    // All of `whole` and `half` is in the tier; L1 gets the first half of `whole` alone.
    let client = &mut clients[1];
    let (whole, half) = (prompt(2, CHUNKS), prompt(3, CHUNKS / 2));
    store(client, &model, &whole).await;
    store(client, &model, &half).await;
    let wanted = SHORT + CHUNKS + CHUNKS / 2;
    let objects = || std::fs::read_dir(dir.path()).map_or(0, Iterator::count);
    ipc_tests::eventually("the tier has them", async || (objects() >= wanted).then_some(())).await;
    // The last file is there a moment before its store is over, and its pin is what keeps it from being cleared.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (status, _) = http::post(tiered.http_port, "/cache/clear", r#"{"force":true}"#).await.expect("clear");
    assert_eq!(status, 200);
    store(client, &model, &whole[..CHUNKS / 2 * 256]).await;
    let (mut mixed, mut alone, mut in_l1) = (Vec::new(), Vec::new(), Vec::new());
    let first = &whole[..CHUNKS / 2 * 256];
    for round in 0..rounds {
        in_l1.push(answered(client, &model, &format!("f{round}"), first, CHUNKS as u64 / 2).await);
        mixed.push(answered(client, &model, &format!("m{round}"), &whole, CHUNKS as u64).await);
        alone.push(answered(client, &model, &format!("a{round}"), &half, CHUNKS as u64 / 2).await);
    }
    let (mixed, alone, in_l1) = (median(mixed), median(alone), median(in_l1));
    println!("| lookup | median, ms |\n|---|---|");
    println!("| {} chunks, all in L1 | {:.1} |", CHUNKS / 2, in_l1 / 1e3);
    println!("| {} chunks, all in the fs tier | {:.1} |", CHUNKS / 2, alone / 1e3);
    println!(
        "| {CHUNKS} chunks, half in L1 and half in the fs tier | {:.1} ({:.2} × the fs half, {:.2} × the sum of the halves) |",
        mixed / 1e3,
        mixed / alone,
        mixed / (alone + in_l1)
    );
}

async fn connect(target: &Target) -> Connection {
    Connection::connect(&target.endpoint, Duration::from_secs(60)).await.expect("connect")
}

/// Stores a prompt; the bytes do not matter.
async fn store(client: &mut Connection, model: &Model, tokens: &[u32]) {
    let chunks = tokens.len() / 256;
    for first in (0..chunks).step_by(PIECE) {
        let last = (first + PIECE).min(chunks);
        let key = model.key(&format!("s{}-{first}", tokens[0]), &tokens[..last * 256]);
        let frame = key.frame(Some(0), first as u64 * 256, last as u64 * 256);
        prepare_store(client, &frame, 1).await.expect("slots");
        assert!(commit_store(client, &frame, 1).await);
    }
}

/// µs until the client knows the answer, which must be `chunks`.
async fn answered(client: &mut Connection, model: &Model, request: &str, tokens: &[u32], chunks: u64) -> f64 {
    let started = Instant::now();
    start_lookup(client, model, request, tokens, 1).await;
    let wait = Request::WaitPrefetchStatus { request_id: request, timeout: 60.0 };
    let answer = client.call(&wait).await.expect("status");
    let took = started.elapsed().as_secs_f64() * 1e6;
    assert_eq!(answer, Response::Count(chunks));
    assert_eq!(await_lookup(client, request).await, chunks);
    client.call(&Request::EndSession { request_id: request }).await.expect("end");
    took
}

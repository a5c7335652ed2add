//! Traffic for the test of the live page: workers of several models that store and retrieve, until standard input ends.
//!
//! The models' names are what a hostile client would send.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use ipc_tests::pool::Pool;
use ipc_tests::worker::{Model, commit_retrieve, lookup, prepare_retrieve, prompt, store};
use lmcache_client::Connection;
use lmcache_proto::wire::Request;

/// Names that are markup, script, or endless.
fn names() -> [String; 4] {
    [
        "meta-llama/Llama-3.1-8B".into(),
        "<img src=x onerror=\"document.title='owned'\">".into(),
        "</script><script>document.title='owned'</script>".into(),
        format!("\"}} 1e999\\n{}", "x".repeat(200)),
    ]
}

#[derive(Parser)]
struct Options {
    /// Port of the daemon.
    #[arg(long)]
    port: u16,
    /// The daemon's pool in the file system.
    #[arg(long)]
    pool: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let options = Options::parse();
    let stop = Arc::new(AtomicBool::new(false));
    let ended = stop.clone();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        ended.store(true, Ordering::Relaxed);
    });
    load(&options, &stop).await;
}

/// Ends between two rounds, so that nothing is left half done.
async fn load(options: &Options, stop: &AtomicBool) {
    let endpoint = format!("tcp://127.0.0.1:{}", options.port);
    let mut client =
        Connection::connect(&endpoint, Duration::from_secs(30)).await.expect("the daemon listens");
    let models: Vec<Model> = names().iter().map(|name| Model::small(name)).collect();
    for (instance, model) in (1..).zip(&models) {
        client.call(&model.registration(instance)).await.expect("register");
    }
    let pool = Pool::open(&options.pool);
    for round in 0_u32.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        for (instance, model) in (1..).zip(&models) {
            let tokens = prompt(round * 10 + instance as u32, 4);
            let request = format!("r{round}-{instance}");
            // Half of what is looked up is new, half was stored in the round before.
            lookup(&mut client, model, &request, &tokens, 1).await;
            store(&mut client, &pool, model, &request, &tokens, instance, u64::from(round)).await;
            let warm = format!("w{round}-{instance}");
            if lookup(&mut client, model, &warm, &tokens, 1).await > 0 {
                let frame = model.key(&warm, &tokens).frame(Some(0), 0, tokens.len() as u64);
                if prepare_retrieve(&mut client, &frame, instance).await.is_some() {
                    commit_retrieve(&mut client, &frame, instance).await;
                }
            }
            for request in [&request, &warm] {
                client.call(&Request::EndSession { request_id: request }).await.expect("end");
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

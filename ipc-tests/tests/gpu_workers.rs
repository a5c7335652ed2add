//! Worker processes with GPU memory that do all of it themselves: each registers what is its own, and what it asks leaves from
//! its own process. The workers may be torch's (`LMCACHED_GPU_WORKER`), the GPU the machine's (`LMCACHED_GPU=real`).

use std::sync::Arc;

use ipc_tests::call::done;
use ipc_tests::daemon::Daemon;
use ipc_tests::device_suite::{Announce, Backing, GpuMemory, LAYOUTS, Layout, Subject, layer_bytes, model};
use ipc_tests::gpu::{GpuWorker, Gpus};
use ipc_tests::worker::{key, prompt};
use ipc_tests::{eventually, http};
use lmcache_proto::wire::Request;

const LAYERS: usize = 3;
const CHUNKS: usize = 2;
const TOKENS: u64 = 512;

/// Where blocks are stored from, and where they are loaded to: in neither are they in order, and few are in both.
fn from() -> Vec<u64> {
    (0..32).map(|at| 1 + at * 5 % 32).collect()
}

fn to() -> Vec<u64> {
    (30..62).rev().collect()
}

/// A worker process, its memory, and what it says to the daemon.
struct Engine {
    memory: GpuMemory,
    layout: Layout,
    instance: u64,
    endpoint: String,
    name: String,
}

impl Engine {
    fn new(worker: &Arc<GpuWorker>, layout: Layout, instance: u64, endpoint: &str) -> Engine {
        let memory = GpuMemory::new(worker.clone(), Announce::Torch, LAYERS, layer_bytes(layout));
        Engine { memory, layout, instance, endpoint: endpoint.to_owned(), name: format!("{layout:?}") }
    }

    fn subject(&self) -> Subject<'_> {
        Subject { backing: &self.memory, layout: self.layout, layers: LAYERS, instance: self.instance }
    }

    fn call(&self, request: &Request<'_>) -> String {
        self.memory.worker.call(&self.endpoint, request)
    }

    fn register(&self) {
        let registration = Box::new(self.subject().registration(&self.name));
        assert_eq!(self.call(&Request::RegisterKvCache(registration)), "nothing");
        assert_eq!(self.call(&Request::Ping { instance_id: Some(self.instance) }), "flag true");
    }

    fn frame(&self, request: &str, tokens: &[u32]) -> Vec<u8> {
        model(&self.name).key(request, tokens).frame(Some(0), 0, TOKENS)
    }

    /// Stores; the worker itself waits for the daemon's event.
    fn store(&self, tokens: &[u32], block_ids: Vec<u64>) {
        let (frame, event) = (self.frame("s", tokens), self.memory.event());
        let (key, block_ids, instance_id) = (key(&frame), vec![block_ids], self.instance);
        let answer = self.call(&Request::Store { key, instance_id, block_ids, event: &event });
        let event = done(&answer).unwrap_or_else(|| panic!("a store was answered {answer:?}"));
        assert!(self.memory.fired(&event), "an answered store is over");
    }

    /// Looks a prompt up, as a scheduler does, and retrieves it.
    async fn retrieve(&self, request: &str, tokens: &[u32], block_ids: Vec<u64>) {
        let frame = model(&self.name).key(request, tokens).frame(None, 0, TOKENS);
        assert_eq!(self.call(&Request::Lookup { key: key(&frame), tp_size: 1 }), "nothing");
        let status = Request::QueryPrefetchStatus { request_id: request };
        let found = eventually("the lookup is done", async || {
            Some(self.call(&status)).filter(|answer| answer != "nothing")
        });
        assert_eq!(found.await, format!("count {CHUNKS}"));
        let (frame, event) = (self.frame(request, tokens), self.memory.event());
        let answer = self.call(&Request::Retrieve {
            key: key(&frame),
            instance_id: self.instance,
            block_ids: vec![block_ids],
            event: &event,
            skip_first_n_tokens: 0,
        });
        let event = done(&answer).unwrap_or_else(|| panic!("a retrieve was answered {answer:?}"));
        assert!(self.memory.fired(&event), "an answered retrieve is over");
        assert_eq!(self.call(&Request::EndSession { request_id: request }), "nothing");
    }

    /// The daemon's digests of these blocks, four to a digest.
    async fn checksums(&self, daemon: &Daemon, block_ids: &[u64]) -> serde_json::Value {
        let instance = self.instance;
        let body =
            serde_json::json!({"instance_id": instance, "block_ids": block_ids, "chunk_size": 4}).to_string();
        let answer = http::post(daemon.http_port(), "/cache/checksums", &body).await;
        let (status, page) = answer.expect("an answer");
        assert_eq!(status, 200, "{page}");
        let page: serde_json::Value = serde_json::from_str(&page).expect("JSON");
        assert_eq!(page["chunk_checksums"].as_array().map(Vec::len), Some(block_ids.len() / 4), "{page}");
        page["chunk_checksums"].clone()
    }
}

async fn daemon(gpus: &Gpus) -> (Daemon, [String; 2]) {
    let daemon = Daemon::start_in(&gpus.of_daemon(), &["--bind=ipc://{dir}/sock"]).await;
    let endpoints = [format!("ipc://{}/sock", daemon.dir().display()), daemon.endpoint()];
    (daemon, endpoints)
}

/// These blocks, in their order.
fn chosen(blocks: &[Vec<u8>], ids: &[u64]) -> Vec<Vec<u8>> {
    ids.iter().map(|id| blocks[*id as usize].clone()).collect()
}

#[tokio::test]
async fn what_one_process_stores_another_retrieves() {
    let gpus = Gpus::new(1, &[]);
    let (daemon, endpoints) = daemon(&gpus).await;
    let workers = [0, 1].map(|_| Arc::new(gpus.worker(0, None)));
    assert_eq!(workers[0].uuid, workers[1].uuid, "two processes on one GPU");
    for (at, layout) in LAYOUTS.into_iter().enumerate() {
        // One over the Unix socket, by which the daemon knows its process, and one over TCP.
        let [giver, taker] = [0, 1]
            .map(|which| Engine::new(&workers[which], layout, (10 * at + which) as u64, &endpoints[which]));
        giver.subject().fill(1);
        taker.subject().fill(2);
        let (given, before) = (giver.subject().blocks(), taker.subject().blocks());
        giver.register();
        taker.register();
        let tokens = prompt(at as u32, CHUNKS);
        giver.store(&tokens, from());
        assert_ne!(giver.checksums(&daemon, &from()).await, taker.checksums(&daemon, &to()).await);
        taker.retrieve("r", &tokens, to()).await;

        // The workers' own view, and the daemon's of both.
        let after = taker.subject().blocks();
        assert!(chosen(&after, &to()) == chosen(&given, &from()), "{layout:?}");
        let others: Vec<u64> = (0..after.len() as u64).filter(|block| !to().contains(block)).collect();
        assert!(chosen(&after, &others) == chosen(&before, &others), "{layout:?}: other blocks");
        assert!(giver.subject().blocks() == given, "{layout:?}: a store only reads");
        assert_eq!(giver.checksums(&daemon, &from()).await, taker.checksums(&daemon, &to()).await);
        for engine in [&giver, &taker] {
            let instance_id = engine.instance;
            assert_eq!(engine.call(&Request::UnregisterKvCache { instance_id }), "nothing");
        }
    }
}

/// On a real GPU the daemon has the dead process's memory open: it must let go of it, and of nothing else.
#[tokio::test]
async fn what_a_killed_process_had_stored_another_retrieves() {
    let gpus = Gpus::new(1, &[]);
    let (daemon, [endpoint, _]) = daemon(&gpus).await;
    let workers = [0, 1].map(|_| Arc::new(gpus.worker(0, None)));
    let [giver, taker] =
        [0, 1].map(|which| Engine::new(&workers[which], Layout::KvFirst, which as u64, &endpoint));
    giver.subject().fill(1);
    taker.subject().wipe();
    let given = giver.subject().blocks();
    giver.register();
    taker.register();
    let tokens = prompt(1, CHUNKS);
    giver.store(&tokens, from());
    workers[0].sigkill();
    let body = r#"{"instance_id": 0, "block_ids": [1], "chunk_size": 1}"#;
    eventually("the daemon knows the dead worker no more", async || {
        let (status, _) = http::post(daemon.http_port(), "/cache/checksums", body).await?;
        (status == 404).then_some(())
    })
    .await;
    taker.retrieve("r", &tokens, to()).await;
    assert!(chosen(&taker.subject().blocks(), &to()) == chosen(&given, &from()));
    // And it goes on in the other direction.
    taker.store(&prompt(2, CHUNKS), to());
}

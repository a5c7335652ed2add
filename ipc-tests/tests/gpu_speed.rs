//! GB/s between a worker's GPU memory and the pool, through the daemon, beside a raw copy of the same bytes between the same GPU
//! and pinned memory in the same run. Times are those of the requests, so what the daemon does besides is in them.

use std::sync::Arc;
use std::time::Instant;

use ipc_tests::daemon::Daemon;
use ipc_tests::gpu::{Gpus, real};
use ipc_tests::worker::{Model, key, lookup, prompt};
use lmcache_client::Connection;
use lmcache_proto::wire::{
    DeviceDescriptor, EngineGroupInfo, LayoutHints, RegisterKvCache, Request, Response, TensorMetadata,
};

const ROUNDS: usize = 5;

/// Chunks of a prompt.
fn chunks() -> usize {
    std::env::var("LMCACHED_GPU_CHUNKS").ok().and_then(|text| text.parse().ok()).unwrap_or(64)
}

/// A shape of KV caches: tokens of a block are 16.
struct Case {
    name: &'static str,
    layers: u64,
    /// Elements of a token, layer and plane.
    width: u64,
    /// Whether the blocks of a chunk lie one behind the other.
    together: bool,
    /// Heads before slots: rows of one head, 256 bytes.
    heads_first: bool,
}

/// Objects of 2 MiB whose blocks are neighbours, and the paged blocks of a model of 32 layers in both orders of heads.
const CASES: [Case; 3] = [
    Case { name: "2 MiB chunks", layers: 1, width: 2048, together: true, heads_first: false },
    Case { name: "32 layers, paged", layers: 32, width: 1024, together: false, heads_first: false },
    Case { name: "32 layers, HND", layers: 32, width: 1024, together: false, heads_first: true },
];
/// What `--cuda-copies` has. The first is what is used; the others say what it is worth.
const WAYS: [&str; 3] = ["auto", "staged", "plain"];

impl Case {
    fn blocks(&self) -> u64 {
        (chunks() as u64 + 1) * 16
    }

    fn layer_bytes(&self) -> u64 {
        2 * self.blocks() * 16 * self.width * 2
    }

    fn moved(&self) -> u64 {
        chunks() as u64 * 256 * 2 * self.layers * self.width * 2
    }

    fn ids(&self) -> Vec<u64> {
        let count = chunks() as u64 * 16;
        // Without neighbours: an odd step over an even number of blocks meets each once.
        (0..count).map(|at| 16 + if self.together { at } else { at * 37 % count }).collect()
    }

    fn registration(&self, instance: u64, uuid: &str, handle: &[u8], offset: u64) -> RegisterKvCache {
        let (blocks, width) = (self.blocks(), self.width);
        let (order, slot, head) = if self.heads_first { ("HND", 128, 16 * 128) } else { ("NHD", width, 128) };
        let layer = |layer: u64| DeviceDescriptor::CudaRaw {
            ipc_handle: handle.to_vec(),
            alloc_offset: offset + layer * self.layer_bytes(),
            nbytes: self.layer_bytes(),
            version: 1,
            metadata: TensorMetadata {
                dtype: "float16".into(),
                shape: vec![2, blocks, 16, width / 128, 128],
                stride: vec![blocks * 16 * width, 16 * width, slot, head, 1],
                storage_offset: 0,
                device_uuid: uuid.to_owned(),
            },
        };
        RegisterKvCache {
            instance_id: instance,
            kv_cache: (0..self.layers).map(layer).collect(),
            model_name: format!("m{}{}", self.name.len(), self.heads_first),
            world_size: 1,
            engine_type: "vllm".into(),
            layout_hints: LayoutHints { kv_layout: Some(order.into()), ..LayoutHints::default() },
            engine_group_infos: vec![EngineGroupInfo {
                engine_group_id: 0,
                layer_indices: (0..self.layers as u32).collect(),
                tokens_per_block: 16,
                sw_size_tokens: -1,
                extra_object_group_tag: 0,
                recurrent_state: false,
            }],
        }
    }
}

async fn done(client: &mut Connection, request: &Request<'_>) -> f64 {
    let begun = Instant::now();
    let answer = client.call(request).await.expect("an answer");
    assert!(matches!(answer, Response::Transfer(_, true)), "{answer:?}");
    begun.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; ipc-tests/gpu/run.sh runs it"]
async fn beside_a_raw_copy() {
    let gpus = Gpus::new(1, &[]);
    if !real() {
        println!(
            "LMCACHED_GPU is not `real`: this runs on the tests' own driver, and its numbers mean nothing"
        );
    }
    for way in WAYS {
        println!("--cuda-copies={way}");
        measure(&gpus, way).await;
    }
}

async fn measure(gpus: &Gpus, way: &str) {
    let pool = format!("--l1-size-gb={}", 0.2 + 0.075 * chunks() as f64);
    let daemon = Daemon::start_in(&gpus.of_daemon(), &[&pool, &format!("--cuda-copies={way}")]).await;
    daemon.says("pool reserved").await;
    let worker = Arc::new(gpus.worker(0, None));
    let (mut client, mut second) = (daemon.connect().await, daemon.connect().await);
    for (at, case) in CASES.iter().enumerate() {
        let moved = case.moved();
        let raw = |way: &str, both: f64| {
            let nanoseconds: f64 =
                worker.ask(&format!("raw {way} {} {}", 2 << 20, moved >> 21)).parse().expect("a number");
            both * moved as f64 / nanoseconds
        };
        let (raw_out, raw_in, raw_both) = (raw("out", 1.0), raw("in", 1.0), raw("both", 2.0));
        let memory = worker.alloc(case.layers * case.layer_bytes());
        let registration = case.registration(at as u64 + 1, &worker.uuid, &memory.handle, memory.offset);
        let model = Model { name: registration.model_name.clone(), world_size: 1, layers: 1, width: 1 };
        let instance_id = registration.instance_id;
        client.call(&Request::RegisterKvCache(Box::new(registration))).await.expect("register");
        let (mut out, mut back, mut both) = (f64::MAX, f64::MAX, f64::MAX);
        for round in 0..ROUNDS {
            let tokens =
                [prompt(at as u32 * 100 + round as u32, chunks()), prompt(7000 + round as u32, chunks())];
            let frame = |which: usize, request: &str| {
                model.key(request, &tokens[which]).frame(Some(0), 0, chunks() as u64 * 256)
            };
            let event = worker.event();
            let (stored, other, loaded) = (frame(0, "s"), frame(1, "s"), frame(0, "l"));
            let [first, other] = [&stored, &other].map(|frame| Request::Store {
                key: key(frame),
                instance_id,
                block_ids: vec![case.ids()],
                event: &event,
            });
            out = out.min(done(&mut client, &first).await);
            assert_eq!(lookup(&mut client, &model, "l", &tokens[0], 1).await, chunks() as u64);
            let retrieve = Request::Retrieve {
                key: key(&loaded),
                instance_id,
                block_ids: vec![case.ids()],
                event: &event,
                skip_first_n_tokens: 0,
            };
            back = back.min(done(&mut client, &retrieve).await);
            let begun = Instant::now();
            tokio::join!(done(&mut client, &other), done(&mut second, &retrieve));
            both = both.min(begun.elapsed().as_secs_f64());
            client.call(&Request::EndSession { request_id: "l" }).await.expect("ended");
            daemon.clear().await;
        }
        let speed = |seconds: f64, times: f64| times * moved as f64 / seconds / 1e9;
        let row = |what: &str, ours: f64, raw: f64| {
            println!(
                "{:<18} {what:<9} {ours:>7.2} GB/s, raw {raw:>7.2} GB/s: {:>3.0} %",
                case.name,
                100.0 * ours / raw
            );
        };
        row("store", speed(out, 1.0), raw_out);
        row("retrieve", speed(back, 1.0), raw_in);
        row("both", speed(both, 2.0), raw_both);
        client.call(&Request::UnregisterKvCache { instance_id }).await.expect("unregister");
        worker.ask(&format!("free {}", memory.number));
    }
}

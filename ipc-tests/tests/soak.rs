//! Sixty-four workers for a long time: a pool that is full all the while, a tier that fails now and then, workers that leave
//! in the middle of what they do. At the end nobody has waited in vain, nothing is held, and the counters add up.
//!
//! Ten seconds in the suite; `ipc-tests/soak.sh` sets `LMCACHED_SOAK_SECONDS` and holds the daemon's memory against what it was
//! after the first twelfth of the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ipc_tests::crash::Random;
use ipc_tests::daemon::Daemon;
use ipc_tests::pool::Pool;
use ipc_tests::worker::{
    CHUNK, Model, commit_retrieve, commit_store, lookup, prepare_retrieve, prepare_store, prompt,
};
use ipc_tests::{anonymous_kib, eventually};
use lmcache_client::Connection;
use lmcache_proto::wire::Request;

const WORKERS: u64 = 64;
const CHUNKS: usize = 4;
/// Prompts that the workers choose from: three times what the pool holds.
const PROMPTS: u64 = 192;
/// Longest time of one step of a worker, some eight requests. A request without an answer ends here.
const STUCK: Duration = Duration::from_secs(60);
/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(30);
/// What the daemon's own memory may grow by after the first twelfth of a long run.
const DRIFT: f64 = 0.02;

/// What the workers were told, all together.
#[derive(Debug, Default)]
struct Told {
    lookups: AtomicU64,
    hit_chunks: AtomicU64,
    stored: AtomicU64,
    retrieved: AtomicU64,
    /// Stores for which there was no room: everything else was held.
    refused: AtomicU64,
    /// Times that a worker went in the middle.
    left: AtomicU64,
}

impl Told {
    fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// What a chunk of a prompt is filled with.
fn pattern(seed: u64, chunk: usize) -> u64 {
    (seed << 8) + chunk as u64
}

struct Worker {
    number: u64,
    /// How often it has gone. Who comes in its place is another process, and has another id.
    gone: u64,
    model: Model,
    random: Random,
    pool: Arc<Pool>,
    told: Arc<Told>,
    requests: u64,
}

impl Worker {
    fn id(&self) -> u64 {
        1000 + self.number + self.gone * WORKERS
    }

    async fn run(mut self, endpoint: String, until: Instant) {
        while Instant::now() < until {
            let mut client =
                Connection::connect(&endpoint, CONNECT).await.expect("the daemon accepts clients");
            client.call(&self.model.registration(self.id())).await.expect("register");
            // A few hundred steps, then it goes as a process that dies goes: in the middle.
            let steps = 50 + self.random.below(400);
            for _ in 0..steps {
                if Instant::now() >= until {
                    return;
                }
                let step = tokio::time::timeout(STUCK, self.step(&mut client)).await;
                step.unwrap_or_else(|_| panic!("worker {} has waited {STUCK:?} for an answer", self.number));
            }
            self.leave(&mut client).await;
            self.gone += 1;
            Told::add(&self.told.left, 1);
        }
    }

    /// One request of an engine: looked up, what is there retrieved, the rest stored.
    async fn step(&mut self, client: &mut Connection) {
        let seed = self.random.below(PROMPTS);
        let tokens = prompt(seed as u32, CHUNKS);
        let request = self.request();
        let hit = lookup(client, &self.model, &request, &tokens, 1).await as usize;
        Told::add(&self.told.lookups, 1);
        Told::add(&self.told.hit_chunks, hit);
        let all = (CHUNKS * CHUNK) as u64;
        let key = self.model.key(&request, &tokens);
        if hit > 0 {
            let frame = key.frame(Some(0), 0, (hit * CHUNK) as u64);
            let slots = prepare_retrieve(client, &frame, self.id()).await.expect("what is leased is there");
            for (chunk, slot) in slots.iter().enumerate() {
                assert!(
                    self.pool.holds(slot, pattern(seed, chunk)),
                    "prompt {seed}, chunk {chunk}: other bytes"
                );
            }
            assert!(commit_retrieve(client, &frame, self.id()).await);
            Told::add(&self.told.retrieved, hit);
        }
        if hit < CHUNKS {
            let frame = key.frame(Some(0), (hit * CHUNK) as u64, all);
            match prepare_store(client, &frame, self.id()).await {
                None => Told::add(&self.told.refused, 1),
                Some(context) if context.slots.is_empty() => {}
                Some(context) => {
                    for (slot, chunk) in context.slots.iter().zip(&context.chunk_indices) {
                        self.pool.fill(slot, pattern(seed, hit + *chunk as usize));
                    }
                    if commit_store(client, &frame, self.id()).await {
                        Told::add(&self.told.stored, context.slots.len());
                    }
                }
            }
        }
        client.call(&Request::EndSession { request_id: &request }).await.expect("end of session");
    }

    /// Goes with a lookup that was never used and a store that was never committed.
    async fn leave(&mut self, client: &mut Connection) {
        let seed = self.random.below(PROMPTS);
        let tokens = prompt(seed as u32, CHUNKS);
        let request = self.request();
        let hit = lookup(client, &self.model, &request, &tokens, 1).await as usize;
        Told::add(&self.told.lookups, 1);
        Told::add(&self.told.hit_chunks, hit);
        if hit < CHUNKS {
            let frame = self.model.key(&request, &tokens).frame(
                Some(0),
                (hit * CHUNK) as u64,
                (CHUNKS * CHUNK) as u64,
            );
            let _ = prepare_store(client, &frame, self.id()).await;
        }
        client.call(&Request::UnregisterEngineDriven { instance_id: self.id() }).await.expect("unregister");
    }

    fn request(&mut self) -> String {
        self.requests += 1;
        format!("w{}-{}", self.number, self.requests)
    }
}

#[tokio::test]
async fn a_long_time_of_heavy_use_leaves_nothing_behind() {
    let seconds: u64 =
        std::env::var("LMCACHED_SOAK_SECONDS").map_or(10, |text| text.parse().expect("seconds"));
    let directory = tempfile::tempdir().expect("directory");
    let tier = serde_json::json!({
        "type": "fault_inject",
        "rate": 0.02,
        "seed": 7,
        "max_capacity_gb": 0.0625,
        "eviction": {"eviction_policy": "LRU"},
        "inner": {"type": "fs", "base_path": directory.path()},
    });
    let flags = [
        format!("--l2-adapter={tier}"),
        "--eviction-trigger-watermark=1.0".to_owned(),
        "--eviction-ratio=0.05".to_owned(),
        // What those who leave have not finished is given up within the test.
        "--lease-grace-seconds=1".to_owned(),
        "--l1-write-ttl-seconds=5".to_owned(),
        "--worker-reap-timeout-seconds=30".to_owned(),
        "--worker-registration-grace-seconds=30".to_owned(),
        // As is a request that they never ended; with the ten minutes of the default their number would still grow after five.
        "--session-ttl-seconds=60".to_owned(),
    ];
    let daemon = Daemon::start(&flags.each_ref().map(String::as_str)).await;
    let pool = Arc::new(Pool::open(&daemon.pool_path()));
    let told = Arc::new(Told::default());
    let began = Instant::now();
    let until = began + Duration::from_secs(seconds);
    let local = tokio::task::LocalSet::new();
    let mut workers = tokio::task::JoinSet::new();
    for number in 0..WORKERS {
        let worker = Worker {
            number,
            gone: 0,
            model: Model::small(["m", "n"][number as usize % 2]),
            random: Random::new(11, number),
            pool: pool.clone(),
            told: told.clone(),
            requests: 0,
        };
        workers.spawn_local_on(worker.run(daemon.endpoint(), until), &local);
    }
    let early = local
        .run_until(async {
            tokio::time::sleep(Duration::from_secs(seconds).div_f64(12.0)).await;
            let early = anonymous_kib(daemon.pid()) as f64;
            while let Some(ended) = workers.join_next().await {
                ended.expect("a worker");
            }
            early
        })
        .await;
    let late = anonymous_kib(daemon.pid()) as f64;

    // Everybody is gone: what was held is given back.
    let held = [
        "lmcached_l1_leases",
        "lmcached_l1_pins",
        "lmcached_l1_quarantined_objects",
        "lmcache_mp_active_prefetch_jobs",
    ];
    for gauge in held {
        eventually(gauge, async || (daemon.metric(gauge, &[]).await == 0.0).then_some(())).await;
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let (lookups, hits) = (count(&told.lookups), count(&told.hit_chunks));
    // Before anything is asserted: whoever reads a failure wants to know.
    let dropped = daemon.metric("lmcache_mp_event_bus_dropped_events_total", &[]).await;
    println!(
        "{seconds} s, {WORKERS} workers: {lookups} lookups, {hits} chunks hit, {} retrieved, {} stored, {} stores refused, {} times gone in the middle; evicted {}; {dropped} events dropped; own memory {early} KiB after a twelfth, {late} KiB at the end ({:+.1} %)",
        count(&told.retrieved),
        count(&told.stored),
        count(&told.refused),
        count(&told.left),
        daemon.metric("lmcache_mp_l1_evicted_keys_total", &[]).await,
        (late / early - 1.0) * 100.0
    );
    let requested = daemon.metric("lmcached_requests_total", &["operation=\"lookup\""]).await;
    assert_eq!(requested, lookups, "every lookup is counted once");
    assert_eq!(dropped, 0.0, "no event is missing");
    let tokens = CHUNK as f64;
    daemon
        .metric_becomes("lmcache_mp_lookup_requested_tokens_total", &[], lookups * CHUNKS as f64 * tokens)
        .await;
    daemon.metric_becomes("lmcache_mp_lookup_hit_tokens_total", &[], hits * tokens).await;
    // Work was done, and not mostly refused.
    assert!(hits > 0.0 && count(&told.stored) > lookups && count(&told.retrieved) > 0.0);
    // In a short run the first twelfth is still the start.
    if seconds >= 1800 {
        assert!(late <= early * (1.0 + DRIFT), "memory grew from {early} to {late} KiB");
    }
}

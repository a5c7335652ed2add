//! Floods, while a client that behaves works: every request of it is answered, and afterwards the daemon has as many
//! descriptors and as much memory as before.

use std::time::Duration;

use ipc_tests::daemon::Daemon;
use ipc_tests::flood::{Flood, Kind};
use ipc_tests::pool::Pool;
use ipc_tests::worker::{Model, commit_retrieve, lookup, prepare_retrieve, prompt, store};
use ipc_tests::{anonymous_kib, eventually};
use lmcache_client::Connection;
use lmcache_proto::wire::{Request, Response};

/// A client that behaves.
struct Good {
    client: Connection,
    model: Model,
    pool: Pool,
    instance: u64,
    cycles: u32,
}

impl Good {
    async fn new(daemon: &Daemon, instance: u64) -> Good {
        Good::arrive(daemon, instance).await.expect("served")
    }

    /// `None`: it was thrown out before it had asked for anything, and comes again, as ZeroMQ's clients do.
    async fn arrive(daemon: &Daemon, instance: u64) -> Option<Good> {
        let mut client = Connection::connect(&daemon.endpoint(), Duration::from_secs(30)).await.ok()?;
        let model = Model { name: format!("m{instance}"), world_size: 1, layers: 1, width: 64 };
        client.call(&model.registration(instance)).await.ok()?;
        Some(Good { client, model, pool: Pool::open(&daemon.pool_path()), instance, cycles: 0 })
    }

    /// Stores a prompt, finds it and reads it.
    async fn cycle(&mut self) {
        self.cycles += 1;
        let (client, model, n) = (&mut self.client, &self.model, self.cycles);
        assert_eq!(
            client.call(&Request::Ping { instance_id: Some(self.instance) }).await.expect("ping"),
            Response::Flag(true)
        );
        let tokens = prompt(n, 4);
        let (cold, warm) = (format!("c{n}"), format!("w{n}"));
        assert_eq!(store(client, &self.pool, model, &cold, &tokens, self.instance, n.into()).await, 4);
        client.call(&Request::EndSession { request_id: &cold }).await.expect("end");
        assert_eq!(lookup(client, model, &warm, &tokens, 1).await, 4);
        let frame = model.key(&warm, &tokens).frame(Some(0), 0, 1024);
        let slots = prepare_retrieve(client, &frame, self.instance).await.expect("slots");
        assert!((0..4).all(|chunk| self.pool.holds(&slots[chunk], u64::from(n) + chunk as u64)));
        assert!(commit_retrieve(client, &frame, self.instance).await);
        client.call(&Request::EndSession { request_id: &warm }).await.expect("end");
    }
}

#[derive(Clone, Copy, Debug)]
struct Use {
    descriptors: usize,
    anonymous_kib: u64,
}

fn used(daemon: &Daemon) -> Use {
    let proc = format!("/proc/{}", daemon.pid());
    Use {
        descriptors: std::fs::read_dir(format!("{proc}/fd")).expect("descriptors").count(),
        anonymous_kib: anonymous_kib(daemon.pid()),
    }
}

/// What allocators keep for the next time.
const KEPT_KIB: u64 = 32 << 10;

/// Works through a flood of `peers` until `enough` says so of it, and holds what is left against what was before.
async fn survives(
    mut daemon: Daemon,
    kind: Kind,
    peers: usize,
    mut enough: impl AsyncFnMut(&Daemon, &Flood, &Good) -> bool,
) -> Daemon {
    let mut good = Good::new(&daemon, 1).await;
    good.cycle().await;
    let before = used(&daemon);
    let queued = daemon.metric("lmcached_queued_bytes", &[]).await;
    let flood = Flood::start(kind, daemon.port(), peers);
    let until = std::time::Instant::now() + Duration::from_secs(120);
    while !enough(&daemon, &flood, &good).await {
        good.cycle().await;
        assert!(std::time::Instant::now() < until, "{} connects, {} ended", flood.connects(), flood.ended());
    }
    // Another one comes in the middle of it.
    let mut newcomer = eventually("another one is served", async || Good::arrive(&daemon, 2).await).await;
    newcomer.cycle().await;
    drop(newcomer);
    flood.stop().await;
    good.cycle().await;
    assert!(daemon.alive());
    eventually("the connections are gone", async || {
        (daemon.metric("lmcached_connections", &[]).await == 1.0).then_some(())
    })
    .await;
    let mut now = before;
    let back = async || {
        now = used(&daemon);
        (now.descriptors <= before.descriptors && now.anonymous_kib < before.anonymous_kib + KEPT_KIB)
            .then_some(())
    };
    assert!(ipc_tests::in_time(back).await.is_some(), "{before:?} before, {now:?} after");
    // What it remembers of the one client that is left is all there is.
    assert!(daemon.metric("lmcached_queued_bytes", &[]).await < queued + f64::from(16 << 10));
    good.cycle().await;
    daemon
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_silent_connections() {
    let daemon = Daemon::start(&["--max-connections=64"]).await;
    let daemon = survives(daemon, Kind::Silent, 200, async |_, flood, good| {
        // Far more than there is room for, all the time.
        flood.connects() > 1000 && good.cycles > 20
    })
    .await;
    assert!(daemon.metric("lmcached_peers_refused_total", &[]).await > 100.0);
    daemon.says("--max-connections").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connects_and_disconnects() {
    let daemon = Daemon::start(&[]).await;
    survives(daemon, Kind::Churn, 16, async |_, flood, _| flood.connects() > 10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers() {
    let daemon = Daemon::start(&[]).await;
    survives(daemon, Kind::SlowReader, 32, async |daemon, _, good| {
        // Each has more answers waiting than its socket takes.
        daemon.metric("lmcached_queued_bytes", &[]).await > f64::from(32 << 10) && good.cycles > 50
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_never_read() {
    // Each of them needs some forty thousand answers until it has no more room, and on a busy machine no core is left for them.
    const PEERS: usize = 8;
    let daemon = Daemon::start(&[]).await;
    let mut most = 0;
    let before = used(&daemon);
    survives(daemon, Kind::NeverReads, PEERS, async |daemon, _, good| {
        let paused = daemon.metric("lmcached_peer_pauses_total", &["reason=\"answers\""]).await;
        most = most.max(used(daemon).anonymous_kib);
        paused >= PEERS as f64 && good.cycles > 50
    })
    .await;
    // What waits for one peer is bounded however much it may have under way.
    let each = (most - before.anonymous_kib) / PEERS as u64;
    assert!(each < 4 << 10, "{each} KiB for a peer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_ask_without_end_are_held_to_their_rate() {
    let daemon = Daemon::start(&["--max-peer-requests-per-second=500"]).await;
    // Few: on a busy machine all together must still ask for more than they may. Each has thousands of requests with the daemon
    // whenever it is paused, which take their time.
    survives(daemon, Kind::Asks, 4, async |daemon, _, good| {
        let paused = daemon.metric("lmcached_peer_pauses_total", &["reason=\"rate\""]).await;
        // A request of the good client is one of its rate, too.
        paused >= 16.0 && good.cycles > 20
    })
    .await;
}

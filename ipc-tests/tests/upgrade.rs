//! An upgrade in place: another process takes the sockets, the connections and the pool, and no client notices.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ipc_tests::daemon::{Daemon, binary};
use ipc_tests::dealer::Dealer;
use ipc_tests::driven::Driven;
use ipc_tests::pool::Pool;
use ipc_tests::worker::{Model, commit_store, key, lookup, prepare_store, prompt, store};
use ipc_tests::{eventually, http};
use lmcache_client::Connection;
use lmcache_proto::wire::{Request, Response, Secret};

const INSTANCE: u64 = 7;

/// A daemon that runs from a copy of the program, which the test may replace.
struct Installed {
    daemon: Daemon,
    program: PathBuf,
    _dir: tempfile::TempDir,
}

impl Installed {
    async fn start(extra: &[&str]) -> Installed {
        // A second name, not a copy: what this process has open for writing, a child that is just being started has, too, and
        // the system runs no such file.
        let dir = tempfile::tempdir_in(binary().parent().expect("a directory")).expect("a directory");
        let program = dir.path().join("lmcached");
        std::fs::hard_link(binary(), &program).expect("a second name");
        let mut daemon = Daemon::launch_program(&program, &[], extra);
        daemon.ready().await;
        Installed { daemon, program, _dir: dir }
    }

    /// Puts a script where the program was, as a package does: beside it, then in its place.
    fn replace(&self, script: &str) {
        let new = self.program.with_extension("new");
        // By another process, for the same reason.
        let write = "printf '#!/bin/sh\n%s\n' \"$2\" > \"$0\" && chmod 755 \"$0\" && mv \"$0\" \"$1\"";
        let written = Command::new("sh").args(["-c", write]).args([&new, &self.program]).arg(script).status();
        assert!(written.expect("a shell").success());
    }
}

/// Orders an upgrade; status and answer.
async fn upgrade(daemon: &mut Daemon) -> (u16, serde_json::Value) {
    let (status, body) = http::post(daemon.http_port(), "/lmcached/upgrade", "").await.expect("an answer");
    let answer: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let pid = answer["pid"].as_u64().or_else(|| {
        // One that failed names the process that serves in its stead.
        let text = answer["detail"].as_str()?;
        text.rsplit_once("(pid ")?.1.trim_end_matches(')').parse().ok()
    });
    if let Some(pid) = pid {
        daemon.succeeded_by(pid as u32);
        assert_eq!(daemon.ends().await, Some(0), "the old process has ended in order");
    }
    (status, answer)
}

/// A client that asks without pause until it is told to stop; every answer must come, over one connection.
struct Busy {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Busy {
    async fn on(endpoint: &str, model: &Model, number: u64) -> Busy {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted, model) = (stop.clone(), answers.clone(), Model::small(&model.name));
        let (endpoint, (connected, ready)) = (endpoint.to_owned(), std::sync::mpsc::channel());
        // A runtime of its own: what it does between two answers is nobody else's business.
        let work = async move || {
            let mut client = Connection::connect(&endpoint, Duration::from_secs(60)).await.expect("connects");
            connected.send(()).expect("somebody waits");
            for turn in 0u32.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let request = format!("busy-{number}-{turn}");
                let found = lookup(&mut client, &model, &request, &prompt(1, 4), 1).await;
                assert_eq!(found, 4, "{request}: what was stored is found, before and after");
                let end = Request::EndSession { request_id: &request };
                client.call(&end).await.expect("the end of a request is heard");
                let new = model.key(&request, &prompt(1000 + turn, 1)).salt(&format!("busy{number}"));
                let frame = new.frame(Some(0), 0, 256);
                prepare_store(&mut client, &frame, 100 + number).await;
                let commit = Request::CommitStore { key: key(&frame), instance_id: 100 + number, data: b"" };
                assert_eq!(client.call(&commit).await.expect("commit"), Response::Flag(true), "{request}");
                counted.fetch_add(1, Ordering::Relaxed);
            }
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(work());
        });
        tokio::task::spawn_blocking(move || ready.recv()).await.expect("joined").expect("it connects");
        Busy { stop, answers, thread }
    }

    async fn goes_on(&self) {
        let before = self.answers.load(Ordering::Relaxed);
        let more = async || (self.answers.load(Ordering::Relaxed) > before + 3).then_some(());
        eventually("a busy client goes on", more).await;
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = tokio::task::spawn_blocking(|| self.thread.join()).await.expect("joined");
        ended.expect("every request was answered as if nothing had happened");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_notice_nothing() {
    let mut daemon = Daemon::start(&["--bind=ipc://{dir}/sock"]).await;
    let endpoints = [format!("ipc://{}/sock", daemon.dir().display()), daemon.endpoint()];
    let model = Model::small("m");
    let pool = Pool::open(&daemon.pool_path());
    let mut first = daemon.connect().await;
    for instance in [INSTANCE, 100, 101] {
        first.call(&model.registration(instance)).await.expect("register");
    }
    store(&mut first, &pool, &model, "r", &prompt(1, 4), INSTANCE, 40).await;
    let busy = [Busy::on(&endpoints[0], &model, 0).await, Busy::on(&endpoints[1], &model, 1).await];
    for round in 0..2u32 {
        for client in &busy {
            client.goes_on().await;
        }
        // In the middle of everything: a prepared store, a prepared load, a lookup whose result nobody has asked for, and half
        // a request.
        let mut dealers = Vec::new();
        for (number, endpoint) in endpoints.iter().enumerate() {
            let mut dealer = Dealer::connect(endpoint).await;
            let name = format!("r{round}-{number}");
            let new = model.key(&name, &prompt(500 + 10 * round + number as u32, 2)).frame(Some(0), 0, 512);
            let old = model.key(&name, &prompt(1, 4)).frame(Some(0), 0, 1024);
            let sought = model.key(&name, &prompt(1, 4)).frame(None, 0, 1024);
            dealer
                .ask(&[
                    Request::PrepareStore { key: key(&new), instance_id: INSTANCE },
                    Request::PrepareRetrieve { key: key(&old), instance_id: INSTANCE },
                    Request::Lookup { key: key(&sought), tp_size: 1 },
                ])
                .await;
            for _ in 0..3 {
                dealer.answer().await;
            }
            let mut ping = dealer.spell(&[Request::Ping { instance_id: Some(INSTANCE) }]);
            let rest = ping.split_off(3 + number);
            dealer.send(&ping).await;
            dealers.push((dealer, rest, name, new, old));
        }
        let old_pid = daemon.status().await["pid"].as_u64();
        let (status, answer) = upgrade(&mut daemon).await;
        assert_eq!(status, 200, "{answer}");
        assert_ne!(answer["pid"].as_u64(), old_pid);
        for (dealer, rest, name, new, old) in &mut dealers {
            dealer.send(rest).await;
            assert!(dealer.answer().await.says(&Response::Flag(true)), "the other half has come");
            let number = dealer
                .ask(&[
                    Request::CommitStore { key: key(new), instance_id: INSTANCE, data: b"" },
                    Request::QueryPrefetchStatus { request_id: name },
                    Request::CommitRetrieve { key: key(old), instance_id: INSTANCE },
                    Request::EndSession { request_id: name },
                ])
                .await;
            for (number, expected) in (number..).zip([
                Response::Flag(true),
                Response::Count(4),
                Response::Flag(true),
                Response::Nothing,
            ]) {
                let answer = dealer.answer().await;
                assert!(answer.number == number && answer.says(&expected), "{answer:?}, {expected:?}");
            }
        }
        for client in &busy {
            client.goes_on().await;
        }
        // The files of the sockets are there still: who comes now is served.
        for endpoint in &endpoints {
            let mut client = Connection::connect(endpoint, Duration::from_secs(30)).await.expect("connects");
            assert_eq!(lookup(&mut client, &model, "new", &prompt(1, 4), 1).await, 4);
            client.call(&Request::EndSession { request_id: "new" }).await.expect("end");
        }
    }
    for client in busy {
        client.end().await;
    }
    drop(first);
    daemon.metric_becomes("lmcached_l1_pins", &[], 0.0).await;
    daemon.metric_becomes("lmcached_l1_leases", &[], 0.0).await;
    assert!(daemon.log().iter().all(|line| !line.contains("panicked")), "{:#?}", daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_does_not_start_changes_nothing() {
    let mut installed = Installed::start(&[]).await;
    let model = Model::small("m");
    let mut client = installed.daemon.connect().await;
    client.call(&model.registration(INSTANCE)).await.expect("register");
    let pool = Pool::open(&installed.daemon.pool_path());
    store(&mut client, &pool, &model, "r", &prompt(1, 4), INSTANCE, 40).await;
    for script in ["exit 3", "echo no daemon; sleep 1"] {
        installed.replace(script);
        let (status, answer) = upgrade(&mut installed.daemon).await;
        assert_eq!(status, 409, "{answer}");
        assert!(
            answer["detail"].as_str().is_some_and(|text| text.contains("ended (exit status")),
            "{answer}"
        );
        assert!(installed.daemon.alive());
        assert_eq!(
            lookup(&mut client, &model, "again", &prompt(1, 4), 1).await,
            4,
            "over the same connection"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_dies_leaves_the_old_release_serving() {
    let mut installed = Installed::start(&["--bind=ipc://{dir}/sock"]).await;
    let model = Model::small("m");
    let mut client = installed.daemon.connect().await;
    for instance in [INSTANCE, 100] {
        client.call(&model.registration(instance)).await.expect("register");
    }
    let pool = Pool::open(&installed.daemon.pool_path());
    store(&mut client, &pool, &model, "r", &prompt(1, 4), INSTANCE, 40).await;
    let endpoint = format!("ipc://{}/sock", installed.daemon.dir().display());
    let busy = Busy::on(&endpoint, &model, 0).await;
    let frame = model.key("open", &prompt(77, 2)).frame(Some(0), 0, 512);
    let slots = prepare_store(&mut client, &frame, INSTANCE).await;
    assert!(slots.is_some());
    busy.goes_on().await;
    // It takes over, and dies when it has changed the table.
    let real = binary().display();
    installed.replace(&format!("LMCACHED_FAILPOINT=l1.open.recovered:1 exec {real} \"$@\""));
    let (status, answer) = upgrade(&mut installed.daemon).await;
    assert_eq!(status, 409, "{answer}");
    assert!(answer["detail"].as_str().is_some_and(|text| text.contains("old release serves")), "{answer}");
    busy.goes_on().await;
    busy.end().await;
    let commit = Request::CommitStore { key: key(&frame), instance_id: INSTANCE, data: b"" };
    assert_eq!(client.call(&commit).await.expect("commit"), Response::Flag(true), "over the same connection");
    assert_eq!(lookup(&mut client, &model, "again", &prompt(77, 2), 1).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_chunk_size_is_refused_before_anything_is_stopped() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("lmcached.toml");
    std::fs::write(&config, "chunk-size = 256\n").expect("a file");
    let mut daemon = Daemon::start(&[&format!("--config={}", config.display())]).await;
    let mut client = daemon.connect().await;
    std::fs::write(&config, "chunk-size = 512\n").expect("a file");
    let (status, answer) = upgrade(&mut daemon).await;
    assert_eq!(status, 409, "{answer}");
    assert!(
        answer["detail"].as_str().is_some_and(|text| text.contains("--chunk-size (256 here, 512 there)")),
        "{answer}"
    );
    assert_eq!(client.call(&Request::GetChunkSize).await.expect("same connection"), Response::Count(256));
}

#[tokio::test]
async fn a_connection_stays_its_tenant_s() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "0123456789abcdef-a one\n0123456789abcdef-b two\n").expect("written");
    let mut installed = Installed::start(&[&format!("--tenant-tokens-file={}", file.path().display())]).await;
    let daemon = &mut installed.daemon;
    let (mut a, mut b, mut nobody) = (daemon.connect().await, daemon.connect().await, daemon.connect().await);
    for (client, token) in [(&mut a, "0123456789abcdef-a"), (&mut b, "0123456789abcdef-b")] {
        let shown = client.call(&Request::Authenticate { token: Secret(token) }).await.expect("an answer");
        assert_eq!(shown, Response::Flag(true));
    }
    let model = Model::small("m");
    a.call(&model.registration(INSTANCE)).await.expect("register");
    let frame =
        |request: &str, n| model.key(request, &prompt(n, 1)).salt("one").readers(1).frame(Some(0), 0, 256);
    assert!(prepare_store(&mut a, &frame("s", 1), INSTANCE).await.is_some());
    assert!(commit_store(&mut a, &frame("s", 1), INSTANCE).await);
    a.call(&Request::Lookup { key: key(&frame("l", 1)), tp_size: 1 }).await.expect("lookup");
    assert_eq!(upgrade(daemon).await.0, 200);
    for other in [&mut b, &mut nobody] {
        assert_eq!(prepare_store(other, &frame("s", 2), INSTANCE).await, None);
        other.call(&Request::EndSession { request_id: "l" }).await.expect("end");
        assert_eq!(daemon.metric("lmcached_l1_leases", &[]).await, 1.0);
    }
    assert!(prepare_store(&mut a, &frame("s", 3), INSTANCE).await.is_some(), "without showing it again");
    let status = a.call(&Request::QueryPrefetchStatus { request_id: "l" }).await.expect("status");
    assert_eq!(status, Response::Count(1));
    // What it has shown is what counts: another token is refused on this connection.
    let other = Request::Authenticate { token: Secret("0123456789abcdef-b") };
    assert_eq!(a.call(&other).await.expect("an answer"), Response::Flag(false));
}

/// A worker whose memory the daemon copies goes on like the others, unless it may have given up what it asked for before.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_told_of_an_upgrade_only_if_it_may_have_given_up() {
    for waits in [true, false] {
        let mut installed = Installed::start(&[]).await;
        let mut driven = Driven::start(&installed.daemon.endpoint()).await;
        // Of one that has not pinged often enough it is taken that it waits for longer than an upgrade takes.
        if !waits {
            driven.beats(4, Duration::from_millis(100)).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        driven.kv.wipe();
        let (status, answer) = upgrade(&mut installed.daemon).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(driven.load(30).await, waits);
        assert_eq!(driven.is_untouched(), !waits);
        assert_eq!(driven.pings().await, waits);
        if !waits {
            assert!(driven.pings().await, "an edge, on which it registers");
            driven.register().await;
        }
        assert!(driven.load(30).await && !driven.is_untouched());
    }
}

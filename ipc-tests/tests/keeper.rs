//! `lmcached-keeper` in the place of a service manager: with real daemons, that die.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ipc_tests::daemon::{binary, free_port};
use ipc_tests::dealer::Dealer;
use ipc_tests::worker::{Model, key, prompt};
use ipc_tests::{eventually, has_stopped, http};
use lmcache_proto::wire::{PrepareStoreResponse, Request, Response};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

struct Kept {
    keeper: Child,
    name: String,
    port: u16,
    http_port: u16,
    log: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Kept {
    fn launch(own: &[&str], failpoint: &str, flags: &[&str]) -> Kept {
        let dir = tempfile::tempdir().expect("directory");
        let log = dir.path().join("log");
        let (port, http_port) = (free_port(), free_port());
        let name = format!("keeper{}_{port}", std::process::id());
        let keeper = Command::new(binary().with_file_name("lmcached-keeper"))
            .args(own)
            .arg(binary())
            .args([
                format!("--port={port}"),
                format!("--http-port={http_port}"),
                "--prometheus-port=0".into(),
                format!("--shm-name={name}"),
                "--l1-size-gb=0.0625".into(),
            ])
            .args(flags)
            .env("LMCACHED_FAILPOINT", failpoint)
            .env("RUST_LOG", "info,lmcached::journal=debug")
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(&log).expect("a log"))
            .spawn()
            .expect("the keeper starts");
        Kept { keeper, name, port, http_port, log, _dir: dir }
    }

    async fn start(own: &[&str]) -> Kept {
        let kept = Kept::launch(own, "", &[]);
        kept.ready().await;
        kept
    }

    async fn ready(&self) {
        eventually("the daemon is ready", async || {
            http::get(self.http_port, "/healthcheck").await.filter(|answer| answer.0 == 200).map(drop)
        })
        .await;
    }

    fn endpoint(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }

    /// The daemon's process: the keeper's only child.
    fn daemon(&self) -> Option<Pid> {
        let id = self.keeper.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok().map(Pid::from_raw)
    }

    /// Descriptors that the keeper has open.
    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.keeper.id())).expect("it runs").count()
    }

    /// A registered worker, whose connection is kept.
    async fn worker(&self) -> Dealer {
        let before = self.descriptors();
        let mut worker = Dealer::connect(&self.endpoint()).await;
        worker.ask(&[Model::small("m").registration(7)]).await;
        worker.answer().await;
        // The daemon says so on a thread of its own.
        eventually("the connection is kept", async || (self.descriptors() > before).then_some(())).await;
        worker
    }

    /// Another daemon than `before`, ready.
    async fn another(&self, before: Pid) -> Pid {
        let daemon =
            eventually("there is another daemon", async || self.daemon().filter(|daemon| *daemon != before))
                .await;
        self.ready().await;
        daemon
    }

    async fn ends(&mut self) -> Option<i32> {
        eventually("the keeper ends", async || self.keeper.try_wait().expect("wait")).await.code()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log")
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The next daemon has not said yet what it did with the connection.
            std::thread::sleep(Duration::from_secs(1));
            eprintln!("{}", self.log());
        }
        let daemon = self.daemon();
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        if let Some(daemon) = daemon {
            let _ = kill(daemon, Signal::SIGKILL);
        }
        ipc_tests::pool::remove(&self.name);
    }
}

/// Stops a process, and waits until none of its threads does anything more.
async fn stop(process: Pid) {
    kill(process, Signal::SIGSTOP).expect("stopped");
    has_stopped(process.as_raw() as u32).await;
}

fn ping() -> Request<'static> {
    Request::Ping { instance_id: Some(7) }
}

async fn answers(worker: &mut Dealer, number: u64, expected: &Response) {
    let answer = worker.answer_to(number).await;
    assert!(answer.says(expected), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_ends_no_connection_and_loses_no_request() {
    let kept = Kept::start(&[]).await;
    let model = Model::small("m");
    let frame = model.key("r", &prompt(1, 2)).frame(Some(0), 0, 512);
    let mut worker = kept.worker().await;
    for _ in 0..3 {
        let before = kept.daemon().expect("it runs");
        stop(before).await;
        // Waits in the socket of a process that will never read it.
        let asked = worker
            .ask(&[ping(), Request::PrepareStore { key: key(&frame), instance_id: 7 }, Request::GetChunkSize])
            .await;
        kill(before, Signal::SIGKILL).expect("killed");
        answers(&mut worker, asked, &Response::Flag(true)).await;
        let refused = Response::PrepareStore(PrepareStoreResponse { context: None });
        let answer = worker.answer_to(asked + 1).await;
        assert!(!answer.says(&refused), "slots: {answer:?}");
        answers(&mut worker, asked + 2, &Response::Count(256)).await;
        kept.another(before).await;
    }
    let log = kept.log();
    assert!(log.contains("the daemon ended") && log.contains("by signal 9"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_to_end_is_passed_on_and_the_pool_stays() {
    let mut kept = Kept::start(&[]).await;
    let daemon = kept.daemon().expect("it runs");
    kill(Pid::from_raw(kept.keeper.id() as i32), Signal::SIGTERM).expect("told");
    assert_eq!(kept.ends().await, Some(0));
    assert!(kill(daemon, None).is_err(), "it has gone first");
    let pool = format!("/dev/shm/{}{}", lmcache_proto::shm::names::POOL_PREFIX, kept.name);
    assert!(std::path::Path::new(&pool).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_get_better_is_not_tried_again() {
    let mut kept = Kept::launch(&[], "", &["--no-such-flag"]);
    assert_eq!(kept.ends().await, Some(2));
    assert_eq!(kept.log().matches("started the daemon").count(), 1);
    // No program at all.
    let none = Command::new(binary().with_file_name("lmcached-keeper")).arg("/no/such/program").output();
    let none = none.expect("the keeper starts");
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&none.stderr).contains("/no/such/program"), "{none:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_dies_at_once_is_tried_again_and_again() {
    let kept = Kept::launch(&[], "l1.open.both:1", &[]);
    eventually("it is tried four times", async || {
        (kept.log().matches("started the daemon").count() >= 4).then_some(())
    })
    .await;
    let log = kept.log();
    assert!(log.contains("pause_ms=100") && log.contains("pause_ms=400"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_stuck_is_replaced() {
    let kept = Kept::start(&["--watchdog-seconds=1"]).await;
    let mut worker = kept.worker().await;
    let before = kept.daemon().expect("it runs");
    stop(before).await;
    let asked = worker.ask(&[ping()]).await;
    answers(&mut worker, asked, &Response::Flag(true)).await;
    kept.another(before).await;
    assert!(kept.log().contains("stuck"));
}

/// In a container the daemon is not the first process any more, and can be replaced by its successor.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_is_followed_and_its_successor_kept() {
    let kept = Kept::start(&[]).await;
    let mut worker = kept.worker().await;
    let first = kept.daemon().expect("it runs");
    let (status, body) = http::post(kept.http_port, "/lmcached/upgrade", "").await.expect("an answer");
    assert_eq!(status, 200, "{body}");
    let second = kept.another(first).await;
    assert!(kept.log().contains("the daemon is another process now"), "{}", kept.log());
    let asked = worker.ask(&[ping()]).await;
    answers(&mut worker, asked, &Response::Flag(true)).await;
    // The successor dies: its connections are kept as well.
    kill(second, Signal::SIGKILL).expect("killed");
    let asked = worker.ask(&[ping()]).await;
    answers(&mut worker, asked, &Response::Flag(true)).await;
    let third = kept.another(second).await;
    assert_ne!(third, first);
    // A moment's peace, and it is still that one.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(kept.daemon(), Some(third));
}

/// A container with a file system that cannot be written, but for the directory of the pool.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_temporary_directory_the_pools_will_do() {
    let program = binary().with_file_name("lmcached-keeper");
    let version =
        Command::new(program).arg(binary()).arg("--version").env("TMPDIR", "/no/such/directory").output();
    let version = version.expect("the keeper starts");
    assert_eq!(version.status.code(), Some(0), "{version:?}");
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("lmcached "), "{version:?}");
}

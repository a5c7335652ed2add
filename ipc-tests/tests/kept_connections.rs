//! Connections outlive a crash: the service manager keeps their sockets (`FDSTORE=1`), and the next daemon goes on with them.
//! A fake manager does here what systemd does.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ipc_tests::daemon::{binary, free_port};
use ipc_tests::dealer::Dealer;
use ipc_tests::driven::Driven;
use ipc_tests::worker::{Model, key, prompt};
use ipc_tests::{eventually, http};
use lmcache_proto::wire::{PrepareStoreResponse, Request, Response, Secret};
use parking_lot::Mutex;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

type Store = Arc<Mutex<BTreeMap<String, OwnedFd>>>;

/// A unit with `FileDescriptorStoreMax=16`.
struct Unit {
    child: Option<Child>,
    name: String,
    port: u16,
    http_port: u16,
    flags: Vec<String>,
    store: Store,
    dir: tempfile::TempDir,
}

impl Unit {
    async fn start(failpoint: &str) -> Unit {
        Unit::start_with(failpoint, Vec::new()).await
    }

    async fn start_with(failpoint: &str, flags: Vec<String>) -> Unit {
        let dir = tempfile::tempdir().expect("directory");
        let notify = UnixDatagram::bind(dir.path().join("notify")).expect("notify socket");
        let store = Store::default();
        let kept = store.clone();
        std::thread::spawn(move || listen(&notify, &kept));
        let (port, http_port) = (free_port(), free_port());
        let name = format!("kept{}_{port}", std::process::id());
        let mut unit = Unit { child: None, name, port, http_port, flags, store, dir };
        unit.launch(failpoint).await;
        unit
    }

    /// Starts the daemon with everything that is in the store, as systemd does.
    async fn launch(&mut self, failpoint: &str) {
        let mut script = String::new();
        let (mut names, mut inherited) = (Vec::new(), Vec::new());
        for (name, socket) in &*self.store.lock() {
            // Far from those that the daemon is to find.
            let copy = fcntl_dupfd_cloexec(socket, 200).expect("a copy");
            fcntl_setfd(&copy, FdFlags::empty()).expect("inherited");
            let (number, place) = (copy.as_raw_fd(), 3 + names.len());
            script += &format!("exec {place}<&{number} {number}<&-; ");
            names.push(name.clone());
            inherited.push(copy);
        }
        script += &format!("LISTEN_PID=$$ LISTEN_FDS={} exec \"$0\" \"$@\"", names.len());
        let dir = self.dir.path().display();
        let child = Command::new("bash")
            .args(["-c", &script])
            .arg(binary())
            .args([
                format!("--port={}", self.port),
                format!("--bind=ipc://{dir}/sock"),
                format!("--http-port={}", self.http_port),
                "--prometheus-port=0".into(),
                format!("--shm-name={}", self.name),
                "--l1-size-gb=0.0625".into(),
            ])
            .args(&self.flags)
            .env("NOTIFY_SOCKET", self.dir.path().join("notify"))
            .env("FDSTORE", "16")
            .env("LISTEN_FDNAMES", names.join(":"))
            .env("LMCACHED_FAILPOINT", failpoint)
            .env("RUST_LOG", "warn,lmcached::journal=debug")
            .stdin(Stdio::null())
            .spawn();
        self.child = Some(child.expect("the daemon starts"));
        drop(inherited);
        let port = self.http_port;
        eventually("the daemon is ready", async || {
            http::get(port, "/healthcheck").await.filter(|answer| answer.0 == 200).map(drop)
        })
        .await;
    }

    fn endpoints(&self) -> [String; 2] {
        [format!("ipc://{}/sock", self.dir.path().display()), format!("tcp://127.0.0.1:{}", self.port)]
    }

    async fn dies(&mut self) {
        let mut child = self.child.take().expect("it runs");
        eventually("the daemon dies", async || child.try_wait().expect("wait")).await;
    }

    async fn crash(&mut self) {
        self.child.as_mut().expect("it runs").kill().expect("kill");
        self.dies().await;
        self.launch("").await;
    }

    async fn keeps(&self, count: usize) {
        let kept = async || (self.store.lock().len() == count).then_some(());
        eventually(&format!("the manager keeps {count} connections"), kept).await;
    }

    async fn metric(&self, name: &str) -> f64 {
        let (_, page) = http::get(self.http_port, "/metrics").await.expect("metrics");
        let lines = page.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        ipc_tests::pool::remove(&self.name);
    }
}

/// The manager's half: keeps what it is given until it is told otherwise.
fn listen(notify: &UnixDatagram, store: &Store) {
    loop {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let Ok(received) =
            recvmsg(notify, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
        else {
            return;
        };
        let text = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).map(str::to_owned);
        let mut store = store.lock();
        for message in control.drain() {
            if let (RecvAncillaryMessage::ScmRights(sockets), Some(name)) = (message, &name) {
                assert!(text.contains("FDSTORE=1"), "{text}");
                store.extend(sockets.map(|socket| (name.clone(), socket)));
            }
        }
        if text.contains("FDSTOREREMOVE=1")
            && let Some(name) = name
        {
            store.remove(&name);
        }
    }
}

fn ping(instance: u64) -> Request<'static> {
    Request::Ping { instance_id: Some(instance) }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_for_the_next_daemon_and_none_is_lost() {
    for transport in 0..2 {
        let mut unit = Unit::start("engine.store.reserved:1").await;
        let endpoint = unit.endpoints()[transport].clone();
        let model = Model::small("m");
        let frame = model.key("r", &prompt(1, 2)).frame(Some(0), 0, 512);
        let prepare = || Request::PrepareStore { key: key(&frame), instance_id: 7 };
        let mut worker = Dealer::connect(&endpoint).await;
        worker.ask(&[model.registration(7)]).await;
        worker.answer().await;
        unit.keeps(1).await;
        // The daemon dies of the first of these; the others it has read.
        let dying = worker.ask(&[prepare(), Request::GetChunkSize, ping(7)]).await;
        unit.dies().await;
        // Nobody reads this before the next daemon does.
        let waiting = worker.ask(&[ping(7), prepare()]).await;
        unit.launch("").await;
        let refused = Response::PrepareStore(PrepareStoreResponse { context: None });
        for (number, expected) in
            (dying..).zip([refused.clone(), Response::Count(256), Response::Flag(true), Response::Flag(true)])
        {
            let answer = worker.answer_to(number).await;
            assert!(answer.says(&expected), "{endpoint}: {answer:?}");
        }
        let answer = worker.answer_to(waiting + 1).await;
        assert!(!answer.says(&refused), "slots: {answer:?}");
        // Once more, in the middle of nothing.
        for _ in 0..2 {
            unit.crash().await;
            let number = worker.ask(&[ping(7)]).await;
            let answer = worker.answer_to(number).await;
            assert!(answer.says(&Response::Flag(true)), "{answer:?}");
        }
        unit.keeps(1).await;
        drop(worker);
        unit.keeps(0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_message_that_was_read_ends_the_connection() {
    let mut unit = Unit::start("").await;
    let mut worker = Dealer::connect(&unit.endpoints()[1]).await;
    worker.ask(&[Model::small("m").registration(7)]).await;
    worker.answer().await;
    unit.keeps(1).await;
    let quiet = unit.metric("lmcached_queued_bytes").await;
    let mut request = worker.spell(&[ping(7)]);
    let rest = request.split_off(5);
    worker.send(&request).await;
    eventually("the half is read", async || {
        (unit.metric("lmcached_queued_bytes").await > quiet).then_some(())
    })
    .await;
    unit.crash().await;
    // Where its stream stands nobody knows: it is ended rather than guessed at.
    worker.ends().await;
    drop(rest);
    worker.reconnect(&unit.endpoints()[1]).await;
    let number = worker.ask(&[ping(7)]).await;
    let answer = worker.answer().await;
    assert!(answer.number == number && answer.says(&Response::Flag(true)), "{answer:?}");
    unit.keeps(1).await;
}

/// What a token opened must not stay open, nor become nobody's: its connection ends, and the client shows it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_a_token_ends_with_the_daemon() {
    const TOKEN: &str = "0123456789abcdef-a";
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("tokens");
    std::fs::write(&file, format!("{TOKEN} one\n")).expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o400)).expect("chmod");
    let mut unit = Unit::start_with("", vec![format!("--tenant-tokens-file={}", file.display())]).await;
    let mut tenant = Dealer::connect(&unit.endpoints()[0]).await;
    tenant.ask(&[Request::Authenticate { token: Secret(TOKEN) }]).await;
    assert!(tenant.answer().await.says(&Response::Flag(true)));
    let mut other = Dealer::connect(&unit.endpoints()[0]).await;
    other.ask(&[ping(7)]).await;
    other.answer().await;
    unit.keeps(2).await;
    unit.crash().await;
    tenant.ends().await;
    let number = other.ask(&[Request::GetChunkSize]).await;
    assert!(other.answer_to(number).await.says(&Response::Count(256)), "the other one goes on");
}

/// A worker whose memory the daemon copies goes on without a word of the restart: nothing of its was lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_kept_its_connection_is_not_told_of_the_restart() {
    let mut unit = Unit::start("").await;
    let mut driven = Driven::start(&unit.endpoints()[0]).await;
    unit.keeps(1).await;
    // It certainly waits for longer than a daemon takes to start.
    driven.beats(4, Duration::from_secs(4)).await;
    unit.crash().await;
    assert!(driven.load(30).await, "served");
    assert!(driven.pings().await, "known, and not told to register");
    assert!(driven.load(30).await && driven.pings().await);
}

/// LMCache's worker gives its loads up when a ping has no answer in time; the engine uses their blocks for other requests then.
/// What it had asked for before still lies in its socket, or in its own queue.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_gave_up_while_nobody_answered_is_not_copied_afterwards() {
    for kept in [true, false] {
        let mut unit = Unit::start("").await;
        let mut driven = Driven::start(&unit.endpoints()[0]).await;
        unit.keeps(1).await;
        driven.beats(4, Duration::from_millis(100)).await;
        unit.child.as_mut().expect("it runs").kill().expect("kill");
        unit.dies().await;
        if !kept {
            // The worker connects again; what it asks for meanwhile waits in its own queue.
            unit.store.lock().clear();
        }
        let first = driven.worker.next();
        let (load, beat) = (driven.spell_load(30), driven.worker.spell(&[Driven::ping()]));
        if kept {
            driven.worker.send(&load).await;
            driven.worker.send(&beat).await;
        }
        driven.kv.wipe();
        // More than an interval after the last answer.
        tokio::time::sleep(Duration::from_millis(500)).await;
        unit.launch("").await;
        if !kept {
            driven.worker.reconnect(&unit.endpoints()[0]).await;
            driven.worker.send(&load).await;
        }
        let mut answers = Vec::new();
        while answers.len() < 2 {
            let answer = driven.worker.answer().await;
            // What was answered before the kill may be answered once more.
            if answer.number < first {
                continue;
            }
            answers.push(answer);
            if !kept && answers.len() == 1 {
                driven.worker.send(&beat).await;
            }
        }
        answers.sort_by_key(|answer| answer.number);
        assert!(answers[0].says(&Response::Transfer(Vec::new(), false)), "the load is refused: {answers:?}");
        assert!(answers[1].says(&Response::Flag(false)), "and the worker is told: {answers:?}");
        assert!(!driven.load(30).await && !driven.store(1).await, "it is not served before it registers");
        assert!(driven.is_untouched(), "its blocks are the engine's");
        assert!(driven.pings().await, "an edge, on which it registers");
        driven.register().await;
        assert!(driven.load(30).await);
        assert!(!driven.is_untouched(), "served again");
    }
}

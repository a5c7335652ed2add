//! What a service manager sees of the daemon, and what it hands over: a fake one on a socket of its own.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ipc_tests::daemon::{binary, free_port};
use ipc_tests::other_user::{self, NOBODY, User};
use ipc_tests::{eventually, http};
use lmcache_client::Connection;
use lmcache_proto::wire::{Request, Response};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixDatagram;
use tokio::time::timeout;

/// Ends a hang; measures nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon under a fake service manager.
struct Unit {
    child: Child,
    http_port: u16,
    name: String,
    notify: UnixDatagram,
    dir: tempfile::TempDir,
}

impl Unit {
    /// Starts the daemon with these variables and flags, and a socket as its only inherited descriptor. The shell is there
    /// because LISTEN_PID has to be the daemon's own.
    fn start(tag: &str, variables: &[(&str, &str)], args: &[&str], handed_over: Option<OwnedFd>) -> Unit {
        let dir = tempfile::tempdir().expect("directory");
        let notify = UnixDatagram::bind(dir.path().join("notify")).expect("notify socket");
        let (http_port, name) = (free_port(), format!("systemd{}_{tag}", std::process::id()));
        let script = if handed_over.is_some() {
            "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\""
        } else {
            "exec \"$0\" \"$@\""
        };
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .arg(binary())
            .args([
                format!("--port={}", free_port()),
                format!("--http-port={http_port}"),
                "--prometheus-port=0".into(),
                format!("--shm-name={name}"),
                "--l1-size-gb=0.0625".into(),
                "--discard-on-exit".into(),
            ])
            .args(args.iter().map(|arg| arg.replace("{dir}", &dir.path().display().to_string())))
            .env("NOTIFY_SOCKET", dir.path().join("notify"))
            .envs(variables.iter().copied())
            .stdin(handed_over.map_or_else(Stdio::null, Stdio::from))
            .stderr(Stdio::piped());
        let child = command.spawn().expect("the daemon starts");
        Unit { child, http_port, name, notify, dir }
    }

    /// The next message, as its lines.
    async fn message(&self) -> Vec<String> {
        let mut buffer = vec![0; 4096];
        let length =
            timeout(PATIENCE, self.notify.recv(&mut buffer)).await.expect("a message").expect("received");
        String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned).collect()
    }

    /// Reads messages until one has `line`; returns those before it.
    async fn until(&self, line: &str) -> Vec<Vec<String>> {
        let mut before = Vec::new();
        loop {
            let message = self.message().await;
            if message.iter().any(|found| found == line) {
                return before;
            }
            before.push(message);
        }
    }

    /// Throws away what has come, and says whether more comes.
    async fn is_silent(&self) -> bool {
        let mut buffer = vec![0; 4096];
        while self.notify.try_recv(&mut buffer).is_ok() {}
        timeout(Duration::from_millis(500), self.notify.recv(&mut buffer)).await.is_err()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("signal");
    }

    async fn ended(&mut self) -> Option<i32> {
        eventually("the daemon ends", async || self.child.try_wait().expect("wait")).await.code()
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let files = std::fs::read_dir("/dev/shm").into_iter().flatten().flatten();
        for file in files.filter(|file| file.file_name().to_string_lossy().contains(&self.name)) {
            let _ = std::fs::remove_file(file.path());
        }
    }
}

async fn noop(client: &mut Connection) {
    assert_eq!(client.call(&Request::Noop).await.expect("noop"), Response::Text("OK"));
}

async fn connect(path: &Path) -> Connection {
    Connection::connect(&format!("ipc://{}", path.display()), PATIENCE).await.expect("connect")
}

#[tokio::test]
async fn ready_is_said_when_the_pool_is_there_and_stopping_before_the_end() {
    let mut unit = Unit::start("ready", &[], &["--l1-size-gb=0.5"], None);
    let before = unit.until("READY=1").await;
    for message in before {
        // Only progress comes before, and each asks for more time.
        assert!(message.iter().any(|line| line.starts_with("STATUS=reserving memory")), "{message:?}");
        assert!(message.iter().any(|line| line.starts_with("EXTEND_TIMEOUT_USEC=")), "{message:?}");
    }
    let (status, _) = http::get(unit.http_port, "/healthcheck").await.expect("healthcheck");
    assert_eq!(status, 200, "ready means ready");
    unit.signal(Signal::SIGTERM);
    unit.until("STOPPING=1").await;
    assert_eq!(unit.ended().await, Some(0));
}

#[tokio::test]
async fn the_watchdog_hears_from_a_daemon_that_lives() {
    let unit = Unit::start("watchdog", &[("WATCHDOG_USEC", "150000")], &[], None);
    for _ in 0..3 {
        unit.until("WATCHDOG=1").await;
    }
    unit.signal(Signal::SIGSTOP);
    eventually("it is stopped", async || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", unit.child.id())).expect("stat");
        stat.contains(") T ").then_some(())
    })
    .await;
    assert!(unit.is_silent().await, "a process that does not run does not ping");
    unit.signal(Signal::SIGCONT);
    unit.until("WATCHDOG=1").await;
}

#[tokio::test]
async fn without_a_watchdog_nothing_is_pinged() {
    for variables in
        [&[][..], &[("WATCHDOG_USEC", "0")], &[("WATCHDOG_USEC", "100000"), ("WATCHDOG_PID", "1")]]
    {
        let unit = Unit::start("quiet", variables, &[], None);
        unit.until("READY=1").await;
        assert!(unit.is_silent().await, "{variables:?}");
    }
}

/// A reload of the unit: the manager must follow the new process, which goes on with its socket and answers its watchdog.
#[tokio::test]
async fn an_upgrade_names_the_new_process() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("sock");
    let socket = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    let mut unit = Unit::start(
        "upgrade",
        &[("WATCHDOG_USEC", "300000")],
        &[],
        Some(socket.try_clone().expect("a copy").into()),
    );
    unit.until("READY=1").await;
    let mut client = connect(&path).await;
    noop(&mut client).await;
    let (status, answer) = http::post(unit.http_port, "/lmcached/upgrade", "").await.expect("an answer");
    assert_eq!(status, 200, "{answer}");
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    let pid = answer["pid"].as_u64().expect("a pid");
    let successor = Pid::from_raw(pid as i32);
    unit.until(&format!("MAINPID={pid}")).await;
    assert_eq!(unit.ended().await, Some(0));
    noop(&mut client).await;
    noop(&mut connect(&path).await).await;
    unit.until("WATCHDOG=1").await;
    kill(successor, Signal::SIGTERM).expect("signal");
    unit.until("STOPPING=1").await;
    eventually("the new process ends", async || kill(successor, None).is_err().then_some(())).await;
    assert!(path.exists(), "the manager's socket is left alone");
}

#[tokio::test]
async fn a_socket_that_is_handed_over_is_served_and_left_alone() {
    let sockets = tempfile::tempdir().expect("directory");
    let path = sockets.path().join("lmcached.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("socket");
    // The manager keeps its end while the daemon comes and goes; so do those who wait in the queue.
    let waiting = tokio::spawn({
        let path = path.clone();
        async move { connect(&path).await }
    });
    let bind = format!("--bind=ipc://{}", path.display());
    for args in [&[][..], &[bind.as_str()]] {
        let mut unit = Unit::start("adopt", &[], args, Some(listener.try_clone().expect("clone").into()));
        unit.until("READY=1").await;
        noop(&mut connect(&path).await).await;
        unit.signal(Signal::SIGTERM);
        assert_eq!(unit.ended().await, Some(0), "{args:?}");
        assert!(path.exists(), "the file is the manager's");
    }
    waiting.await.expect("whoever came before the daemon was served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mode_of_a_socket_that_is_handed_over_says_whom_it_is_for() {
    use std::os::unix::fs::{PermissionsExt, chown};
    const GROUP: u32 = 54_321;
    if !other_user::is_root() {
        return;
    }
    let sockets = tempfile::tempdir().expect("directory");
    let path = sockets.path().join("lmcached.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("socket");
    let chmod = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    };
    chmod(sockets.path(), 0o755);
    chmod(&path, 0o660);
    chown(&path, None, Some(GROUP)).expect("chown");
    let unit = Unit::start("mode", &[], &[], Some(listener.into()));
    unit.until("READY=1").await;
    let endpoint = format!("ipc://{}", path.display());
    let noop = |user| other_user::run(env!("CARGO_BIN_EXE_other-user"), user, &endpoint, &["noop"]);
    // By its first group, and by another one.
    assert_eq!(noop(User { gid: GROUP, ..User::NOBODY }), ["noop served"]);
    assert_eq!(noop(User { groups: &[NOBODY - 1, GROUP], ..User::NOBODY }), ["noop served"]);
    assert_eq!(noop(User::NOBODY), ["noop refused"], "the kernel's answer");
    // Somebody opens the file wider than it was when it was handed over.
    chmod(&path, 0o666);
    assert_eq!(noop(User::NOBODY), ["noop refused"], "ours");
    assert_eq!(noop(User { groups: &[GROUP], ..User::NOBODY }), ["noop served"]);
}

#[tokio::test]
async fn another_endpoint_is_served_besides() {
    let sockets = tempfile::tempdir().expect("directory");
    let path = sockets.path().join("one.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("socket");
    let unit = Unit::start("besides", &[], &["--bind=ipc://{dir}/two.sock"], Some(listener.into()));
    unit.until("READY=1").await;
    noop(&mut connect(&path).await).await;
    noop(&mut connect(&unit.dir.path().join("two.sock")).await).await;
}

#[tokio::test]
async fn a_socket_of_another_kind_is_an_error_line() {
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("socket");
    let mut unit = Unit::start("kind", &[], &[], Some(udp.into()));
    assert_eq!(unit.ended().await, Some(1));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut unit.child.stderr.take().expect("piped"), &mut text).expect("text");
    let last = text.lines().last().unwrap_or_default();
    assert!(last.starts_with("lmcached: ") && last.contains("lmcached.socket"), "{text}");
}

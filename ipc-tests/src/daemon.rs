//! A running daemon of its own for each test.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use lmcache_client::Connection;
use parking_lot::Mutex;

use crate::{eventually, http};

/// A daemon process; killed and cleaned up when dropped.
#[derive(Debug)]
pub struct Daemon {
    program: PathBuf,
    /// Process that has taken over from `child`.
    successor: Option<nix::unistd::Pid>,
    child: Child,
    name: String,
    port: u16,
    http_port: u16,
    prometheus_port: u16,
    args: Vec<String>,
    environment: Vec<(String, String)>,
    log: Arc<Mutex<Vec<String>>>,
    dir: tempfile::TempDir,
}

/// An integration test of the daemon's own package.
const DAEMONS_TEST: &str = "instrumentation";
/// One of `lmcache-ctl`'s.
const CTLS_TEST: &str = "usage";

/// The daemon's binary, built once per test process in the profile of the tests.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let exe = std::env::current_exe().expect("own path");
        let profile_dir = exe.ancestors().nth(2).expect("target/<profile>/deps/<test>").to_owned();
        let mut build = cargo();
        // A package's programs are built with its integration tests, and these are the features that `cargo test
        // --workspace` builds with: `cargo build` would leave out those of dev-dependencies and build everything again.
        build.args([
            "test",
            "--quiet",
            "--no-run",
            "--workspace",
            "--test",
            DAEMONS_TEST,
            "--test",
            CTLS_TEST,
        ]);
        if profile_dir.file_name().is_some_and(|name| name == "release") {
            build.arg("--release");
        }
        let status = build.status().expect("cargo runs");
        assert!(status.success(), "the daemon builds");
        profile_dir.join("lmcached")
    })
}

/// The operator's program, built with the daemon.
pub fn ctl() -> PathBuf {
    binary().with_file_name("lmcache-ctl")
}

/// Cargo, to build what the tests run.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What it told this test of its package is not the build's business: build scripts that look at it (ring's) would run
    // again, and everything above them would be built again.
    for (name, _) in std::env::vars_os() {
        let about_the_package = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
        if about_the_package.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Below what Linux gives to outgoing connections (`ip_local_port_range`). Among those a port that is free now may be taken
/// by a connection of anybody's a moment later; and who connects to one while nobody listens may be given that very port for
/// its own end, and talks to itself.
const PORTS: std::ops::Range<u32> = 10_000..32_000;

/// A port that was free a moment ago, and that this process gives only once in a long while.
///
/// # Panics
/// If there is none.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = PORTS.len() as u32;
    // Test programs that run side by side begin far from each other.
    let first = std::process::id().wrapping_mul(2_654_435_761) % count;
    (0..count)
        .map(|_| PORTS.start + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % count)
        .filter_map(|port| u16::try_from(port).ok())
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

impl Daemon {
    /// Starts a daemon with a pool of 64 MiB and `extra` flags, and waits until it is ready. In a flag, `{dir}` stands for
    /// the daemon's directory.
    pub async fn start(extra: &[&str]) -> Daemon {
        Daemon::start_in(&[], extra).await
    }

    /// [`Daemon::start`] with these variables besides the test's own.
    pub async fn start_in(environment: &[(&str, &str)], extra: &[&str]) -> Daemon {
        let mut daemon = Daemon::launch(environment, extra);
        daemon.ready().await;
        daemon
    }

    /// [`Daemon::start_in`] for a daemon that may end before it is ready: nobody waits.
    pub fn launch(environment: &[(&str, &str)], extra: &[&str]) -> Daemon {
        Daemon::launch_program(binary(), environment, extra)
    }

    /// [`Daemon::launch`] of a copy of the program.
    pub fn launch_program(program: &Path, environment: &[(&str, &str)], extra: &[&str]) -> Daemon {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test{}_{number}", std::process::id());
        let (port, http_port, prometheus_port) = (free_port(), free_port(), free_port());
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut args = vec![
            format!("--port={port}"),
            format!("--http-port={http_port}"),
            format!("--prometheus-port={prometheus_port}"),
            format!("--shm-name={name}"),
        ];
        if !extra.iter().any(|arg| arg.starts_with("--l1-size-gb")) {
            args.push("--l1-size-gb=0.0625".into());
        }
        args.extend(extra.iter().map(|arg| arg.replace("{dir}", &dir.path().display().to_string())));
        let log = Arc::new(Mutex::new(Vec::new()));
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment: Vec<_> = environment.iter().map(own).collect();
        let child = spawn(program, &args, &environment, &log);
        Daemon {
            child,
            successor: None,
            program: program.to_owned(),
            name,
            port,
            http_port,
            prometheus_port,
            args,
            environment,
            log,
            dir,
        }
    }

    /// Waits until the daemon is ready.
    ///
    /// # Panics
    /// If it ends instead.
    pub async fn ready(&mut self) {
        if let Some(exited) = self.comes_up().await {
            panic!("daemon exited at start: {exited:?}\n{}", self.log().join("\n"));
        }
    }

    /// Waits until the daemon is ready, or has ended; then how.
    ///
    /// # Panics
    /// If neither comes in time.
    pub async fn comes_up(&mut self) -> Option<ExitStatus> {
        let port = self.http_port;
        eventually("the daemon is ready", async || {
            if let Some(exited) = self.ended() {
                return Some(Some(exited));
            }
            http::get(port, "/healthcheck").await.filter(|r| r.0 == 200).map(|_| None)
        })
        .await
    }

    /// How the daemon has ended, if it has.
    ///
    /// # Panics
    /// If the system does not say.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait")
    }

    /// Kills the daemon with SIGKILL.
    ///
    /// # Panics
    /// If the system does not let us.
    pub fn kill(&mut self) {
        self.kill_successor();
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Another process is the daemon now; it ends with this value.
    pub fn succeeded_by(&mut self, pid: u32) {
        self.successor = Some(nix::unistd::Pid::from_raw(pid as i32));
    }

    fn kill_successor(&mut self) {
        if let Some(pid) = self.successor.take() {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// Starts the daemon again, which has ended, with the same flags and `more` besides, this time only; in the environment of
    /// the first start, and `environment`. Nobody waits until it is ready.
    pub fn relaunch(&mut self, environment: &[(&str, &str)], more: &[&str]) {
        let mut args = self.args.clone();
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        let mut all = self.environment.clone();
        all.extend(environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self.child = spawn(&self.program, &args, &all, &self.log);
    }

    /// Drops what no lookup holds from L1, as soon as no transfer touches it: a tier that is seen to have an object holds it a
    /// moment longer.
    ///
    /// # Panics
    /// If transfers do not end, or the daemon refuses.
    pub async fn clear(&self) {
        self.metric_becomes("lmcached_l1_pins", &[], 0.0).await;
        let (status, _) = http::post(self.http_port, "/cache/clear", "").await.expect("an answer");
        assert_eq!(status, 200);
    }

    /// Kills the daemon with SIGKILL and starts it again with the same flags.
    pub async fn crash_and_restart(&mut self) {
        self.kill();
        self.relaunch(&[], &[]);
        self.ready().await;
    }

    /// Kills the daemon and starts it with other flags besides.
    pub async fn restart_with(&mut self, extra: &[&str]) {
        self.args.extend(extra.iter().map(|arg| (*arg).to_owned()));
        self.crash_and_restart().await;
    }

    /// Asks the daemon to stop and waits for its exit code.
    ///
    /// # Panics
    /// If it does not stop.
    pub fn terminate(&mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signal");
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status.code();
            }
            assert!(Instant::now() < until, "daemon does not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for an end that something else has caused, and returns its exit code.
    ///
    /// # Panics
    /// If it does not end.
    pub async fn ends(&mut self) -> Option<i32> {
        let child = &mut self.child;
        let probe = async || child.try_wait().expect("wait");
        eventually("the daemon ends", probe).await.code()
    }

    /// Whether the process still runs.
    pub fn alive(&mut self) -> bool {
        self.ended().is_none()
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where clients connect.
    pub fn endpoint(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }

    /// Client port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Admin port.
    pub fn http_port(&self) -> u16 {
        self.http_port
    }

    /// Port of the Prometheus page.
    pub fn prometheus_port(&self) -> u16 {
        self.prometheus_port
    }

    /// A directory that lives as long as the daemon; `{dir}` in flags.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Pool segment in the file system.
    pub fn pool_path(&self) -> PathBuf {
        format!("/dev/shm/lmcache_l1_pool_{}", self.name).into()
    }

    /// Ring segment in the file system.
    pub fn ring_path(&self) -> PathBuf {
        format!("/dev/shm/lmcached_lmcache_l1_pool_{}_ring", self.name).into()
    }

    /// A new client.
    pub async fn connect(&self) -> Connection {
        Connection::connect(&self.endpoint(), Duration::from_secs(30))
            .await
            .expect("the daemon accepts clients")
    }

    /// Waits until [`Daemon::metric`] is `value`.
    ///
    /// # Panics
    /// If that does not happen in time; see [`eventually`].
    pub async fn metric_becomes(&self, name: &str, labels: &[&str], value: f64) {
        let is = async || (self.metric(name, labels).await == value).then_some(());
        eventually(&format!("{name} becomes {value}"), is).await;
    }

    /// `/status`.
    pub async fn status(&self) -> serde_json::Value {
        let (_, page) = http::get(self.http_port, "/status").await.expect("status");
        serde_json::from_str(&page).expect("JSON")
    }

    /// Log lines so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().clone()
    }

    /// Waits until a line of the log has `what` in it: lines are written by a thread that lets requests go first.
    pub async fn says(&self, what: &str) {
        let said = async || self.log().iter().any(|line| line.contains(what)).then_some(());
        if crate::in_time(said).await.is_none() {
            panic!("the log never says {what:?}: {:?}", self.log());
        }
    }

    /// Sum of the samples of a metric whose line contains all of `labels`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, page) = http::get(self.http_port, "/metrics").await.expect("metrics page");
        page.lines()
            .filter(|line| {
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                    && labels.iter().all(|label| line.contains(label))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill_successor();
        let _ = self.child.kill();
        let _ = self.child.wait();
        crate::pool::remove(&self.name);
        if std::thread::panicking() {
            eprintln!("--- daemon log ---\n{}", self.log().join("\n"));
        }
    }
}

fn spawn(
    program: &Path,
    args: &[String],
    environment: &[(String, String)],
    log: &Arc<Mutex<Vec<String>>>,
) -> Child {
    let mut child = Command::new(program)
        .args(args)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the daemon starts");
    let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let log = log.clone();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let mut log = log.lock();
            // Bounded: a chatty test must not eat the machine.
            if log.len() < 10_000 {
                log.push(line);
            }
        }
    });
    child
}

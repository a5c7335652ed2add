//! What the service manager is told, and what it hands over: sd_notify(3), the watchdog, sd_listen_fds(3), and the store of
//! descriptors that outlives the daemon (`FDSTORE=1`), in which clients' connections survive a crash.
//!
//! Without a service manager (no `NOTIFY_SOCKET`, no `LISTEN_FDS`) nothing here does anything.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;

use sd_notify::NotifyState;
use thiserror::Error;
use tokio::sync::oneshot;

/// Messages that may wait for a service manager that does not read. Later ones are dropped: pings and progress.
const QUEUE: usize = 256;

/// How long the end waits until its message is sent.
const LAST_MESSAGE: Duration = Duration::from_secs(1);

/// Time between two looks at the progress of the start.
const PROGRESS: Duration = Duration::from_secs(5);

/// Time that progress buys the start. `TimeoutStartSec=` counts from the last one.
const EXTENSION: Duration = Duration::from_secs(60);

/// Why a socket that the service manager handed over is of no use.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Not a listening Unix socket.
    #[error(
        "the service manager handed over a socket that workers cannot connect to ({0}); in lmcached.socket, use one ListenStream=/absolute/path"
    )]
    Kind(io::Error),
    /// It has no name in the file system.
    #[error(
        "the service manager handed over a socket without a path; in lmcached.socket, use ListenStream=/absolute/path"
    )]
    Unnamed,
}

/// Listening sockets that the service manager has opened: workers can connect before the daemon runs, and while it
/// restarts.
#[derive(Debug, Default)]
pub struct Sockets {
    listeners: Vec<(PathBuf, UnixListener)>,
    connections: Vec<(u64, OwnedFd, bool)>,
}

/// How the name of a connection in the store begins; its number follows.
const CONNECTION: &str = "connection-";

impl Sockets {
    /// Takes them out of the environment. To be called once, before there are other threads.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn take() -> Result<Sockets, SocketError> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut fds = listenfd::ListenFd::from_env();
        let mut sockets = Sockets::default();
        for index in 0..fds.len() {
            let name = names.next().unwrap_or_default();
            if let Some(number) = name.strip_prefix(CONNECTION).and_then(|number| number.parse().ok()) {
                for (family, is_ipc) in
                    [(libc::AF_UNIX, true), (libc::AF_INET, false), (libc::AF_INET6, false)]
                {
                    // Of another family, it stays where it is.
                    if let Ok(Some(socket)) =
                        fds.take_custom::<OwnedFd>(index, family, libc::SOCK_STREAM, "a client's connection")
                    {
                        sockets.connections.push((number, socket, is_ipc));
                        break;
                    }
                }
                continue;
            }
            let Some(listener) = fds.take_unix_listener(index).map_err(SocketError::Kind)? else { continue };
            let address = listener.local_addr().map_err(SocketError::Kind)?;
            let path = address.as_pathname().ok_or(SocketError::Unnamed)?.to_owned();
            sockets.listeners.push((path, listener));
        }
        Ok(sockets)
    }

    /// The one at `path`.
    pub fn at(&mut self, path: &Path) -> Option<UnixListener> {
        let index = self.listeners.iter().position(|(other, _)| other == path)?;
        Some(self.listeners.swap_remove(index).1)
    }

    /// Those that nobody has asked for.
    pub fn rest(&mut self) -> impl Iterator<Item = (PathBuf, UnixListener)> {
        std::mem::take(&mut self.listeners).into_iter()
    }

    /// Connections of an earlier daemon: number, socket, whether it is a Unix socket.
    pub fn connections(&mut self) -> Vec<(u64, OwnedFd, bool)> {
        std::mem::take(&mut self.connections)
    }
}

#[derive(Debug)]
enum Message {
    Ready,
    Successor(u32, oneshot::Sender<()>),
    Stopping(oneshot::Sender<()>),
    Progress(String),
    Ping,
    Store(u64, OwnedFd),
    Forget(u64),
}

/// Talks to the service manager, on a thread of its own: a manager that does not read must not stop the daemon.
#[derive(Clone, Debug)]
pub struct Supervisor {
    queue: Option<SyncSender<Message>>,
    watchdog: Option<Duration>,
    stores: bool,
}

impl Supervisor {
    /// One that talks if there is somebody to talk to.
    pub fn from_env() -> Supervisor {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Supervisor::nobody();
        }
        // How many descriptors the manager keeps (FileDescriptorStoreMax=); it says so since systemd 254.
        let stores =
            std::env::var("FDSTORE").is_ok_and(|most| most.parse::<u32>().is_ok_and(|most| most > 0));
        let watchdog = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero());
        let (queue, messages) = mpsc::sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("lmcached-notify".into());
        match thread.spawn(move || talk(&messages)) {
            Ok(_) => Supervisor { queue: Some(queue), watchdog, stores },
            Err(error) => {
                tracing::error!(%error, "no thread to talk to the service manager; it will think that the daemon does not start");
                Supervisor::nobody()
            }
        }
    }

    /// One that talks to nobody.
    pub fn nobody() -> Supervisor {
        Supervisor { queue: None, watchdog: None, stores: false }
    }

    /// Whether the manager keeps descriptors for the next daemon.
    pub fn stores(&self) -> bool {
        self.stores
    }

    /// Gives the manager a connection to keep. One that it does not get, because it does not read, is an ordinary one.
    pub fn store(&self, connection: u64, socket: OwnedFd) {
        self.send(Message::Store(connection, socket));
    }

    /// The connection has ended. Its socket has been shut down: a manager sees that even if it does not hear this.
    pub fn forget(&self, connection: u64) {
        self.send(Message::Forget(connection));
    }

    /// The daemon is ready for traffic.
    pub fn ready(&self) {
        self.send(Message::Ready);
    }

    /// The daemon is about to end. Returns when that is said, or cannot be.
    pub async fn stopping(&self) {
        let (said, heard) = oneshot::channel();
        self.send(Message::Stopping(said));
        let _ = tokio::time::timeout(LAST_MESSAGE, heard).await;
    }

    /// Another process is the service from now on. Returns when that is said, or cannot be.
    pub async fn succeeded_by(&self, pid: u32) {
        let (said, heard) = oneshot::channel();
        self.send(Message::Successor(pid, said));
        let _ = tokio::time::timeout(LAST_MESSAGE, heard).await;
    }

    /// Tells how far the start is and asks for more time, as long as `progress` grows. It returns what is done and what is to
    /// be done.
    pub async fn follow_start(self, progress: impl Fn() -> (u64, u64)) {
        if self.queue.is_none() {
            return;
        }
        let mut before = 0;
        loop {
            let (done, all) = progress();
            if done >= all {
                return;
            }
            if done > before {
                self.send(Message::Progress(format!(
                    "reserving memory: {} of {} MiB",
                    done >> 20,
                    all >> 20
                )));
            }
            before = done;
            tokio::time::sleep(PROGRESS).await;
        }
    }

    /// Pings the watchdog for ever. Each ping needs a turn of the runtime and an end of `probe`: when either is stuck, the
    /// pings stop and the service manager restarts the daemon, which finds its pool again.
    pub async fn watch(self, probe: impl Fn()) {
        let Some(limit) = self.watchdog else { return };
        // Three in the time that one must come in.
        beat(limit / 3, probe, || self.send(Message::Ping)).await;
    }

    fn send(&self, message: Message) {
        if let Some(queue) = &self.queue {
            let _ = queue.try_send(message);
        }
    }
}

async fn beat(period: Duration, probe: impl Fn(), ping: impl Fn()) {
    let mut ticks = tokio::time::interval(period.max(Duration::from_millis(1)));
    // Pings that were missed are not made up for.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        probe();
        ping();
    }
}

fn talk(messages: &Receiver<Message>) {
    let mut failed = false;
    while let Ok(message) = messages.recv() {
        let result = match &message {
            Message::Ready => sd_notify::notify(&[NotifyState::Ready, NotifyState::Status("serving")]),
            Message::Successor(pid, _) => sd_notify::notify(&[NotifyState::MainPid(*pid)]),
            Message::Stopping(_) => sd_notify::notify(&[
                NotifyState::Stopping,
                NotifyState::Status("finishing what is in flight"),
            ]),
            Message::Progress(status) => sd_notify::notify(&[
                NotifyState::Status(status),
                NotifyState::ExtendTimeoutUsec(EXTENSION.as_micros() as u32),
            ]),
            Message::Ping => sd_notify::notify(&[NotifyState::Watchdog]),
            Message::Store(number, socket) => {
                let name = format!("{CONNECTION}{number}");
                let state = [NotifyState::FdStore, NotifyState::FdName(&name)];
                sd_notify::notify_with_fds(&state, &[socket.as_fd()])
            }
            Message::Forget(number) => {
                let name = format!("{CONNECTION}{number}");
                sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)])
            }
        };
        match result {
            Ok(()) => failed = false,
            // Once: the pings would repeat it for ever.
            Err(error) if !failed => {
                failed = true;
                tracing::error!(%error, "cannot talk to the service manager at NOTIFY_SOCKET; it may take the daemon for dead and restart it");
            }
            Err(_) => {}
        }
        if let Message::Stopping(said) | Message::Successor(_, said) = message {
            let _ = said.send(());
        }
    }
}

/// What [`Supervisor::watch`] asks of the daemon: nothing that waits for requests, but every lock that they need.
pub fn probe(l1: &Arc<crate::l1::L1>) -> impl Fn() + Send + Sync + use<> {
    let l1 = l1.clone();
    move || {
        let _ = l1.stats();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn pings_stop_while_the_runtime_is_stuck() {
        const WORKERS: usize = 2;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .enable_time()
            .build()
            .expect("a runtime");
        let (ping, pings) = mpsc::channel();
        runtime.spawn(beat(
            Duration::from_millis(5),
            || {},
            move || {
                let _ = ping.send(());
            },
        ));
        pings.recv_timeout(Duration::from_secs(30)).expect("pings come");
        // Every worker is kept busy; all of them have begun when the first barrier opens.
        let (begun, end) = (Arc::new(Barrier::new(WORKERS + 1)), Arc::new(Barrier::new(WORKERS + 1)));
        for _ in 0..WORKERS {
            let (begun, end) = (begun.clone(), end.clone());
            runtime.spawn(async move {
                begun.wait();
                end.wait();
            });
        }
        begun.wait();
        while pings.try_recv().is_ok() {}
        assert!(pings.recv_timeout(Duration::from_millis(200)).is_err(), "nobody can ping");
        end.wait();
        pings.recv_timeout(Duration::from_secs(30)).expect("pings come again");
    }

    #[test]
    fn pings_stop_while_the_probe_is_stuck() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .build()
            .expect("a runtime");
        let (ping, pings) = mpsc::channel();
        let lock = Arc::new(parking_lot::Mutex::new(()));
        let probed = lock.clone();
        runtime.spawn(beat(
            Duration::from_millis(5),
            move || drop(probed.lock()),
            move || {
                let _ = ping.send(());
            },
        ));
        pings.recv_timeout(Duration::from_secs(30)).expect("pings come");
        let held = lock.lock();
        // One that had passed the lock may still come.
        let _ = pings.recv_timeout(Duration::from_millis(200));
        while pings.try_recv().is_ok() {}
        assert!(pings.recv_timeout(Duration::from_millis(200)).is_err(), "the lock is held");
        drop(held);
        pings.recv_timeout(Duration::from_secs(30)).expect("pings come again");
    }
}

//! `lmcached-keeper`: keeps a daemon running, and its clients' connections while it does not run. What systemd does for a unit
//! of `Type=notify` with `FileDescriptorStoreMax=`, `Restart=on-failure` and `WatchdogSec=`, where there is no systemd: as the
//! first process of a container, with which everything ends that it has started.
//!
//! * this file: starting again, signals, the watchdog, the end;
//! * `store`: what the daemon says, and the descriptors that it gives to keep;
//! * `start`: a process that finds them.
//!
//! It does nothing else and holds nothing else, so that there is little it could die of.
#![forbid(unsafe_code)]

mod start;
mod store;

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, set_child_subreaper};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::process;
use start::start;
use store::{Store, Word};

/// A daemon that has lived for so long is started again at once.
const LONG: Duration = Duration::from_secs(10);
/// Pauses before one that has not: doubled each time, up to what systemd waits in our unit. LMCache's workers wait for an answer
/// for as little as five seconds.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// A wrong flag or configuration, which does not get better by trying again.
const WRONG: i32 = 2;

/// What to keep.
#[derive(Clone, Debug)]
pub struct Options {
    /// The daemon.
    pub program: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Connections that are kept at most.
    pub connections: usize,
    /// The daemon is started again if it says nothing for so long; `None`: it need not say anything.
    pub watchdog: Option<Duration>,
}

/// Why nothing can be kept.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// No socket for the daemon's words.
    #[error(
        "no socket in {dir} or /dev/shm for what the daemon says: {source}; set TMPDIR to a directory that can be written"
    )]
    Socket {
        /// Where.
        dir: String,
        /// What the system said.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{action}: {source}")]
    Os {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// There is no such program.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Keeps the daemon until it ends in order, or cannot begin. Returns the code to exit with.
///
/// # Errors
/// See [`KeeperError`].
pub fn run(options: &Options) -> Result<u8, KeeperError> {
    let os = |action| move |source: io::Error| KeeperError::Os { action, source };
    // After an upgrade the daemon is a child of one that has ended.
    set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| os("cannot adopt processes")(error.into()))?;
    if let Err(error) = process::raise_descriptor_limit() {
        tracing::warn!(%error, "cannot raise the limit of open files; fewer connections can be kept");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(os("cannot wait for events"))?.block_on(Keeper::keep(options))
}

/// The daemon, as far as it is known.
#[derive(Debug)]
enum Daemon {
    /// It runs.
    Runs(Pid),
    /// It is to be started then.
    Ended(Instant),
}

#[derive(Debug)]
struct Keeper<'o> {
    options: &'o Options,
    store: Store,
    daemon: Daemon,
    started: Instant,
    pause: Duration,
    /// How it has been told to end.
    stopping: Option<Signal>,
    /// When the watchdog bites; `None` until the daemon is ready.
    silent_until: Option<Instant>,
    /// It has bitten.
    bitten: bool,
}

impl Keeper<'_> {
    async fn keep(options: &Options) -> Result<u8, KeeperError> {
        let listen = |kind| {
            signal(kind).map_err(|source| KeeperError::Os { action: "cannot wait for signals", source })
        };
        let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        let (mut hangup, mut child) = (listen(SignalKind::hangup())?, listen(SignalKind::child())?);
        let store = Store::open(options.connections)?;
        let mut keeper = Keeper {
            options,
            store,
            daemon: Daemon::Ended(Instant::now()),
            started: Instant::now(),
            pause: PAUSES.0,
            stopping: None,
            silent_until: None,
            bitten: false,
        };
        // If it cannot even be started once, there is nothing to keep.
        keeper.start()?;
        loop {
            let again = if let Daemon::Ended(then) = keeper.daemon { Some(then) } else { None };
            let silent = keeper.silent_until.filter(|_| again.is_none() && keeper.stopping.is_none());
            let never = Instant::now();
            tokio::select! {
                // What it said before it died comes before its death.
                biased;
                heard = keeper.store.heard() => {
                    let words = heard.map_err(|source| KeeperError::Os { action: "cannot hear the daemon", source })?;
                    keeper.hear(words);
                }
                _ = child.recv() => if let Some(code) = keeper.reap() { return Ok(code) },
                _ = term.recv() => if keeper.stop(Signal::TERM) { return Ok(0) },
                _ = int.recv() => if keeper.stop(Signal::INT) { return Ok(0) },
                _ = hangup.recv() => keeper.tell(Signal::HUP),
                () = sleep_until(again.unwrap_or(never)), if again.is_some() => keeper.start_again(),
                () = sleep_until(silent.unwrap_or(never)), if silent.is_some() => keeper.bite(),
            }
        }
    }

    /// What keeps it from being started now may be over soon: memory that ran out, a program that is being replaced.
    fn start_again(&mut self) {
        if let Err(error) = self.start() {
            tracing::error!(%error, pause_ms = self.pause.as_millis() as u64, "the daemon cannot be started again yet");
            self.wait();
        }
    }

    fn wait(&mut self) {
        self.daemon = Daemon::Ended(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(PAUSES.1);
    }

    fn start(&mut self) -> Result<(), KeeperError> {
        self.store.prune();
        let kept = self.store.len();
        let pid = start(self.options, &self.store).map_err(|source| KeeperError::Start {
            program: self.options.program.to_string_lossy().into_owned(),
            source,
        })?;
        tracing::info!(pid = pid.as_raw_nonzero(), kept_connections = kept, "started the daemon");
        (self.daemon, self.started) = (Daemon::Runs(pid), Instant::now());
        (self.silent_until, self.bitten) = (None, false);
        Ok(())
    }

    fn hear(&mut self, words: Vec<Word>) {
        for word in words {
            match word {
                Word::Ready | Word::Alive => {}
                // Both processes say so.
                Word::Main(pid) if self.is(pid) => {}
                Word::Main(pid) => {
                    tracing::info!(pid = pid.as_raw_nonzero(), "the daemon is another process now");
                    self.daemon = Daemon::Runs(pid);
                    // Its predecessor was told, and had other things to do.
                    if let Some(signal) = self.stopping {
                        self.tell(signal);
                    }
                }
            }
            self.wind_watchdog();
        }
    }

    fn is(&self, pid: Pid) -> bool {
        matches!(self.daemon, Daemon::Runs(daemon) if daemon == pid)
    }

    fn wind_watchdog(&mut self) {
        self.silent_until = self.options.watchdog.map(|limit| Instant::now() + limit);
    }

    /// Takes note of processes that have ended. The code to exit with, if that was the daemon's last.
    fn reap(&mut self) -> Option<u8> {
        // The word of a successor is in the socket before its predecessor ends.
        let words = self.store.heard_so_far();
        self.hear(words);
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if self.is(pid)
                && let Some(code) = self.ended(status)
            {
                return Some(code);
            }
        }
        None
    }

    fn ended(&mut self, status: WaitStatus) -> Option<u8> {
        let code = status.exit_status();
        let signal = status.terminating_signal();
        // Of the order itself: it had not got so far as to do more about it.
        if self.stopping.is_some_and(|order| signal == Some(order.as_raw())) {
            return Some(0);
        }
        if self.stopping.is_some() || matches!(code, Some(0 | WRONG)) {
            let signal = signal.map(|signal| 128 + signal);
            return Some(code.or(signal).and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
        }
        if self.started.elapsed() >= LONG {
            self.pause = PAUSES.0;
        }
        let how = match (code, signal) {
            (Some(code), _) => format!("with exit code {code}"),
            (None, Some(signal)) => format!("by signal {signal}"),
            (None, None) => "".to_owned(),
        };
        tracing::error!(
            how,
            kept_connections = self.store.len(),
            pause_ms = self.pause.as_millis() as u64,
            "the daemon ended; clients wait on the connections that are kept, and the next daemon finds its pool"
        );
        self.wait();
        None
    }

    /// Tells the daemon to end. Returns whether there is none to wait for.
    fn stop(&mut self, with: Signal) -> bool {
        self.stopping = Some(with);
        self.tell(with);
        matches!(self.daemon, Daemon::Ended(_))
    }

    fn tell(&self, signal: Signal) {
        if let Daemon::Runs(pid) = self.daemon
            && let Err(error) = kill_process(pid, signal)
        {
            tracing::warn!(%error, ?signal, "cannot send the daemon a signal");
        }
    }

    /// The daemon has been silent for too long.
    fn bite(&mut self) {
        // SIGABRT first, which leaves a core file; one that is stopped, or blocks it, does not die of that.
        let signal = if std::mem::replace(&mut self.bitten, true) { Signal::KILL } else { Signal::ABORT };
        tracing::error!(
            limit_s = self.options.watchdog.unwrap_or_default().as_secs(),
            ?signal,
            "the daemon is stuck: it has said nothing for this long; it is killed and started again"
        );
        self.tell(signal);
        self.wind_watchdog();
    }
}

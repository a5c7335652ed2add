//! The new process, as the old one sees it.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use thiserror::Error;

use super::channel::Channel;
use super::{ChannelError, Estate, FORMAT, Hello, VARIABLE};

/// Time for a successor to read its configuration.
const HELLO: Duration = Duration::from_secs(30);
/// Time for it to take over. A million objects take a second.
const TAKE_OVER: Duration = Duration::from_secs(120);

/// How this process was started.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    args: Vec<OsString>,
}

impl Program {
    /// The program under whose name this process was started, and its arguments. To be called early: an upgrade of the package
    /// puts another file under that name, and the system then names the old one as deleted.
    ///
    /// # Errors
    /// The system does not say.
    pub fn own() -> io::Result<Program> {
        Ok(Program { path: std::env::current_exe()?, args: std::env::args_os().collect() })
    }

    /// The very program that runs, whatever has its name by now.
    pub fn running(&self) -> Program {
        Program { path: "/proc/self/exe".into(), args: self.args.clone() }
    }
}

/// Why there is no successor.
#[derive(Debug, Error)]
pub enum SuccessorError {
    /// It does not run.
    #[error("{} cannot be started: {source}", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended.
    #[error("{} ended ({status}); its last lines in the log say why", path.display())]
    Ended {
        /// The program.
        path: PathBuf,
        /// How.
        status: ExitStatus,
    },
    /// It speaks otherwise.
    #[error("{}: {source}", path.display())]
    Channel {
        /// The program.
        path: PathBuf,
        /// What went wrong.
        source: ChannelError,
    },
    /// Another release of the messages.
    #[error(
        "{} is of release {version}, to which this one cannot hand over; restart the daemon instead (the cache is kept)",
        path.display()
    )]
    Format {
        /// The program.
        path: PathBuf,
        /// Its release.
        version: String,
    },
    /// It would not use the same pool.
    #[error(
        "the configuration was changed in {flag} ({here} here, {there} there), which an upgrade in place cannot change; restart the daemon instead"
    )]
    Pool {
        /// The flag.
        flag: &'static str,
        /// Its value here.
        here: String,
        /// Its value there.
        there: String,
    },
}

/// A successor; killed when dropped before it serves.
#[derive(Debug)]
pub struct Successor {
    path: PathBuf,
    child: Child,
    channel: Channel,
    serves: bool,
}

impl Successor {
    /// Starts it and hears what it is. Blocks for at most half a minute.
    ///
    /// # Errors
    /// See [`SuccessorError`]. It does not run any more then.
    pub fn start(program: &Program, ours: &Hello) -> Result<Successor, SuccessorError> {
        let path = program.path.clone();
        let failed = |source| SuccessorError::Start { path: path.clone(), source };
        let (channel, theirs) = Channel::pair().map_err(failed)?;
        let mut command = Command::new(&path);
        if let Some((name, args)) = program.args.split_first() {
            command.arg0(name).args(args);
        }
        // What the service manager said was said to this process; of its sockets, the successor gets the descriptors.
        for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        let child = command.env(VARIABLE, "1").stdin(Stdio::from(theirs)).spawn().map_err(failed)?;
        drop(command);
        let mut successor = Successor { path, child, channel, serves: false };
        let (hello, _) = successor.hear::<Hello>(HELLO)?;
        if hello.format != FORMAT {
            return Err(SuccessorError::Format { path: successor.path.clone(), version: hello.version });
        }
        if let Some((flag, here, there)) = ours.pool.difference(&hello.pool) {
            return Err(SuccessorError::Pool { flag, here, there });
        }
        Ok(successor)
    }

    /// Leaves it everything, and waits until it serves. Returns its pid.
    ///
    /// # Errors
    /// See [`SuccessorError`]. It does not run any more then.
    pub fn take_over(mut self, estate: &Estate, descriptors: &[OwnedFd]) -> Result<u32, SuccessorError> {
        let path = self.path.clone();
        let sent = self.channel.send(estate, descriptors);
        if let Err(source) = sent {
            return Err(self.ended().unwrap_or(SuccessorError::Channel { path, source }));
        }
        self.hear::<()>(TAKE_OVER)?;
        self.serves = true;
        Ok(self.child.id())
    }

    fn hear<T: serde::de::DeserializeOwned>(
        &mut self,
        limit: Duration,
    ) -> Result<(T, Vec<OwnedFd>), SuccessorError> {
        match self.channel.receive(Some(limit)) {
            Ok(message) => Ok(message),
            Err(ChannelError::Gone) => Err(self.ended().unwrap_or_else(|| SuccessorError::Channel {
                path: self.path.clone(),
                source: ChannelError::Gone,
            })),
            Err(source) => Err(SuccessorError::Channel { path: self.path.clone(), source }),
        }
    }

    /// How it has ended. Its end of the channel is closed, so it ends now, or is ended.
    fn ended(&mut self) -> Option<SuccessorError> {
        let status = self.child.wait().ok()?;
        self.serves = true;
        Some(SuccessorError::Ended { path: self.path.clone(), status })
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if !self.serves {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

//! Keeps a daemon running where no systemd does; see [`lmcached::keeper`].
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use lmcached::keeper::{Options, run};

/// Starts the daemon again when it dies, and keeps its clients' connections meanwhile: what they send waits for the next
/// daemon. For containers and other places without systemd, as in `lmcached-keeper lmcached --l1-size-gb 100`.
#[derive(Debug, Parser)]
#[command(name = "lmcached-keeper", version)]
struct Flags {
    /// Connections that are kept at most
    #[arg(long, default_value_t = 4096, value_name = "COUNT")]
    connections: usize,

    /// Kill the daemon and start it again if it shows no life for so long; 0 waits for ever
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    watchdog_seconds: u64,

    /// The daemon and its flags
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    let Flags { connections, watchdog_seconds, command } = Flags::parse();
    let (program, args) = command.split_first().expect("clap requires one");
    let (program, args) = (program.clone(), args.to_vec());
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let watchdog = (watchdog_seconds > 0).then(|| Duration::from_secs(watchdog_seconds));
    match run(&Options { program, args, connections, watchdog }) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("lmcached-keeper: {error}");
            ExitCode::from(1)
        }
    }
}

//! `lmcache-ctl`: looks at a running lmcached and tells it what to do.
//!
//! * `cli`: the command line; `error`: exit codes; `http`: the daemon's admin API; `show`: tables and sizes;
//! * `commands`: one file for each group of subcommands;
//! * `plot`: a latency histogram in text.
//!
//! What a subcommand prints is for people; with `--json` it is the daemon's own JSON, or a document of the same kind.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod error;
mod http;
mod plot;
mod show;

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(cli::Stop::Text(text)) => {
            show::print(&text);
            return ExitCode::SUCCESS;
        }
        Err(cli::Stop::Wrong(line)) => {
            eprintln!("lmcache-ctl: {line}");
            return ExitCode::from(error::USAGE);
        }
    };
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lmcache-ctl: {error}");
            ExitCode::from(error.code())
        }
    }
}

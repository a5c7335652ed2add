//! What each subcommand does.

mod adapters;
mod bench;
mod doctor;
mod drain;
mod events;
mod generate;
mod objects;
mod pool;
mod queue;
mod quota;
mod sample;
mod status;
mod top;
mod trace;
mod upgrade;

use crate::cli::{Cli, Command};
use crate::error::CtlError;
use crate::http::Daemon;

/// Runs a command line.
pub(crate) fn run(cli: Cli) -> Result<(), CtlError> {
    let global = &cli.global;
    let json = global.json;
    let daemon = || Daemon::of(global);
    match cli.command {
        Command::Ping => status::ping(&daemon()?, json),
        Command::Status => status::status(&daemon()?, json),
        Command::Config => status::config(&daemon()?, json),
        Command::Clear { force } => status::clear(&daemon()?, force, json),
        Command::Top(options) => top::run(&daemon()?, &options, json),
        Command::Queue => queue::queue(&daemon()?, json),
        Command::Workers => queue::workers(&daemon()?, json),
        Command::Sessions { limit } => queue::sessions(&daemon()?, limit, json),
        Command::Locks => queue::locks(&daemon()?, json),
        Command::Objects(action) => objects::run(&daemon()?, action, json),
        Command::Quota(action) => quota::run(&daemon()?, action, json),
        Command::Adapters(action) => adapters::run(&daemon()?, action, json),
        Command::Pool(action) => pool::run(action, json),
        Command::Drain { within, no_wait } => drain::run(&daemon()?, within, no_wait, json),
        Command::Upgrade { within } => upgrade::run(global, within, json),
        Command::Events(action) => events::run(&daemon()?, action, json),
        Command::Doctor(options) => doctor::run(&daemon()?, &options, json),
        Command::Bench(options) => bench::run(&daemon()?, &options, json),
        Command::Trace(action) => trace::run(action, json),
        Command::Completions { shell } => generate::completions(shell),
        Command::Man => generate::man(),
    }
}

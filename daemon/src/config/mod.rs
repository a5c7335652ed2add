//! The command line and the environment, turned into one checked [`Config`].
//!
//! The daemon takes the flags of `lmcache server` 0.5.6 and of its 0.4.5 manual, plus its own. Each belongs to one of
//! three classes: honoured, accepted without meaning (one INFO line), refused (one line, exit code 2). Nothing is
//! silently ignored. The walk: `command` → clap → `file` → `class` (the table's verdict) → `validate` → [`Parsed`].

mod class;
mod command;
mod endpoint;
mod error;
mod file;
mod flags;
mod pool_name;
mod table;
mod types;
mod validate;

#[cfg(test)]
mod tests;

use std::ffi::OsString;

use clap::FromArgMatches;

pub use endpoint::Endpoint;
pub use error::{ConfigError, Exit};
pub use types::{
    Config, CudaCopies, EvictionConfig, EvictionPolicy, HashAlgorithm, HttpConfig, L1Config, L2Adapter,
    L2Config, L2PrefetchPolicy, L2StorePolicy, Limits, Listen, LivenessConfig, LogFormat, LogLevel,
    LookupHashLogConfig, MetricsCompat, ObservabilityConfig, ServerConfig, ShutdownConfig, TraceArgs,
    TraceConfig, TraceLevel, TransferModes,
};

/// Something the operator should read once at start, at INFO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The flag it is about, with its dashes.
    pub flag: &'static str,
    /// The whole line.
    pub line: String,
}

/// A command line that is in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// What to do.
    pub config: Config,
    /// What to say at start.
    pub notices: Vec<Notice>,
}

/// Reads a command line, program name first as in `std::env::args_os`, and the process's environment.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Parsed, Exit> {
    parse_with(args, &|name| std::env::var_os(name))
}

/// [`parse`] with another environment, so that tests depend on none.
fn parse_with(
    args: impl IntoIterator<Item = OsString>,
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Parsed, Exit> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    // A shim named `lmcache` hands its arguments over unchanged.
    if args.get(1).is_some_and(|word| word == "server") {
        args.remove(1);
    }
    let command = command::command();
    let matches = command.clone().try_get_matches_from(&args)?;
    match file::File::read(&matches, &command)? {
        None => check(&matches, environment),
        Some(file) => {
            let args = file.in_front_of(&args);
            let checked = command.try_get_matches_from(args).map_err(Exit::from);
            checked.and_then(|matches| check(&matches, environment)).map_err(|exit| file.blame(exit))
        }
    }
}

/// Reads one L2 tier as `--l2-adapter` has it, for tiers that are added at run time. The keys of its type are for
/// [`crate::l2::registry::plan`] to check.
///
/// # Errors
/// One line for the operator, without values of the JSON.
pub fn l2_adapter(json: &[u8]) -> Result<L2Adapter, String> {
    validate::one_adapter(json)
}

fn check(matches: &clap::ArgMatches, environment: &dyn Fn(&str) -> Option<OsString>) -> Result<Parsed, Exit> {
    // Before anything is checked: why a flag is refused matters more than what else is wrong with it.
    let mut notices = class::judge(matches)?;
    let flags = flags::Flags::from_arg_matches(matches)?;
    let config = validate::validate(&flags, matches, environment, &mut notices)?;
    Ok(Parsed { config, notices })
}

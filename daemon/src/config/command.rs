//! The clap command: declared flags, the rows of the table, and the help around them.

use clap::{Command, CommandFactory};

use super::class;
use super::flags::Flags;

const ABOUT: &str = "One node's KV cache for inference workers: the native counterpart of `lmcache server`.";

const AFTER_HELP: &str = "\
Three classes of flags, so that an existing command line of `lmcache server` 0.5.6 can be used as it is:
  Honoured   works as named; grouped by subject above
  Accepted   has no meaning in this daemon, or has only one sensible value; logged once, then ignored
  Refused    asks for something this daemon does not do; it says so in one line and ends with code 2
A leading word `server` is dropped. An unambiguous beginning of a flag is enough; of two equal flags the last wins.

Environment:
  LMCACHE_LOG_LEVEL        DEBUG, INFO (default), WARNING, ERROR or CRITICAL
  PYTHONHASHSEED           root of the sha256_cbor hash chain; must be the engine's
  LMCACHE_COORDINATOR_URL  refused like --coordinator-url, unless empty";

/// The command line as clap has to read it.
pub(super) fn command() -> Command {
    class::extend(Flags::command())
        // A negative number is then a bad value of its flag, not an unknown flag.
        .mut_args(|arg| if arg.get_action().takes_values() { arg.allow_negative_numbers(true) } else { arg })
        .about(ABOUT)
        // The doc comment on `Flags` is for its readers, not for the operator.
        .long_about(None)
        .after_help(AFTER_HELP)
}

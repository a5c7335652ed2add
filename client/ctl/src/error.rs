//! Why a subcommand did not do what it was told, and the exit code that says so.

use thiserror::Error;

/// The command line is wrong.
pub(crate) const USAGE: u8 = 2;

/// What the exit codes mean, for `--help` and the manual.
pub(crate) const CODES: &str = "\
Exit codes:
  0  done
  1  the daemon says no, or a check has failed
  2  the command line is wrong
  3  no daemon answers there
  4  the daemon asks for a token: it is missing or wrong
  5  a file is damaged, or of a later version than this program knows";

/// One line each.
#[derive(Debug, Error)]
pub(crate) enum CtlError {
    /// The daemon answered, and not with yes.
    #[error("{0}")]
    Refused(String),
    /// The command line parses and makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Nobody there, or somebody else.
    #[error("{url}: {why}; is lmcached running? --url or LMCACHED_URL says where")]
    Unreachable {
        /// Where.
        url: String,
        /// What happened.
        why: String,
    },
    /// The token.
    #[error("{0}; --token-file or LMCACHED_TOKEN_FILE names the file that holds it")]
    Token(String),
    /// A file that cannot be read as what it should be; the line names it.
    #[error("{0}")]
    File(String),
    /// Something on this machine.
    #[error("{0}")]
    Local(String),
}

impl CtlError {
    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            CtlError::Refused(_) | CtlError::Local(_) => 1,
            CtlError::Usage(_) => USAGE,
            CtlError::Unreachable { .. } => 3,
            CtlError::Token(_) => 4,
            CtlError::File(_) => 5,
        }
    }
}

/// For what cannot be printed, read from the terminal and the like.
impl From<std::io::Error> for CtlError {
    fn from(error: std::io::Error) -> CtlError {
        CtlError::Local(error.to_string())
    }
}

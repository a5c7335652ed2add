//! Why the daemon does not start, in one line each: what, which flag, what is allowed, what to do.

use std::fmt;
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use thiserror::Error;

/// Longest part of a value repeated in an error line.
const MAX_SHOWN_CHARS: usize = 80;

/// A command line or an environment that the daemon does not accept.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The command line does not parse: unknown flag, missing value, not a number.
    #[error("{line} (lmcached --help lists the flags)")]
    Usage {
        /// What is wrong, naming the flag.
        line: String,
    },
    /// A value outside what its flag takes.
    #[error("{flag} {shown}: {allowed}", shown = shown(value))]
    Value {
        /// The flag.
        flag: String,
        /// What was given.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// Flags that do not go together.
    #[error("{flags}: {line}")]
    Conflict {
        /// The flags.
        flags: String,
        /// Why, and what to do.
        line: String,
    },
    /// A flag, or a value of it, that this daemon will not do.
    #[error("{what} is refused: {line}")]
    Refused {
        /// The flag, with its value where that matters.
        what: String,
        /// Why, and what to do instead.
        line: &'static str,
    },
    /// Something in the configuration file.
    #[error("{place}: {line}")]
    File {
        /// The file, and the line if there is one.
        place: String,
        /// What is wrong, and what to do.
        line: String,
    },
    /// A bad environment variable.
    #[error("{name}={shown} in the environment: {allowed}", shown = shown(value))]
    Environment {
        /// The variable.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What is allowed.
        allowed: String,
    },
}

impl ConfigError {
    pub(super) fn value(
        flag: impl Into<String>,
        value: impl fmt::Display,
        allowed: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Value { flag: flag.into(), value: value.to_string(), allowed: allowed.into() }
    }

    pub(super) fn conflict(flags: impl Into<String>, line: impl Into<String>) -> ConfigError {
        ConfigError::Conflict { flags: flags.into(), line: line.into() }
    }
}

/// Why [`super::parse`] gives no configuration: the process should print this and end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// `--help` or `--version`: text for standard output.
    Text(String),
    /// A line for standard error.
    Error(ConfigError),
}

impl Exit {
    /// Exit status of the process: 0 for text that was asked for, 2 for an error, as argparse has it.
    pub fn code(&self) -> u8 {
        match self {
            Exit::Text(_) => 0,
            Exit::Error(_) => 2,
        }
    }
}

/// Help and version end in a line feed of their own; an error does not.
impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Text(text) => f.write_str(text),
            Exit::Error(error) => write!(f, "lmcached: {error}"),
        }
    }
}

impl From<ConfigError> for Exit {
    fn from(error: ConfigError) -> Exit {
        Exit::Error(error)
    }
}

/// clap explains itself over several lines; a supervisor's log shows the last or the first, never all.
impl From<clap::Error> for Exit {
    fn from(error: clap::Error) -> Exit {
        if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            return Exit::Text(error.render().to_string());
        }
        let context = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => text.clone(),
            Some(ContextValue::Strings(texts)) => texts.join(", "),
            _ => String::new(),
        };
        // clap says "--port <PORT>" where it means the flag.
        let argument = context(ContextKind::InvalidArg);
        let flag = argument.split(' ').next().unwrap_or_default().to_owned();
        let value = context(ContextKind::InvalidValue);
        let line = match error.kind() {
            ErrorKind::UnknownArgument => {
                let suggestion = context(ContextKind::SuggestedArg);
                let what = if argument.starts_with('-') { "unknown flag" } else { "unexpected word" };
                let hint = if suggestion.is_empty() {
                    String::new()
                } else {
                    format!("; did you mean {suggestion}?")
                };
                format!("{what} {}{hint}", shown(&argument))
            }
            ErrorKind::InvalidValue => {
                let valid = context(ContextKind::ValidValue);
                let choice = if valid.is_empty() { String::new() } else { format!("one of {valid}") };
                match (value.is_empty(), choice.is_empty()) {
                    (true, true) => format!("{flag} needs a value"),
                    (true, false) => format!("{flag} needs a value, {choice}"),
                    (false, _) => return ConfigError::value(flag, value, format!("must be {choice}")).into(),
                }
            }
            ErrorKind::ValueValidation => {
                return ConfigError::value(flag, value, expected(&error)).into();
            }
            ErrorKind::TooManyValues => format!("{flag} takes no value, {} is one too many", shown(&value)),
            _ => {
                let text = error.render().to_string();
                text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
            }
        };
        ConfigError::Usage { line }.into()
    }
}

/// What a value that does not parse should have been; std's own words ("invalid digit found in string") say less.
fn expected(error: &clap::Error) -> String {
    let Some(source) = std::error::Error::source(error) else { return "does not parse".to_owned() };
    if let Some(error) = source.downcast_ref::<ParseIntError>() {
        return match error.kind() {
            IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "is too large a number".to_owned(),
            _ => "must be a whole number".to_owned(),
        };
    }
    if source.is::<ParseFloatError>() {
        return "must be a number".to_owned();
    }
    source.to_string()
}

/// A value as it can stand in one line of a log: no control characters, not endless, never invisible.
pub(super) fn shown(value: &str) -> String {
    let mut chars = value.chars();
    let mut head = String::new();
    for c in chars.by_ref().take(MAX_SHOWN_CHARS) {
        match c {
            '"' | '\'' | '\\' => head.push(c),
            _ => head.extend(c.escape_debug()),
        }
    }
    let tail = if chars.next().is_some() { "…" } else { "" };
    if head.is_empty() || head.contains(char::is_whitespace) {
        format!("\"{head}{tail}\"")
    } else {
        format!("{head}{tail}")
    }
}

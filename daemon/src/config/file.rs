//! `--config FILE`: the flags as TOML keys.
//!
//! A file becomes flags in front of those of the command line, and goes the same way through the same checks. A flag of
//! the command line replaces that of the file, also where a flag may be repeated.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command};
use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Exit, shown};

/// Larger than any configuration.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug, Args)]
#[command(next_help_heading = "Honoured: configuration file")]
pub(crate) struct FileFlags {
    /// Read flags from a TOML file, as in l1-size-gb = 100; flags of the command line win
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// A file that was read.
#[derive(Debug)]
pub(super) struct File {
    path: String,
    /// Flags with their dashes, and their lines.
    lines: Vec<(String, usize)>,
    args: Vec<OsString>,
}

impl File {
    /// Reads the file that the command line names, if it does.
    pub(super) fn read(matches: &ArgMatches, command: &Command) -> Result<Option<File>, ConfigError> {
        let Some(path) = matches.get_one::<PathBuf>("config") else { return Ok(None) };
        let shown_path = shown(&path.display().to_string());
        let failed = |line: String| ConfigError::File { place: shown_path.clone(), line };
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text))
            .map_err(|error| failed(format!("cannot be read ({error}); see --config")))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(failed("is larger than a megabyte and cannot be a configuration".into()));
        }
        let mut file = File { path: shown_path, lines: Vec::new(), args: Vec::new() };
        let table = DeTable::parse(&text).map_err(|error| {
            let line = line_of(&text, error.span().map_or(0, |span| span.start));
            file.wrong(line, error.message().lines().next().unwrap_or("is no TOML").to_owned())
        })?;
        let mut keys: Vec<_> = table.get_ref().iter().collect();
        keys.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in keys {
            file.key(command, matches, &text, key, value)?;
        }
        Ok(Some(file))
    }

    /// The command line with the file's flags in front.
    pub(super) fn in_front_of(&self, args: &[OsString]) -> Vec<OsString> {
        let (program, rest) = args.split_at(args.len().min(1));
        [program, &self.args, rest].concat()
    }

    /// Says where a flag came from that something is wrong with.
    pub(super) fn blame(&self, exit: Exit) -> Exit {
        let Exit::Error(error) = exit else { return exit };
        let text = error.to_string();
        let named = |flag: &str| {
            text.match_indices(flag).any(|(at, _)| {
                !text[at + flag.len()..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '-')
            })
        };
        match self.lines.iter().find(|(flag, _)| named(flag)) {
            Some((_, line)) => self.wrong(*line, text).into(),
            None => error.into(),
        }
    }

    fn wrong(&self, line: usize, what: String) -> ConfigError {
        ConfigError::File { place: format!("{}:{line}", self.path), line: what }
    }

    fn key(
        &mut self,
        command: &Command,
        matches: &ArgMatches,
        text: &str,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), ConfigError> {
        let line = line_of(text, key.span().start);
        let name = key.get_ref().as_ref();
        let Some(arg) = command.get_arguments().find(|arg| is_called(arg, name)) else {
            let hint = nearest(command, name).map_or_else(
                || "; keys are the flags without their dashes, see lmcached --help".to_owned(),
                |other| format!("; did you mean {other}?"),
            );
            return Err(self.wrong(line, format!("unknown key {}{hint}", shown(name))));
        };
        if arg.get_id() == "config" {
            return Err(self.wrong(line, "a configuration file cannot name another one".into()));
        }
        let flag = format!("--{name}");
        if matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine) {
            return Ok(());
        }
        let args = flags(arg, &flag, value.get_ref())
            .map_err(|allowed| self.wrong(line, format!("{name} {allowed}")))?;
        self.args.extend(args);
        self.lines.push((flag, line));
        Ok(())
    }
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

fn is_called(arg: &Arg, name: &str) -> bool {
    // Help and version are requests, not settings.
    !matches!(arg.get_action(), ArgAction::Help | ArgAction::Version)
        && (arg.get_long() == Some(name)
            || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&name)))
}

fn nearest(command: &Command, name: &str) -> Option<String> {
    let name = name.replace('_', "-");
    let likeness = |long: &&str| strsim::jaro(long, &name);
    let longs = command.get_arguments().filter_map(Arg::get_long);
    let best = longs.max_by(|one, other| likeness(one).total_cmp(&likeness(other)))?;
    (likeness(&best) > 0.8).then(|| best.to_owned())
}

/// A value as the flag takes it on the command line; the error says what the key takes.
fn flags(arg: &Arg, flag: &str, value: &DeValue<'_>) -> Result<Vec<OsString>, &'static str> {
    let with = |value: String| OsString::from(format!("{flag}={value}"));
    if !arg.get_action().takes_values() {
        return match value.as_bool() {
            Some(true) => Ok(vec![flag.into()]),
            Some(false) => Ok(Vec::new()),
            None => Err("must be true or false"),
        };
    }
    let many = matches!(arg.get_action(), ArgAction::Append);
    let words = arg.get_num_args().is_some_and(|range| range.max_values() > 1);
    match value.as_array() {
        Some(values) if many || words => {
            let values: Option<Vec<String>> = values.iter().map(|value| word(value.get_ref())).collect();
            let values = values.ok_or("must be a list of texts, numbers or tables")?;
            Ok(if words {
                std::iter::once(flag.into()).chain(values.into_iter().map(OsString::from)).collect()
            } else {
                values.into_iter().map(with).collect()
            })
        }
        Some(_) => Err("takes one value, not a list"),
        None => match word(value) {
            Some(value) => Ok(vec![with(value)]),
            None => Err("must be a text, a number or a table, not true or false or a date"),
        },
    }
}

/// One value in the flag's spelling; tables become JSON.
fn word(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(_) | DeValue::Float(_) | DeValue::Table(_) => {
            json(value).map(|value| value.to_string())
        }
        DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) => None,
    }
}

fn json(value: &DeValue<'_>) -> Option<Value> {
    Some(match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Integer(number) => Value::from(i64::from_str_radix(number.as_str(), number.radix()).ok()?),
        // Not through serde_json for what it has no number for; the flag then says what it wants.
        DeValue::Float(number) => number.as_str().parse::<f64>().ok().map(Value::from)?,
        DeValue::Boolean(flag) => Value::from(*flag),
        DeValue::Array(values) => {
            Value::from(values.iter().map(|value| json(value.get_ref())).collect::<Option<Vec<_>>>()?)
        }
        DeValue::Table(table) => {
            let entries =
                table.iter().map(|(key, value)| Some((key.get_ref().to_string(), json(value.get_ref())?)));
            Value::Object(entries.collect::<Option<_>>()?)
        }
        DeValue::Datetime(_) => return None,
    })
}

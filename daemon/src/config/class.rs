//! The three classes of flags, and what a command line gets for using them.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, value_parser};

use super::Notice;
use super::error::{ConfigError, shown};
use super::table::TABLE;

/// What the daemon makes of a flag. A flag without a row in the table is honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Accepted, and says so once: there is nothing here that it could change.
    Neutral,
    /// Stops the start: doing without it silently would surprise whoever asked for it.
    Refused,
}

/// What follows a flag on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// Declared by a field in `flags`; the row only adds the class.
    Field,
    /// Nothing.
    Nothing,
    /// Nothing; a short form exists.
    Short(char),
    /// Nothing; the named opposite (an id) takes it back.
    Opposite(&'static str),
    /// A whole number.
    Int,
    /// A number.
    Number,
    /// Any text.
    Text,
    /// Any number of words, none included.
    Words,
    /// Text, and the flag may be repeated.
    Repeated,
    /// One of these.
    OneOf(&'static [&'static str]),
}

/// One flag that is not simply honoured.
#[derive(Debug)]
pub(super) struct Row {
    /// With its two dashes.
    pub(super) flag: &'static str,
    pub(super) takes: Takes,
    pub(super) class: Class,
    /// Values of a refused or unbuilt flag that ask for what happens anyway, such as the peer's default: charts
    /// and operators spell those out.
    pub(super) harmless: &'static [&'static str],
    /// Why, and what to do instead.
    pub(super) line: &'static str,
}

impl Row {
    /// clap's id: derive makes the field's name the id, rows use the flag without its dashes.
    fn id(&self) -> String {
        let name = self.flag.trim_start_matches("--");
        if self.takes == Takes::Field { name.replace('-', "_") } else { name.to_owned() }
    }

    fn heading(&self) -> &'static str {
        match self.class {
            Class::Neutral => "Accepted, no meaning here (one INFO line at start)",
            Class::Refused => "Refused (the daemon does not start)",
        }
    }

    fn help(&self) -> String {
        if self.harmless.is_empty() {
            return self.line.to_owned();
        }
        let harmless: Vec<_> = self.harmless.iter().map(|value| shown(value)).collect();
        format!("{} [accepted: {}]", self.line, harmless.join(", "))
    }

    fn arg(&self) -> Arg {
        let name = self.flag.trim_start_matches("--");
        let arg = Arg::new(name).long(name).help(self.help()).help_heading(self.heading());
        match self.takes {
            Takes::Field => unreachable!("{} is declared in flags", self.flag),
            Takes::Nothing => arg.action(ArgAction::SetTrue),
            Takes::Short(short) => arg.action(ArgAction::SetTrue).short(short),
            Takes::Opposite(other) => arg.action(ArgAction::SetTrue).overrides_with(other),
            Takes::Int => arg.value_name("N").value_parser(value_parser!(i64)),
            Takes::Number => arg.value_name("X").value_parser(value_parser!(f64)),
            Takes::Text => arg.value_name("TEXT"),
            Takes::Words => arg.value_name("WORD").num_args(0..),
            Takes::Repeated => arg.value_name("JSON").action(ArgAction::Append),
            Takes::OneOf(values) => {
                arg.value_name("NAME").value_parser(values.to_vec()).hide_possible_values(true)
            }
        }
    }

    /// What was given on the command line, or nothing if the flag was not.
    fn given(&self, matches: &ArgMatches) -> Option<Vec<String>> {
        let id = self.id();
        if matches.value_source(&id) != Some(ValueSource::CommandLine) {
            return None;
        }
        if matches!(self.takes, Takes::Nothing | Takes::Short(_) | Takes::Opposite(_)) {
            return Some(Vec::new());
        }
        let raw = matches.get_raw(&id).unwrap_or_default();
        Some(raw.map(|value| value.to_string_lossy().into_owned()).collect())
    }

    /// Words may be none, which asks for nothing; a switch has no values and is not harmless by that.
    fn is_harmless(&self, values: &[String]) -> bool {
        let listed = values.iter().all(|value| self.harmless.contains(&value.as_str()));
        listed && (!values.is_empty() || self.takes == Takes::Words)
    }

    /// The flag as given, for the reader of the line. JSON is left out: it is long, and may hold passwords.
    fn quoted(&self, values: &[String]) -> String {
        let json = |value: &String| value.contains('{') && !self.harmless.contains(&value.as_str());
        if self.takes == Takes::Repeated || values.iter().any(json) {
            return self.flag.to_owned();
        }
        values.iter().fold(self.flag.to_owned(), |text, value| text + " " + &shown(value))
    }
}

/// Adds the rows' flags to the command.
pub(super) fn extend(command: clap::Command) -> clap::Command {
    let rows = TABLE.iter().filter(|row| row.takes != Takes::Field);
    rows.fold(command, |command, row| command.arg(row.arg()))
}

/// Goes through the table: the first refused flag ends it. Returns what to say of the others.
pub(super) fn judge(matches: &ArgMatches) -> Result<Vec<Notice>, ConfigError> {
    let mut notices = Vec::new();
    for row in TABLE {
        let Some(values) = row.given(matches) else { continue };
        let harmless = row.is_harmless(&values);
        match row.class {
            // A declared flag with such a value is simply honoured.
            _ if harmless && row.takes == Takes::Field => {}
            Class::Refused if !harmless => {
                return Err(ConfigError::Refused { what: row.quoted(&values), line: row.line });
            }
            Class::Neutral | Class::Refused => {
                let line = if harmless {
                    format!("{} is accepted: it changes nothing here", row.quoted(&values))
                } else {
                    format!("{} is accepted and has no meaning here: {}", row.quoted(&values), row.line)
                };
                notices.push(Notice { flag: row.flag, line });
            }
        }
    }
    Ok(notices)
}

//! Tables of command lines and what becomes of them. Nothing outside the crate is read.

mod file;
mod peer_flags;
mod refusals;
mod values;

use std::ffi::OsString;

use super::{Config, Exit, Parsed, parse_with};

/// Parses with an empty environment.
fn run(args: &[&str]) -> Result<Parsed, Exit> {
    run_in(&[], args)
}

/// Parses with these variables and no others.
fn run_in(variables: &[(&str, &str)], args: &[&str]) -> Result<Parsed, Exit> {
    let args = std::iter::once("lmcached").chain(args.iter().copied()).map(OsString::from);
    parse_with(args, &|name| {
        variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
    })
}

fn config(args: &[&str]) -> Config {
    run(args).unwrap_or_else(|exit| panic!("{args:?}: {exit}")).config
}

/// The error of a command line that must not be accepted: one line, code 2.
fn error_of(result: Result<Parsed, Exit>, what: &str) -> String {
    let exit = result.map(|_| ()).expect_err(what);
    assert_eq!(exit.code(), 2, "{what}");
    let line = exit.to_string();
    assert_eq!(line.lines().count(), 1, "{what}: {line}");
    line
}

/// Checks that each command line is turned down with all of its words in the line.
fn assert_errors(cases: &[(&[&str], &[&str])]) {
    for (args, words) in cases {
        let line = error_of(run(args), &format!("{args:?}"));
        for word in *words {
            assert!(line.contains(word), "{args:?}: {word:?} is missing in {line:?}");
        }
    }
}

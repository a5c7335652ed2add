//! `trace`: recordings of the storage layer (`--trace-level storage`). Needs no daemon.

use std::ffi::OsString;
use std::path::Path;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lmcached::config;
use lmcached::trace::{self, ReadError, ReplayError, ReplayOptions, Speed};

use crate::cli::{Replay, Trace};
use crate::error::CtlError;
use crate::show;

pub(super) fn run(action: Trace, json: bool) -> Result<(), CtlError> {
    match action {
        Trace::Info { file } => {
            let info = trace::info(&file).map_err(unreadable)?;
            show::print(&if json { format!("{:#}", info.json()) } else { info.table() });
            Ok(())
        }
        Trace::Replay(replay) => play(&replay, json),
    }
}

fn play(replay: &Replay, json: bool) -> Result<(), CtlError> {
    let options = options(replay)?;
    let bar = ProgressBar::new(0);
    if json {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} calls, {elapsed}, {eta} left");
    bar.set_style(style.map_err(|error| CtlError::Local(error.to_string()))?);
    let report = trace::replay(&replay.file, &options, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let report = report.map_err(|error| match error {
        ReplayError::Read(error) => unreadable(error),
        ReplayError::Level { .. } => damaged(&replay.file, error.to_string()),
        ReplayError::Size | ReplayError::Scale(_) => CtlError::Usage(error.to_string()),
        other => CtlError::Local(other.to_string()),
    })?;
    if let Some(path) = &replay.csv {
        write(path, &report.csv())?;
    }
    if let Some(path) = &replay.json_file {
        write(path, &format!("{:#}\n", report.json()))?;
    }
    show::print(&if json { format!("{:#}", report.json()) } else { report.table() });
    Ok(())
}

/// The storage layer of a daemon with these flags: its own parser reads them, so that they mean the same.
fn options(replay: &Replay) -> Result<ReplayOptions, CtlError> {
    let mut args: Vec<OsString> = vec!["lmcached".into()];
    args.extend(replay.l1_size_gb.map(|size| format!("--l1-size-gb={size}").into()));
    args.extend(replay.eviction_policy.iter().map(|policy| format!("--eviction-policy={policy}").into()));
    args.extend(replay.l2_adapter.iter().map(|json| format!("--l2-adapter={json}").into()));
    let parsed = config::parse(args).map_err(|exit| CtlError::Usage(exit.to_string()))?;
    let speed = match replay.speed.as_str() {
        "recorded" => Speed::Recorded,
        "fast" => Speed::AsFastAsPossible,
        factor => {
            let number = factor.trim_end_matches('x').parse();
            Speed::Scaled(number.map_err(|_| {
                CtlError::Usage(format!("--speed is recorded, fast, or a factor such as 10, not {factor:?}"))
            })?)
        }
    };
    Ok(ReplayOptions { speed, ..ReplayOptions::like(&parsed.config) })
}

fn unreadable(error: ReadError) -> CtlError {
    match error {
        ReadError::Io { .. } => CtlError::Local(error.to_string()),
        _ => CtlError::File(error.to_string()),
    }
}

fn damaged(path: &Path, why: String) -> CtlError {
    CtlError::File(format!("{}: {why}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), CtlError> {
    std::fs::write(path, text).map_err(|error| CtlError::Local(format!("{}: {error}", path.display())))
}

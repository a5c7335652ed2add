//! Records the calls of the storage layer, on the event bus's drain thread.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;
use thiserror::Error;

use super::encode::encode;
use super::format::{FORMAT_VERSION, Header, SCHEMA_VERSION};
use super::operation::Operation;
use super::sm_config::digest;
use super::writer::TraceWriter;
use crate::config::{TraceArgs, TraceConfig};
use crate::events::{Bus, Event, Stamped, Subscriber};

/// Longest time that a record stays in memory while events come; the pool's looks are one a second.
const FLUSH_AFTER: Duration = Duration::from_secs(1);

/// Why nothing can be recorded.
#[derive(Debug, Error)]
#[error(
    "cannot write the trace to {path} (--trace-output): {source}; give a path in a directory that this user may write to"
)]
pub struct RecordError {
    /// The file.
    path: PathBuf,
    /// What the system said.
    source: io::Error,
}

/// The bus's subscriber. The file is closed when the bus stops.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Mutex<State>>,
    names: Vec<String>,
    /// When records were last written.
    flushed: Instant,
}

/// The recording, for whoever starts it.
#[derive(Debug)]
pub struct Recording {
    shared: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    writer: TraceWriter,
    args: TraceArgs,
    started: Instant,
    mono: f64,
    wall: f64,
    bus: Option<Arc<Bus>>,
    closed: bool,
}

impl Recorder {
    /// Makes the file. Nothing is recorded before [`Recording::begin`].
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(config: &TraceConfig) -> Result<(Recorder, Recording), RecordError> {
        let (path, fresh) = match &config.output {
            Some(path) => (path.clone(), false),
            None => (default_path(SystemTime::now()), true),
        };
        if fresh {
            // The words of the documented page.
            tracing::info!(
                "trace recording enabled (level=storage); no --trace-output given, writing to {}",
                path.display()
            );
        } else {
            tracing::info!("trace recording enabled (level=storage); writing to {}", path.display());
        }
        let writer = TraceWriter::create(&path, fresh).map_err(|source| RecordError { path, source })?;
        let mono = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .map_or(0.0, |now| now.tv_sec() as f64 + now.tv_nsec() as f64 / 1e9);
        let shared = Arc::new(Mutex::new(State {
            writer,
            args: config.args,
            started: Instant::now(),
            mono,
            wall: seconds(SystemTime::now()),
            bus: None,
            closed: false,
        }));
        let names = Operation::all().map(Operation::qualname).collect();
        let recorder = Recorder { shared: shared.clone(), names, flushed: Instant::now() };
        Ok((recorder, Recording { shared }))
    }
}

impl Recording {
    /// Writes the header: `config_json` is the storage layer's configuration. Losses of `bus` are counted from now on.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn begin(&self, bus: Arc<Bus>, config_json: String) -> Result<(), RecordError> {
        let mut state = self.shared.lock();
        let header = Header {
            format_version: FORMAT_VERSION,
            level: "storage".into(),
            schema_version: SCHEMA_VERSION,
            t_mono_start: state.mono,
            t_wall_start: state.wall,
            config_digest: digest(&config_json),
            config_json,
            meta: Default::default(),
        };
        let args = state.args.name();
        state.bus = Some(bus);
        state
            .writer
            .begin(&header, args)
            .map_err(|source| RecordError { path: state.writer.path().into(), source })
    }
}

impl State {
    fn note_lost(&mut self) {
        if let Some(bus) = &self.bus {
            let lost = bus.dropped();
            self.writer.note_lost(lost);
        }
    }
}

impl Subscriber for Recorder {
    fn name(&self) -> &'static str {
        "trace"
    }

    fn on_event(&mut self, event: &Stamped) {
        let Event::TraceCall { call } = &event.event else { return };
        let mut state = self.shared.lock();
        if state.bus.is_none() {
            return;
        }
        let (operation, args) = encode(call, state.args);
        let since = event.at.saturating_duration_since(state.started).as_secs_f64();
        let wall = state.wall + since;
        state.writer.record(since, wall, &self.names[operation as usize], &args);
    }

    fn on_idle(&mut self, now: Instant) {
        if now.saturating_duration_since(self.flushed) >= FLUSH_AFTER {
            self.flushed = now;
            let mut state = self.shared.lock();
            state.note_lost();
            state.writer.flush();
        }
    }

    fn shutdown(&mut self) {
        let mut state = self.shared.lock();
        if std::mem::replace(&mut state.closed, true) {
            return;
        }
        if state.bus.is_none() {
            // The daemon did not start: an empty file would only puzzle.
            let path = state.writer.path();
            if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == 0) {
                let _ = std::fs::remove_file(path);
            }
            return;
        }
        state.note_lost();
        let result = state.writer.close();
        let writer = &state.writer;
        let (path, records) = (writer.path().display(), writer.written());
        let (lost, unwritten) = (writer.lost(), writer.unwritten());
        if let Err(error) = result {
            tracing::error!(%path, records, %error, "the trace could not be closed; its end may be missing");
        } else if lost > 0 || unwritten > 0 {
            tracing::warn!(
                %path, records, lost_events = lost, unwritten_records = unwritten,
                "trace recorder closed; the trace has gaps: a replay of it is not what happened. If events were lost, record again with a larger --event-bus-queue-size"
            );
        } else {
            tracing::info!(records, "trace recorder closed cleanly: {path}");
        }
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The documented name.
fn default_path(now: SystemTime) -> PathBuf {
    let stamp = utc_stamp(seconds(now) as u64);
    Path::new(&std::env::temp_dir()).join(format!("lmcache-trace-{}-{stamp}.lct", std::process::id()))
}

/// `YYYYMMDD-HHMMSS` in UTC, of seconds since 1970. The calendar repeats every 400 years, which begin in March here so that
/// the leap day is the last of a year.
fn utc_stamp(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + carry;
    format!("{year:04}{month:02}{day:02}-{:02}{:02}{:02}", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_utc() {
        for (seconds, stamp) in [
            (0, "19700101-000000"),
            (951_782_400, "20000229-000000"),
            (951_868_799, "20000229-235959"),
            (1_709_164_800, "20240229-000000"),
            (1_795_506_709, "20261124-075149"),
            (4_107_542_399, "21000228-235959"),
            (4_107_542_400, "21000301-000000"),
        ] {
            assert_eq!(utc_stamp(seconds), stamp);
        }
    }
}

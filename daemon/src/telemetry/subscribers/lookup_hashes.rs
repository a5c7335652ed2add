//! JSON lines of looked-up chunk hashes (`--lookup-hash-log-dir`), for LMCache's cache simulator.
//!
//! One line for each lookup, with the keys of LMCache 0.5.6: `timestamp` (Unix seconds), `request_id`, `model_name`,
//! `chunk_size`, `seq_len` (tokens), `dtypes` and `shapes` of a chunk's regions, `chunk_hashes` (`0x…`). Files are named
//! `lookup_hashes_<UTC>_<number>.jsonl`, and the oldest go when there are too many.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lmcache_proto::hash::hex;
use serde::Serialize;
use time::OffsetDateTime;

use crate::config::LookupHashLogConfig;
use crate::events::{Event, Stamped, Subscriber};

const PREFIX: &str = "lookup_hashes_";
const SUFFIX: &str = ".jsonl";
/// Pause after a file could not be opened: a full disk must not cost every lookup a system call.
const PAUSE: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct Line<'a> {
    timestamp: f64,
    request_id: &'a str,
    model_name: &'a str,
    chunk_size: u32,
    seq_len: u64,
    dtypes: Vec<String>,
    shapes: Vec<[u64; 4]>,
    chunk_hashes: Vec<String>,
}

struct Open {
    file: BufWriter<File>,
    since: Instant,
    bytes: u64,
}

/// Writes the lines, on the bus's drain thread.
pub(in crate::telemetry) struct LookupHashes {
    config: LookupHashLogConfig,
    open: Option<Open>,
    /// Oldest first.
    files: Vec<PathBuf>,
    number: usize,
    /// No file is opened before that.
    paused_until: Option<Instant>,
    /// Lines that were lost, and not told of yet.
    lost: u64,
}

impl LookupHashes {
    /// # Errors
    /// If the directory cannot be made or read.
    pub(in crate::telemetry) fn new(config: &LookupHashLogConfig) -> io::Result<LookupHashes> {
        std::fs::create_dir_all(&config.dir)?;
        let files = earlier(&config.dir)?;
        tracing::info!(
            dir = %config.dir.display(),
            earlier_files = files.len(),
            "writing the chunk hashes of every lookup; they tell which prompts share prefixes, so guard the directory"
        );
        Ok(LookupHashes {
            config: config.clone(),
            open: None,
            number: files.len(),
            files,
            paused_until: None,
            lost: 0,
        })
    }

    fn write(&mut self, at: Instant, line: &Line<'_>) -> io::Result<()> {
        let over = |open: &Open| {
            at.saturating_duration_since(open.since) >= self.config.rotation_interval
                || open.bytes >= self.config.rotation_max_bytes.get()
        };
        if self.open.as_ref().is_none_or(over) {
            self.rotate(at, line.timestamp)?;
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        let mut bytes = serde_json::to_vec(line).map_err(io::Error::other)?;
        bytes.push(b'\n');
        open.file.write_all(&bytes)?;
        open.bytes += bytes.len() as u64;
        Ok(())
    }

    fn rotate(&mut self, at: Instant, unix: f64) -> io::Result<()> {
        if let Some(mut open) = self.open.take() {
            open.file.flush()?;
        }
        let path = self.config.dir.join(file_name(unix, self.number));
        // New, as another daemon may write to the same directory.
        let file = File::options().write(true).create_new(true).open(&path);
        self.number += 1;
        self.open = Some(Open { file: BufWriter::new(file?), since: at, bytes: 0 });
        self.files.push(path);
        let surplus = self.files.len().saturating_sub(self.config.max_files.get());
        for old in self.files.drain(..surplus) {
            match std::fs::remove_file(&old) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(file = %old.display(), %error, "an old file of lookup hashes stays; remove it by hand");
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn failed(&mut self, at: Instant, error: &io::Error) {
        self.lost += 1;
        self.open = None;
        self.paused_until = Some(at + PAUSE);
        tracing::warn!(
            dir = %self.config.dir.display(),
            %error,
            lines_lost = self.lost,
            "lookup hashes cannot be written; the next attempt is in {} s. Make room there, or drop --lookup-hash-log-dir",
            PAUSE.as_secs()
        );
        self.lost = 0;
    }
}

impl Subscriber for LookupHashes {
    fn name(&self) -> &'static str {
        "lookup_hash_log"
    }

    fn on_event(&mut self, event: &Stamped) {
        let Event::MpLookup { session, model, hashes, chunk_size, seq_len, regions } = &event.event else {
            return;
        };
        if self.paused_until.is_some_and(|until| event.at < until) {
            self.lost += 1;
            return;
        }
        let line = Line {
            timestamp: unix_time(event.at),
            request_id: session,
            model_name: model,
            chunk_size: *chunk_size,
            seq_len: *seq_len,
            dtypes: regions.iter().map(|region| format!("torch.{}", region.dtype.name())).collect(),
            shapes: regions.iter().map(|r| [r.planes, r.layers, r.slots, r.width]).collect(),
            chunk_hashes: hashes.iter().map(|hash| format!("0x{}", hex(hash))).collect(),
        };
        if let Err(error) = self.write(event.at, &line) {
            self.failed(event.at, &error);
        }
    }

    fn on_idle(&mut self, now: Instant) {
        if let Some(open) = &mut self.open
            && let Err(error) = open.file.flush()
        {
            self.failed(now, &error);
        }
    }

    fn shutdown(&mut self) {
        self.on_idle(Instant::now());
    }
}

/// Files of earlier runs, oldest first: they count against the limit, too.
fn earlier(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX)) {
            let modified = entry.metadata().and_then(|meta| meta.modified()).unwrap_or(UNIX_EPOCH);
            files.push((modified, entry.path()));
        }
    }
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

fn unix_time(at: Instant) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.saturating_sub(at.elapsed())).as_secs_f64()
}

fn file_name(unix: f64, number: usize) -> String {
    let at = OffsetDateTime::from_unix_timestamp(unix as i64).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second) = (at.hour(), at.minute(), at.second());
    format!("{PREFIX}{year:04}{month:02}{day:02}_{hour:02}{minute:02}{second:02}_{number:06}{SUFFIX}")
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU64, NonZeroUsize};

    use lmcache_proto::layout::{Dtype, Region};
    use serde_json::Value;

    use super::*;

    fn config(dir: &Path, max_bytes: u64, max_files: usize) -> LookupHashLogConfig {
        LookupHashLogConfig {
            dir: dir.to_owned(),
            rotation_interval: Duration::from_secs(3600),
            rotation_max_bytes: NonZeroU64::new(max_bytes).expect("positive"),
            max_files: NonZeroUsize::new(max_files).expect("positive"),
        }
    }

    fn lookup(request: &str) -> Stamped {
        let regions = [Region { planes: 2, layers: 4, slots: 16, width: 8, dtype: Dtype::Bfloat16 }];
        let event = Event::MpLookup {
            session: request.into(),
            model: "m".into(),
            hashes: [[0xab; 32]].into(),
            chunk_size: 16,
            seq_len: 20,
            regions: regions.into(),
        };
        Stamped { at: Instant::now(), event }
    }

    fn lines(dir: &Path) -> Vec<Value> {
        let files = earlier(dir).expect("reads");
        let text: String = files.iter().map(|file| std::fs::read_to_string(file).expect("reads")).collect();
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[test]
    fn a_lookup_is_a_line_with_the_peers_keys() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = LookupHashes::new(&config(dir.path(), 1 << 20, 10)).expect("starts");
        log.on_event(&lookup("r1"));
        log.shutdown();
        let mut lines = lines(dir.path());
        assert_eq!(lines.len(), 1);
        let mut line = lines.remove(0);
        assert!(line["timestamp"].as_f64().is_some_and(|time| time > 1.7e9));
        line["timestamp"] = Value::Null;
        assert_eq!(
            line,
            serde_json::json!({
                "timestamp": null, "request_id": "r1", "model_name": "m", "chunk_size": 16, "seq_len": 20,
                "dtypes": ["torch.bfloat16"], "shapes": [[2, 4, 16, 8]],
                "chunk_hashes": [format!("0x{}", "ab".repeat(32))],
            })
        );
    }

    #[test]
    fn files_rotate_and_the_oldest_go() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("other.jsonl"), "keep").expect("writes");
        let mut log = LookupHashes::new(&config(dir.path(), 1, 3)).expect("starts");
        for n in 0..7 {
            log.on_event(&lookup(&format!("r{n}")));
        }
        log.shutdown();
        // A second run counts what the first one left.
        let mut log = LookupHashes::new(&config(dir.path(), 1, 3)).expect("starts");
        log.on_event(&lookup("last"));
        log.shutdown();
        let mut ids: Vec<String> =
            lines(dir.path()).iter().map(|line| line["request_id"].to_string()).collect();
        ids.sort();
        assert_eq!(ids, ["\"last\"", "\"r5\"", "\"r6\""]);
        assert!(dir.path().join("other.jsonl").exists());
    }

    #[test]
    fn a_directory_that_goes_away_costs_lines_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = dir.path().join("gone");
        let mut log = LookupHashes::new(&config(&place, 1, 3)).expect("starts");
        std::fs::remove_dir_all(&place).expect("removes");
        for n in 0..3 {
            log.on_event(&lookup(&format!("r{n}")));
        }
        // The first was told in the log line; the others wait for the next.
        assert_eq!(log.lost, 2);
    }

    #[test]
    fn names_carry_utc() {
        assert_eq!(file_name(1_775_053_825.9, 3), "lookup_hashes_20260401_143025_000003.jsonl");
    }
}

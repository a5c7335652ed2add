//! What a recording holds, without replaying it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::format::{Header, META_COMPLETE, META_LOST, META_UNWRITTEN, MetaValue};
use super::operation::Operation;
use super::reader::{Item, ReadError, Tail, TraceReader};
use super::sm_config::digest;
use super::text::{line, plain};

/// Names counted apart; a damaged file may have one for each record.
const MAX_NAMES: usize = 256;

/// What a recording holds.
#[derive(Clone, Debug)]
pub struct Info {
    /// The file.
    pub path: PathBuf,
    /// What it says of itself.
    pub header: Header,
    /// Time from the header to the last record, in seconds.
    pub duration: f64,
    /// Records.
    pub records: u64,
    /// Records of each qualified name.
    pub names: BTreeMap<String, u64>,
    /// Frames that are no records.
    pub malformed: u64,
    /// How it ends.
    pub tail: Tail,
    /// Whether the digest is that of the configuration.
    pub digest_fits: bool,
}

/// Reads a whole recording.
///
/// # Errors
/// See [`ReadError`]. A file that is cut short behind its header is none: [`Info::tail`] says it.
pub fn info(path: &Path) -> Result<Info, ReadError> {
    let mut reader = TraceReader::open(path)?;
    let header = reader.header().clone();
    let mut info = Info {
        path: path.to_owned(),
        digest_fits: header.config_digest.is_empty() || digest(&header.config_json) == header.config_digest,
        header,
        duration: 0.0,
        records: 0,
        names: BTreeMap::new(),
        malformed: 0,
        tail: Tail::Whole,
    };
    while let Some(item) = reader.next_item()? {
        match item {
            Item::Record(record) => {
                info.records += 1;
                info.duration = info.duration.max(record.t_mono);
                if let Some(count) = info.names.get_mut(record.qualname) {
                    *count += 1;
                } else {
                    let name = if info.names.len() < MAX_NAMES { record.qualname } else { "(others)" };
                    *info.names.entry(name.to_owned()).or_default() += 1;
                }
            }
            Item::Malformed { .. } => info.malformed += 1,
        }
    }
    info.tail = reader.tail().unwrap_or(Tail::Whole);
    Ok(info)
}

impl Info {
    fn number(&self, key: &str) -> Option<u64> {
        match self.header.meta.get(key)? {
            MetaValue::Int(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// Events that the recording daemon lost; each may have been a record. `None`: the file does not say (LMCache's do not).
    pub fn lost_events(&self) -> Option<u64> {
        self.number(META_LOST)
    }

    /// Records that the recording daemon could not write.
    pub fn unwritten_records(&self) -> Option<u64> {
        self.number(META_UNWRITTEN)
    }

    /// Whether the recording daemon has closed the file. `None`: the file does not say.
    pub fn closed(&self) -> Option<bool> {
        match self.header.meta.get(META_COMPLETE)? {
            MetaValue::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// What is missing from the recording, one line for each; empty if nothing is known to be.
    pub fn gaps(&self) -> Vec<String> {
        let mut gaps = Vec::new();
        if let Some(lost) = self.lost_events().filter(|lost| *lost > 0) {
            gaps.push(format!("{lost} events were lost to a full queue while it was recorded; some of them may have been calls"));
        }
        if let Some(records) = self.unwritten_records().filter(|records| *records > 0) {
            gaps.push(format!("{records} records could not be written"));
        }
        if self.closed() == Some(false) {
            gaps.push(
                "its daemon has not closed it: it still runs, or was killed and the last second is missing"
                    .into(),
            );
        }
        match self.tail {
            Tail::Whole => {}
            Tail::Truncated { at } => gaps.push(format!("it ends inside the record at byte {at}")),
            Tail::Damaged { at } => {
                gaps.push(format!("it is damaged at byte {at}; what follows cannot be read"))
            }
        }
        if self.malformed > 0 {
            gaps.push(format!("{} records are damaged", self.malformed));
        }
        gaps
    }

    /// For people.
    pub fn table(&self) -> String {
        let header = &self.header;
        let mut text = format!("Trace file: {}\n", plain(&self.path.display().to_string()));
        text += &line("level", plain(&header.level));
        text += &line("format_version", header.format_version);
        text += &line("trace_schema_version", header.schema_version);
        text += &line("duration", format!("{:.3}s", self.duration));
        let config = match (header.config_digest.is_empty(), self.digest_fits) {
            (true, _) => "(none)".to_owned(),
            (false, true) => plain(&header.config_digest),
            (false, false) => format!("{} (does not fit the configuration)", plain(&header.config_digest)),
        };
        text += &line("sm_config_digest", config);
        for (key, value) in &header.meta {
            text += &line(&plain(key), value);
        }
        text += &line("total_records", self.records);
        text += "  ops:\n";
        for (name, count) in &self.names {
            let short = Operation::from_qualname(name).map_or_else(|| plain(name), |op| op.name().to_owned());
            text += &format!("    {short:<30}{count}\n");
        }
        for gap in self.gaps() {
            text += &line("NOT WHOLE", gap);
        }
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let header = &self.header;
        let meta: BTreeMap<&String, Value> = header
            .meta
            .iter()
            .map(|(key, value)| {
                let value = match value {
                    MetaValue::Bool(value) => json!(value),
                    MetaValue::Int(value) => {
                        i64::try_from(*value).map_or_else(|_| json!(value.to_string()), |n| json!(n))
                    }
                    MetaValue::Float(value) => json!(value),
                    MetaValue::Text(value) => json!(value),
                    MetaValue::Other => Value::Null,
                };
                (key, value)
            })
            .collect();
        json!({
            "path": self.path.display().to_string(),
            "level": header.level,
            "format_version": header.format_version,
            "trace_schema_version": header.schema_version,
            "t_wall_start": header.t_wall_start,
            "duration_s": self.duration,
            "sm_config": serde_json::from_str::<Value>(&header.config_json).unwrap_or(Value::Null),
            "sm_config_digest": header.config_digest,
            "sm_config_digest_fits": self.digest_fits,
            "level_meta": meta,
            "total_records": self.records,
            "malformed_records": self.malformed,
            "lost_events": self.lost_events(),
            "unwritten_records": self.unwritten_records(),
            "closed": self.closed(),
            "whole": self.gaps().is_empty(),
            "gaps": self.gaps(),
            "ops": self.names,
        })
    }
}

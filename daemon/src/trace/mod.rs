//! `.lct` files: recordings of the calls of the storage layer, in LMCache's format.
//!
//! * `format`: frames, header, record; `operation`: which calls there are;
//! * `encode`, `decode`: a call's arguments, from typed events and into typed calls;
//! * `sm_config`: the header's configuration, as LMCache would write it;
//! * `writer`, `recorder`: recording, on the event bus's drain thread;
//! * `reader`, `info`: reading, from files that may hold anything;
//! * `replay`: a recording against this daemon's own storage code, without a worker.
//!
//! ```no_run
//! use lmcached::trace::{self, ReplayOptions, Speed};
//!
//! let path = std::path::Path::new("/tmp/run.lct");
//! print!("{}", trace::info(path)?.table());
//! let options = ReplayOptions { speed: Speed::AsFastAsPossible, ..ReplayOptions::default() };
//! let report = trace::replay(path, &options, |_done, _total| {})?;
//! print!("{}", report.table());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod decode;
mod encode;
mod format;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod info;
mod operation;
mod reader;
mod recorder;
mod replay;
mod sm_config;
#[cfg(test)]
mod tests;
mod text;
mod writer;

pub use decode::{Call, Decoder, Prefetch, PrefetchRow, TraceKey};
pub use encode::encode;
pub use format::{FORMAT_VERSION, Header, MAGIC, MAX_FRAME_BYTES, MetaValue, Record, SCHEMA_VERSION};
pub use info::{Info, info};
pub use operation::Operation;
pub use reader::{Item, ReadError, Tail, TraceReader};
pub use recorder::{RecordError, Recorder, Recording};
pub use replay::{OpStats, Outcomes, ReplayError, ReplayOptions, Report, Speed, replay};
pub use sm_config::{digest, storage_config};
pub use writer::TraceWriter;

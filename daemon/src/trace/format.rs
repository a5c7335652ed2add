//! A `.lct` file: `[u32 big-endian length][msgpack map]`, first a header, then records.
//!
//! Source: LMCache 0.5.6, checked against a file that a server of that release has written. Its readers skip fields that
//! they do not know, and show what the header's `level_meta` holds; that is where a recording says here whether it is whole.

use std::collections::BTreeMap;
use std::fmt;

use lmcache_proto::wire::{DecodeError, Reader, Writer};

/// First field of every header.
pub const MAGIC: &[u8] = b"LMCT";
/// Version of the framing.
pub const FORMAT_VERSION: u64 = 1;
/// Version of the recorded calls.
pub const SCHEMA_VERSION: u64 = 1;
/// Longest frame read or written. A lookup of a million tokens in chunks of 16 has 10 MB.
pub const MAX_FRAME_BYTES: usize = 64 << 20;
/// Longest header read; the real ones have some kilobytes.
pub(super) const MAX_HEADER_BYTES: usize = 1 << 20;
/// Most entries of a header's `level_meta`.
const MAX_META: usize = 64;

/// Key of the header's `level_meta`: whether the recording was closed by the daemon that made it.
pub(super) const META_COMPLETE: &str = "complete";
/// Key: events that were lost, and with them maybe records.
pub(super) const META_LOST: &str = "lost_events";
/// Key: records that could not be written.
pub(super) const META_UNWRITTEN: &str = "unwritten_records";
/// Key: whose argument shapes.
pub(super) const META_ARGS: &str = "args";
/// Key: who wrote the file.
pub(super) const META_WRITER: &str = "writer";

/// What a file says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// Version of the framing.
    pub format_version: u64,
    /// What is recorded: `storage` or `events`.
    pub level: String,
    /// Version of the recorded calls.
    pub schema_version: u64,
    /// Monotonic clock at the start, in seconds; the records' times count from it.
    pub t_mono_start: f64,
    /// Wall clock at the start, in seconds since 1970.
    pub t_wall_start: f64,
    /// The storage layer's configuration, as JSON; may be empty.
    pub config_json: String,
    /// SHA-256 of that text, in hex.
    pub config_digest: String,
    /// What else is said.
    pub meta: BTreeMap<String, MetaValue>,
}

/// A value of the header's `level_meta`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the types of msgpack")]
pub enum MetaValue {
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    /// Anything else.
    Other,
}

impl fmt::Display for MetaValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetaValue::Bool(value) => f.write_str(if *value { "yes" } else { "no" }),
            MetaValue::Int(value) => write!(f, "{value}"),
            MetaValue::Float(value) => write!(f, "{value}"),
            MetaValue::Text(value) => f.write_str(&super::text::plain(value)),
            MetaValue::Other => f.write_str("…"),
        }
    }
}

/// One recorded call, its arguments undecoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record<'a> {
    /// Seconds since the header's start.
    pub t_mono: f64,
    /// Wall clock, in seconds since 1970.
    pub t_wall: f64,
    /// Qualified name of the call.
    pub qualname: &'a str,
    /// Its arguments: a msgpack map.
    pub args: &'a [u8],
}

/// Where in the file the header's numbers are that change while it is written. All have a fixed width.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patches {
    pub(super) complete: u64,
    pub(super) lost: u64,
    pub(super) unwritten: u64,
}

/// A number in the form that [`Patches`] can overwrite.
pub(super) fn wide(value: u64) -> [u8; 9] {
    let mut bytes = [0xcf; 9];
    bytes[1..].copy_from_slice(&value.to_be_bytes());
    bytes
}

/// A boolean likewise.
pub(super) fn flag(value: bool) -> [u8; 1] {
    [0xc2 + u8::from(value)]
}

/// The header's frame of a recording that has just begun.
pub(super) fn encode_header(header: &Header, writer: &str, args: &str) -> (Vec<u8>, Patches) {
    let mut head = Writer::new();
    head.map(10).str("type").str("header").str("magic").bin(MAGIC);
    head.str("format_version").uint(header.format_version).str("level").str(&header.level);
    head.str("trace_schema_version").uint(header.schema_version);
    head.str("t_mono_start").f64(header.t_mono_start).str("t_wall_start").f64(header.t_wall_start);
    head.str("sm_config_json").str(&header.config_json).str("sm_config_digest").str(&header.config_digest);
    head.str("level_meta").map(5).str(META_WRITER).str(writer).str(META_ARGS).str(args);
    let mut frame = vec![0; 4];
    frame.extend_from_slice(&head.into_vec());
    let mut append = |key: &str, value: &[u8]| {
        let mut pair = Writer::new();
        pair.str(key);
        frame.extend_from_slice(&pair.into_vec());
        let at = frame.len() as u64;
        frame.extend_from_slice(value);
        at
    };
    let patches = Patches {
        complete: append(META_COMPLETE, &flag(false)),
        lost: append(META_LOST, &wide(0)),
        unwritten: append(META_UNWRITTEN, &wide(0)),
    };
    let length = (frame.len() - 4) as u32;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    (frame, patches)
}

/// Appends a record's frame. `false`: it would be longer than a frame may be, and nothing is appended.
pub(super) fn append_record(
    out: &mut Vec<u8>,
    t_mono: f64,
    t_wall: f64,
    qualname: &str,
    args: &[u8],
) -> bool {
    let mut head = Writer::with_capacity(128 + qualname.len());
    head.map(5).str("type").str("record").str("t_mono").f64(t_mono).str("t_wall").f64(t_wall);
    head.str("qualname").str(qualname).str("args");
    let head = head.into_vec();
    let length = head.len() + args.len();
    if length > MAX_FRAME_BYTES {
        return false;
    }
    out.extend_from_slice(&(length as u32).to_be_bytes());
    out.extend_from_slice(&head);
    out.extend_from_slice(args);
    true
}

/// Why a first frame is not a header that can be read.
#[derive(Debug, PartialEq)]
pub(super) enum HeaderError {
    /// Not such a file.
    NotATrace,
    /// Damaged, or of a stranger.
    Bad(DecodeError),
    /// Another version of the framing.
    Format(u64),
    /// Another version of the calls.
    Schema(u64),
}

impl From<DecodeError> for HeaderError {
    fn from(error: DecodeError) -> HeaderError {
        HeaderError::Bad(error)
    }
}

/// Reads a header's frame. The versions are looked at as soon as they are known: what follows may be of another shape.
pub(super) fn decode_header(frame: &[u8]) -> Result<Header, HeaderError> {
    let mut reader = Reader::new(frame);
    let pairs = reader.map().map_err(|_| HeaderError::NotATrace)?;
    let mut magic = false;
    let (mut format, mut schema, mut level) = (None, None, None);
    let (mut t_mono, mut t_wall, mut json, mut digest) = (None, None, String::new(), String::new());
    let mut meta = BTreeMap::new();
    for _ in 0..pairs {
        let name = reader.str().map_err(|_| HeaderError::NotATrace)?;
        match name {
            "type" => {
                if reader.str() != Ok("header") {
                    return Err(HeaderError::NotATrace);
                }
            }
            "magic" => magic = reader.bin() == Ok(MAGIC),
            "format_version" => {
                let version = reader.u64()?;
                if magic && version != FORMAT_VERSION {
                    return Err(HeaderError::Format(version));
                }
                format = Some(version);
            }
            "level" => level = Some(reader.name("level")?.to_owned()),
            "trace_schema_version" => schema = Some(reader.u64()?),
            "t_mono_start" => t_mono = Some(reader.f64()?),
            "t_wall_start" => t_wall = Some(reader.f64()?),
            "sm_config_json" => json = reader.str()?.to_owned(),
            "sm_config_digest" => digest = reader.name("sm_config_digest")?.to_owned(),
            "level_meta" => meta = decode_meta(&mut reader)?,
            _ => drop(reader.skip()?),
        }
    }
    reader.finish()?;
    if !magic {
        return Err(HeaderError::NotATrace);
    }
    let missing = |field| HeaderError::Bad(DecodeError::Missing(field));
    let header = Header {
        format_version: format.ok_or(missing("format_version"))?,
        schema_version: schema.ok_or(missing("trace_schema_version"))?,
        level: level.ok_or(missing("level"))?,
        t_mono_start: t_mono.ok_or(missing("t_mono_start"))?,
        t_wall_start: t_wall.ok_or(missing("t_wall_start"))?,
        config_json: json,
        config_digest: digest,
        meta,
    };
    match (header.format_version, header.schema_version) {
        (FORMAT_VERSION, SCHEMA_VERSION) => Ok(header),
        (FORMAT_VERSION, other) => Err(HeaderError::Schema(other)),
        (other, _) => Err(HeaderError::Format(other)),
    }
}

fn decode_meta(reader: &mut Reader<'_>) -> Result<BTreeMap<String, MetaValue>, DecodeError> {
    let mut meta = BTreeMap::new();
    for _ in 0..reader.map()? {
        let key = reader.name("level_meta")?.to_owned();
        let value = match reader.peek()? {
            0xc2 | 0xc3 => MetaValue::Bool(reader.bool()?),
            0x00..=0x7f | 0xcc..=0xd3 | 0xe0..=0xff => MetaValue::Int(reader.i128()?),
            0xca | 0xcb => MetaValue::Float(reader.f64()?),
            _ if reader.peek_is_str() => MetaValue::Text(reader.str()?.to_owned()),
            _ => {
                reader.skip()?;
                MetaValue::Other
            }
        };
        if meta.len() < MAX_META {
            meta.insert(key, value);
        }
    }
    Ok(meta)
}

/// Reads a record's frame; the arguments are proved to be one whole value.
pub(super) fn decode_record(frame: &[u8]) -> Result<Record<'_>, DecodeError> {
    let mut reader = Reader::new(frame);
    let (mut t_mono, mut t_wall, mut qualname, mut args) = (None, 0.0, None, None);
    for _ in 0..reader.map()? {
        match reader.str()? {
            "type" => {
                if reader.str()? != "record" {
                    return Err(DecodeError::Invalid("not a record"));
                }
            }
            "t_mono" => t_mono = Some(reader.f64()?),
            "t_wall" => t_wall = reader.f64()?,
            "qualname" => qualname = Some(reader.name("qualname")?),
            "args" => args = Some(reader.skip()?),
            _ => drop(reader.skip()?),
        }
    }
    reader.finish()?;
    Ok(Record {
        t_mono: t_mono.filter(|time| time.is_finite()).ok_or(DecodeError::Missing("t_mono"))?,
        t_wall,
        qualname: qualname.ok_or(DecodeError::Missing("qualname"))?,
        args: args.ok_or(DecodeError::Missing("args"))?,
    })
}

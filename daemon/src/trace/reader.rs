//! Reads a recording that may hold anything: record by record, in bounded memory.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use lmcache_proto::wire::DecodeError;
use thiserror::Error;

use super::format::{self, Header, HeaderError, MAX_FRAME_BYTES, MAX_HEADER_BYTES, Record};

/// Why a file cannot be read as a recording. Each is one line.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The system does not let us.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is something else.
    #[error("{path} is not a .lct trace")]
    NotATrace {
        /// The file.
        path: PathBuf,
    },
    /// It ends before its first record.
    #[error("{path} is cut short: it ends inside its header, so there is nothing to read")]
    Truncated {
        /// The file.
        path: PathBuf,
    },
    /// Its header cannot be read.
    #[error("{path} is damaged: its header cannot be read ({source})")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: DecodeError,
    },
    /// It is of another release.
    #[error(
        "{path} has {what} {found}, and this release reads {known}; use a release that matches the one that recorded it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Which version.
        what: &'static str,
        /// The file's.
        found: u64,
        /// Ours.
        known: u64,
    },
}

/// How a file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// With a whole record.
    Whole,
    /// In the middle of a record that begins at this byte: its writer was killed, or the copy is not whole.
    Truncated {
        /// Where the last, partial record begins.
        at: u64,
    },
    /// At this byte there is no record: nothing behind it can be read.
    Damaged {
        /// Where reading ended.
        at: u64,
    },
}

/// What comes next in a file.
#[derive(Debug, PartialEq)]
pub enum Item<'a> {
    /// A record.
    Record(Record<'a>),
    /// A frame that is no record; reading goes on behind it.
    Malformed {
        /// Where it begins.
        at: u64,
        /// What is wrong.
        error: DecodeError,
    },
}

/// Reads a recording.
#[derive(Debug)]
pub struct TraceReader {
    path: PathBuf,
    source: BufReader<File>,
    header: Header,
    frame: Vec<u8>,
    /// Bytes read, all of them whole frames.
    offset: u64,
    tail: Option<Tail>,
}

/// One frame, or why there is none.
enum Frame {
    Here,
    End,
    Cut,
    TooLong,
}

impl TraceReader {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn open(path: &Path) -> Result<TraceReader, ReadError> {
        let io = |source| ReadError::Io { path: path.to_owned(), source };
        let mut source = BufReader::with_capacity(1 << 16, File::open(path).map_err(io)?);
        let mut frame = Vec::new();
        match read_frame(&mut source, &mut frame, MAX_HEADER_BYTES).map_err(io)? {
            Frame::Here => {}
            // The first bytes of a text file are a large number.
            Frame::TooLong => return Err(ReadError::NotATrace { path: path.to_owned() }),
            Frame::End | Frame::Cut => return Err(ReadError::Truncated { path: path.to_owned() }),
        }
        let header = format::decode_header(&frame).map_err(|error| header_error(path, error))?;
        let offset = 4 + frame.len() as u64;
        Ok(TraceReader { path: path.to_owned(), source, header, frame, offset, tail: None })
    }

    /// What the file says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next record; `None` at the end, for which see [`TraceReader::tail`].
    ///
    /// # Errors
    /// The system cannot read on.
    pub fn next_item(&mut self) -> Result<Option<Item<'_>>, ReadError> {
        if self.tail.is_some() {
            return Ok(None);
        }
        let at = self.offset;
        let frame = read_frame(&mut self.source, &mut self.frame, MAX_FRAME_BYTES);
        match frame.map_err(|source| ReadError::Io { path: self.path.clone(), source })? {
            Frame::Here => {}
            Frame::End => return Ok(self.end(Tail::Whole)),
            Frame::Cut => return Ok(self.end(Tail::Truncated { at })),
            Frame::TooLong => return Ok(self.end(Tail::Damaged { at })),
        }
        self.offset += 4 + self.frame.len() as u64;
        Ok(Some(match format::decode_record(&self.frame) {
            Ok(record) => Item::Record(record),
            Err(error) => Item::Malformed { at, error },
        }))
    }

    fn end(&mut self, tail: Tail) -> Option<Item<'static>> {
        self.tail = Some(tail);
        None
    }

    /// How the file ends, once everything is read.
    pub fn tail(&self) -> Option<Tail> {
        self.tail
    }
}

fn header_error(path: &Path, error: HeaderError) -> ReadError {
    let path = path.to_owned();
    match error {
        HeaderError::NotATrace => ReadError::NotATrace { path },
        HeaderError::Bad(source) => ReadError::Damaged { path, source },
        HeaderError::Format(found) => {
            ReadError::Version { path, what: "format version", found, known: format::FORMAT_VERSION }
        }
        HeaderError::Schema(found) => {
            ReadError::Version { path, what: "schema version", found, known: format::SCHEMA_VERSION }
        }
    }
}

/// Reads one frame into `frame`. Memory grows with the bytes that come, not with what their length says.
fn read_frame(source: &mut impl Read, frame: &mut Vec<u8>, most: usize) -> io::Result<Frame> {
    frame.clear();
    source.by_ref().take(4).read_to_end(frame)?;
    let Ok(prefix) = <[u8; 4]>::try_from(&frame[..]) else {
        return Ok(if frame.is_empty() { Frame::End } else { Frame::Cut });
    };
    let length = u32::from_be_bytes(prefix) as usize;
    if length > most {
        return Ok(Frame::TooLong);
    }
    frame.clear();
    source.by_ref().take(length as u64).read_to_end(frame)?;
    Ok(if frame.len() < length { Frame::Cut } else { Frame::Here })
}

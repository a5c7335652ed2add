//! Writes a recording: whole frames into a buffer, and the buffer into the file.
//!
//! A file always ends with a whole record as far as this process is concerned: a write that fails in the middle (the disk is
//! full) is taken back, and what it held is counted. What the header says about losses is written in place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::format::{self, Header, Patches};

/// Bytes gathered before they are written: they are still in the processor's nearest cache when the kernel copies them.
const BUFFER: usize = 24 << 10;

/// A recording being written.
#[derive(Debug)]
pub struct TraceWriter {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
    /// Records in the buffer.
    buffered: u64,
    /// Length of the file up to the last whole record.
    whole: u64,
    patches: Option<Patches>,
    written: u64,
    unwritten: u64,
    lost: u64,
    /// The file cannot even be taken back to its last whole record: nothing more is written.
    broken: bool,
}

impl TraceWriter {
    /// Makes the file. With `fresh`, only if it does not exist: for names that others can guess. Otherwise a recording of
    /// that name is kept beside it, as `<name>.previous`: a daemon that is started again after a crash must not overwrite
    /// what led to it.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path, fresh: bool) -> io::Result<TraceWriter> {
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600);
        if fresh {
            options.create_new(true);
        } else {
            if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() > 0) {
                let mut previous = path.as_os_str().to_owned();
                previous.push(".previous");
                fs::rename(path, &previous)?;
                tracing::info!(path = %path.display(), kept = %Path::new(&previous).display(), "there is a trace of that name; it is kept under another");
            }
            options.create(true).truncate(true);
        }
        Ok(TraceWriter {
            file: options.open(path)?,
            path: path.to_owned(),
            buffer: Vec::with_capacity(BUFFER + (BUFFER >> 2)),
            buffered: 0,
            whole: 0,
            patches: None,
            written: 0,
            unwritten: 0,
            lost: 0,
            broken: false,
        })
    }

    /// Writes the header; records follow it. `args` says whose shapes they have.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn begin(&mut self, header: &Header, args: &str) -> io::Result<()> {
        let writer = concat!("lmcached ", env!("CARGO_PKG_VERSION"));
        let (frame, patches) = format::encode_header(header, writer, args);
        self.file.write_all(&frame)?;
        self.whole = frame.len() as u64;
        self.patches = Some(patches);
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Records that are in the file.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Records that could not be written.
    pub fn unwritten(&self) -> u64 {
        self.unwritten
    }

    /// Events lost before they came here.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Appends a record.
    pub fn record(&mut self, t_mono: f64, t_wall: f64, qualname: &str, args: &[u8]) {
        if self.broken || !format::append_record(&mut self.buffer, t_mono, t_wall, qualname, args) {
            self.unwritten += 1;
            return;
        }
        self.buffered += 1;
        if self.buffer.len() >= BUFFER {
            self.flush();
        }
    }

    /// Notes in the header how many events were lost so far.
    pub fn note_lost(&mut self, events: u64) {
        if events != self.lost {
            self.lost = events;
            self.patch();
        }
    }

    /// Writes what was gathered.
    pub fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let records = std::mem::take(&mut self.buffered);
        let result = self.file.write_all(&self.buffer);
        let bytes = self.buffer.len() as u64;
        self.buffer.clear();
        match result {
            Ok(()) => {
                self.whole += bytes;
                self.written += records;
            }
            Err(error) => self.take_back(records, &error),
        }
    }

    fn take_back(&mut self, records: u64, error: &io::Error) {
        let first = self.unwritten == 0;
        self.unwritten += records;
        let restored =
            self.file.set_len(self.whole).and_then(|()| self.file.seek(SeekFrom::Start(self.whole)));
        if restored.is_err() {
            self.broken = true;
        }
        if first || self.broken {
            tracing::error!(
                path = %self.path.display(), %error, records, given_up = self.broken,
                "trace records could not be written; the trace has a gap, which its header counts. Free some space, or record elsewhere with --trace-output"
            );
        }
        self.patch();
    }

    /// Writes the counts into the header. A file that cannot be written to in place (a pipe) stays without.
    fn patch(&self) {
        if let Some(at) = self.patches {
            let _ = self.file.write_all_at(&format::wide(self.lost), at.lost);
            let _ = self.file.write_all_at(&format::wide(self.unwritten), at.unwritten);
        }
    }

    /// Writes what was gathered, and that the recording has its end.
    ///
    /// # Errors
    /// The disk did not take it.
    pub fn close(&mut self) -> io::Result<()> {
        self.flush();
        self.patch();
        if let Some(at) = self.patches {
            sync(&self.file)?;
            // After the records are safe: a file that says it is complete is.
            let _ = self.file.write_all_at(&format::flag(true), at.complete);
        }
        sync(&self.file)
    }
}

fn sync(file: &File) -> io::Result<()> {
    match file.sync_all() {
        // Pipes and the like have nothing to make safe.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other,
    }
}

//! How a worker process is given a request to send, and how it says what it was answered: as files and lines, so that a worker
//! need not be written in Rust. `ipc-tests/gpu/dealer.py` reads and writes the same.

use std::path::Path;

use lmcache_proto::wire::{Request, Response, encode_request};

/// Writes a request's frames, each with its length before it.
///
/// # Panics
/// If the file cannot be written.
pub fn write(path: &Path, request: &Request<'_>) {
    let mut file = Vec::new();
    for frame in encode_request(request) {
        file.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        file.extend_from_slice(&frame);
    }
    std::fs::write(path, file).expect("a file");
}

/// The frames of what [`write`] has written.
///
/// # Panics
/// If a frame is not whole.
pub fn frames(file: &[u8]) -> Vec<&[u8]> {
    let (mut frames, mut rest) = (Vec::new(), file);
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let (frame, tail) = tail.split_at(u32::from_le_bytes(*length) as usize);
        frames.push(frame);
        rest = tail;
    }
    frames
}

/// An answer as a line. What is none of the plain kinds is there as its frame.
pub fn line(answer: &Response) -> String {
    match answer {
        Response::Nothing => "nothing".to_owned(),
        Response::Transfer(event, done) => format!("transfer {done} {}", hex(event)).trim_end().to_owned(),
        Response::Count(count) => format!("count {count}"),
        Response::Flag(flag) => format!("flag {flag}"),
        Response::Text(text) => format!("text {text}"),
        other => format!("frame {}", hex(&other.encode().unwrap_or_default())),
    }
}

/// The event of a line that says that a transfer was done; `None` for any other line.
pub fn done(line: &str) -> Option<Vec<u8>> {
    line.strip_prefix("transfer true").map(|event| unhex(event.trim_start()))
}

/// Bytes as text.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of [`hex`]'s text.
///
/// # Panics
/// If it is none.
pub fn unhex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hex");
    (0..text.len() / 2).map(byte).collect()
}

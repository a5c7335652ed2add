//! Recordings that may hold anything.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;

use super::format::{append_record, decode_record};
use super::{Decoder, Item, Operation, Tail, TraceReader};

/// Where the input is put for the reader; on a file system that is memory.
fn path() -> &'static PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| PathBuf::from(format!("/dev/shm/lmcached_fuzz_{}.lct", std::process::id())))
}

/// A whole file.
pub fn trace_file(data: &[u8]) {
    // One file of one process: inputs are run one after the other.
    File::create(path()).and_then(|mut file| file.write_all(data)).expect("room in /dev/shm");
    let opened = TraceReader::open(path());
    let info = super::info(path());
    // The name goes before anything can fail.
    std::fs::remove_file(path()).expect("written a moment ago");
    let Ok(mut reader) = opened else {
        assert!(info.is_err(), "one reader, two opinions");
        return;
    };
    let info = info.expect("opened a moment ago");
    let _ = info.table();
    let _ = reader.header().clone();
    let (mut decoder, mut items, mut records, mut end) = (Decoder::default(), 0u64, 0u64, 0u64);
    while let Some(item) = reader.next_item().expect("the file can be read") {
        items += 1;
        match item {
            Item::Malformed { at, .. } => {
                assert!(at >= end && at < data.len() as u64);
                end = at;
            }
            Item::Record(record) => {
                records += 1;
                let mut frame = Vec::new();
                if append_record(&mut frame, record.t_mono, record.t_wall, record.qualname, record.args) {
                    let back = decode_record(&frame[4..]).expect("own bytes decode");
                    assert_eq!((back.qualname, back.args), (record.qualname, record.args));
                    assert_eq!(back.t_mono.to_bits(), record.t_mono.to_bits());
                }
                if let Some(operation) = Operation::from_qualname(record.qualname) {
                    let fresh = Decoder::default().decode(operation, record.args);
                    assert_eq!(
                        decoder.decode(operation, record.args),
                        fresh,
                        "names are remembered, calls are not"
                    );
                }
            }
        }
    }
    // Every item has its length in front.
    assert!(records <= items && items <= data.len() as u64 / 4);
    match reader.tail().expect("read to the end") {
        Tail::Whole => {}
        Tail::Truncated { at } | Tail::Damaged { at } => assert!(at >= end && at < data.len() as u64),
    }
    assert!(reader.next_item().expect("nothing is read").is_none());
}

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lmcache_proto::layout::{Dtype, ObjectLayout, Region};
use lmcache_proto::wire::{DecodeError, Writer};
use proptest::prelude::*;

use super::format::{self, append_record, encode_header};
use super::*;
use crate::config::TraceArgs;
use crate::events::{Cell, Keys, TraceCall, TraceRow};

fn vector() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/storage-trace.lct").into()
}

fn layout(planes: u64) -> ObjectLayout {
    let region = Region { planes, layers: 2, slots: 256, width: 64, dtype: Dtype::Float16 };
    ObjectLayout::new(vec![region]).expect("a layout")
}

fn header() -> Header {
    Header {
        format_version: FORMAT_VERSION,
        level: "storage".into(),
        schema_version: SCHEMA_VERSION,
        t_mono_start: 1.5,
        t_wall_start: 1e9,
        config_json: "{}".into(),
        config_digest: digest("{}"),
        meta: Default::default(),
    }
}

/// A file of these bytes.
fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(bytes).expect("written");
    file
}

fn whole(records: usize) -> Vec<u8> {
    let (mut bytes, _) = encode_header(&header(), "test", "0.5.6");
    let args = Writer::new().map(1).str("keys").array(0).take();
    for number in 0..records {
        assert!(append_record(&mut bytes, number as f64, 0.0, &Operation::FinishWrite.qualname(), &args));
    }
    bytes
}

trait Take {
    fn take(&mut self) -> Vec<u8>;
}

impl Take for Writer {
    fn take(&mut self) -> Vec<u8> {
        std::mem::take(self).into_vec()
    }
}

fn error_of(path: &Path) -> ReadError {
    match TraceReader::open(path) {
        Err(error) => error,
        Ok(reader) => panic!("{:?}", reader.header()),
    }
}

#[test]
fn lmcache_s_own_file_is_read_and_every_call_written_as_lmcache_wrote_it() {
    let mut reader = TraceReader::open(&vector()).expect("the vector");
    assert_eq!(reader.header().level, "storage");
    assert_eq!(digest(&reader.header().config_json), reader.header().config_digest);
    let (mut decoder, mut counts) = (Decoder::default(), [0; 6]);
    while let Some(item) = reader.next_item().expect("readable") {
        let Item::Record(record) = item else { panic!("{item:?}") };
        let operation = Operation::from_qualname(record.qualname).expect("known");
        counts[operation as usize] += 1;
        let call = decoder.decode(operation, record.args).expect("decodes");
        // Back through the typed event: byte for byte what LMCache wrote.
        let (again, args) = encode(&event_of(&call), TraceArgs::V056);
        assert_eq!((again, &args[..]), (operation, record.args), "{call:?}");
    }
    assert_eq!(counts, [3, 3, 6, 3, 0, 0]);
    assert_eq!(reader.tail(), Some(Tail::Whole));
}

fn keys_of(keys: &[TraceKey]) -> Keys {
    let cell = |key: &TraceKey| Cell { hash: key.hash, rank: key.rank, group: key.group };
    let first = &keys[0];
    Keys::new(first.model.clone(), first.salt.clone(), keys.iter().map(cell).collect())
}

/// The event that a call comes from.
fn event_of(call: &Call) -> TraceCall {
    match call {
        Call::ReserveWrite { keys, layout } => {
            TraceCall::ReserveWrite { keys: keys_of(keys), layout: layout.clone() }
        }
        Call::FinishWrite { keys } => TraceCall::FinishWrite { keys: keys_of(keys) },
        Call::FinishRead { keys, read_locks } => {
            TraceCall::FinishRead { keys: keys_of(keys), read_locks: *read_locks }
        }
        Call::SubmitPrefetch(prefetch) => {
            let first = &prefetch.rows[0].keys;
            let row = |row: &PrefetchRow| TraceRow {
                rank: row.keys[0].rank,
                group: row.keys[0].group,
                window: row.window,
                layout: row.layout.clone(),
            };
            TraceCall::SubmitPrefetch {
                session: prefetch.request_id.as_str().into(),
                model: first[0].model.clone(),
                salt: first[0].salt.clone(),
                hashes: first.iter().map(|key| key.hash).collect(),
                rows: prefetch.rows.iter().map(row).collect(),
                readers: prefetch.readers,
            }
        }
        Call::EnterRead { .. } | Call::ExitRead { .. } => panic!("never recorded here"),
    }
}

fn calls() -> Vec<TraceCall> {
    let cells: Box<[Cell]> =
        (0..40u8).map(|n| Cell { hash: [n; 32], rank: 0x0201_0201, group: u32::from(n % 2) }).collect();
    let keys = Keys::new("org/model".into(), "tenant".into(), cells);
    let row = |rank, window| TraceRow { rank, group: 1, window, layout: layout(2) };
    vec![
        TraceCall::ReserveWrite { keys: keys.clone(), layout: layout(1) },
        TraceCall::ReserveWrite { keys: keys.slice(0..3), layout: layout(2) },
        TraceCall::FinishWrite { keys: keys.clone() },
        TraceCall::FinishRead { keys: keys.slice(7..9), read_locks: 4 },
        TraceCall::SubmitPrefetch {
            session: "request".into(),
            model: "org/model".into(),
            salt: "tenant".into(),
            hashes: (0..20u8).map(|n| [n; 32]).collect(),
            rows: [row(0x0201_0201, None), row(0x0200_0200, Some(3))].into(),
            readers: 2,
        },
    ]
}

#[test]
fn both_releases_shapes_say_the_same() {
    for call in calls() {
        let mut decoded = Vec::new();
        for release in [TraceArgs::V056, TraceArgs::V045] {
            let (operation, args) = encode(&call, release);
            let names = String::from_utf8_lossy(&args).into_owned();
            assert_eq!(
                names.contains("extra_count"),
                release == TraceArgs::V045 && args_have_locks(operation)
            );
            decoded.push(Decoder::default().decode(operation, &args).expect("decodes"));
        }
        if let Call::SubmitPrefetch(old) = &mut decoded[1] {
            // 0.4.5 has no windows.
            old.rows[1].window = Some(3);
        }
        assert_eq!(decoded[0], decoded[1]);
        assert_eq!(encode(&event_of(&decoded[0]), TraceArgs::V056), encode(&call, TraceArgs::V056));
    }
}

fn args_have_locks(operation: Operation) -> bool {
    matches!(operation, Operation::FinishRead | Operation::SubmitPrefetch)
}

#[test]
fn a_file_cut_anywhere_gives_its_whole_records_and_says_so() {
    let bytes = whole(3);
    let header_end = 4 + u32::from_be_bytes(bytes[..4].try_into().expect("4")) as usize;
    let record = (bytes.len() - header_end) / 3;
    for end in 0..bytes.len() {
        let cut = file(&bytes[..end]);
        if end < header_end {
            assert!(matches!(error_of(cut.path()), ReadError::Truncated { .. }), "{end}");
            continue;
        }
        let found = info(cut.path()).expect("readable");
        let records = (end - header_end) / record;
        assert_eq!(found.records, records as u64, "{end}");
        let at = (header_end + records * record) as u64;
        let tail = if at == end as u64 { Tail::Whole } else { Tail::Truncated { at } };
        assert_eq!(found.tail, tail, "{end}");
        assert!(found.gaps().iter().any(|gap| gap.contains("inside the record")) == (tail != Tail::Whole));
    }
}

#[test]
fn what_is_no_trace_or_of_another_release_is_one_line() {
    for bytes in [
        &b"#!/bin/sh\necho hello, this is a script"[..],
        b"\0\0\0\x02\x90\xc0",
        b"\0\0\0\x01\x80",
        b"\0\0\0\x00",
        &[0xff; 100],
    ] {
        assert!(matches!(error_of(file(bytes).path()), ReadError::NotATrace { .. }), "{bytes:?}");
    }
    assert!(matches!(error_of(Path::new("/nowhere/at.lct")), ReadError::Io { .. }));
    for (format, schema, named) in [(2, 1, "format version 2"), (1, 7, "schema version 7")] {
        let newer = Header { format_version: format, schema_version: schema, ..header() };
        let error = error_of(file(&encode_header(&newer, "test", "x").0).path());
        assert!(matches!(error, ReadError::Version { .. }), "{error}");
        let line = error.to_string();
        assert!(line.contains(named) && line.lines().count() == 1, "{line}");
    }
}

#[test]
fn a_later_format_is_told_even_if_nothing_else_of_it_is_known() {
    let mut head = Writer::new();
    head.map(4).str("type").str("header").str("magic").bin(MAGIC).str("format_version").uint(9);
    head.str("new").array(1).ext(5, b"?");
    let body = head.into_vec();
    let mut bytes = (body.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    assert!(matches!(error_of(file(&bytes).path()), ReadError::Version { found: 9, .. }));
}

#[test]
fn hostile_lengths_and_nesting_cost_nothing() {
    // A frame of 4 GiB, and one of the largest size that is allowed, in a file of some bytes.
    for length in [u32::MAX, format::MAX_FRAME_BYTES as u32] {
        let mut bytes = whole(1);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(b"xx");
        let found = info(file(&bytes).path()).expect("readable");
        assert_eq!(found.records, 1);
        assert_ne!(found.tail, Tail::Whole);
    }
    // Millions of nested lists, and lists longer than the file.
    let deep = vec![0x91; 1_000_000];
    let mut bytes = whole(0);
    for args in [&deep[..], &[0xdd, 0xff, 0xff, 0xff, 0xff], &[0xdf, 0xff, 0xff, 0xff, 0xff], b"\xc1"] {
        assert!(append_record(&mut bytes, 0.0, 0.0, "x", args));
    }
    bytes.extend_from_slice(&whole(1)[whole(0).len()..]);
    let found = info(file(&bytes).path()).expect("readable");
    assert_eq!((found.records, found.malformed), (1, 4));
}

#[test]
fn arguments_that_a_call_cannot_have_are_errors() {
    let decode = |operation, args: &mut Writer| Decoder::default().decode(operation, &args.take());
    let missing = decode(Operation::FinishWrite, Writer::new().map(0));
    assert_eq!(missing, Err(DecodeError::Missing("keys")));
    let mut tag = Writer::new();
    tag.map(1).str("keys").array(1).map(2).str("__t__").str("AttnWindowDesc").str("v").map(0);
    assert!(matches!(decode(Operation::FinishWrite, &mut tag), Err(DecodeError::Invalid(_))));
    // A layout of 2^200 bytes, and one of none.
    for size in [u64::MAX, 0] {
        let mut args = Writer::new();
        args.map(2)
            .str("keys")
            .array(0)
            .str("layout_desc")
            .map(2)
            .str("__t__")
            .str("MemoryLayoutDesc")
            .str("v");
        args.map(2).str("shapes").array(1).array(4);
        for _ in 0..4 {
            args.uint(size);
        }
        args.str("dtypes").array(1).str("torch.float16");
        assert!(decode(Operation::ReserveWrite, &mut args).is_err(), "{size}");
    }
    // Rows of a lookup that are not of the same chunks.
    let TraceCall::SubmitPrefetch { session, model, salt, hashes, rows, readers } = calls().remove(4) else {
        panic!("the lookup")
    };
    let call = TraceCall::SubmitPrefetch { session, model, salt, hashes, rows, readers };
    let (operation, mut args) = encode(&call, TraceArgs::V056);
    let at = args.windows(32).rposition(|window| window == [7; 32]).expect("a hash of the last row");
    args[at] = 99;
    assert!(matches!(Decoder::default().decode(operation, &args), Err(DecodeError::Invalid(_))));
}

#[test]
fn losses_are_in_the_header_and_a_close_says_that_it_is_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("run.lct");
    let mut writer = TraceWriter::create(&path, true).expect("made");
    writer.begin(&header(), "0.5.6").expect("begun");
    writer.record(1.0, 2.0, "call", b"\x80");
    writer.note_lost(1 << 40);
    writer.flush();
    // As a crash would leave it.
    let found = info(&path).expect("readable");
    assert_eq!((found.records, found.closed(), found.lost_events()), (1, Some(false), Some(1 << 40)));
    assert_eq!(found.gaps().len(), 2, "{:?}", found.gaps());
    writer.note_lost(0);
    writer.close().expect("closed");
    let found = info(&path).expect("readable");
    assert_eq!((found.closed(), found.gaps()), (Some(true), Vec::new()));
    assert!(TraceWriter::create(&path, true).is_err(), "a guessable name is never opened twice");
    drop(TraceWriter::create(&path, false).expect("made anew"));
    assert_eq!(info(&dir.path().join("run.lct.previous")).expect("kept").records, 1);
}

#[test]
fn a_full_disk_costs_records_and_never_the_file() {
    // A limit of the file size is the nearest that a test has to a full disk, but a process has one: /dev/full.
    let mut writer = TraceWriter::create(Path::new("/dev/full"), false).expect("opens");
    assert!(writer.begin(&header(), "0.5.6").is_err());
    for _ in 0..10 {
        writer.record(0.0, 0.0, "call", b"\x80");
    }
    writer.flush();
    assert_eq!((writer.written(), writer.unwritten()), (0, 10));
}

fn replayed(path: &Path, options: ReplayOptions) -> Report {
    let mut last = (0, 0);
    let report = replay(path, &options, |done, total| {
        assert!(done <= total && done >= last.0);
        last = (done, total);
    })
    .expect("replays");
    assert_eq!(last.0, last.1);
    report
}

fn fast(l1_bytes: u64) -> ReplayOptions {
    ReplayOptions { speed: Speed::AsFastAsPossible, l1_bytes: Some(l1_bytes), ..ReplayOptions::default() }
}

#[test]
fn lmcache_s_own_file_replays_with_its_hits() {
    let report = replayed(&vector(), fast(16 << 20));
    assert_eq!((report.replayed, report.skipped, report.failed), (15, 0, 0), "{}", report.table());
    let Outcomes {
        lookups,
        requested_keys,
        hit_keys,
        missed_keys,
        reserved,
        written,
        released,
        left_open,
        ..
    } = report.outcomes;
    // Three prompts of four chunks, each looked up cold, stored, and looked up warm.
    assert_eq!((lookups, requested_keys, hit_keys, missed_keys), (6, 24, 12, 12));
    assert_eq!((reserved, written, released, left_open), (12, 12, 12, 0));
    assert_eq!(replayed(&vector(), fast(16 << 20)).outcomes, report.outcomes);
    let json = report.json();
    let op = &json["ops"][Operation::SubmitPrefetch.qualname()];
    assert_eq!((op["count"].as_u64(), op["errors"].as_u64()), (Some(6), Some(0)));
    assert!(op["p99_ms"].as_f64() >= op["p50_ms"].as_f64());
    assert_eq!(report.csv().lines().count(), 5);
    assert!(report.table().contains("submit_prefetch_task"));
}

#[test]
fn a_pool_too_small_evicts_alike_each_time() {
    // Each object has 128 KiB, so the first prompt's are gone when the third is stored.
    let report = replayed(&vector(), fast(1 << 20));
    assert!(report.outcomes.removed > 0 && report.outcomes.refused == 0, "{}", report.table());
    assert_eq!(replayed(&vector(), fast(1 << 20)).outcomes, report.outcomes);
    let tiny = replayed(&vector(), fast(256 << 10));
    assert_eq!((tiny.outcomes.refused, tiny.outcomes.hit_keys), (12, 0), "{}", tiny.table());
}

#[test]
fn l2_serves_what_l1_has_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    let with_l2 = |name: &str| {
        let json = format!(r#"{{"type":"fs","base_path":"{}"}}"#, dir.path().join(name).display());
        let args = ["lmcached", "--l2-adapter", &json].map(std::ffi::OsString::from);
        let config = crate::config::parse(args).expect("flags").config;
        ReplayOptions {
            l1_bytes: Some(1 << 20),
            speed: Speed::AsFastAsPossible,
            ..ReplayOptions::like(&config)
        }
    };
    let path = dir.path().join("twice.lct");
    std::fs::write(&path, twice()).expect("written");
    let report = replayed(&path, with_l2("a"));
    assert!(report.outcomes.l2_hit_keys >= 4, "{}", report.table());
    assert_eq!(report.outcomes.unsettled, 0);
    assert_eq!(replayed(&path, with_l2("b")).outcomes, report.outcomes);
    assert!(replayed(&path, fast(1 << 20)).outcomes.hit_keys < report.outcomes.hit_keys);
}

/// The vector's records twice: the first prompt is looked up again when L1 has lost it.
fn twice() -> Vec<u8> {
    let bytes = std::fs::read(vector()).expect("the vector");
    let header = 4 + u32::from_be_bytes(bytes[..4].try_into().expect("4")) as usize;
    [&bytes[..], &bytes[header..]].concat()
}

#[test]
fn what_nobody_ends_ends_on_the_recording_s_clock() {
    let calls = calls();
    let mut bytes = whole(0);
    let mut put = |at: f64, call: &TraceCall| {
        let (operation, args) = encode(call, TraceArgs::V056);
        assert!(append_record(&mut bytes, at, 0.0, &operation.qualname(), &args));
    };
    put(0.0, &calls[1]);
    // Its writer is gone; the memory comes back when the time is over, and not before.
    put(599.0, &calls[1]);
    put(601.0, &calls[1]);
    put(601.5, &TraceCall::FinishWrite { keys: keys_of_call(&calls[1]) });
    let path = file(&bytes);
    let report = replayed(path.path(), fast(16 << 20));
    let Outcomes { reserved, already_there, expired, written, .. } = report.outcomes;
    assert_eq!((reserved, already_there, expired, written), (6, 3, 3, 3), "{}", report.table());
}

fn keys_of_call(call: &TraceCall) -> Keys {
    match call {
        TraceCall::ReserveWrite { keys, .. } => keys.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn unknown_calls_are_skipped_and_damaged_ones_counted() {
    let mut bytes = whole(1);
    assert!(append_record(&mut bytes, f64::MAX, 0.0, "lmcache.new.Thing\x1b[2J", b"\x80"));
    assert!(append_record(&mut bytes, -1e300, 0.0, &Operation::FinishWrite.qualname(), b"\x80"));
    assert!(append_record(&mut bytes, 1e300, 0.0, &Operation::ExitRead.qualname(), b"\x81\xa4keys\x90"));
    assert!(append_record(&mut bytes, f64::NAN, 0.0, "x", b"\x80"));
    let report = replayed(file(&bytes).path(), ReplayOptions { speed: Speed::Scaled(1e6), ..fast(1 << 20) });
    let counts = (report.replayed, report.skipped, report.failed, report.malformed);
    assert_eq!(counts, (2, 1, 1, 1), "{}", report.table());
    assert!(!report.table().contains('\x1b') && !report.gaps.is_empty());
    assert!(matches!(
        replay(&vector(), &ReplayOptions { speed: Speed::Scaled(0.0), ..fast(1 << 20) }, |_, _| {}),
        Err(ReplayError::Scale(_))
    ));
}

#[test]
fn reads_between_enter_and_exit_hold_their_objects() {
    let calls = calls();
    let keys = keys_of_call(&calls[1]);
    let mut bytes = whole(0);
    let read = |bytes: &mut Vec<u8>, operation: Operation| {
        let (_, args) = encode(&TraceCall::FinishWrite { keys: keys.clone() }, TraceArgs::V056);
        assert!(append_record(bytes, 0.0, 0.0, &operation.qualname(), &args));
    };
    read(&mut bytes, Operation::EnterRead);
    read(&mut bytes, Operation::ExitRead);
    let (_, args) = encode(&calls[1], TraceArgs::V045);
    assert!(append_record(&mut bytes, 0.0, 0.0, &Operation::ReserveWrite.qualname(), &args));
    for operation in [Operation::FinishWrite, Operation::EnterRead, Operation::ExitRead, Operation::ExitRead]
    {
        read(&mut bytes, operation);
    }
    let report = replayed(file(&bytes).path(), fast(16 << 20));
    assert_eq!(
        (report.outcomes.unreadable, report.outcomes.read, report.failed),
        (3, 3, 1),
        "{}",
        report.table()
    );
}

proptest! {
    #[test]
    fn no_file_panics(mut damage in proptest::collection::vec((0usize..12_785, any::<u8>()), 1..40), cut in 0usize..12_785) {
        let mut bytes = std::fs::read(vector()).expect("the vector");
        for (at, value) in damage.drain(..) {
            bytes[at] = value;
        }
        bytes.truncate(12_785 - cut / 4);
        let file = file(&bytes);
        if let Ok(found) = info(file.path()) {
            let _ = (found.table(), found.json());
            if let Ok(report) = replay(file.path(), &fast(1 << 20), |_, _| {}) {
                prop_assert_eq!(report.replayed + report.skipped + report.failed, found.records);
            }
        }
    }
}

#[test]
fn the_recorder_writes_calls_and_counts_what_the_bus_lost() {
    use crate::config::{TraceConfig, TraceLevel};
    use crate::events::{Bus, Event, Subscriber};

    /// Holds the drain thread up until it is told to go on.
    struct Stuck(std::sync::mpsc::Receiver<()>);
    impl Subscriber for Stuck {
        fn name(&self) -> &'static str {
            "stuck"
        }
        fn on_event(&mut self, _event: &crate::events::Stamped) {
            let _ = self.0.recv();
        }
    }

    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("run.lct");
    let config =
        TraceConfig { level: TraceLevel::Storage, output: Some(path.clone()), args: TraceArgs::V056 };
    let (recorder, recording) = Recorder::create(&config).expect("made");
    let (go_on, stuck) = std::sync::mpsc::channel();
    let (bus, drain) = Bus::start(4, vec![Box::new(Stuck(stuck)), Box::new(recorder)]);
    recording.begin(bus.clone(), "{}".into()).expect("begun");
    let publish = || {
        let call = TraceCall::FinishWrite { keys: keys_of_call(&calls()[1]) };
        bus.publish(|| Event::TraceCall { call: Arc::new(call) });
    };
    (0..100).for_each(|_| publish());
    let status = bus.status();
    assert!(status.dropped > 0, "{status:?}");
    drop(go_on);
    drop(drain);
    let found = info(&path).expect("readable");
    assert_eq!((found.records, found.lost_events()), (status.published, Some(status.dropped)));
    assert_eq!((found.closed(), found.gaps().len()), (Some(true), 1));
    assert!(found.table().contains("NOT WHOLE"));
}

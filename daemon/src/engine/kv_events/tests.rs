use std::collections::VecDeque;
use std::sync::Arc;

use proptest::prelude::*;

use super::log::{Kind, Log};
use super::{BATCH_BYTES, KvEvents};

const MODELS: [&str; 3] = ["a", "b", "c"];

/// A record as a test remembers it.
#[derive(Clone, Debug, PartialEq)]
struct Record {
    seq: u64,
    model: &'static str,
    kind: Kind,
    hashes: Vec<[u8; 32]>,
    tokens: Vec<u8>,
}

/// What the log says there is for a model after a cursor: records, cursor, lost.
fn read(log: &Log, model: &'static str, cursor: u64, max: usize, enough: usize) -> (Vec<Record>, u64, bool) {
    let copied = log.read(model, cursor, max, enough);
    let records = copied.records().map(|found| Record {
        seq: found.seq,
        model,
        kind: found.kind,
        hashes: found.hashes.to_vec(),
        tokens: found.tokens.to_vec(),
    });
    (records.collect(), copied.cursor, copied.lost)
}

/// A record whose bytes tell which it is.
fn record(seq: u64, model: usize, hashes: usize, tokens: usize) -> Record {
    let kind = match (hashes, tokens) {
        (_, 0) => Kind::Removed,
        (1, _) => Kind::StoredFirst,
        _ => Kind::Stored,
    };
    let hash = |at: usize| std::array::from_fn(|byte| (seq as usize * 7 + at * 3 + byte) as u8);
    Record {
        seq,
        model: MODELS[model],
        kind,
        hashes: (0..hashes).map(hash).collect(),
        tokens: (0..tokens).map(|at| (seq as usize * 5 + at) as u8).collect(),
    }
}

proptest! {
    /// Whatever is appended: what is held are the newest records, byte for byte, no more than fit, and nothing gives way that
    /// needs not.
    #[test]
    fn the_newest_records_are_held(
        capacity in 1_usize..20,
        size in 64_usize..1500,
        appended in prop::collection::vec((0_usize..3, 1_usize..6, 0_usize..200), 1..80),
        cursor in 0_u64..80,
        max in 1_usize..10,
    ) {
        let mut log = Log::new(capacity, size);
        let mut newest: VecDeque<Record> = VecDeque::new();
        for (seq, (model, hashes, tokens)) in (1..).zip(appended) {
            let record = record(seq, model, hashes, tokens);
            log.append(record.model, record.kind, &record.hashes, &record.tokens);
            newest.push_back(record);
            // The newest that are in the log follow each other up to the last.
            let held = log.depth();
            let bytes = |record: &Record| record.hashes.len() * 32 + record.tokens.len();
            prop_assert!(held <= capacity && log.used() <= size && log.next_seq() == seq + 1);
            while newest.len() > held {
                newest.pop_front();
            }
            prop_assert_eq!(newest.iter().map(bytes).sum::<usize>(), log.used());
            // A record goes for the number, or because its bytes and what a turn of the buffer wastes were needed.
            let largest = 5 * 32 + 200;
            prop_assert!(held == capacity || log.used() + 2 * largest > size || held as u64 == seq);
            let first = newest.front().map_or(seq + 1, |oldest| oldest.seq);
            for model in MODELS {
                let all = newest.iter().filter(|record| record.model == model);
                let (found, next, lost) = read(&log, model, cursor, usize::MAX, usize::MAX);
                prop_assert!(found.iter().eq(all.clone().filter(|record| record.seq > cursor)));
                prop_assert_eq!((next, lost), (seq, cursor + 1 < first || cursor > seq));
                // In pieces it is the same.
                let (mut pieces, mut at) = (vec![], 0);
                loop {
                    let (some, next, _) = read(&log, model, at, max, 300);
                    prop_assert!(some.len() <= max);
                    if some.is_empty() {
                        prop_assert_eq!(next, seq);
                        break;
                    }
                    pieces.extend(some);
                    at = next;
                }
                prop_assert!(pieces.iter().eq(all));
            }
        }
    }
}

#[test]
fn a_record_that_is_larger_than_the_log_is_a_gap() {
    let mut log = Log::new(10, 100);
    log.append("a", Kind::StoredFirst, &[[1; 32]], b"tokens");
    log.append("a", Kind::StoredFirst, &[[2; 32]], &[0; 100]);
    assert_eq!((log.depth(), log.used(), log.next_seq()), (0, 0, 3));
    assert!(log.read("a", 1, 10, 1000).lost);
    log.append("a", Kind::StoredFirst, &[[3; 32]], b"tokens");
    let (found, next, lost) = read(&log, "a", 1, 10, 1000);
    assert_eq!((found.len(), found[0].seq, next, lost), (1, 3, 3, true));
    // Who has seen what there was before has not missed what was not there.
    assert!(!log.read("a", 2, 10, 1000).lost);
}

/// A name is kept while a record has it, once.
#[test]
fn models_go_with_their_last_record() {
    let mut log = Log::new(2, 1000);
    for model in ["a", "a", "b", "b", "c"] {
        log.append(model, Kind::Removed, &[[0; 32]], &[]);
    }
    assert!(log.read("a", 0, 9, 1000).records().next().is_none());
    assert_eq!(
        (log.read("b", 0, 9, 1000).records().count(), log.read("c", 0, 9, 1000).records().count()),
        (1, 1)
    );
    let debug = format!("{:?}", log.models());
    assert!(!debug.contains("\"a\"") && debug.contains("\"b\"") && debug.contains("\"c\""), "{debug}");
}

/// A log that is off takes nothing and says nothing.
#[test]
fn no_records_is_off() {
    let events = KvEvents::new(0, 1 << 20);
    events.removed(&[]);
    let status = events.status();
    assert!(!status.enabled);
    assert_eq!((status.capacity_bytes, status.depth, status.next_seq), (0, 0, 1));
    let batch = events.read("a", 5, 10);
    assert!(!batch.enabled && !batch.lost && batch.events.is_empty() && batch.next_cursor == 0);
}

/// A reader that is far behind gets batches of bounded bytes, one after the other, without waiting.
#[tokio::test]
async fn batches_are_bounded_by_bytes_and_follow_at_once() {
    let events = Arc::new(KvEvents::new(1000, 4 << 20));
    // One byte is one token.
    let tokens = vec![7; 1 << 10];
    events.append(|log| {
        for _ in 0..1000 {
            log.append("a", Kind::StoredFirst, &[[1; 32]], &tokens);
        }
    });
    let mut source = events.subscribe(1, "a", 0, 1024);
    let (mut batches, mut next) = (0, 1);
    while next <= 1000 {
        let batch = source.next().await.expect("the stream is open");
        assert!(!batch.lost && batch.events.len() <= BATCH_BYTES / tokens.len());
        for event in &batch.events {
            assert_eq!((event.seq, event.token_ids.len()), (next, 1 << 10));
            next += 1;
        }
        batches += 1;
    }
    assert_eq!(batches, 1000_usize.div_ceil((BATCH_BYTES).div_ceil(tokens.len() + 32)));
}

//! A lane whose memory holds what nobody of ours wrote there.

use std::sync::atomic::{AtomicU64, Ordering};

use super::super::layout::{Kind, Record};
use super::{Lane, LaneHeader, Published, Reader, Slot, Writer};
use crate::fuzzing::Input;

const SLOTS: usize = 8;

struct Memory {
    header: LaneHeader<AtomicU64>,
    slots: [Slot<AtomicU64>; SLOTS],
}

impl Memory {
    fn lane(&self) -> Lane<'_, AtomicU64> {
        Lane::new(&self.header, &self.slots)
    }

    /// The words that a worker may write: all of them are its to scribble in.
    fn word(&self, at: u8) -> &AtomicU64 {
        let at = usize::from(at) % (5 + 8 * SLOTS);
        match at {
            0 => &self.header.owner.epoch,
            1 => &self.header.owner.instance,
            2 => &self.header.writer.head,
            3 => &self.header.writer.dropped,
            4 => &self.header.reader.tail,
            _ => &self.slots[(at - 5) / 8].words[(at - 5) % 8],
        }
    }
}

fn record(input: &mut Input<'_>) -> Record {
    let kind = Kind::from_raw(input.byte() % 6 + 1).expect("six kinds");
    let (transfer, nanos) = (input.number(8), input.number(8));
    let (bytes, tokens, count) = (input.number(4), input.number(3), input.number(2) as u32);
    Record {
        kind,
        transfer,
        nanos,
        bytes,
        tokens,
        count,
        success: transfer % 2 == 0,
        request: nanos ^ transfer,
    }
}

/// What an honest writer has said since the lane was opened, and what was heard.
#[derive(Default)]
struct Said {
    queued: Vec<Record>,
    full: u64,
    heard: Vec<Record>,
    lost: u64,
    scribbled: bool,
}

impl Said {
    fn drain(&mut self, reader: &mut Reader, memory: &Memory) {
        let before = self.heard.len();
        let heard = &mut self.heard;
        let drained = reader.drain(memory.lane(), |record| heard.push(record));
        assert_eq!(drained.taken, (self.heard.len() - before) as u64);
        assert!(drained.taken <= SLOTS as u64, "more than a lane's worth");
        self.lost = self.lost.saturating_add(drained.lost);
        if !self.scribbled {
            assert_eq!((drained.corrupt, drained.unknown), (0, 0), "an honest writer leaves no damage");
            assert_eq!(self.heard, self.queued, "in order, all of them");
            assert_eq!(self.lost, self.full);
        }
    }
}

/// An honest writer, a scribbler and a reader, in the order that the input says.
pub fn ring_lanes(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = Memory { header: LaneHeader::default(), slots: Default::default() };
    // What an earlier daemon, or nobody, left in the lane. It may be what the next epoch's records look like, so from the
    // first such word on only bounds hold.
    let left = input.byte();
    for at in 0..left {
        memory.word(at).store(input.number(8), Ordering::Relaxed);
    }
    let mut dirty = left > 0;
    let mut epoch = 1;
    let mut reader = memory.lane().open(epoch, 7);
    let mut writer = Writer::attach(memory.lane(), epoch).expect("opened under it");
    let mut old: Option<Writer> = None;
    let mut said = Said { scribbled: dirty, ..Said::default() };
    while !input.is_empty() {
        match input.byte() % 8 {
            0..=2 => {
                let record = record(&mut input);
                match writer.publish(memory.lane(), &record) {
                    Published::Queued => said.queued.push(record),
                    Published::Full => said.full += 1,
                    Published::Stale => assert!(said.scribbled, "nobody took the lane"),
                }
            }
            3 | 4 => said.drain(&mut reader, &memory),
            5 => {
                (said.scribbled, dirty) = (true, true);
                memory.word(input.byte()).store(input.number(8), Ordering::Relaxed);
            }
            6 => {
                memory.lane().close();
                epoch += 1;
                reader = memory.lane().open(epoch, 8);
                let next = Writer::attach(memory.lane(), epoch).expect("opened under it");
                old = Some(std::mem::replace(&mut writer, next));
                said = Said { scribbled: dirty, ..Said::default() };
            }
            _ => {
                if let Some(old) = &mut old {
                    // It goes by the epoch in the lane, which only a scribbler can set back to its own.
                    let published = old.publish(memory.lane(), &record(&mut input));
                    assert!(published == Published::Stale || dirty, "the lane is somebody else's");
                }
            }
        }
    }
    said.drain(&mut reader, &memory);
    said.drain(&mut reader, &memory);
}

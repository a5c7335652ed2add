//! Short pieces → moves between the worker's blocks and a staging buffer, and long copies between that and the pool. Pure.
//!
//! A copy of a few kilobytes costs the driver as much as one of a megabyte. So short pieces are gathered in GPU memory by a kernel
//! (`kernel/move.cu`) and leave it in one copy, or arrive in one and are scattered. The staging buffer has the bytes as the pool
//! has them; what does not fit at once takes its turn.
#![forbid(unsafe_code)]

use super::pieces::{Borders, Piece};
use crate::device::transfer::Direction;

/// Bytes of a staging buffer. Moving that much over the bus takes some hundred microseconds, in which the launches that fill it are
/// over several times, unless the engine's own kernels keep them waiting. What a second buffer would gain has not been measured.
pub(super) const STAGING_BYTES: u64 = 16 << 20;
/// Moves of one launch: `PIECES` in `kernel/move.cu`.
pub(super) const PIECES: usize = 85;
/// The kernel's widest access. Staged bytes lie to it as they do in the pool, so that it can be used.
const WIDEST: u64 = 16;

/// What the kernel is told: `tiles` times `rows` times `bytes`, each at regular steps. `struct piece` in `kernel/move.cu`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Move {
    to: u64,
    from: u64,
    bytes: u32,
    rows: u32,
    tiles: u32,
    to_row: u32,
    from_row: u32,
    to_tile: u32,
    from_tile: u32,
    unused: u32,
}

impl Move {
    /// A piece, whose bytes in the staging buffer begin at `staged`. Its numbers have been looked at ([`fits`]).
    fn new(direction: Direction, piece: &Piece, staged: u64) -> Move {
        let Piece { device, bytes, rows, device_step, host_step, .. } = *piece;
        let (to, from, to_row, from_row) = match direction {
            Direction::Store => (staged, device, host_step, device_step),
            Direction::Retrieve => (device, staged, device_step, host_step),
        };
        // The steps of a single row mean nothing, and need not fit.
        let [bytes, rows, to_row, from_row] = [bytes, rows, to_row, from_row].map(|number| number as u32);
        Move { to, from, bytes, rows, tiles: 1, to_row, from_row, ..Move::default() }
    }

    /// Takes `next` in if it is one more tile of this: the heads of a block, or blocks at regular distances.
    fn extend(&mut self, next: &Move) -> bool {
        let rows =
            |of: &Move| (of.bytes, of.rows, if of.rows > 1 { (of.to_row, of.from_row) } else { (0, 0) });
        let step = |last: u64, next: u64, known: u32| {
            let step = u32::try_from(next.checked_sub(last)? / u64::from(self.tiles)).ok()?;
            let is_regular = last + u64::from(step) * u64::from(self.tiles) == next;
            (is_regular && (self.tiles == 1 || step == known)).then_some(step)
        };
        let steps = (step(self.to, next.to, self.to_tile), step(self.from, next.from, self.from_tile));
        let (true, (Some(to_tile), Some(from_tile))) = (rows(self) == rows(next), steps) else {
            return false;
        };
        (self.to_tile, self.from_tile) = (to_tile, from_tile);
        self.tiles += 1;
        true
    }

    /// All its bytes.
    pub(super) fn total(&self) -> u64 {
        u64::from(self.bytes) * u64::from(self.rows) * u64::from(self.tiles)
    }
}

/// Bytes that lie one behind the other in the pool and in the staging buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Address in the pool.
    pub(super) host: u64,
    /// Address in the staging buffer.
    pub(super) staged: u64,
    pub(super) bytes: u64,
}

/// One filling of the staging buffer.
#[derive(Debug)]
pub(super) struct Round<'p> {
    pub(super) moves: &'p [Move],
    pub(super) stretches: &'p [Stretch],
}

/// What is to be done with short pieces.
#[derive(Debug, Default)]
pub(super) struct Plan {
    moves: Vec<Move>,
    stretches: Vec<Stretch>,
    /// How many moves and stretches there are at the end of each round.
    ends: Vec<(usize, usize)>,
    /// Pieces that cannot be staged.
    pub(super) left: Vec<Piece>,
}

impl Plan {
    /// The fillings, one after the other.
    pub(super) fn rounds(&self) -> impl Iterator<Item = Round<'_>> {
        let begins = std::iter::once((0, 0)).chain(self.ends.iter().copied());
        begins.zip(&self.ends).map(|(begin, end)| Round {
            moves: &self.moves[begin.0..end.0],
            stretches: &self.stretches[begin.1..end.1],
        })
    }

    /// Plans `pieces`, of which no two have a byte of the pool in common, and which it puts in the pool's order. `staging` is the
    /// buffer: its address and size.
    pub(super) fn make(
        &mut self,
        direction: Direction,
        pieces: &mut [Piece],
        borders: Borders,
        (staging, room): (u64, u64),
    ) {
        let Plan { moves, stretches, ends, left } = self;
        moves.clear();
        stretches.clear();
        ends.clear();
        left.clear();
        pieces.sort_unstable_by_key(|piece| piece.host);
        // Of the round that is being planned: bytes of the buffer, and where its moves and stretches begin.
        let (mut used, mut begin) = (0, (0, 0));
        // Rows of one piece may lie between those of others: together they are a group that leaves no gap.
        for group in groups(pieces) {
            let (host, bytes) = (group[0].host, end_of(group) - group[0].host);
            // A gap would be overwritten by a store: it may be another slice's.
            let is_dense = group.iter().map(Piece::total).sum::<u64>() == bytes;
            if !is_dense || bytes + WIDEST > room || !group.iter().all(fits) {
                left.extend_from_slice(group);
                continue;
            }
            let mut at = place(used, host);
            if at + bytes > room {
                begin = (moves.len(), stretches.len());
                ends.push(begin);
                at = place(0, host);
            }
            let follows = |last: &&mut Stretch| {
                last.host + last.bytes == host && borders.part(last.host) == borders.part(host)
            };
            match stretches[begin.1..].last_mut().filter(follows) {
                Some(last) => {
                    at = last.staged + last.bytes - staging;
                    last.bytes += bytes;
                }
                None => stretches.push(Stretch { host, staged: staging + at, bytes }),
            }
            used = at + bytes;
            for piece in group {
                let next = Move::new(direction, piece, staging + at + (piece.host - host));
                if !moves[begin.0..].last_mut().is_some_and(|last| last.extend(&next)) {
                    moves.push(next);
                }
            }
        }
        if begin.1 < stretches.len() {
            ends.push((moves.len(), stretches.len()));
        }
    }
}

/// The next place behind `used` bytes that lies to the widest access as `host` does.
fn place(used: u64, host: u64) -> u64 {
    used + (host.wrapping_sub(used)) % WIDEST
}

/// Whether the kernel's numbers are wide enough.
fn fits(piece: &Piece) -> bool {
    let widest = u64::from(u32::MAX);
    piece.total() <= widest && (piece.rows == 1 || piece.host_step <= widest && piece.device_step <= widest)
}

/// Where a piece ends in the pool.
fn end(piece: &Piece) -> u64 {
    piece.host + (piece.rows - 1) * piece.host_step + piece.bytes
}

fn end_of(group: &[Piece]) -> u64 {
    group.iter().map(end).max().unwrap_or(0)
}

/// Splits pieces in the pool's order where one begins behind the ends of all before it.
fn groups(mut rest: &[Piece]) -> impl Iterator<Item = &[Piece]> {
    std::iter::from_fn(move || {
        let mut until = end(rest.first()?);
        let len = 1 + rest[1..]
            .iter()
            .take_while(|piece| {
                let inside = piece.host < until;
                if inside {
                    until = until.max(end(piece));
                }
                inside
            })
            .count();
        let (group, behind) = rest.split_at(len);
        rest = behind;
        Some(group)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const POOL: u64 = 1 << 30;
    const STAGING: u64 = 1 << 44;
    const GPU: u64 = 1 << 45;

    /// Blocks as a worker has them: rows of `row` bytes for each of `heads`, `slots` times, or one piece if there is one head.
    fn block(host: u64, device: u64, heads: u64, slots: u64, row: u64) -> Vec<Piece> {
        if heads == 1 {
            let bytes = slots * row;
            return vec![Piece { device, host, bytes, rows: 1, device_step: bytes, host_step: bytes }];
        }
        let piece = |head| Piece {
            device: device + head * slots * row,
            host: host + head * row,
            bytes: row,
            rows: slots,
            device_step: row,
            host_step: heads * row,
        };
        (0..heads).map(piece).collect()
    }

    /// The bytes of both sides, in pairs.
    fn pairs(piece: &Piece) -> impl Iterator<Item = (u64, u64)> + use<> {
        let piece = *piece;
        (0..piece.rows).flat_map(move |row| {
            (0..piece.bytes).map(move |byte| {
                (piece.host + row * piece.host_step + byte, piece.device + row * piece.device_step + byte)
            })
        })
    }

    /// What a plan moves through a buffer of `room` bytes: bytes of the pool and of the worker.
    fn moved(plan: &Plan, direction: Direction, borders: Borders, room: u64) -> Vec<(u64, u64)> {
        let mut moved: Vec<(u64, u64)> = plan.left.iter().flat_map(pairs).collect();
        for round in plan.rounds() {
            assert!(!round.moves.is_empty() && !round.stretches.is_empty());
            let mut pool_of = HashMap::new();
            for stretch in round.stretches {
                assert_eq!(borders.part(stretch.host), borders.part(stretch.host + stretch.bytes - 1));
                assert!(stretch.staged >= STAGING && stretch.staged + stretch.bytes <= STAGING + room);
                assert_eq!(stretch.staged % WIDEST, stretch.host % WIDEST);
                for byte in 0..stretch.bytes {
                    assert_eq!(
                        pool_of.insert(stretch.staged + byte, stretch.host + byte),
                        None,
                        "used twice"
                    );
                }
            }
            for to_do in round.moves {
                for (tile, row) in
                    (0..to_do.tiles).flat_map(|tile| (0..to_do.rows).map(move |row| (tile, row)))
                {
                    let at = |start: u64, of_tile: u32, of_row: u32| {
                        start + u64::from(tile) * u64::from(of_tile) + u64::from(row) * u64::from(of_row)
                    };
                    let to = at(to_do.to, to_do.to_tile, to_do.to_row);
                    let from = at(to_do.from, to_do.from_tile, to_do.from_row);
                    moved.extend((0..u64::from(to_do.bytes)).map(|byte| {
                        let (staged, device) = match direction {
                            Direction::Store => (to + byte, from + byte),
                            Direction::Retrieve => (from + byte, to + byte),
                        };
                        // Each staged byte is written once by one side, and read by the other.
                        (pool_of.remove(&staged).expect("staged once"), device)
                    }));
                }
            }
            assert!(pool_of.is_empty(), "bytes that nobody moves");
        }
        moved.sort_unstable();
        moved
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn a_plan_moves_what_its_pieces_do(
            blocks in prop::collection::vec((1u64..4, 1u64..5, 1u64..40, 0u64..3, 0u64..1000, any::<bool>()), 1..20),
            step in 1u64..4,
            room in prop_oneof![32u64..400, Just(4096u64)],
            store in any::<bool>(),
            order in any::<prop::sample::Index>(),
        ) {
            let direction = if store { Direction::Store } else { Direction::Retrieve };
            // No block crosses a border, as `pieces` sees to.
            let borders = Borders { start: POOL, step: step * 4096 };
            let (mut pieces, mut host) = (Vec::new(), POOL);
            for (heads, slots, row, gap, device, whole) in blocks {
                host += gap;
                let bytes = heads * slots * row;
                if borders.part(host) != borders.part(host + bytes - 1) {
                    host = POOL + (borders.part(host) as u64 + 1) * borders.step;
                }
                let mut of_block = block(host, GPU + device * 4096, heads, slots, row);
                // One that the end of a slice cuts through has gaps.
                if !whole {
                    of_block.truncate(1);
                }
                pieces.extend(of_block);
                host += bytes;
            }
            let mut expected: Vec<(u64, u64)> = pieces.iter().flat_map(pairs).collect();
            expected.sort_unstable();
            let len = pieces.len();
            pieces.rotate_left(order.index(len));
            let mut plan = Plan::default();
            plan.make(direction, &mut pieces, borders, (STAGING, room));
            prop_assert_eq!(moved(&plan, direction, borders, room), expected);
        }
    }

    #[test]
    fn neighbours_leave_in_one_copy_and_what_does_not_fit_takes_its_turn() {
        let borders = Borders { start: POOL, step: 1 << 28 };
        let bytes = 32 << 10;
        // 20 MiB in blocks of 32 KiB, and behind a gap one block more.
        let place = |at: u64| POOL + at * bytes + if at == 640 { 4096 } else { 0 };
        let mut pieces: Vec<Piece> = (0..641)
            .flat_map(|at| block(place(at), GPU + (at * 37 % 641) * bytes, 8, 16, bytes / 128))
            .collect();
        let mut plan = Plan::default();
        plan.make(Direction::Store, &mut pieces, borders, (STAGING, STAGING_BYTES));
        let rounds: Vec<(usize, Vec<u64>)> = plan
            .rounds()
            .map(|round| (round.moves.len(), round.stretches.iter().map(|stretch| stretch.bytes).collect()))
            .collect();
        // The heads of a block are one move.
        assert_eq!(rounds, [(512, vec![16 << 20]), (129, vec![4 << 20, bytes])]);
        assert!(plan.left.is_empty());
    }

    #[test]
    fn what_cannot_be_staged_is_left() {
        let borders = Borders { start: POOL, step: 1 << 28 };
        let piece = |bytes, rows, step| {
            let (device_step, host_step) = (step, bytes);
            Piece { device: GPU, host: POOL, bytes, rows, device_step, host_step }
        };
        for piece in [piece(STAGING_BYTES, 1, STAGING_BYTES), piece(4096, 2, 1 << 32)] {
            let mut plan = Plan::default();
            plan.make(Direction::Store, &mut [piece], borders, (STAGING, STAGING_BYTES));
            assert_eq!((plan.rounds().count(), &plan.left[..]), (0, &[piece][..]));
        }
    }
}

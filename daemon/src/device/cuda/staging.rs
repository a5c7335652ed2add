//! Short pieces → moves between the worker's blocks and a staging buffer, and long copies between that and the pool. Pure.
//!
//! A copy of a few kilobytes costs the driver as much as one of a megabyte. So short pieces are gathered in GPU memory by a kernel
//! (`kernel/move.cu`) and leave it in one copy, or arrive in one and are scattered. The staging buffer has the bytes as the pool
//! has them; what does not fit at once takes its turn.
#![forbid(unsafe_code)]

use super::pieces::{Borders, Piece};
use crate::device::transfer::Direction;

/// Bytes of a staging buffer. Moving that much within the GPU takes some ten microseconds, over the bus several hundred: there is
/// little to gain from a second one that is filled meanwhile.
pub(super) const STAGING_BYTES: u64 = 16 << 20;
/// Moves of one launch: `PIECES` in `kernel/move.cu`.
pub(super) const PIECES: usize = 127;
/// The kernel's widest access. Staged bytes lie to it as they do in the pool, so that it can be used.
const WIDEST: u64 = 16;

/// What the kernel is told of one piece: `struct piece` in `kernel/move.cu`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Move {
    pub(super) to: u64,
    pub(super) from: u64,
    pub(super) bytes: u32,
    pub(super) rows: u32,
    pub(super) to_step: u32,
    pub(super) from_step: u32,
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
    /// buffer's address.
    pub(super) fn make(
        &mut self,
        direction: Direction,
        pieces: &mut [Piece],
        borders: Borders,
        staging: u64,
    ) {
        let Plan { moves, stretches, ends, left } = self;
        moves.clear();
        stretches.clear();
        ends.clear();
        left.clear();
        pieces.sort_unstable_by_key(|piece| piece.host);
        let (mut used, mut first) = (0, 0);
        // Rows of one piece may lie between those of others: together they are a group that leaves no gap.
        for group in groups(pieces) {
            let (host, bytes) = (group[0].host, end_of(group) - group[0].host);
            // A gap would be overwritten by a store: it may be another slice's.
            let is_dense = group.iter().map(Piece::total).sum::<u64>() == bytes;
            if !is_dense || bytes > STAGING_BYTES - WIDEST || !group.iter().all(fits) {
                left.extend_from_slice(group);
                continue;
            }
            let mut at = place(used, host);
            if at + bytes > STAGING_BYTES {
                ends.push((moves.len(), stretches.len()));
                first = stretches.len();
                at = place(0, host);
            }
            let follows = |last: &&mut Stretch| {
                last.host + last.bytes == host && borders.part(last.host) == borders.part(host)
            };
            match stretches[first..].last_mut().filter(follows) {
                Some(last) => {
                    at = last.staged + last.bytes - staging;
                    last.bytes += bytes;
                }
                None => stretches.push(Stretch { host, staged: staging + at, bytes }),
            }
            used = at + bytes;
            moves.extend(
                group.iter().map(|piece| to_move(direction, piece, staging + at + (piece.host - host))),
            );
        }
        if first < stretches.len() {
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
    piece.total() <= widest && piece.host_step <= widest && piece.device_step <= widest
}

fn to_move(direction: Direction, piece: &Piece, staged: u64) -> Move {
    let Piece { device, bytes, rows, device_step, host_step, .. } = *piece;
    let (to, from, to_step, from_step) = match direction {
        Direction::Store => (staged, device, host_step, device_step),
        Direction::Retrieve => (device, staged, device_step, host_step),
    };
    // What does not fit has been left out.
    let [bytes, rows, to_step, from_step] = [bytes, rows, to_step, from_step].map(|number| number as u32);
    Move { to, from, bytes, rows, to_step, from_step }
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

    /// What a plan moves: bytes of the pool and of the worker.
    fn moved(plan: &Plan, direction: Direction, borders: Borders) -> Vec<(u64, u64)> {
        let mut moved: Vec<(u64, u64)> = plan.left.iter().flat_map(pairs).collect();
        for round in plan.rounds() {
            assert!(!round.moves.is_empty() && !round.stretches.is_empty());
            let mut pool_of = HashMap::new();
            for stretch in round.stretches {
                assert_eq!(borders.part(stretch.host), borders.part(stretch.host + stretch.bytes - 1));
                assert!(stretch.staged + stretch.bytes <= STAGING + STAGING_BYTES);
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
                for row in 0..u64::from(to_do.rows) {
                    let to = to_do.to + row * u64::from(to_do.to_step);
                    let from = to_do.from + row * u64::from(to_do.from_step);
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
            plan.make(direction, &mut pieces, borders, STAGING);
            prop_assert_eq!(moved(&plan, direction, borders), expected);
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
        plan.make(Direction::Store, &mut pieces, borders, STAGING);
        let rounds: Vec<(usize, Vec<u64>)> = plan
            .rounds()
            .map(|round| (round.moves.len(), round.stretches.iter().map(|stretch| stretch.bytes).collect()))
            .collect();
        assert_eq!(rounds, [(512 * 8, vec![16 << 20]), (129 * 8, vec![4 << 20, bytes])]);
        assert!(plan.left.is_empty());
    }

    #[test]
    fn what_cannot_be_staged_is_left() {
        let borders = Borders { start: POOL, step: 1 << 28 };
        let whole = |bytes, step| Piece {
            device: GPU,
            host: POOL,
            bytes,
            rows: 1,
            device_step: step,
            host_step: bytes,
        };
        for piece in [whole(STAGING_BYTES, 1), whole(4096, 1 << 32)] {
            let mut plan = Plan::default();
            plan.make(Direction::Store, &mut [piece], borders, STAGING);
            assert_eq!((plan.rounds().count(), &plan.left[..]), (0, &[piece][..]));
        }
    }
}

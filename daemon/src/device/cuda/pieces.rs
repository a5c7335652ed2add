//! Runs of a plan → what the driver is asked to copy. Pure.
//!
//! The pool is pinned in parts, and the driver refuses a copy that touches two of them: every piece stays inside one.
#![forbid(unsafe_code)]

use crate::device::plan::CopyRun;

/// Pieces of a run that are shorter are copied as a rectangle: one call for all of them.
const SHORT: u64 = 4096;

/// Where the pool may not be crossed: `start`, and every `step` bytes from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Borders {
    pub(super) start: u64,
    pub(super) step: u64,
}

impl Borders {
    /// Bytes from `at` to the next border.
    fn room(&self, at: u64) -> u64 {
        self.step - (at - self.start) % self.step
    }

    /// The part that `at` is in.
    pub(super) fn part(&self, at: u64) -> usize {
        ((at - self.start) / self.step) as usize
    }
}

/// One copy, `rows` times: at least once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Address on the GPU.
    pub(super) device: u64,
    /// Address in the pool.
    pub(super) host: u64,
    pub(super) bytes: u64,
    pub(super) rows: u64,
    /// From one row to the next; of no meaning with one.
    pub(super) device_step: u64,
    pub(super) host_step: u64,
}

impl Piece {
    /// All its bytes.
    pub(super) fn total(&self) -> u64 {
        self.bytes * self.rows
    }
}

/// Adds the pieces of a run between a tensor that begins at `tensor` and an object that begins at `object`. Both sides of the
/// run have been checked, and no sum below overflows.
pub(super) fn cut(run: &CopyRun, tensor: u64, object: u64, borders: Borders, into: &mut Vec<Piece>) {
    let (device, host) = (tensor + run.tensor_offset, object + run.object_offset);
    if run.count == 1 || run.len >= SHORT {
        for row in 0..run.count {
            let (device, host) = (device + row * run.tensor_step, host + row * run.object_step);
            cut_row(device, host, run.len, borders, into);
        }
        return;
    }
    let mut row = 0;
    while row < run.count {
        let (device, host) = (device + row * run.tensor_step, host + row * run.object_step);
        let room = borders.room(host);
        if room < run.len {
            cut_row(device, host, run.len, borders, into);
            row += 1;
            continue;
        }
        // Rows whose last byte is before the border.
        let fit = (room - run.len).checked_div(run.object_step).map_or(run.count, |steps| steps + 1);
        let rows = fit.min(run.count - row);
        let (device_step, host_step) = (run.tensor_step, run.object_step);
        into.push(Piece { device, host, bytes: run.len, rows, device_step, host_step });
        row += rows;
    }
}

fn cut_row(mut device: u64, mut host: u64, mut len: u64, borders: Borders, into: &mut Vec<Piece>) {
    while len > 0 {
        let bytes = borders.room(host).min(len);
        into.push(Piece { device, host, bytes, rows: 1, device_step: bytes, host_step: bytes });
        device += bytes;
        host += bytes;
        len -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TENSOR: u64 = 1 << 40;
    const POOL: u64 = 1 << 20;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn pieces_move_the_bytes_of_the_run_and_cross_no_border(
            tensor_offset in 0u64..10_000,
            object_offset in 0u64..20_000,
            len in prop_oneof![1u64..40, Just(SHORT), 3000u64..5000],
            count in 1u64..9,
            tensor_gap in 0u64..50,
            object_gap in prop_oneof![Just(0u64), 0u64..3000],
            object in (0u64..40).prop_map(|at| POOL + at * 512),
            step in (1u64..5).prop_map(|pages| pages * 4096),
        ) {
            let run = CopyRun {
                tensor: 0,
                tensor_offset,
                object_offset,
                len,
                count,
                tensor_step: len + tensor_gap,
                object_step: len + object_gap,
            };
            let borders = Borders { start: POOL, step };
            let mut pieces = Vec::new();
            cut(&run, TENSOR, object, borders, &mut pieces);
            let mut moved = Vec::new();
            for piece in &pieces {
                let last = piece.host + (piece.rows - 1) * piece.host_step + piece.bytes - 1;
                prop_assert_eq!(borders.part(piece.host), borders.part(last), "{:?}", piece);
                for row in 0..piece.rows {
                    moved.extend((0..piece.bytes).map(|byte| {
                        (piece.device + row * piece.device_step + byte, piece.host + row * piece.host_step + byte)
                    }));
                }
            }
            let expected: Vec<(u64, u64)> = (0..count)
                .flat_map(|row| {
                    (0..len).map(move |byte| {
                        let device = TENSOR + tensor_offset + row * (len + tensor_gap) + byte;
                        (device, object + object_offset + row * (len + object_gap) + byte)
                    })
                })
                .collect();
            prop_assert_eq!(moved, expected);
            let most = if len < SHORT { 2 * count } else { count * (2 + len / step) };
            prop_assert!(pieces.len() as u64 <= most, "{} pieces", pieces.len());
        }
    }
}

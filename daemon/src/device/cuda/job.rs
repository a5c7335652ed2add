//! A transfer on its way: cut into slices, so that a large one does not keep others from the bus.

use std::time::Duration;

use super::asked::Owner;
use super::events::Form;
use super::pieces::{Borders, Piece, cut};
use crate::device::copy::{CopyError, clear_untouched, inside};
use crate::device::transfer::{Direction, Moved, Part, Transfer};

/// Bytes of a slice. Two are under way at once, so that the bus has always something to do; at 25 GB/s each takes 2.5 ms.
const SLICE_BYTES: u64 = 64 << 20;
/// Pieces of a slice.
const SLICE_PIECES: usize = 16_384;

/// Where a tensor's storage is open here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tensor {
    pub(super) address: u64,
    pub(super) bytes: u64,
}

/// A transfer and how far it is.
pub(super) struct Job {
    transfer: Transfer,
    owner: Owner,
    pub(super) form: Form,
    /// The next run to be copied: of which part, and its number there.
    next: (usize, usize),
    /// Slices that are enqueued and not over.
    pub(super) outstanding: usize,
    pub(super) moved: u64,
    pub(super) time: Duration,
    pub(super) error: Option<CopyError>,
    /// Our event behind its last slice.
    pub(super) event: Vec<u8>,
}

/// A transfer that is over, for whoever tells its owner.
pub(super) struct Finished {
    owner: Owner,
    result: Result<Moved, CopyError>,
}

impl Finished {
    /// Tells it.
    pub(super) fn tell(self) {
        self.owner.tell(self.result);
    }
}

impl Job {
    pub(super) fn new(transfer: Transfer, owner: Owner, form: Form) -> Job {
        let (moved, time) = (0, Duration::ZERO);
        Job {
            transfer,
            owner,
            form,
            next: (0, 0),
            outstanding: 0,
            moved,
            time,
            error: None,
            event: Vec::new(),
        }
    }

    pub(super) fn direction(&self) -> Direction {
        self.transfer.direction
    }

    /// Whether nothing is left to be enqueued.
    pub(super) fn is_enqueued(&self) -> bool {
        self.error.is_some() || self.next.0 >= self.transfer.parts.len()
    }

    /// The pieces of the next slice.
    pub(super) fn slice(
        &mut self,
        tensors: &[Option<Tensor>],
        borders: Borders,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), CopyError> {
        pieces.clear();
        let mut bytes = 0;
        while let Some(part) = self.transfer.parts.get(self.next.0).copied() {
            let plan = self.transfer.plan(&part)?;
            let (object, len) = self.object(&part)?;
            let need = plan.object_bytes();
            if len < need {
                return Err(CopyError::ObjectSize { have: len, need });
            }
            for run in plan.runs().skip(self.next.1) {
                if bytes >= SLICE_BYTES || pieces.len() >= SLICE_PIECES {
                    return Ok(());
                }
                let tensor = tensors.get(run.tensor).copied().flatten();
                let tensor = tensor.ok_or(CopyError::Unmapped(run.tensor))?;
                inside(&run, tensor.bytes, len)?;
                cut(&run, tensor.address, object, borders, pieces);
                bytes += run.len * run.count;
                self.next.1 += 1;
            }
            self.next = (self.next.0 + 1, 0);
        }
        Ok(())
    }

    /// Where the object of a part is; what no copy of a store will write is cleared when it begins.
    fn object(&self, part: &Part) -> Result<(u64, u64), CopyError> {
        if !self.transfer.objects.awaited() {
            return Err(CopyError::GivenUp);
        }
        match self.transfer.direction {
            Direction::Store => {
                let mut object = self.transfer.objects.writable(part.object).ok_or(CopyError::Gone)?;
                if self.next.1 == 0 {
                    clear_untouched(&self.transfer.plan(part)?, &mut object)?;
                }
                Ok(object.place())
            }
            Direction::Retrieve => {
                Ok(self.transfer.objects.readable(part.object).ok_or(CopyError::Gone)?.place())
            }
        }
    }

    /// It is over, well or not, and nothing of it is enqueued any more.
    pub(super) fn finish(self) -> Finished {
        let Job { transfer, owner, moved, time, error, event, .. } = self;
        // Whoever is told finds the objects let go.
        drop(transfer);
        let result = match error {
            Some(error) => Err(error),
            None => Ok(Moved { bytes: moved, device_time: Some(time), event }),
        };
        Finished { owner, result }
    }

    /// It is over, but the device may still touch its objects: they are in the second value.
    pub(super) fn abandon(self, error: CopyError) -> (Finished, Box<dyn Send>) {
        let Job { transfer, owner, .. } = self;
        (Finished { owner, result: Err(error) }, Box::new(transfer))
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "objects whose bytes nobody looks at")]
pub(super) mod tests {
    use std::sync::Arc;

    use lmcache_proto::wire::{LayoutHints, TensorMetadata};

    use super::*;
    use crate::device::copy::{ObjectMut, ObjectRef};
    use crate::device::format::HeadOrder;
    use crate::device::groups::{GeometryInput, KvGeometry};
    use crate::device::transfer::Objects;

    /// Objects of 256 MiB each, of which only the addresses matter.
    struct Nowhere;

    const OBJECT: usize = 256 << 20;

    impl Objects for Nowhere {
        fn writable(&self, _: usize) -> Option<ObjectMut<'_>> {
            None
        }

        fn readable(&self, at: usize) -> Option<ObjectRef<'_>> {
            // SAFETY: never read: slices are only cut.
            Some(unsafe { ObjectRef::new(((1 << 40) + at * OBJECT) as *const u8, OBJECT) })
        }

        fn awaited(&self) -> bool {
            true
        }
    }

    /// One of `parts` chunks of 256 MiB, which nobody copies.
    pub(in super::super) fn transfer(parts: u64) -> Transfer {
        // Chunks of 256 tokens, a layer of 128 KiB a token.
        let shape = vec![64, 16, 1 << 16];
        let metadata = TensorMetadata {
            dtype: "float16".into(),
            stride: vec![16 << 16, 1 << 16, 1],
            shape,
            storage_offset: 0,
            device_uuid: "gpu".into(),
        };
        let tensors = [&metadata; 8];
        let geometry = KvGeometry::build(&GeometryInput {
            tensors: &tensors,
            engine_type: "vllm",
            hints: &LayoutHints::default(),
            default_order: HeadOrder::Nhd,
            engine_groups: &[],
            chunk_tokens: 256,
            separate_object_groups: false,
        });
        let part = |chunk| Part { object: chunk as usize, group: 0, chunk, skip_tokens: 0 };
        Transfer {
            direction: Direction::Retrieve,
            geometry: Arc::new(geometry.expect("a sane engine")),
            block_ids: vec![(0..16 * parts).map(|at| at * 7 % 64).collect()],
            parts: (0..parts).map(part).collect(),
            objects: Arc::new(Nowhere),
            event: Vec::new(),
        }
    }

    fn job(parts: u64) -> Job {
        Job::new(transfer(parts), Owner::new(Box::new(|_| ())), Form::Handle([0; 64]))
    }

    #[test]
    fn a_large_transfer_is_cut_into_slices_that_are_all_of_it() {
        let mut job = job(3);
        let tensors = [Some(Tensor { address: 1 << 44, bytes: 128 << 20 }); 8];
        let borders = Borders { start: 1 << 40, step: 256 << 20 };
        let (mut pieces, mut seen, mut slices) = (Vec::new(), Vec::new(), 0);
        while !job.is_enqueued() {
            job.slice(&tensors, borders, &mut pieces).expect("sane");
            let bytes: u64 = pieces.iter().map(Piece::total).sum();
            assert!(bytes > 0 && bytes <= SLICE_BYTES + (2 << 20), "{bytes}");
            seen.extend(pieces.iter().map(|piece| (piece.host, piece.total())));
            slices += 1;
        }
        assert!(slices >= 12, "{slices} slices");
        // Every byte of the objects once.
        seen.sort_unstable();
        let mut next = 1 << 40;
        for (host, bytes) in seen {
            assert_eq!(host, next);
            next += bytes;
        }
        assert_eq!(next, (1 << 40) + 3 * OBJECT as u64);
    }

    #[test]
    fn a_slice_outside_of_a_tensor_is_refused() {
        let mut pieces = Vec::new();
        let borders = Borders { start: 1 << 40, step: 256 << 20 };
        let short = [Some(Tensor { address: 1 << 44, bytes: 1 << 20 }); 8];
        assert!(matches!(job(1).slice(&short, borders, &mut pieces), Err(CopyError::TensorBounds { .. })));
        assert!(matches!(job(1).slice(&[None; 8], borders, &mut pieces), Err(CopyError::Unmapped(0))));
    }
}

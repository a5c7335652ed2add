//! A transfer on its way: cut into slices, so that a large one does not keep others from the bus.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::events::Form;
use super::pieces::{Borders, Piece, cut};
use crate::device::copy::{CopyError, clear_untouched, inside};
use crate::device::transfer::{Direction, Done, Moved, Part, Transfer};

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
    done: Done,
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
    done: Done,
    result: Result<Moved, CopyError>,
}

impl Finished {
    /// Tells it.
    pub(super) fn tell(self) {
        (self.done)(self.result);
    }
}

impl Job {
    pub(super) fn new(transfer: Transfer, done: Done, form: Form) -> Job {
        let (moved, time) = (0, Duration::ZERO);
        Job {
            transfer,
            done,
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
        let Job { transfer, done, moved, time, error, event, .. } = self;
        // Whoever is told finds the objects let go.
        drop(transfer);
        let result = match error {
            Some(error) => Err(error),
            None => Ok(Moved { bytes: moved, device_time: Some(time), event }),
        };
        Finished { done, result }
    }

    /// It is over, but the device may still touch its objects: they are in the second value.
    pub(super) fn abandon(self, error: CopyError) -> (Finished, Box<dyn Send>) {
        let Job { transfer, done, .. } = self;
        (Finished { done, result: Err(error) }, Box::new(transfer))
    }
}

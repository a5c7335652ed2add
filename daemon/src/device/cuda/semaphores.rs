//! Words of GPU memory that tell isolated workers how far a stream is.
//!
//! The event handles of the driver need a `/dev/shm` that both processes see. Where containers share none, LMCache's workers take
//! a handle of memory, the place of a word in it and a value instead: the event has fired when the word has at least that value.
#![allow(unsafe_code)]

use std::sync::Arc;

use cudarc::driver::sys::CUipcMemHandle;
use parking_lot::Mutex;

use super::context::Context;
use super::descriptor::Handle;
use super::driver::cuda;
use super::error::CudaError;
use super::stream::Stream;

/// As many as the peer's importer accepts.
pub(super) const WORDS: u64 = 4096;
/// Bytes of one.
pub(super) const WORD: u64 = 8;
/// Version of the handle.
const VERSION: u8 = 1;
/// Version, handle, offset, value.
pub(super) const HANDLE_BYTES: usize = 81;

/// One allocation for all workers of a context. Lives as long as the context: workers keep it open.
#[derive(Debug)]
pub(super) struct Semaphores {
    pointer: u64,
    handle: Handle,
    /// Words that nobody has, with their last values: a word's value never falls.
    free: Mutex<Vec<(u64, u64)>>,
}

impl Semaphores {
    /// # Errors
    /// The driver's; nothing stays then but memory that goes with the context.
    pub(super) fn new(context: &Arc<Context>) -> Result<Semaphores, CudaError> {
        let driver = context.driver;
        let bytes = (WORDS * WORD) as usize;
        let mut pointer = 0;
        let mut handle = CUipcMemHandle { reserved: [0; 64] };
        let stream = Stream::new(context)?;
        // SAFETY: pointers to our own, and memory that has just been allocated. It is freed with its context.
        unsafe {
            cuda!(driver, cuMemAlloc_v2(&mut pointer, bytes))?;
            cuda!(driver, cuMemsetD8Async(pointer, 0, bytes, stream.raw()))?;
            stream.synchronize()?;
            cuda!(driver, cuIpcGetMemHandle(&mut handle, pointer))?;
        }
        // The first word is never written: its event has always fired.
        let free = (1..WORDS).rev().map(|word| (word * WORD, 0)).collect();
        Ok(Semaphores { pointer, handle: handle.reserved.map(|byte| byte as u8), free: Mutex::new(free) })
    }

    /// A word for one stream; `None` if all are taken.
    pub(super) fn word(self: &Arc<Semaphores>) -> Option<Word> {
        let (offset, value) = self.free.lock().pop()?;
        Some(Word { semaphores: self.clone(), offset, value })
    }
}

/// A stream's word.
#[derive(Debug)]
pub(super) struct Word {
    semaphores: Arc<Semaphores>,
    offset: u64,
    value: u64,
}

impl Word {
    /// Enqueues the next value, and gives the handle of its event.
    pub(super) fn record(&mut self, stream: &Stream) -> Result<Vec<u8>, CudaError> {
        self.value += 1;
        stream.write_value(self.semaphores.pointer + self.offset, self.value)?;
        Ok(encode(&self.semaphores.handle, self.offset, self.value))
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        self.semaphores.free.lock().push((self.offset, self.value));
    }
}

fn encode(handle: &Handle, offset: u64, value: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HANDLE_BYTES);
    bytes.push(VERSION);
    bytes.extend_from_slice(handle);
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&value.to_be_bytes());
    bytes
}

/// A worker's event in this form: memory, place of the word, value. `None` if it is not of this form.
pub(super) fn decode(bytes: &[u8]) -> Option<(Handle, u64, u64)> {
    let (&VERSION, rest) = bytes.split_first()? else { return None };
    let (handle, rest) = rest.split_first_chunk::<64>()?;
    let (offset, rest) = rest.split_first_chunk::<8>()?;
    let value = u64::from_be_bytes(rest.try_into().ok()?);
    let offset = u64::from_be_bytes(*offset);
    (offset < WORDS * WORD && offset.is_multiple_of(WORD)).then_some((*handle, offset, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_says_what_the_peer_packs() {
        let handle: Handle = std::array::from_fn(|at| at as u8);
        let bytes = encode(&handle, 8, 0x0102);
        assert_eq!(bytes.len(), HANDLE_BYTES);
        assert_eq!(
            (bytes[0], bytes[64], &bytes[65..]),
            (1, 63, &[0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 1, 2][..])
        );
        assert_eq!(decode(&bytes), Some((handle, 8, 0x0102)));
    }

    #[test]
    fn handles_that_point_elsewhere_are_none() {
        let handle = [7; 64];
        assert_eq!(decode(&encode(&handle, WORDS * WORD, 1)), None);
        assert_eq!(decode(&encode(&handle, 4, 1)), None);
        assert_eq!(decode(&encode(&handle, 8, 1)[..80]), None);
        let mut newer = encode(&handle, 8, 1);
        newer[0] = 2;
        assert_eq!(decode(&newer), None);
    }
}

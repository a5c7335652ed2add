//! The worker's events, which a copy waits for, and ours, which it is given.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use super::context::{Context, Mapping};
use super::descriptor::Handle;
use super::error::CudaError;
use super::semaphores::{self, HANDLE_BYTES, Word};
use super::stream::{Event, Stream};
use crate::device::copy::CopyError;

/// Events of ours that a stream has exported. A worker may still be opening the handle of any of the last ones; one that is
/// recorded again fires later, never too early.
const EXPORTED: usize = 64;
/// Allocations with words that a worker may have open here. A worker has one.
const MAX_WORDS: usize = 4;

/// How a worker names events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The driver's own handles of 64 bytes.
    Handle([u8; 64]),
    /// A word of shared GPU memory: handle, offset, value.
    Word(Handle, u64, u64),
}

impl Form {
    pub(super) fn read(bytes: &[u8]) -> Result<Form, CopyError> {
        match bytes.len() {
            64 => bytes.try_into().map(Form::Handle).map_err(|_| CopyError::EventForm(64)),
            HANDLE_BYTES => match semaphores::decode(bytes) {
                Some((handle, offset, value)) => Ok(Form::Word(handle, offset, value)),
                None => Err(CopyError::EventForm(HANDLE_BYTES)),
            },
            other => Err(CopyError::EventForm(other)),
        }
    }
}

/// A worker's event, open here.
#[derive(Debug)]
pub(super) enum Imported {
    /// The driver's.
    Event(Event),
    /// A word, in memory that is open for as long as somebody waits for it.
    Word { memory: Arc<Mapping>, address: u64, value: u64 },
}

/// Memory with a worker's words, which stays open for the next event.
#[derive(Debug, Default)]
pub(super) struct Importer {
    words: VecDeque<(Handle, Arc<Mapping>)>,
}

impl Importer {
    /// Opens an event. `None`: it has fired already.
    pub(super) fn open(&mut self, context: &Arc<Context>, form: Form) -> Result<Option<Imported>, CudaError> {
        match form {
            Form::Handle(handle) => {
                let event = Event::import(context, &handle)?;
                Ok(if event.fired()? { None } else { Some(Imported::Event(event)) })
            }
            // Never recorded.
            Form::Word(_, _, 0) => Ok(None),
            Form::Word(handle, offset, value) => {
                let memory = self.memory(context, &handle)?;
                let address = memory.pointer() + offset;
                Ok(Some(Imported::Word { memory, address, value }))
            }
        }
    }

    fn memory(&mut self, context: &Arc<Context>, handle: &Handle) -> Result<Arc<Mapping>, CudaError> {
        if let Some((_, memory)) = self.words.iter().find(|(known, _)| known == handle) {
            return Ok(memory.clone());
        }
        let memory = Arc::new(context.map(handle)?);
        if memory.bytes()? < semaphores::WORDS * semaphores::WORD {
            return Err(CudaError {
                call: "the size of a worker's semaphores",
                code: super::error::code::INVALID_VALUE,
            });
        }
        if self.words.len() == MAX_WORDS {
            self.words.pop_front();
        }
        self.words.push_back((*handle, memory.clone()));
        Ok(memory)
    }
}

impl Imported {
    /// What follows in the stream waits for it.
    pub(super) fn order(&self, stream: &Stream) -> Result<(), CudaError> {
        match self {
            Imported::Event(event) => stream.wait(event),
            Imported::Word { address, value, .. } => stream.wait_value(*address, *value),
        }
    }

    /// Its memory, where it is, and from which value on it has fired, if it is a word.
    pub(super) fn word(&self) -> Option<(&Arc<Mapping>, u64, u64)> {
        match self {
            Imported::Event(_) => None,
            Imported::Word { memory, address, value } => Some((memory, *address, *value)),
        }
    }
}

/// Events of ours for one stream.
#[derive(Debug, Default)]
pub(super) struct Exporter {
    events: VecDeque<(Event, [u8; 64])>,
    word: Option<Word>,
}

impl Exporter {
    /// Records an event of the form that the worker itself uses, and gives its handle. None at all is an answer too: the worker
    /// is told when all is done.
    pub(super) fn record(&mut self, context: &Arc<Context>, stream: &Stream, form: Form) -> Vec<u8> {
        let recorded = match form {
            Form::Handle(_) => self.event(context, stream),
            Form::Word(..) => self.next_word(context, stream),
        };
        recorded.unwrap_or_else(|error| {
            tracing::debug!(device = context.device.label, %error, "no event is exported");
            Vec::new()
        })
    }

    fn event(&mut self, context: &Arc<Context>, stream: &Stream) -> Result<Vec<u8>, CudaError> {
        let next = if self.events.len() < EXPORTED { None } else { self.events.pop_front() };
        let (event, handle) = match next {
            Some(next) => next,
            None => {
                let event = Event::exported(context)?;
                let handle = event.handle()?;
                (event, handle)
            }
        };
        let recorded = event.record(stream);
        self.events.push_back((event, handle));
        recorded.map(|()| handle.to_vec())
    }

    fn next_word(&mut self, context: &Arc<Context>, stream: &Stream) -> Result<Vec<u8>, CudaError> {
        if self.word.is_none() {
            self.word = context.semaphores()?.word();
        }
        self.word.as_mut().map_or(Ok(Vec::new()), |word| word.record(stream))
    }
}

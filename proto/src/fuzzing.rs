//! Bodies of the fuzz targets for the formats of this crate: one function each, from arbitrary bytes. They panic when a
//! property does not hold. `ipc-tests/fuzz` drives them, and `cargo test` replays the kept corpus through them.
#![forbid(unsafe_code)]

use bytes::BytesMut;

use crate::object_key::ObjectKey;
use crate::wire::limits::{MEMO_MAX_BYTES, NAME_MAX_BYTES};
use crate::wire::{CacheKey, OpCode, Operation, Request, Response, TokenMemo, decode_tokens, encode_request};
use crate::zmtp::{self, Decoder, FrameError, Item};

pub use crate::shm::ring::fuzzing::ring_lanes;

/// Largest message of the `zmtp` target.
const MESSAGE: usize = 4096;

/// Cuts fields off the front of a fuzzer's input. Past its end everything is 0 or empty.
#[derive(Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// From its first byte.
    pub fn new(data: &'a [u8]) -> Input<'a> {
        Input(data)
    }

    /// Up to `len` bytes.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head
    }

    /// A little-endian number of `len` bytes, at most eight.
    pub fn number(&mut self, len: usize) -> u64 {
        self.bytes(len).iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.number(1) as u8
    }

    /// Bytes with their length, of two bytes, in front.
    pub fn block(&mut self) -> &'a [u8] {
        let len = self.number(2) as usize;
        self.bytes(len)
    }

    /// Bytes with their length, of one byte, in front.
    pub fn short(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte());
        self.bytes(len)
    }

    /// What is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Everything in `stream`, given to the decoder in pieces of `piece` bytes; and how it ended.
fn items(stream: &[u8], piece: usize) -> (Vec<Item>, Option<FrameError>, Vec<u8>) {
    let mut decoder = Decoder::new(MESSAGE);
    let mut buf = BytesMut::new();
    let mut found = Vec::new();
    for bytes in stream.chunks(piece.max(1)) {
        buf.extend_from_slice(bytes);
        loop {
            match decoder.next(&mut buf) {
                Ok(Some(item)) => found.push(item),
                Ok(None) => break,
                Err(error) => return (found, Some(error), Vec::new()),
            }
        }
        let heads = 9 * zmtp::MAX_FRAMES;
        assert!(decoder.pending() <= MESSAGE + heads, "a message above the limit is kept");
        assert!(decoder.pending_frames() < zmtp::MAX_FRAMES + 1);
    }
    (found, None, buf.to_vec())
}

/// ZMTP: greeting, READY, commands and messages.
pub fn zmtp(data: &[u8]) {
    let mut input = Input::new(data);
    let piece = usize::from(input.byte());
    let stream = input.rest();
    let whole = items(stream, usize::MAX);
    assert_eq!(items(stream, piece), whole, "what is read depends on how it was cut");
    for item in &whole.0 {
        match item {
            Item::Message(frames) => {
                let frames: Vec<&[u8]> = frames.iter().map(|frame| &frame[..]).collect();
                let mut wire = BytesMut::new();
                zmtp::encode(&mut wire, &frames);
                // A head may be shorter than it came, never longer: what was within the limit still is.
                let again = items(&wire, usize::MAX);
                assert!(again.1.is_none() && again.0 == [item.clone_item()], "{:?}", again.1);
            }
            Item::Command(body) => {
                let mut answer = BytesMut::new();
                zmtp::answer_command(&mut answer, body);
                if !answer.is_empty() {
                    let (answers, error, rest) = items(&answer, usize::MAX);
                    assert!(error.is_none() && rest.is_empty());
                    let [Item::Command(pong)] = &answers[..] else { panic!("a PING has one answer") };
                    assert!(pong.starts_with(b"\x04PONG") && pong.len() <= 5 + 16);
                }
                let _ = zmtp::check_ready(body);
            }
        }
    }
    let _ = zmtp::check_ready(stream);
    if let Some(greeting) = stream.first_chunk() {
        let _ = zmtp::check_greeting(greeting);
    }
}

impl Item {
    fn clone_item(&self) -> Item {
        match self {
            Item::Message(frames) => Item::Message(frames.clone()),
            Item::Command(body) => Item::Command(body.clone()),
        }
    }
}

/// Requests and replies: an operation, then frames.
pub fn requests(data: &[u8]) {
    let mut input = Input::new(data);
    let operations: Vec<Operation> = Operation::all().collect();
    let operation = operations[usize::from(input.byte()) % operations.len()];
    let mut frames = Vec::new();
    while !input.is_empty() && frames.len() < zmtp::MAX_FRAMES {
        frames.push(input.block());
    }
    if let Some(first) = frames.first() {
        let _ = OpCode::decode(first);
        reply(operation, first);
    }
    let mut memo = TokenMemo::default();
    let Ok(request) = Request::decode_with(operation, &frames, &mut memo) else { return };
    assert!(memo.bytes() <= MEMO_MAX_BYTES);
    assert_eq!(request.operation(), operation);
    // The same frames mean the same, whatever was remembered meanwhile.
    let again = Request::decode_with(operation, &frames, &mut memo).expect("decoded a moment ago");
    same(&request, &again);
    let encoded = encode_request(&request);
    match Request::decode(operation, &encoded) {
        Ok(back) => same(&request, &back),
        // What was left out at its default is written: a bound may be reached by that.
        Err(error) => {
            let bytes = |frames: &[&[u8]]| frames.iter().map(|frame| frame.len()).sum::<usize>();
            let ours: Vec<&[u8]> = encoded.iter().map(Vec::as_slice).collect();
            assert!(bytes(&ours) > bytes(&frames), "own bytes are refused: {error}");
        }
    }
}

/// Equal, where a number that is none counts as equal to itself.
fn same(one: &Request<'_>, other: &Request<'_>) {
    match (one, other) {
        (
            Request::WaitPrefetchStatus { request_id: one, timeout: first },
            Request::WaitPrefetchStatus { request_id: other, timeout: second },
        ) => assert!(one == other && first.to_bits() == second.to_bits()),
        _ => assert_eq!(one, other),
    }
}

fn reply(operation: Operation, frame: &[u8]) {
    let Ok(response) = Response::decode(operation, Some(frame)) else { return };
    let encoded = response.encode().expect("only a reply without a frame encodes to none");
    let back = Response::decode(operation, Some(&encoded)).expect("own bytes decode");
    assert_eq!(back, response);
}

/// Cache keys, and the names of objects made of them.
pub fn keys(data: &[u8]) {
    let mut input = Input::new(data);
    let mut memo = TokenMemo::default();
    while !input.is_empty() {
        let frame = input.block();
        let plain = CacheKey::decode(frame);
        assert_eq!(CacheKey::decode_with(frame, &mut memo), plain, "a remembered list changes nothing");
        assert!(memo.bytes() <= MEMO_MAX_BYTES);
        if let Ok(key) = plain {
            one_key(&key);
        } else if let Ok(text) = std::str::from_utf8(frame) {
            names(text);
        }
    }
}

fn one_key(key: &CacheKey<'_>) {
    assert!(key.model_name.len() <= NAME_MAX_BYTES && key.request_id.len() <= NAME_MAX_BYTES);
    assert!(key.worker_id.is_none_or(|rank| rank < key.world_size) && key.world_size <= 255);
    assert_eq!(CacheKey::decode(&key.encode()).as_ref(), Ok(key));
    let tokens = decode_tokens(key.tokens.bytes());
    let mut iter = key.tokens.iter_from(0);
    let read = (0..key.tokens.len()).map_while(|_| iter.token().ok()).collect::<Vec<u32>>();
    assert_eq!(read, tokens, "one token, one element");
    assert!(iter.position() <= key.tokens.bytes().len());
    let _ = key.request_config("lmcache.skip_save");
    let object = ObjectKey {
        chunk_hash: [key.num_kv_readers as u8; 32],
        model_name: key.model_name.into(),
        kv_rank: key.start as u32,
        object_group_id: key.end as u32,
        cache_salt: key.cache_salt.into(),
    };
    if !object.model_name.is_empty() {
        assert!(object.is_valid(), "a key of the wire names an object");
        assert_eq!(ObjectKey::from_native_key(&object.native_key()), Some(object.clone()));
        let file = object.fs_filename();
        assert!(!file.contains(['/', '\0']), "{file:?} is a path");
        // "-SEP-" stands for a slash: "-SEP/x" and "/SEP-x" have one spelling. What comes back has the same.
        let back = ObjectKey::from_fs_filename(&file).expect("a name of ours");
        assert_eq!(back.fs_filename(), file);
        assert_eq!(back == object, back.model_name == object.model_name);
        let path = object.s3_path();
        assert!(path.is_ascii() && path.starts_with('/'));
    }
}

fn names(text: &str) {
    if let Some(key) = ObjectKey::from_native_key(text) {
        assert!(key.is_valid());
        assert_eq!(key.native_key(), text);
    }
    if let Some(key) = ObjectKey::from_fs_filename(text) {
        assert!(key.is_valid() && !key.fs_filename().contains(['/', '\0']));
        assert_eq!(key.fs_filename(), text);
    }
}

//! Single structs as msgspec wrote them (`msgspec-vectors.txt`): each line is decoded and encoded back, or accounted for.

use lmcache_proto::object_key::{ObjectKey, kv_rank};
use lmcache_proto::wire::{Operation, Reader, Request, Response, Writer, encode_request};

const VECTORS: &str = include_str!("vectors/msgspec-vectors.txt");

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect()
}

/// The bytes of the line that starts with `name`.
fn vector(name: &str) -> Vec<u8> {
    let line =
        VECTORS.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
    unhex(line.trim())
}

fn one(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut w = Writer::new();
    write(&mut w);
    w.into_vec()
}

/// A `register_kv_cache` with these two frames.
fn registration(tensors: Vec<u8>, groups: Vec<u8>) -> Vec<Vec<u8>> {
    let str = |text: &str| {
        one(|w| {
            w.str(text);
        })
    };
    vec![vec![7], tensors, str("m"), vec![1], str("vllm"), vec![0x80], groups]
}

fn round_trips(operation: Operation, frames: &[Vec<u8>]) {
    let request = Request::decode(operation, frames).unwrap_or_else(|error| panic!("{operation}: {error}"));
    assert_eq!(encode_request(&request), frames, "{operation}");
}

fn reply_round_trips(operation: Operation, frame: Vec<u8>) {
    let response =
        Response::decode(operation, Some(&frame)).unwrap_or_else(|error| panic!("{operation}: {error}"));
    assert_eq!(response.encode(), Some(frame), "{operation}");
}

#[test]
fn structs_of_requests() {
    let in_list = |value: Vec<u8>| {
        one(|w| {
            w.array(1).raw(&value);
        })
    };
    round_trips(Operation::RegisterKvCache, &registration(vec![0x90], in_list(vector("EngineGroupInfo "))));
    round_trips(
        Operation::ReportBlockAllocation,
        &[vec![7], b"\xa1m".to_vec(), in_list(vector("BlockAllocationRecord "))],
    );
    for body in ["CpuShmIPCData(ext body) ", "RawCuda(ext body) ", "Cuda(ext body) "] {
        let list = one(|w| {
            w.array(1).ext(1, &vector(body));
        });
        round_trips(Operation::RegisterKvCache, &registration(list, vec![0x90]));
    }
    round_trips(Operation::RegisterKvCache, &registration(vector("list[DeviceIPCWrapper] "), vec![0x90]));
    round_trips(Operation::RegisterEngineDriven, &[vector("RegisterPayload ")]);
}

#[test]
fn structs_of_replies() {
    reply_round_trips(Operation::Store, vector("tuple(b'',False) "));
    reply_round_trips(Operation::RegisterEngineDriven, vector("RegisterResp "));
    let batch = vector("KVEventBatch ");
    reply_round_trips(Operation::SubscribeKvEvents, batch.clone());
    // The batch ends with its empty list of events: put the record into it.
    let (empty, head) = batch.split_last().expect("not empty");
    assert_eq!(*empty, 0x90);
    let full = [head, &[0x91], &vector("KVEventRecord ")].concat();
    reply_round_trips(Operation::SubscribeKvEvents, full);
}

#[test]
fn names_of_objects() {
    for line in VECTORS.lines().filter_map(|line| line.strip_prefix("kv_rank ")) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u32>().expect("number");
        assert_eq!(format!("{:#x}", kv_rank(number(0), number(1))), words[4]);
    }
    let line = |name: &str| VECTORS.lines().find_map(|line| line.strip_prefix(name)).expect("line");
    let native = line("native ");
    let hash = native.split('@').nth(3).expect("hash");
    let key = ObjectKey {
        chunk_hash: unhex(hash).try_into().expect("32 bytes"),
        model_name: "meta-llama/Llama-3".into(),
        kv_rank: kv_rank(1, 0),
        object_group_id: 0,
        cache_salt: "alice".into(),
    };
    assert_eq!(key.native_key(), native);
    assert_eq!(key.fs_filename(), line("fs "));
}

#[test]
fn structs_of_features_not_served_are_read_whole() {
    for name in ["ObjectKey ", "MemoryLayoutDesc ", "dict[int,MemoryLayoutDesc] ", "CBMatchResult "] {
        let bytes = vector(name);
        assert_eq!(Reader::new(&bytes).skip(), Ok(&bytes[..]), "{name}");
    }
    for name in ["HEADER ", "RECORD "] {
        let bytes = vector(name);
        let (length, body) = bytes.split_at(4);
        assert_eq!(u32::from_be_bytes(length.try_into().expect("4 bytes")) as usize, body.len(), "{name}");
        assert_eq!(Reader::new(body).skip(), Ok(body), "{name}");
    }
}

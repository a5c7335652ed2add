//! Inputs from which the fuzzers start: what LMCache, vLLM and our own client really send, in the targets' form, and where
//! there is no such thing, noise of the right length.

use lmcache_client::operation_frame;
use lmcache_proto::wire::{KeyBuilder, Operation, Writer};
use lmcache_proto::zmtp;
use serde_json::Value;

const REQUESTS: &str = include_str!("../../../proto/tests/vectors/requests.json");
const RESPONSES: &str = include_str!("../../../proto/tests/vectors/responses.json");
const OBJECT_KEYS: &str = include_str!("../../../proto/tests/vectors/object_keys.json");
const OPENAPI: &str = include_str!("../../../daemon/src/http/openapi.json");
const TRACE: &[u8] = include_bytes!("../../../daemon/tests/vectors/storage-trace.lct");

/// The seeds of a target.
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "zmtp" => streams(),
        "requests" => requests(),
        "keys" => keys(),
        "descriptors" => registrations(),
        "trace_file" => traces(),
        "l2_values" => values(),
        "http" => http(),
        "ring_lanes" => noise(24, 400, &[0, 0, 0, 40]),
        "object_table" => noise(24, 2000, &[0, 8, 8, 4]),
        _ => panic!("no target {target}"),
    }
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

fn parse(text: &str) -> Vec<Value> {
    serde_json::from_str(text).expect("vectors are JSON")
}

/// Operation and payload frames of every recorded request.
fn recorded() -> Vec<(Operation, Vec<Vec<u8>>)> {
    let frames = |case: &Value| -> Vec<Vec<u8>> {
        let frames = case["frames_hex"].as_array().expect("frames").iter();
        frames.skip(2).map(|frame| unhex(frame.as_str().expect("hex"))).collect()
    };
    parse(REQUESTS).iter().map(|case| (operation(case), frames(case))).collect()
}

fn operation(case: &Value) -> Operation {
    let name = case["operation"].as_str().expect("a name");
    Operation::all().find(|operation| operation.name() == name).expect("a known operation")
}

fn number(operation: Operation) -> u8 {
    Operation::all().position(|other| other == operation).expect("one of them") as u8
}

/// With its length of two bytes in front.
fn block(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_le_bytes(), bytes].concat()
}

/// The same numbers every time.
fn noise(count: usize, len: usize, head: &[u8]) -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..count)
        .map(|number| {
            let head = &head[..number % (head.len() + 1)];
            head.iter().copied().chain((0..len * (number + 1) / count).map(|_| next())).collect()
        })
        .collect()
}

fn streams() -> Vec<Vec<u8>> {
    let mut all = vec![
        [&[16][..], &zmtp::greeting(), &zmtp::ready_dealer()].concat(),
        [&[3][..], &zmtp::ready(), b"\x04\x0a\x04PING\x00\x0actx".as_slice()].concat(),
        // A long frame, a giant that is announced only, and frames without end.
        [&[200][..], b"\x02\x00\x00\x00\x00\x00\x00\x01\x00", &[7; 256]].concat(),
        [&[1][..], b"\x02\x40\x00\x00\x00\x00\x00\x00\x00"].concat(),
        [&[9][..], &[1, 0].repeat(40)].concat(),
    ];
    for (number, (operation, payload)) in recorded().into_iter().enumerate() {
        let name = operation_frame(operation);
        let frames: Vec<&[u8]> =
            [&b"\x05"[..], &name].into_iter().chain(payload.iter().map(Vec::as_slice)).collect();
        let mut wire = bytes::BytesMut::new();
        zmtp::encode(&mut wire, &frames);
        all.push([&[number as u8 * 7][..], &wire, &wire].concat());
    }
    all
}

fn requests() -> Vec<Vec<u8>> {
    let request = |(operation, payload): (Operation, Vec<Vec<u8>>)| {
        let blocks: Vec<u8> = payload.iter().flat_map(|frame| block(frame)).collect();
        [&[number(operation)][..], &blocks].concat()
    };
    let mut all: Vec<Vec<u8>> = recorded().into_iter().map(request).collect();
    for case in parse(RESPONSES) {
        if let Some(frame) = case["frame_hex"].as_str() {
            all.push([&[number(operation(&case))][..], &block(&unhex(frame))].concat());
        }
    }
    all.push([&[number(Operation::AttachRing)][..], &block(&[7]), &block(&[0xc0])].concat());
    all
}

fn keys() -> Vec<Vec<u8>> {
    let with_key = recorded().into_iter().filter(|(operation, _)| operation.has_key());
    let mut all: Vec<Vec<u8>> = with_key.map(|(_, payload)| block(&payload[0])).collect();
    // One client's requests of one prompt, as the memory of its last list sees them.
    for tokens in [&[1, 200, 40_000, 70_000, u32::MAX][..], &[1, 2, 3]] {
        let key = KeyBuilder::new("org/model", 2, "r", tokens).salt("tenant").readers(2);
        let of = |rank, start| block(&key.frame(rank, start, tokens.len() as u64));
        all.push([of(None, 0), of(Some(1), 1), of(Some(0), 0)].concat());
    }
    for case in parse(OBJECT_KEYS) {
        let text = |name: &str| block(case[name].as_str().expect("a spelling").as_bytes());
        all.push([text("fs_filename"), text("resp_key")].concat());
    }
    all
}

fn registrations() -> Vec<Vec<u8>> {
    let of_kind = recorded().into_iter().filter(|(operation, _)| *operation == Operation::RegisterKvCache);
    let mut all: Vec<Vec<u8>> = of_kind
        .map(|(_, payload)| {
            let [list, hints, groups] = [1, 5, 6].map(|at| block(&payload[at]));
            [&[0, 8][..], &[3, 0, 0, 0, 0, 0, 0, 0], &list, &hints, &groups].concat()
        })
        .collect();
    let mut no_hints = Writer::new();
    no_hints.map(0);
    let no_hints = block(&no_hints.into_vec());
    // Shapes of vLLM: K and V in front, K and V behind the blocks, MLA; in memory of the worker.
    for (number, shape) in
        [&[2u64, 10, 16, 8, 64][..], &[10, 2, 16, 8, 64], &[10, 16, 576], &[10, 2, 8, 16, 64]]
            .iter()
            .enumerate()
    {
        for layers in [1, 3] {
            let list = block(&tensors(shape, layers));
            let head = [number as u8 & 1, 4 + number as u8, 1, 9, 0, 0, 0, 0, 0, 0];
            all.push([&head[..], &list, &no_hints, &block(&[0x90])].concat());
        }
    }
    all
}

fn tensors(shape: &[u64], layers: usize) -> Vec<u8> {
    let mut list = Writer::new();
    list.array(layers);
    for layer in 0..layers {
        let mut stride = vec![1u64; shape.len()];
        for axis in (0..shape.len() - 1).rev() {
            stride[axis] = stride[axis + 1] * shape[axis + 1];
        }
        let mut w = Writer::new();
        w.map(5).str("type").str("cpu_shm").str("shm_name").str(&format!("/lmcache_kv_{layer}"));
        w.str("nbytes").uint(shape.iter().product::<u64>() * 2).str("version").uint(1);
        w.str("metadata").map(5).str("dtype").str("bfloat16").str("shape").array(shape.len());
        shape.iter().for_each(|dim| {
            w.uint(*dim);
        });
        w.str("stride").array(shape.len());
        stride.iter().for_each(|step| {
            w.uint(*step);
        });
        w.str("storage_offset").uint(0).str("device_uuid").str("cpu");
        list.ext(1, &w.into_vec());
    }
    list.into_vec()
}

/// LMCache's own recording: whole, without its head, and its head with single records.
fn traces() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut rest = TRACE;
    while let Some(head) = rest.first_chunk::<4>() {
        let (frame, after) = rest.split_at(4 + u32::from_be_bytes(*head) as usize);
        frames.push(frame);
        rest = after;
    }
    let mut all = vec![Vec::new(), frames[1..].concat()];
    all.extend(
        frames[1..].iter().map(|record| [frames[0], *record].concat()).filter(|file| file.len() < 8000),
    );
    all.push([frames[0], &frames[1][..20]].concat());
    all.push([frames[0], &[0xff; 8]].concat());
    all
}

fn values() -> Vec<Vec<u8>> {
    let with = |kind: u8, rest: &[u8]| [&[kind][..], rest].concat();
    let mut all: Vec<Vec<u8>> = Vec::new();
    all.extend(noise(6, 200, &[0, 1]).iter().map(|bytes| with(0, bytes)));
    all.extend(noise(12, 900, &[1, 0, 16]).iter().map(|bytes| with(1, bytes)));
    for reply in [
        &b"\x00\x10\x03$3\r\nabc\r\n"[..],
        b"\x00\x10\x03$-1\r\n",
        b"\x01\x10\x03*2\r\n$3\r\nabc\r\n$-1\r\n",
        b"\x01\x10\x03*2\r\n$3\r\nabc\r\n$21\r\nxxh3:0123456789abcdef\r\n",
        b"\x01\x10\x03*2\r\n$-1\r\n$-1\r\n",
        b"\x00\x10\x03-NOAUTH Authentication required.\r\n",
        b"\x00\x10\x03-LOADING Redis is loading\r\n",
        b"\x00\x10\x03$9999999999\r\n",
    ] {
        all.push(with(2, reply));
    }
    for line in
        ["xxh3:0123456789abcdef", "xxh3:0123456789abcdef ino=1 size=2 mtime=3.000000004\n", "crc32c:00"]
    {
        all.push(with(3, line.as_bytes()));
    }
    for adapter in [
        r#"{"type":"fs","base_path":"/x","relative_tmp_dir":"t","num_workers":3,"max_capacity_gb":1.5}"#,
        r#"{"type":"raw_block","device_path":"/x","slot_bytes":8192,"capacity_bytes":1048576}"#,
        r#"{"type":"resp","host":"h","port":6379,"password":"p","cluster_mode":true,"key_prefix":"a:"}"#,
        r#"{"type":"mock","max_size_gb":1,"mock_bandwidth_gb":1,"serde":{"type":"aesgcm","aes_bits":256}}"#,
        r#"{"type":"fault_inject","inner":{"type":"mock","max_size_gb":1,"mock_bandwidth_gb":1}}"#,
        r#"{"type":"fs","base_path":"/x","eviction":{"eviction_policy":"LRU","trigger_watermark":0.5}}"#,
    ] {
        all.push(with(4, adapter.as_bytes()));
    }
    for case in parse(OBJECT_KEYS) {
        for name in ["fs_filename", "resp_key"] {
            all.push(with(5, case[name].as_str().expect("a spelling").as_bytes()));
        }
    }
    all
}

/// A request for every route of the API's document, and some for none.
fn http() -> Vec<Vec<u8>> {
    let document: Value = serde_json::from_str(OPENAPI).expect("JSON");
    let mut all = Vec::new();
    let mut request = |method: &str, path: &str, head: &str, body: &str| {
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let text = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{head}{length}\r\n{body}");
        let number = all.len() as u8;
        all.push([&[number, number.wrapping_mul(31)][..], text.as_bytes()].concat());
    };
    for (path, item) in document["paths"].as_object().expect("paths") {
        for method in item.as_object().expect("operations").keys() {
            let method = method.to_uppercase();
            if method != "POST" || !path.contains("/adapters") {
                request(&method, &path.replace(['{', '}'], ""), "", "");
            }
        }
    }
    let hash = "07".repeat(32);
    let key = format!(
        r#"{{"chunk_hash_hex":"{hash}","model_name":"org/model","kv_rank":0,"cache_salt":"tenant"}}"#
    );
    request("DELETE", "/cache/objects?tier=l1", "", &format!(r#"{{"keys":[{key}]}}"#));
    request("GET", "/cache/objects?tier=l1&page_size=2&model_name=org%2Fmodel", "", "");
    request("POST", "/cache/clear", "", r#"{"tier":"l1","force":true}"#);
    request("POST", "/cache/checksums", "", r#"{"instance_id":1,"block_ids":[0,1],"chunk_size":256}"#);
    let prompt = r#"{"model_name":"org/model","world_size":1,"token_ids":[1,2,3]}"#;
    request("POST", "/cache/prefetches", "", prompt);
    request("PUT", "/quota/tenant", "", r#"{"limit_gb":0.5}"#);
    request("GET", "/loglevel?logger_name=lmcached::l2&level=DEBUG", "", "");
    request("GET", "/", "Accept: text/html\r\nAuthorization: Bearer 0123456789abcdef\r\n", "");
    request("POST", "/cache/clear", "Origin: http://evil\r\nSec-Fetch-Site: cross-site\r\n", "{}");
    request("POST", "/cache/clear", "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n", "");
    request("PATCH", "/nothing/%ff", "Connection: close\r\n", "");
    all.push(b"\x00\x10POST /cache/clear HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n".to_vec());
    all.push(b"\x00\xffGET /status HTTP/1.1\r\nHost: x\r\n\r\nGET /quota HTTP/1.0\r\n\r\n".to_vec());
    all
}

//! Every kind of call that a real vLLM made, from its decoded form (`vllm-op-examples.json`). The examples shorten long
//! lists and give the length of every frame: lists are filled up so that the frame has that length, and what we encode
//! after decoding it must have it too.

use lmcache_proto::wire::{OpCode, Operation, Request, Response, Writer, encode_request};
use serde_json::Value;

/// Encodes an example's value. `extra` bytes are spent on the elements that the example left out.
fn write(w: &mut Writer, value: &Value, extra: &mut usize) {
    match value {
        Value::Null => drop(w.nil()),
        Value::Bool(value) => drop(w.bool(*value)),
        Value::Number(number) => match number.as_u64() {
            Some(number) => drop(w.uint(number)),
            None => drop(w.int(number.as_i64().expect("no floats in the examples"))),
        },
        // The recorded model was a path of 30 bytes; the examples give its last part.
        Value::String(text) if text == "tiny-llama" => drop(w.str(&format!("{text:x>30}"))),
        Value::String(text) => drop(w.str(text)),
        Value::Array(list) => {
            w.array(list.len());
            list.iter().for_each(|element| write(w, element, extra));
        }
        Value::Object(map) => {
            if let Some(decoded) = map.get("_decoded") {
                let mut body = Writer::new();
                write(&mut body, decoded, extra);
                let body = body.into_vec();
                assert_eq!(body.len() as u64, map["_bytes"], "length of an extension");
                w.ext(map["_ext"].as_i64().expect("code") as i8, &body);
            } else if let Some(count) = map.get("_bytes") {
                w.bin(&vec![0; count.as_u64().expect("count") as usize]);
            } else if let Some(count) = map.get("_len") {
                let (head, tail) = (map["_head"].as_array(), map["_tail"].as_array());
                let (head, tail) = (head.expect("head"), tail.expect("tail"));
                let count = count.as_u64().expect("count") as usize;
                w.array(count);
                head.iter().for_each(|element| write(w, element, extra));
                for _ in head.len() + tail.len()..count {
                    // Integers of one, two and three bytes; all of the examples' are below 65536.
                    let more = (*extra).min(2);
                    w.uint([1, 200, 300][more]);
                    *extra -= more;
                }
                tail.iter().for_each(|element| write(w, element, extra));
            } else {
                w.map(map.len());
                for (name, element) in map {
                    write(w, &Value::from(name.as_str()), extra);
                    write(w, element, extra);
                }
            }
        }
    }
}

/// The frame of `value` with exactly `length` bytes.
fn frame(value: &Value, length: usize) -> Vec<u8> {
    let mut shortest = Writer::new();
    write(&mut shortest, value, &mut 0);
    let mut extra =
        length.checked_sub(shortest.into_vec().len()).expect("no frame is longer than the recorded");
    let mut w = Writer::new();
    write(&mut w, value, &mut extra);
    let frame = w.into_vec();
    assert_eq!((frame.len(), extra), (length, 0), "{value}");
    frame
}

fn lengths(value: &Value) -> Vec<usize> {
    value.as_array().expect("lengths").iter().map(|n| n.as_u64().expect("length") as usize).collect()
}

fn examples() -> Vec<(String, Operation, Value)> {
    let all: Value =
        serde_json::from_str(include_str!("vectors/vllm-op-examples.json")).expect("examples parse");
    let examples = all["examples"].as_object().expect("examples");
    let of = |(name, example): (&String, &Value)| {
        let mut op = Writer::new();
        write(&mut op, &example["op_wire"], &mut 0);
        match OpCode::decode(&op.into_vec()) {
            Ok(OpCode::Known(operation)) => (name.clone(), operation, example.clone()),
            other => panic!("{name}: {other:?}"),
        }
    };
    examples.iter().map(of).collect()
}

#[test]
fn every_call_decodes_and_has_its_length() {
    let examples = examples();
    assert_eq!(examples.len(), 28);
    for (name, operation, example) in examples {
        let values = example["request_payload_frames"].as_array().expect("frames");
        let lengths = lengths(&example["request_frame_bytes"]);
        let frames: Vec<Vec<u8>> =
            values.iter().zip(&lengths[2..]).map(|(value, length)| frame(value, *length)).collect();
        let request = Request::decode(operation, &frames).unwrap_or_else(|error| panic!("{name}: {error}"));
        let encoded: Vec<usize> = encode_request(&request).iter().map(Vec::len).collect();
        assert_eq!(encoded, lengths[2..], "{name}");
    }
}

#[test]
fn every_answer_decodes_and_has_its_length() {
    for (name, operation, example) in examples() {
        let value = &example["response"];
        let lengths = lengths(&example["reply_frame_bytes"]);
        assert_eq!(example["reply_frames"], lengths.len(), "{name}");
        if value.get("_no_third_frame").is_some() {
            assert_eq!(lengths.len(), 2, "{name}");
            assert_eq!(Response::decode(operation, None), Ok(Response::Nothing));
            continue;
        }
        if operation == Operation::SubscribeKvEvents {
            // Whole records are left out; `msgspec-vectors.txt` has one.
            continue;
        }
        let frame = frame(value, lengths[2]);
        let response =
            Response::decode(operation, Some(&frame)).unwrap_or_else(|error| panic!("{name}: {error}"));
        if name == "prepare_retrieve (pickle)" {
            // Nothing that can be used without running the peer's code.
            let Response::PrepareRetrieve(answer) = response else { panic!("{name}") };
            assert_eq!(answer.slots, None);
            continue;
        }
        assert_eq!(response.encode().map(|frame| frame.len()), Some(lengths[2]), "{name}");
    }
}

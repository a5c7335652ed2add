//! Each bound of `wire::limits`, at the limit and one above.

use lmcache_proto::wire::limits::*;
use lmcache_proto::wire::{
    BlockAllocationRecord, CacheKey, DecodeError, DeviceDescriptor, EngineGroupInfo, KeyBuilder, LayoutHints,
    Operation, RegisterEngineDrivenPayload, RegisterKvCache, Request, TensorMetadata, TokenMemo, Writer,
    encode_request,
};

fn name(length: usize) -> String {
    "n".repeat(length)
}

fn descriptor(uuid: &str) -> DeviceDescriptor {
    DeviceDescriptor::CpuShm {
        shm_name: "/s".into(),
        nbytes: 16,
        version: 1,
        metadata: TensorMetadata {
            dtype: "float16".into(),
            shape: vec![2, 4],
            stride: vec![4, 1],
            storage_offset: 0,
            device_uuid: uuid.into(),
        },
    }
}

fn registration() -> RegisterKvCache {
    RegisterKvCache {
        instance_id: 7,
        kv_cache: vec![descriptor("cpu")],
        model_name: "m".into(),
        world_size: 1,
        engine_type: "vllm".into(),
        layout_hints: LayoutHints::default(),
        engine_group_infos: vec![group(1)],
    }
}

fn group(layers: usize) -> EngineGroupInfo {
    EngineGroupInfo {
        engine_group_id: 0,
        layer_indices: vec![0; layers],
        tokens_per_block: 0,
        sw_size_tokens: -1,
        extra_object_group_tag: 0,
        recurrent_state: false,
    }
}

fn decode(request: &Request<'_>) -> Result<(), DecodeError> {
    Request::decode(request.operation(), &encode_request(request)).map(drop)
}

fn registers(change: impl FnOnce(&mut RegisterKvCache)) -> Result<(), DecodeError> {
    let mut registration = registration();
    change(&mut registration);
    decode(&Request::RegisterKvCache(Box::new(registration)))
}

fn too_large(result: Result<(), DecodeError>) {
    assert!(matches!(result, Err(DecodeError::Range { .. })), "{result:?}");
}

#[test]
fn names_of_a_registration() {
    for length in [NAME_MAX_BYTES, NAME_MAX_BYTES + 1] {
        let results = [
            registers(|r| r.model_name = name(length)),
            registers(|r| r.engine_type = name(length)),
            registers(|r| r.kv_cache = vec![descriptor(&name(length))]),
            registers(|r| r.layout_hints.kv_layout = Some(name(length))),
            registers(|r| {
                let DeviceDescriptor::CpuShm { shm_name, .. } = &mut r.kv_cache[0] else { unreachable!() };
                *shm_name = name(length);
            }),
        ];
        for result in results {
            if length > NAME_MAX_BYTES { too_large(result) } else { assert_eq!(result, Ok(())) }
        }
    }
}

#[test]
fn names_of_other_requests() {
    let payload = RegisterEngineDrivenPayload {
        instance_id: 7,
        model_name: "m".into(),
        world_size: 1,
        block_size: 16,
        num_layers: 1,
        hidden_dim_size: 1,
        dtype_str: "float16".into(),
        use_mla: false,
        num_physical_slots: None,
    };
    for length in [NAME_MAX_BYTES, NAME_MAX_BYTES + 1] {
        let long = name(length);
        let model = RegisterEngineDrivenPayload { model_name: long.clone(), ..payload.clone() };
        let dtype = RegisterEngineDrivenPayload { dtype_str: long.clone(), ..payload.clone() };
        let record =
            BlockAllocationRecord { req_id: long.clone(), new_block_ids: vec![], new_token_ids: vec![] };
        for request in [
            Request::RegisterEngineDriven(Box::new(model)),
            Request::RegisterEngineDriven(Box::new(dtype)),
            Request::SubscribeKvEvents { instance_id: 7, model_name: &long, cursor: 0, max_events: 1 },
            Request::QueryPrefetchStatus { request_id: &long },
            Request::WaitPrefetchStatus { request_id: &long, timeout: 1.0 },
            Request::EndSession { request_id: &long },
            Request::ReportBlockAllocation { instance_id: 7, model_name: &long, records: vec![] },
            Request::ReportBlockAllocation { instance_id: 7, model_name: "m", records: vec![record] },
        ] {
            let result = decode(&request);
            if length > NAME_MAX_BYTES { too_large(result) } else { assert_eq!(result, Ok(())) }
        }
    }
}

#[test]
fn sizes_of_a_registration() {
    assert_eq!(registers(|r| r.engine_group_infos = vec![group(1); GROUPS_MAX]), Ok(()));
    too_large(registers(|r| r.engine_group_infos = vec![group(1); GROUPS_MAX + 1]));
    assert_eq!(registers(|r| r.engine_group_infos = vec![group(DESCRIPTORS_MAX)]), Ok(()));
    too_large(registers(|r| r.engine_group_infos = vec![group(DESCRIPTORS_MAX), group(1)]));
    assert_eq!(registers(|r| r.kv_cache = vec![descriptor("cpu"); DESCRIPTORS_MAX]), Ok(()));
    too_large(registers(|r| r.kv_cache = vec![descriptor("cpu"); DESCRIPTORS_MAX + 1]));
    let uuid = name(NAME_MAX_BYTES);
    too_large(registers(|r| {
        r.kv_cache = vec![descriptor(&uuid); REGISTRATION_MAX_BYTES / NAME_MAX_BYTES];
    }));
    too_large(registers(|r| {
        let DeviceDescriptor::CpuShm { metadata, .. } = &mut r.kv_cache[0] else { unreachable!() };
        metadata.shape = vec![1; RANK_MAX + 1];
        metadata.stride = vec![1; RANK_MAX + 1];
    }));
}

/// A registration whose only descriptor has `pairs` fields, most of them unknown.
fn with_pairs(pairs: usize) -> Result<(), DecodeError> {
    let mut body = Writer::new();
    body.map(pairs).str("type").str("npu");
    for number in 1..pairs {
        body.str(&format!("field{number}")).uint(0);
    }
    let mut list = Writer::new();
    list.array(1).ext(1, &body.into_vec());
    let mut frames = encode_request(&Request::RegisterKvCache(Box::new(registration())));
    frames[1] = list.into_vec();
    Request::decode(Operation::RegisterKvCache, &frames).map(drop)
}

#[test]
fn fields_of_a_descriptor() {
    assert_eq!(with_pairs(DESCRIPTOR_MAX_PAIRS), Ok(()));
    too_large(with_pairs(DESCRIPTOR_MAX_PAIRS + 1));
}

#[test]
fn size_of_a_block_report() {
    let report = |bytes: usize| {
        let mut w = Writer::new();
        w.array(1).map(3).str("req_id").str("r").str("new_block_ids").array(0).str("new_token_ids");
        let mut frame = w.into_vec();
        let tokens = bytes - frame.len() - 5;
        let mut w = Writer::new();
        w.array(tokens).raw(&vec![1; tokens]);
        frame.extend(w.into_vec());
        assert_eq!(frame.len(), bytes);
        Request::decode(Operation::ReportBlockAllocation, &[vec![7], b"\xa1m".to_vec(), frame]).map(drop)
    };
    assert_eq!(report(BLOCK_REPORT_MAX_BYTES), Ok(()));
    too_large(report(BLOCK_REPORT_MAX_BYTES + 1));
}

#[test]
fn nesting_of_a_struct() {
    let nested = |depth: usize| {
        let mut frame = vec![0x81, 0xa1, b'x'];
        frame.extend(vec![0x91; depth]);
        frame.push(0xc0);
        let mut frames = encode_request(&Request::RegisterKvCache(Box::new(registration())));
        frames[5] = frame;
        Request::decode(Operation::RegisterKvCache, &frames).map(drop)
    };
    assert_eq!(nested(DEPTH_MAX / 2), Ok(()), "unknown fields are ignored");
    assert!(matches!(nested(DEPTH_MAX * 2), Err(DecodeError::Struct(_))));
    assert!(matches!(nested(1_000_000), Err(DecodeError::Struct(_))), "and the stack holds");
}

#[test]
fn names_with_bytes_after_them() {
    for frame in [2, 4] {
        let mut frames = encode_request(&Request::RegisterKvCache(Box::new(registration())));
        frames[frame].push(0xc0);
        assert_eq!(
            Request::decode(Operation::RegisterKvCache, &frames).map(drop),
            Err(DecodeError::Trailing(1)),
            "frame {frame}"
        );
    }
}

#[test]
fn booleans_are_true_or_one() {
    let key = b"\xafrecurrent_state";
    for (value, want) in [(0xc2, Some(false)), (0xc3, Some(true)), (0, Some(false)), (1, Some(true))]
        .into_iter()
        .chain([(2, None), (0xff, None), (0xc0, None), (0xa0, None), (0x90, None)])
    {
        let mut frames = encode_request(&Request::RegisterKvCache(Box::new(registration())));
        let at = frames[6].windows(key.len()).position(|w| w == key).expect("the field") + key.len();
        frames[6][at] = value;
        let got = match Request::decode(Operation::RegisterKvCache, &frames) {
            Ok(Request::RegisterKvCache(payload)) => Some(payload.engine_group_infos[0].recurrent_state),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        };
        assert_eq!(got, want, "0x{value:02x}");
    }
}

#[test]
fn what_is_remembered_of_a_client() {
    let mut memo = TokenMemo::default();
    let mut remember = |tokens: usize| {
        let frame = KeyBuilder::new("m", 1, "r", &vec![1; tokens]).frame(None, 0, 1);
        CacheKey::decode_with(&frame, &mut memo).expect("key");
        memo.bytes()
    };
    assert_eq!(remember(MEMO_MAX_BYTES * 2 / 3), MEMO_MAX_BYTES * 2 / 3);
    assert_eq!(remember(MEMO_MAX_BYTES), MEMO_MAX_BYTES, "no more than it needs");
    assert_eq!(remember(MEMO_MAX_BYTES + 1), MEMO_MAX_BYTES, "the longer list is not kept");
}

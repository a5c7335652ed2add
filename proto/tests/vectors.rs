//! Every request, response, hash and key of the vectors (bytes made by LMCache 0.5.6), both ways.

use lmcache_proto::hash::{Chain, HashAlgorithm, TokenHasher};
use lmcache_proto::object_key::{ObjectKey, kv_rank};
use lmcache_proto::wire::{CacheKey, KeyBuilder, OpCode, Operation, Request, Response, encode_request};
use serde_json::Value;

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect()
}

fn load(text: &str) -> Vec<Value> {
    serde_json::from_str(text).expect("vectors parse")
}

fn operation(name: &str) -> Operation {
    Operation::all().find(|op| op.name() == name).unwrap_or_else(|| panic!("unknown operation {name}"))
}

#[test]
fn requests_round_trip() {
    let cases = load(include_str!("vectors/requests.json"));
    assert_eq!(cases.len(), 25, "the vectors have 25 requests");
    for case in cases {
        let name = case["case"].as_str().expect("case");
        let frames: Vec<Vec<u8>> = case["frames_hex"]
            .as_array()
            .expect("frames")
            .iter()
            .map(|f| unhex(f.as_str().expect("hex")))
            .collect();
        let op = operation(case["operation"].as_str().expect("operation"));
        assert_eq!(OpCode::decode(&frames[1]), Ok(OpCode::Known(op)), "{name}");
        let request = Request::decode(op, &frames[2..]).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(request.operation(), op);
        assert_eq!(encode_request(&request), frames[2..], "{name}");
        // One frame more or less is refused, never misread.
        let mut more = frames[2..].to_vec();
        more.push(vec![0xc0]);
        assert!(Request::decode(op, &more).is_err(), "{name} with a frame too many");
        if frames.len() > 2 {
            assert!(
                Request::decode(op, &frames[2..frames.len() - 1]).is_err(),
                "{name} with a frame too few"
            );
        }
        // Truncation anywhere is an error, never a panic.
        for (i, frame) in frames.iter().enumerate().skip(2) {
            for cut in 0..frame.len() {
                let mut short = frames[2..].to_vec();
                short[i - 2].truncate(cut);
                assert!(Request::decode(op, &short).is_err(), "{name}: frame {i} cut at {cut}");
            }
        }
    }
}

#[test]
fn responses_round_trip() {
    for case in load(include_str!("vectors/responses.json")) {
        let op = operation(case["operation"].as_str().expect("operation"));
        let frame = case["frame_hex"].as_str().map(unhex);
        let response = Response::decode(op, frame.as_deref())
            .unwrap_or_else(|error| panic!("{} {}: {error}", op, case["value_repr"]));
        assert_eq!(response.encode(), frame, "{} {}", op, case["value_repr"]);
    }
}

#[test]
fn token_hashes_agree() {
    let cases = load(include_str!("vectors/token_hashes.json"));
    assert!(!cases.is_empty());
    for case in cases {
        let chunk = case["chunk_size"].as_u64().expect("chunk") as usize;
        let hasher = TokenHasher::new(HashAlgorithm::Blake3, chunk, None);
        let hex = |hash: &[u8]| hash.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(hasher.none_hash()), case["none_hash_hex"].as_str().expect("none"));
        let tokens: Vec<u32> = case["tokens"]
            .as_array()
            .expect("tokens")
            .iter()
            .map(|t| t.as_u64().expect("u64") as u32)
            .collect();
        let frame = KeyBuilder::new("m", 1, "r", &tokens).frame(None, 0, tokens.len() as u64);
        let key = CacheKey::decode(&frame).expect("key");
        let want: Vec<&str> =
            case["hashes_hex"].as_array().expect("hashes").iter().map(|h| h.as_str().expect("str")).collect();
        let mut whole = Chain::default();
        hasher.extend(&mut whole, &key.tokens, usize::MAX).expect("hash");
        assert_eq!(whole.hashes.iter().map(|h| hex(h)).collect::<Vec<_>>(), want, "{}", case["case"]);
        // Step by step gives the same chain as at once.
        let mut stepped = Chain::default();
        for n in 0..=want.len() {
            hasher.extend(&mut stepped, &key.tokens, n).expect("hash");
        }
        assert_eq!(stepped, whole);
    }
}

#[test]
fn other_names_are_no_object_keys() {
    let hash = "0f".repeat(32);
    let name = |text: &str| text.replace("HASH", &hash);
    assert!(ObjectKey::from_fs_filename(&name("m@0x0000002a@2@HASH@alice.data")).is_some());
    for text in [
        "m@0x0000002a@2@HASH@alice.tmp",
        "m@0x0000002a@2@HASH@.data",
        "m@0x0000002a@2@HASH@a@b.data",
        "m@0000002a@2@HASH.data",
        "m@0x2a@2@HASH.data",
        "m@0x0000002a@02@HASH.data",
        "m@0x0000002a@-2@HASH.data",
        "m@0x0000002a@2@deadbeef.data",
        "m@0x0000002a@HASH.data",
        "@0x0000002a@2@HASH.data",
        "just-one-field.data",
        "",
    ] {
        assert_eq!(ObjectKey::from_fs_filename(&name(text)), None, "{text}");
    }
    assert!(ObjectKey::from_native_key(&name("a/b@0000002a@2@HASH")).is_some());
    for text in ["a/b@0x0000002a@2@HASH", "a/b@0000002A@2@HASH"] {
        assert_eq!(ObjectKey::from_native_key(&name(text)), None, "{text}");
    }
}

#[test]
fn object_keys_agree() {
    for case in load(include_str!("vectors/object_keys.json")) {
        let field = |name: &str| case[name].as_str().expect("string").to_owned();
        let number = |name: &str| case[name].as_u64().expect("number") as u32;
        let key = ObjectKey {
            chunk_hash: unhex(&field("chunk_hash_hex")).try_into().expect("32 bytes"),
            model_name: field("model_name"),
            kv_rank: kv_rank(number("world_size"), number("worker_id")),
            object_group_id: number("object_group_id"),
            cache_salt: field("cache_salt"),
        };
        assert_eq!(key.kv_rank, number("kv_rank"));
        assert_eq!(key.fs_filename(), field("fs_filename"));
        assert_eq!(key.native_key(), field("resp_key"));
        assert_eq!(key.native_key(), field("s3_key"));
        assert_eq!(key.s3_path(), field("s3_safe_path"));
        assert_eq!(ObjectKey::from_fs_filename(&field("fs_filename")).as_ref(), Some(&key));
        assert_eq!(ObjectKey::from_native_key(&field("resp_key")).as_ref(), Some(&key));
    }
}

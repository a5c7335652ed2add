#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lmcache_proto::fuzzing::requests(data));

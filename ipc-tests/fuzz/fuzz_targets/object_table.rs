#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lmcached::fuzzing::object_table(data));

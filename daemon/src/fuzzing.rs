//! Bodies of the fuzz targets for what only the daemon reads: one function each, from arbitrary bytes. They panic when a
//! property does not hold. `ipc-tests/fuzz` drives them, and `cargo test` replays the kept corpus through them.
#![forbid(unsafe_code)]

pub use crate::device::fuzzing::descriptors;
pub use crate::http::fuzzing::http;
pub use crate::l2::fuzzing::l2_values;
pub use crate::trace::fuzzing::trace_file;

/// What an earlier daemon left for the next one: the object table and, behind a first byte of 255, the roster of workers.
pub fn object_table(data: &[u8]) {
    match data {
        [0xff, body @ ..] => crate::roster::fuzz_record(body),
        _ => crate::l1::fuzzing::object_table(data),
    }
}

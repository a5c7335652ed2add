//! Formats shared by the daemon and its clients. No I/O lives here: only bytes in, values out, and back.
//!
//! * [`wire`]: the requests and replies of LMCache 0.5.6, as msgpack frames.
//! * [`hash`]: how tokens become chunk hashes.
//! * [`object_key`]: how a chunk hash becomes the name of a stored object, in L1 and in each L2.
//! * [`layout`]: what the bytes of a stored object mean (planes, layers, slots, width, element type).
//! * [`shm`]: `#[repr(C)]` layouts of the segments that processes share.
//! * [`zmtp`]: framing of ZeroMQ's TCP and Unix transports.
//! * [`transfer_id`]: the number that names one transfer.
//!
//! The feature `fuzzing` adds the bodies of the fuzz targets.
#![deny(unsafe_code)]

pub mod fnv;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod hash;
pub mod layout;
pub mod object_key;
pub mod shm;
pub mod transfer_id;
pub mod wire;
pub mod zmtp;

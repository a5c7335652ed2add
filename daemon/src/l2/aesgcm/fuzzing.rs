//! Values that the store returns.

use lmcache_proto::fuzzing::Input;

use super::super::error::LoadError;
use super::super::fuzzing::key;
use super::super::memory::SourceBuf;
use super::{IV, Keys, OVERHEAD, TAG, VERSION};

/// Opens the input as a value, and again with a tag that is right.
pub(in crate::l2) fn value(input: &mut Input<'_>) {
    let salt = input.byte();
    let key = key(salt);
    let keys = Keys {
        master: b"a master key of the fuzzer"[..].into(),
        bits: if salt & 2 == 0 { 128 } else { 256 },
    };
    let frame = input.rest();
    let mut opened = frame.to_vec();
    match keys.open(&key, &mut opened) {
        // Nobody finds a tag by trying.
        Ok(_) => panic!("a value was opened that nobody has sealed"),
        Err(LoadError::Damaged(_)) => {}
        Err(other) => panic!("{other}"),
    }
    let mut sealed = keys.seal(&key, &SourceBuf::copy_of(frame));
    assert_eq!(sealed.len(), frame.len() + OVERHEAD);
    assert_eq!(keys.open(&key, &mut sealed.clone()), Ok(frame));
    // One byte changed, wherever, and it is damage.
    let at = usize::from(salt) * 257 % sealed.len();
    sealed[at] ^= 1;
    assert!(keys.open(&key, &mut sealed).is_err());
    assert_eq!(OVERHEAD, size_of_val(&VERSION) + IV + TAG);
}

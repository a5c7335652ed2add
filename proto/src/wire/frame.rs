//! Frames that are one plain value.

use super::limits::{BLOCK_IDS_MAX, GROUPS_MAX, NAME_MAX_BYTES};
use super::reader::{DecodeError, Reader};

/// The payload as exactly `N` frames.
pub(super) fn exactly<const N: usize, T: AsRef<[u8]>>(payload: &[T]) -> Result<[&[u8]; N], DecodeError> {
    if payload.len() != N {
        return Err(DecodeError::Arity { want: N, got: payload.len() });
    }
    Ok(std::array::from_fn(|i| payload[i].as_ref()))
}

/// One value and nothing after it.
fn whole<'a, T>(
    frame: &'a [u8],
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    let mut reader = Reader::new(frame);
    let value = read(&mut reader)?;
    reader.finish()?;
    Ok(value)
}

pub(super) fn u64(frame: &[u8]) -> Result<u64, DecodeError> {
    whole(frame, Reader::u64)
}

pub(super) fn u32(frame: &[u8], what: &'static str) -> Result<u32, DecodeError> {
    whole(frame, |reader| reader.u32(what))
}

pub(super) fn i64(frame: &[u8]) -> Result<i64, DecodeError> {
    whole(frame, |reader| i64::try_from(reader.i128()?).map_err(|_| DecodeError::Range { what: "integer" }))
}

pub(super) fn f64(frame: &[u8]) -> Result<f64, DecodeError> {
    whole(frame, Reader::f64)
}

pub(super) fn bool(frame: &[u8]) -> Result<bool, DecodeError> {
    whole(frame, Reader::bool)
}

pub(super) fn bin(frame: &[u8]) -> Result<&[u8], DecodeError> {
    whole(frame, Reader::bin)
}

/// A string of at most [`NAME_MAX_BYTES`]; `what` names it in the error.
pub(super) fn name<'a>(frame: &'a [u8], what: &'static str) -> Result<&'a str, DecodeError> {
    whole(frame, |reader| reader.name(what))
}

/// One list of block ids per KV group.
pub(super) fn block_ids(frame: &[u8]) -> Result<Vec<Vec<u64>>, DecodeError> {
    whole(frame, |reader| {
        let groups = reader.array()?;
        if groups > GROUPS_MAX {
            return Err(DecodeError::Range { what: "number of block lists" });
        }
        let mut left = BLOCK_IDS_MAX;
        let mut lists = Vec::with_capacity(groups);
        for _ in 0..groups {
            let count = reader.array()?;
            left = left.checked_sub(count).ok_or(DecodeError::Range { what: "number of block ids" })?;
            let mut list = Vec::with_capacity(count);
            for _ in 0..count {
                list.push(reader.u64()?);
            }
            lists.push(list);
        }
        Ok(lists)
    })
}

/// Errors if a decoded name is longer than [`NAME_MAX_BYTES`].
pub(super) fn check_name(name: &str, what: &'static str) -> Result<(), DecodeError> {
    if name.len() > NAME_MAX_BYTES { Err(DecodeError::Range { what }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::writer::Writer;

    fn lists(counts: &[usize]) -> Vec<u8> {
        let mut w = Writer::new();
        w.array(counts.len());
        for count in counts {
            w.array(*count).raw(&vec![0; *count]);
        }
        w.into_vec()
    }

    #[test]
    fn block_ids_are_bounded_in_total() {
        let got = block_ids(&lists(&[BLOCK_IDS_MAX / 2, BLOCK_IDS_MAX / 2])).expect("at the limit");
        assert_eq!(got.iter().map(Vec::len).sum::<usize>(), BLOCK_IDS_MAX);
        assert_eq!(
            block_ids(&lists(&[BLOCK_IDS_MAX / 2, BLOCK_IDS_MAX / 2, 1])),
            Err(DecodeError::Range { what: "number of block ids" })
        );
        assert!(block_ids(&lists(&[1; GROUPS_MAX])).is_ok());
        assert!(block_ids(&lists(&[1; GROUPS_MAX + 1])).is_err());
    }

    #[test]
    fn names_are_bounded_and_whole() {
        let frame = |len: usize| {
            let mut w = Writer::new();
            w.str(&"x".repeat(len));
            w.into_vec()
        };
        assert_eq!(name(&frame(NAME_MAX_BYTES), "n").map(str::len), Ok(NAME_MAX_BYTES));
        assert_eq!(name(&frame(NAME_MAX_BYTES + 1), "n"), Err(DecodeError::Range { what: "n" }));
        let mut trailing = frame(3);
        trailing.push(0xc0);
        assert_eq!(name(&trailing, "n"), Err(DecodeError::Trailing(1)));
    }
}

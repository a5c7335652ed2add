//! A bounded, zero-copy msgpack reader: it never allocates from a length the peer announced, and never recurses.

use thiserror::Error;

use super::limits::NAME_MAX_BYTES;

/// A nil value.
pub(super) const NIL: u8 = 0xc0;

/// Why a frame could not be decoded. The text ends in a log line next to the peer's address.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The frame ends in the middle of a value.
    #[error("frame ends in the middle of a value")]
    Truncated,
    /// Bytes are left after the value.
    #[error("{0} bytes after the value")]
    Trailing(usize),
    /// Another type than the protocol has here.
    #[error("expected {expected}, found marker 0x{marker:02x}")]
    Type {
        /// What the protocol has at this place.
        expected: &'static str,
        /// First byte of what was found.
        marker: u8,
    },
    /// A number outside its range.
    #[error("{what} is out of range")]
    Range {
        /// Which field.
        what: &'static str,
    },
    /// A field without a default is missing.
    #[error("field {0} is missing")]
    Missing(&'static str),
    /// A value that the protocol forbids.
    #[error("{0}")]
    Invalid(&'static str),
    /// Wrong number of payload frames for the operation.
    #[error("{got} payload frames where the operation takes {want}")]
    Arity {
        /// Frames the operation takes.
        want: usize,
        /// Frames that came.
        got: usize,
    },
    /// A cold-path struct that serde refused.
    #[error("{0}")]
    Struct(String),
}

/// Cursor over one msgpack frame.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    buf: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `buf`.
    pub fn new(buf: &'a [u8]) -> Reader<'a> {
        Reader { buf }
    }

    /// The bytes not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.buf
    }

    /// Errors unless everything has been read.
    pub fn finish(&self) -> Result<(), DecodeError> {
        if self.buf.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.buf.len())) }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        if self.buf.len() < n {
            return Err(DecodeError::Truncated);
        }
        let (head, tail) = self.buf.split_at(n);
        self.buf = tail;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }

    /// Big-endian unsigned of `n` ≤ 8 bytes.
    fn be(&mut self, n: usize) -> Result<u64, DecodeError> {
        Ok(self.take(n)?.iter().fold(0, |acc, b| (acc << 8) | u64::from(*b)))
    }

    fn length(&mut self, n: usize) -> Result<usize, DecodeError> {
        usize::try_from(self.be(n)?).map_err(|_| DecodeError::Truncated)
    }

    /// First byte of the next value.
    pub fn peek(&self) -> Result<u8, DecodeError> {
        self.buf.first().copied().ok_or(DecodeError::Truncated)
    }

    /// Whether the next value is a string.
    pub fn peek_is_str(&self) -> bool {
        matches!(self.buf.first(), Some(0xa0..=0xbf | 0xd9..=0xdb))
    }

    /// Reads nil if it is next.
    pub fn nil(&mut self) -> bool {
        if self.buf.first() == Some(&NIL) {
            self.buf = &self.buf[1..];
            true
        } else {
            false
        }
    }

    /// An integer of any width; `true` counts as 1 and `false` as 0.
    pub fn i128(&mut self) -> Result<i128, DecodeError> {
        let marker = self.byte()?;
        Ok(match marker {
            0x00..=0x7f => i128::from(marker),
            0xe0..=0xff => i128::from(marker as i8),
            0xc2 => 0,
            0xc3 => 1,
            0xcc => i128::from(self.be(1)?),
            0xcd => i128::from(self.be(2)?),
            0xce => i128::from(self.be(4)?),
            0xcf => i128::from(self.be(8)?),
            0xd0 => i128::from(self.be(1)? as u8 as i8),
            0xd1 => i128::from(self.be(2)? as u16 as i16),
            0xd2 => i128::from(self.be(4)? as u32 as i32),
            0xd3 => i128::from(self.be(8)? as i64),
            _ => return Err(DecodeError::Type { expected: "an integer", marker }),
        })
    }

    /// An unsigned 64-bit integer.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        u64::try_from(self.i128()?).map_err(|_| DecodeError::Range { what: "integer" })
    }

    /// An unsigned 32-bit integer; `what` names the field in the error.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        u32::try_from(self.i128()?).map_err(|_| DecodeError::Range { what })
    }

    /// A boolean, or an integer that is 0 or 1.
    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.i128()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Range { what: "bool" }),
        }
    }

    /// A float, or an integer.
    pub fn f64(&mut self) -> Result<f64, DecodeError> {
        match self.peek()? {
            0xca => {
                self.byte()?;
                Ok(f64::from(f32::from_bits(self.be(4)? as u32)))
            }
            0xcb => {
                self.byte()?;
                Ok(f64::from_bits(self.be(8)?))
            }
            _ => Ok(self.i128()? as f64),
        }
    }

    /// A UTF-8 string, borrowed from the frame.
    pub fn str(&mut self) -> Result<&'a str, DecodeError> {
        let marker = self.byte()?;
        let len = match marker {
            0xa0..=0xbf => usize::from(marker & 0x1f),
            0xd9 => self.length(1)?,
            0xda => self.length(2)?,
            0xdb => self.length(4)?,
            _ => return Err(DecodeError::Type { expected: "a string", marker }),
        };
        std::str::from_utf8(self.take(len)?).map_err(|_| DecodeError::Invalid("string is not UTF-8"))
    }

    /// A string of at most [`NAME_MAX_BYTES`] bytes; `what` names it in the error.
    pub fn name(&mut self, what: &'static str) -> Result<&'a str, DecodeError> {
        let name = self.str()?;
        if name.len() > NAME_MAX_BYTES { Err(DecodeError::Range { what }) } else { Ok(name) }
    }

    /// Binary data, borrowed from the frame.
    pub fn bin(&mut self) -> Result<&'a [u8], DecodeError> {
        let marker = self.byte()?;
        let len = match marker {
            0xc4 => self.length(1)?,
            0xc5 => self.length(2)?,
            0xc6 => self.length(4)?,
            _ => return Err(DecodeError::Type { expected: "bytes", marker }),
        };
        self.take(len)
    }

    /// Number of elements of the array that starts here. Every element takes at least one byte, so a count
    /// above the bytes left is refused before anybody reserves memory for it.
    pub fn array(&mut self) -> Result<usize, DecodeError> {
        let marker = self.byte()?;
        let len = match marker {
            0x90..=0x9f => usize::from(marker & 0x0f),
            0xdc => self.length(2)?,
            0xdd => self.length(4)?,
            _ => return Err(DecodeError::Type { expected: "an array", marker }),
        };
        if len > self.buf.len() { Err(DecodeError::Truncated) } else { Ok(len) }
    }

    /// Number of pairs of the map that starts here; bounded like [`Reader::array`].
    pub fn map(&mut self) -> Result<usize, DecodeError> {
        let marker = self.byte()?;
        let len = match marker {
            0x80..=0x8f => usize::from(marker & 0x0f),
            0xde => self.length(2)?,
            0xdf => self.length(4)?,
            _ => return Err(DecodeError::Type { expected: "a map", marker }),
        };
        if len > self.buf.len() / 2 { Err(DecodeError::Truncated) } else { Ok(len) }
    }

    /// Skips one value of any type and depth, without recursion, and returns its bytes.
    pub fn skip(&mut self) -> Result<&'a [u8], DecodeError> {
        let start = self.buf;
        // Values still to skip. A container adds its elements; each costs at least one byte of the frame, so the
        // loop ends with the frame whatever was announced.
        let mut pending: u64 = 1;
        while pending > 0 {
            pending -= 1;
            let marker = self.byte()?;
            match marker {
                0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => {}
                0x80..=0x8f => pending += 2 * u64::from(marker & 0x0f),
                0x90..=0x9f => pending += u64::from(marker & 0x0f),
                0xa0..=0xbf => {
                    self.take(usize::from(marker & 0x1f))?;
                }
                0xc1 => return Err(DecodeError::Type { expected: "a value", marker }),
                0xc4 | 0xd9 => self.skip_sized(1, 0)?,
                0xc5 | 0xda => self.skip_sized(2, 0)?,
                0xc6 | 0xdb => self.skip_sized(4, 0)?,
                0xc7 => self.skip_sized(1, 1)?,
                0xc8 => self.skip_sized(2, 1)?,
                0xc9 => self.skip_sized(4, 1)?,
                0xca | 0xce | 0xd2 => {
                    self.take(4)?;
                }
                0xcb | 0xcf | 0xd3 => {
                    self.take(8)?;
                }
                0xcc | 0xd0 => {
                    self.take(1)?;
                }
                0xcd | 0xd1 => {
                    self.take(2)?;
                }
                0xd4..=0xd8 => {
                    self.take(1 + (1usize << (marker - 0xd4)))?;
                }
                0xdc => pending += self.be(2)?,
                0xde => pending += 2 * self.be(2)?,
                // Enough of these in a frame of many GiB would not fit; what is announced beyond that is not there anyway.
                0xdd => pending = pending.saturating_add(self.be(4)?),
                0xdf => pending = pending.saturating_add(2 * self.be(4)?),
            }
        }
        Ok(&start[..start.len() - self.buf.len()])
    }

    fn skip_sized(&mut self, width: usize, extra: usize) -> Result<(), DecodeError> {
        let len = self.length(width)?;
        self.take(len.checked_add(extra).ok_or(DecodeError::Truncated)?).map(drop)
    }

    /// An extension value: its type code and body.
    pub fn ext(&mut self) -> Result<(i8, &'a [u8]), DecodeError> {
        let marker = self.byte()?;
        let len = match marker {
            0xd4..=0xd8 => 1usize << (marker - 0xd4),
            0xc7 => self.length(1)?,
            0xc8 => self.length(2)?,
            0xc9 => self.length(4)?,
            _ => return Err(DecodeError::Type { expected: "an extension", marker }),
        };
        let code = self.byte()? as i8;
        Ok((code, self.take(len)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_bounded_by_the_frame() {
        // array32 announcing 2^32-1 elements in a 5-byte frame
        assert_eq!(Reader::new(&[0xdd, 0xff, 0xff, 0xff, 0xff]).array(), Err(DecodeError::Truncated));
        assert_eq!(Reader::new(&[0xdf, 0xff, 0xff, 0xff, 0xff]).map(), Err(DecodeError::Truncated));
        assert_eq!(Reader::new(&[0xdb, 0xff, 0xff, 0xff, 0xff]).str(), Err(DecodeError::Truncated));
    }

    #[test]
    fn skip_does_not_recurse() {
        let deep = vec![0x91u8; 1_000_000];
        assert_eq!(Reader::new(&deep).skip(), Err(DecodeError::Truncated));
        let mut closed = vec![0x91u8; 1_000_000];
        closed.push(0xc0);
        assert_eq!(Reader::new(&closed).skip().map(<[u8]>::len), Ok(1_000_001));
    }

    #[test]
    fn integers_of_every_width() {
        for (bytes, value) in [
            (&[0x7f][..], 127),
            (&[0xff], -1),
            (&[0xcc, 0xff], 255),
            (&[0xcd, 0x01, 0x00], 256),
            (&[0xd1, 0xff, 0xfe], -2),
            (&[0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], i128::from(u64::MAX)),
            (&[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0], i128::from(i64::MIN)),
            (&[0xc3], 1),
        ] {
            assert_eq!(Reader::new(bytes).i128(), Ok(value));
        }
    }
}

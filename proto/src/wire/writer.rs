//! Appends msgpack values to a buffer in the shortest form, as msgspec writes them.

/// Msgpack writer over a byte vector.
#[derive(Debug, Default)]
pub struct Writer {
    buf: Vec<u8>,
}

impl Writer {
    /// An empty writer.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// An empty writer with room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Writer {
        Writer { buf: Vec::with_capacity(bytes) }
    }

    /// Everything written so far.
    pub fn into_vec(self) -> Vec<u8> {
        self.buf
    }

    /// Appends bytes that are msgpack already.
    pub fn raw(&mut self, msgpack: &[u8]) -> &mut Writer {
        self.buf.extend_from_slice(msgpack);
        self
    }

    /// nil.
    pub fn nil(&mut self) -> &mut Writer {
        self.buf.push(0xc0);
        self
    }

    /// A boolean.
    pub fn bool(&mut self, value: bool) -> &mut Writer {
        self.buf.push(0xc2 + u8::from(value));
        self
    }

    /// An unsigned integer.
    pub fn uint(&mut self, value: u64) -> &mut Writer {
        match value {
            0..=0x7f => self.buf.push(value as u8),
            0x80..=0xff => self.buf.extend_from_slice(&[0xcc, value as u8]),
            0x100..=0xffff => self.sized(0xcd, &(value as u16).to_be_bytes()),
            0x1_0000..=0xffff_ffff => self.sized(0xce, &(value as u32).to_be_bytes()),
            _ => self.sized(0xcf, &value.to_be_bytes()),
        }
        self
    }

    /// A signed integer.
    pub fn int(&mut self, value: i64) -> &mut Writer {
        match value {
            0.. => return self.uint(value as u64),
            -32..=-1 => self.buf.push(value as i8 as u8),
            -128..=-33 => self.buf.extend_from_slice(&[0xd0, value as i8 as u8]),
            -32768..=-129 => self.sized(0xd1, &(value as i16).to_be_bytes()),
            -2_147_483_648..=-32769 => self.sized(0xd2, &(value as i32).to_be_bytes()),
            _ => self.sized(0xd3, &value.to_be_bytes()),
        }
        self
    }

    /// A 64-bit float.
    pub fn f64(&mut self, value: f64) -> &mut Writer {
        self.sized(0xcb, &value.to_bits().to_be_bytes());
        self
    }

    /// A string.
    pub fn str(&mut self, value: &str) -> &mut Writer {
        let len = value.len();
        match len {
            0..=31 => self.buf.push(0xa0 | len as u8),
            32..=0xff => self.buf.extend_from_slice(&[0xd9, len as u8]),
            0x100..=0xffff => self.sized(0xda, &(len as u16).to_be_bytes()),
            _ => self.sized(0xdb, &(len as u32).to_be_bytes()),
        }
        self.raw(value.as_bytes())
    }

    /// Binary data.
    pub fn bin(&mut self, value: &[u8]) -> &mut Writer {
        let len = value.len();
        match len {
            0..=0xff => self.buf.extend_from_slice(&[0xc4, len as u8]),
            0x100..=0xffff => self.sized(0xc5, &(len as u16).to_be_bytes()),
            _ => self.sized(0xc6, &(len as u32).to_be_bytes()),
        }
        self.raw(value)
    }

    /// Head of an array of `len` elements.
    pub fn array(&mut self, len: usize) -> &mut Writer {
        match len {
            0..=15 => self.buf.push(0x90 | len as u8),
            16..=0xffff => self.sized(0xdc, &(len as u16).to_be_bytes()),
            _ => self.sized(0xdd, &(len as u32).to_be_bytes()),
        }
        self
    }

    /// Head of a map of `len` pairs.
    pub fn map(&mut self, len: usize) -> &mut Writer {
        match len {
            0..=15 => self.buf.push(0x80 | len as u8),
            16..=0xffff => self.sized(0xde, &(len as u16).to_be_bytes()),
            _ => self.sized(0xdf, &(len as u32).to_be_bytes()),
        }
        self
    }

    /// An extension value in its sized form.
    pub fn ext(&mut self, code: i8, body: &[u8]) -> &mut Writer {
        match body.len() {
            1 | 2 | 4 | 8 | 16 => self.buf.push(0xd4 + body.len().trailing_zeros() as u8),
            len @ 0..=0xff => self.buf.extend_from_slice(&[0xc7, len as u8]),
            len @ 0x100..=0xffff => self.sized(0xc8, &(len as u16).to_be_bytes()),
            len => self.sized(0xc9, &(len as u32).to_be_bytes()),
        }
        self.buf.push(code as u8);
        self.raw(body)
    }

    fn sized(&mut self, marker: u8, bytes: &[u8]) {
        self.buf.push(marker);
        self.buf.extend_from_slice(bytes);
    }
}

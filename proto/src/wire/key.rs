//! `IPCCacheServerKey`: the first frame of almost every request, and the largest.

use super::limits::{MEMO_MAX_BYTES, NAME_MAX_BYTES, SALT_MAX_CHARS};
use super::reader::{DecodeError, Reader};
use super::writer::Writer;

/// A token list as it came: encoded integers, decoded only while hashing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokens<'a> {
    count: usize,
    bytes: &'a [u8],
}

impl<'a> Tokens<'a> {
    /// A list whose encoded elements have been kept; see [`Tokens::bytes`]. They may be left out where nobody decodes them.
    pub fn of_checked(count: usize, bytes: &'a [u8]) -> Tokens<'a> {
        Tokens { count, bytes }
    }

    /// Number of tokens announced by the array head.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The encoded elements, without the array head. Two lists agree up to the shorter one exactly when one's
    /// bytes start with the other's, because each element delimits itself.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Decodes from byte `from` (0 or a position returned by [`TokenIter::position`]).
    pub fn iter_from(&self, from: usize) -> TokenIter<'a> {
        TokenIter { bytes: self.bytes, position: from }
    }
}

/// Decodes tokens one by one, checking that each fits in 32 bits.
#[derive(Clone, Debug)]
pub struct TokenIter<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl TokenIter<'_> {
    /// Byte position of the next token.
    pub fn position(&self) -> usize {
        self.position
    }

    /// The next token.
    ///
    /// # Errors
    /// `Range` for a token that is negative or wider than 32 bits (the hash packs tokens in 4 bytes),
    /// `Truncated` past the end.
    #[inline]
    pub fn token(&mut self) -> Result<u32, DecodeError> {
        let rest = self.bytes.get(self.position..).ok_or(DecodeError::Truncated)?;
        // The three forms that real token ids take come first: this loop runs once per token of every request.
        match *rest {
            [marker @ 0..=0x7f, ..] => {
                self.position += 1;
                Ok(u32::from(marker))
            }
            [0xcd, a, b, ..] => {
                self.position += 3;
                Ok(u32::from(u16::from_be_bytes([a, b])))
            }
            [0xce, a, b, c, d, ..] => {
                self.position += 5;
                Ok(u32::from_be_bytes([a, b, c, d]))
            }
            _ => {
                let mut reader = Reader::new(rest);
                let token = reader.u32("token")?;
                self.position += rest.len() - reader.rest().len();
                Ok(token)
            }
        }
    }
}

/// All tokens of an encoded list that has been checked before; stops where one does not decode.
pub fn decode_tokens(bytes: &[u8]) -> Vec<u32> {
    let mut iter = TokenIter { bytes, position: 0 };
    std::iter::from_fn(|| iter.token().ok()).collect()
}

/// A decoded cache key; everything is borrowed from the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheKey<'a> {
    /// Model the objects belong to.
    pub model_name: &'a str,
    /// Number of ranks that share the model's KV, 1 to 255.
    pub world_size: u32,
    /// Rank of the asking worker; `None` (lookup, free, end) means all ranks.
    pub worker_id: Option<u32>,
    /// The whole prompt, also in requests that concern a part of it.
    pub tokens: Tokens<'a>,
    /// First token of the range the request is about.
    pub start: u64,
    /// End of the range (exclusive), in tokens.
    pub end: u64,
    /// The engine's id of the request.
    pub request_id: &'a str,
    /// Isolation domain; empty means the shared one.
    pub cache_salt: &'a str,
    /// Encoded map, not looked into by the engine. nil when absent.
    pub request_configs: &'a [u8],
    /// How many workers will retrieve each object; 0 from clients that do not say.
    pub num_kv_readers: u32,
}

impl<'a> CacheKey<'a> {
    /// Decodes one payload frame.
    ///
    /// # Errors
    /// Missing fields, wrong types, a rank outside the world, a salt with a forbidden character.
    pub fn decode(frame: &'a [u8]) -> Result<CacheKey<'a>, DecodeError> {
        CacheKey::decode_with(frame, &mut TokenMemo::default())
    }

    /// [`CacheKey::decode`] for a client that has sent keys before: the token list that it sent last is recognised
    /// by its bytes instead of being walked token by token again.
    ///
    /// # Errors
    /// As [`CacheKey::decode`].
    pub fn decode_with(frame: &'a [u8], memo: &mut TokenMemo) -> Result<CacheKey<'a>, DecodeError> {
        let mut reader = Reader::new(frame);
        let mut model_name = None;
        let mut world_size = None;
        let mut worker_id = None;
        let mut tokens = None;
        let mut start = None;
        let mut end = None;
        let mut request_id = None;
        let mut cache_salt = "";
        let mut request_configs: &[u8] = &[0xc0];
        let mut num_kv_readers = 0;
        for _ in 0..reader.map()? {
            match reader.str()? {
                "model_name" => model_name = Some(reader.str()?),
                "world_size" => world_size = Some(reader.u32("world_size")?),
                "worker_id" => {
                    worker_id = Some(if reader.nil() { None } else { Some(reader.u32("worker_id")?) });
                }
                "token_ids" => {
                    let count = reader.array()?;
                    tokens = Some(memo.tokens(&mut reader, count)?);
                }
                "start" => start = Some(reader.u64()?),
                "end" => end = Some(reader.u64()?),
                "request_id" => request_id = Some(reader.str()?),
                "cache_salt" => cache_salt = reader.str()?,
                "request_configs" => request_configs = reader.skip()?,
                "num_kv_readers" => num_kv_readers = reader.u32("num_kv_readers")?,
                _ => {
                    reader.skip()?;
                }
            }
        }
        reader.finish()?;
        let key = CacheKey {
            model_name: model_name.ok_or(DecodeError::Missing("model_name"))?,
            world_size: world_size.ok_or(DecodeError::Missing("world_size"))?,
            worker_id: worker_id.ok_or(DecodeError::Missing("worker_id"))?,
            tokens: tokens.ok_or(DecodeError::Missing("token_ids"))?,
            start: start.ok_or(DecodeError::Missing("start"))?,
            end: end.ok_or(DecodeError::Missing("end"))?,
            request_id: request_id.ok_or(DecodeError::Missing("request_id"))?,
            cache_salt,
            request_configs,
            num_kv_readers,
        };
        key.validate()?;
        Ok(key)
    }

    /// The string that the request's configuration has under `name`; `None` if there is none.
    pub fn request_config(&self, name: &str) -> Option<&'a str> {
        let mut reader = Reader::new(self.request_configs);
        for _ in 0..reader.map().ok()? {
            let found = reader.str().ok()? == name;
            if found {
                return reader.str().ok();
            }
            reader.skip().ok()?;
        }
        None
    }

    fn validate(&self) -> Result<(), DecodeError> {
        // kv_rank has 8 bits for each of its four numbers.
        if !(1..=255).contains(&self.world_size) {
            return Err(DecodeError::Range { what: "world_size" });
        }
        if self.worker_id.is_some_and(|id| id >= self.world_size) {
            return Err(DecodeError::Range { what: "worker_id" });
        }
        if self.request_id.len() > NAME_MAX_BYTES || self.model_name.len() > NAME_MAX_BYTES {
            return Err(DecodeError::Range { what: "length of model_name or request_id" });
        }
        validate_model(self.model_name)?;
        validate_salt(self.cache_salt)
    }

    /// Writes the key as the peer does.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.map(10).str("model_name").str(self.model_name).str("world_size").uint(u64::from(self.world_size));
        w.str("worker_id");
        match self.worker_id {
            Some(id) => w.uint(u64::from(id)),
            None => w.nil(),
        };
        w.str("token_ids").array(self.tokens.count).raw(self.tokens.bytes);
        w.str("start").uint(self.start).str("end").uint(self.end).str("request_id").str(self.request_id);
        w.str("cache_salt").str(self.cache_salt).str("request_configs").raw(self.request_configs);
        w.str("num_kv_readers").uint(u64::from(self.num_kv_readers));
        w.into_vec()
    }
}

/// The token list that a client sent last. A client sends the whole prompt with every operation of a request, so the
/// next list is mostly the same, and comparing bytes is an order of magnitude cheaper than finding where they end.
#[derive(Clone, Debug, Default)]
pub struct TokenMemo {
    count: usize,
    bytes: Vec<u8>,
}

impl TokenMemo {
    /// Bytes of memory that it holds.
    pub fn bytes(&self) -> usize {
        self.bytes.capacity()
    }

    fn tokens<'a>(&mut self, reader: &mut Reader<'a>, count: usize) -> Result<Tokens<'a>, DecodeError> {
        let elements = reader.rest();
        if count == self.count && count > 0 && elements.starts_with(&self.bytes) {
            let (bytes, rest) = elements.split_at(self.bytes.len());
            *reader = Reader::new(rest);
            return Ok(Tokens { count, bytes });
        }
        skip_tokens(reader, count)?;
        let bytes = &elements[..elements.len() - reader.rest().len()];
        if bytes.len() <= MEMO_MAX_BYTES {
            self.count = count;
            self.bytes.clear();
            // Exactly: growth by doubling would hold up to twice the limit.
            self.bytes.reserve_exact(bytes.len());
            self.bytes.extend_from_slice(bytes);
        }
        Ok(Tokens { count, bytes })
    }
}

/// Skips `count` integers; the fast forms first, as in [`TokenIter::token`].
fn skip_tokens(reader: &mut Reader<'_>, count: usize) -> Result<(), DecodeError> {
    let bytes = reader.rest();
    let mut position = 0;
    for _ in 0..count {
        position += match bytes.get(position) {
            Some(0..=0x7f | 0xc2 | 0xc3 | 0xe0..=0xff) => 1,
            Some(0xcc | 0xd0) => 2,
            Some(0xcd | 0xd1) => 3,
            Some(0xce | 0xd2) => 5,
            Some(0xcf | 0xd3) => 9,
            Some(marker) => return Err(DecodeError::Type { expected: "a token", marker: *marker }),
            None => return Err(DecodeError::Truncated),
        };
    }
    *reader = Reader::new(bytes.get(position..).ok_or(DecodeError::Truncated)?);
    Ok(())
}

/// The model rule: no `@`, which separates the parts of an L2 name, and no NUL, which no file name can have. One object
/// under such a name would look to its tier like a broken store.
///
/// # Errors
/// Which part of the rule is broken.
pub fn validate_model(model: &str) -> Result<(), DecodeError> {
    if model.contains(['@', '\0']) {
        return Err(DecodeError::Invalid("model_name contains '@' or NUL"));
    }
    Ok(())
}

/// The salt rule of the wire: at most 128 characters, none of `@ / \ NUL` (they delimit L2 names).
///
/// # Errors
/// Which part of the rule is broken.
pub fn validate_salt(salt: &str) -> Result<(), DecodeError> {
    if salt.chars().count() > SALT_MAX_CHARS {
        return Err(DecodeError::Range { what: "length of cache_salt" });
    }
    if salt.contains(['@', '/', '\\', '\0']) {
        return Err(DecodeError::Invalid("cache_salt contains '@', '/', '\\' or NUL"));
    }
    Ok(())
}

/// Builds key frames on the client side.
#[derive(Clone, Debug)]
pub struct KeyBuilder {
    model_name: String,
    world_size: u32,
    request_id: String,
    cache_salt: String,
    num_kv_readers: u32,
    token_count: usize,
    token_bytes: Vec<u8>,
}

impl KeyBuilder {
    /// A key of `tokens` for `request_id`; salt empty, one reader.
    pub fn new(model_name: &str, world_size: u32, request_id: &str, tokens: &[u32]) -> KeyBuilder {
        let mut w = Writer::new();
        for token in tokens {
            w.uint(u64::from(*token));
        }
        KeyBuilder {
            model_name: model_name.into(),
            world_size,
            request_id: request_id.into(),
            cache_salt: String::new(),
            num_kv_readers: 1,
            token_count: tokens.len(),
            token_bytes: w.into_vec(),
        }
    }

    /// Sets the isolation domain.
    #[must_use]
    pub fn salt(mut self, salt: &str) -> KeyBuilder {
        self.cache_salt = salt.into();
        self
    }

    /// Sets how many workers will retrieve each object.
    #[must_use]
    pub fn readers(mut self, readers: u32) -> KeyBuilder {
        self.num_kv_readers = readers;
        self
    }

    /// The frame for `[start, end)` of `worker_id` (or of all ranks).
    pub fn frame(&self, worker_id: Option<u32>, start: u64, end: u64) -> Vec<u8> {
        CacheKey {
            model_name: &self.model_name,
            world_size: self.world_size,
            worker_id,
            tokens: Tokens { count: self.token_count, bytes: &self.token_bytes },
            start,
            end,
            request_id: &self.request_id,
            cache_salt: &self.cache_salt,
            request_configs: &[0xc0],
            num_kv_readers: self.num_kv_readers,
        }
        .encode()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_keys_decode() {
        let tokens = [1, 200, 40_000, 70_000, u32::MAX];
        let frame = KeyBuilder::new("m", 2, "r", &tokens).salt("s").readers(3).frame(Some(1), 0, 5);
        let key = CacheKey::decode(&frame).expect("own key decodes");
        assert_eq!((key.model_name, key.world_size, key.worker_id), ("m", 2, Some(1)));
        assert_eq!((key.request_id, key.cache_salt, key.num_kv_readers), ("r", "s", 3));
        let mut iter = key.tokens.iter_from(0);
        let decoded: Vec<u32> = (0..key.tokens.len()).map(|_| iter.token().expect("token")).collect();
        assert_eq!(decoded, tokens);
        assert_eq!(key.encode(), frame);
    }

    #[test]
    fn a_remembered_list_is_only_used_for_the_same_list() {
        let mut memo = TokenMemo::default();
        let lists: [&[u32]; 6] = [&[1, 2, 3], &[1, 2, 3], &[1, 2, 300], &[1, 2, 3, 4], &[1, 2], &[]];
        for tokens in lists {
            let frame = KeyBuilder::new("m", 2, "r", tokens).frame(None, 0, 3);
            assert_eq!(CacheKey::decode_with(&frame, &mut memo), CacheKey::decode(&frame));
        }
    }

    #[test]
    fn bad_keys_are_refused_with_the_field() {
        let good = KeyBuilder::new("m", 2, "r", &[1]);
        assert!(CacheKey::decode(&good.frame(Some(2), 0, 1)).is_err(), "rank outside the world");
        assert!(CacheKey::decode(&good.clone().salt("a/b").frame(None, 0, 1)).is_err());
        assert!(CacheKey::decode(&good.clone().salt(&"x".repeat(129)).frame(None, 0, 1)).is_err());
        for model in ["m@n", "m\0n"] {
            assert!(CacheKey::decode(&KeyBuilder::new(model, 2, "r", &[1]).frame(None, 0, 1)).is_err());
        }
        assert!(CacheKey::decode(&KeyBuilder::new("m", 256, "r", &[1]).frame(None, 0, 1)).is_err());
        assert_eq!(CacheKey::decode(&[0x80]), Err(DecodeError::Missing("model_name")));
    }
}

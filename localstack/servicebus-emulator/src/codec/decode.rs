//! Decodes values from bytes.

use std::fmt;

use bytes::Bytes;

use super::Value;

/// How deeply lists, maps, arrays and described values may nest. The SDKs nest four deep.
pub const MAX_DEPTH: u8 = 32;

/// How many elements an array may have whose elements take no bytes, since nothing else bounds them.
const MAX_EMPTY_ELEMENTS: usize = 16;

/// How long a descriptor may be that stands once on the wire and applies to each element of an array.
const MAX_REPEATED: usize = 64;

/// The reason why bytes are not an AMQP value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError(pub &'static str);

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for DecodeError {}

const SHORT: DecodeError = DecodeError("the bytes end within a value");

/// Decodes `bytes`, which must be exactly one value.
pub fn decode(bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut reader = ValueReader::new(bytes);
    let value = reader.value()?;
    if reader.is_empty() { Ok(value) } else { Err(DecodeError("bytes after the value")) }
}

/// Reads values from a byte slice, one after the other.
#[derive(Clone, Debug)]
pub struct ValueReader<'a> {
    rest: &'a [u8],
}

impl<'a> ValueReader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// True when everything was read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The bytes that have not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Reads one value.
    pub fn value(&mut self) -> Result<Value, DecodeError> {
        self.value_at(0)
    }

    /// Reads the descriptor of a described value; the value follows.
    pub fn descriptor(&mut self) -> Result<Value, DecodeError> {
        match self.u8()? {
            0x00 => self.value_at(1),
            _ => Err(DecodeError("a described value was expected")),
        }
    }

    /// Steps over one value without making it.
    pub fn skip(&mut self) -> Result<(), DecodeError> {
        let mut described = 0;
        let mut values = 1_u32;
        while values > 0 {
            values -= 1;
            let width = match self.u8()? {
                0x00 => {
                    described += 1;
                    if described > MAX_DEPTH {
                        return Err(DecodeError("nested too deeply"));
                    }
                    values += 2;
                    0
                }
                code => match code >> 4 {
                    0x4 => 0,
                    0x5 => 1,
                    0x6 => 2,
                    0x7 => 4,
                    0x8 => 8,
                    0x9 => 16,
                    0xa | 0xc | 0xe => usize::from(self.u8()?),
                    0xb | 0xd | 0xf => self.len32()?,
                    _ => return Err(DecodeError("no type has this code")),
                },
            };
            self.take(width)?;
        }
        Ok(())
    }

    /// Reads the bytes of a binary, or of a string sent in its place.
    pub fn binary(&mut self) -> Result<&'a [u8], DecodeError> {
        match self.u8()? {
            code @ (0xa0 | 0xa1 | 0xb0 | 0xb1) => self.sized(code),
            _ => Err(DecodeError("a binary was expected")),
        }
    }

    fn value_at(&mut self, depth: u8) -> Result<Value, DecodeError> {
        match self.u8()? {
            0x00 => {
                let inner = deeper(depth)?;
                let descriptor = self.value_at(inner)?;
                Ok(Value::Described(Box::new((descriptor, self.value_at(inner)?))))
            }
            code => self.of_code(code, depth),
        }
    }

    fn of_code(&mut self, code: u8, depth: u8) -> Result<Value, DecodeError> {
        Ok(match code {
            0x40 => Value::Null,
            0x41 => Value::Bool(true),
            0x42 => Value::Bool(false),
            0x43 => Value::Uint(0),
            0x44 => Value::Ulong(0),
            0x45 => Value::List(Vec::new()),
            0x50 => Value::Ubyte(self.u8()?),
            0x51 => Value::Byte(i8::from_be_bytes(self.fixed()?)),
            0x52 => Value::Uint(u32::from(self.u8()?)),
            0x53 => Value::Ulong(u64::from(self.u8()?)),
            0x54 => Value::Int(i32::from(i8::from_be_bytes(self.fixed()?))),
            0x55 => Value::Long(i64::from(i8::from_be_bytes(self.fixed()?))),
            0x56 => match self.u8()? {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                _ => return Err(DecodeError("a boolean byte is neither 0 nor 1")),
            },
            0x60 => Value::Ushort(u16::from_be_bytes(self.fixed()?)),
            0x61 => Value::Short(i16::from_be_bytes(self.fixed()?)),
            0x70 => Value::Uint(u32::from_be_bytes(self.fixed()?)),
            0x71 => Value::Int(i32::from_be_bytes(self.fixed()?)),
            0x72 => Value::Float(f32::from_be_bytes(self.fixed()?)),
            0x73 => Value::Char(
                char::from_u32(u32::from_be_bytes(self.fixed()?)).ok_or(DecodeError("no such Unicode character"))?,
            ),
            0x74 => Value::Decimal32(self.fixed()?),
            0x80 => Value::Ulong(u64::from_be_bytes(self.fixed()?)),
            0x81 => Value::Long(i64::from_be_bytes(self.fixed()?)),
            0x82 => Value::Double(f64::from_be_bytes(self.fixed()?)),
            0x83 => Value::Timestamp(i64::from_be_bytes(self.fixed()?)),
            0x84 => Value::Decimal64(self.fixed()?),
            0x94 => Value::Decimal128(self.fixed()?),
            0x98 => Value::Uuid(self.fixed()?),
            0xa0 | 0xb0 => Value::Binary(Bytes::copy_from_slice(self.sized(code)?)),
            0xa1 | 0xb1 => Value::String(self.text(code)?),
            0xa3 | 0xb3 => Value::Symbol(self.text(code)?),
            0xc0 | 0xd0 => {
                let (mut items, count) = self.compound(code)?;
                Value::List(items.values(count, deeper(depth)?)?)
            }
            0xc1 | 0xd1 => {
                let (mut items, count) = self.compound(code)?;
                Value::Map(items.pairs(count, deeper(depth)?)?)
            }
            0xe0 | 0xf0 => {
                let (mut items, count) = self.compound(code)?;
                Value::Array(items.elements(count, deeper(depth)?)?)
            }
            _ => return Err(DecodeError("no type has this code")),
        })
    }

    /// The content of a list, map or array and the number of items in it.
    fn compound(&mut self, code: u8) -> Result<(ValueReader<'a>, usize), DecodeError> {
        let wide = code >= 0xf0 || (0xd0..0xe0).contains(&code);
        let mut content = ValueReader::new(self.sized_by(wide)?);
        let count = if wide { content.len32()? } else { usize::from(content.u8()?) };
        Ok((content, count))
    }

    fn values(&mut self, count: usize, depth: u8) -> Result<Vec<Value>, DecodeError> {
        if count > self.rest.len() {
            return Err(DecodeError("a list counts more items than it has bytes"));
        }
        let mut items = Vec::with_capacity(count.min(16));
        for _ in 0..count {
            items.push(self.value_at(depth)?);
        }
        self.end()?;
        Ok(items)
    }

    fn pairs(&mut self, count: usize, depth: u8) -> Result<Vec<(Value, Value)>, DecodeError> {
        if !count.is_multiple_of(2) || count > self.rest.len() {
            return Err(DecodeError("a map counts an odd number of items, or more than it has bytes"));
        }
        let mut pairs = Vec::with_capacity((count / 2).min(16));
        for _ in 0..count / 2 {
            pairs.push((self.value_at(depth)?, self.value_at(depth)?));
        }
        self.end()?;
        Ok(pairs)
    }

    fn elements(&mut self, count: usize, depth: u8) -> Result<Vec<Value>, DecodeError> {
        let mut code = self.u8()?;
        let descriptor = match code {
            0x00 => {
                let descriptor = self.value_at(depth)?;
                code = self.u8()?;
                Some(descriptor)
            }
            _ => None,
        };
        // Every element gets a copy of it, so anything large here would become many times as large.
        match &descriptor {
            None | Some(Value::Ulong(_)) => {}
            Some(Value::Symbol(name)) if name.len() <= MAX_REPEATED => {}
            Some(_) => return Err(DecodeError("the descriptor of an array's elements is no number or short name")),
        }
        if count > self.rest.len().max(MAX_EMPTY_ELEMENTS) {
            return Err(DecodeError("an array counts more elements than it has bytes"));
        }
        let mut items = Vec::with_capacity(count.min(16));
        for _ in 0..count {
            let value = self.of_code(code, depth)?;
            items.push(match &descriptor {
                Some(descriptor) => Value::Described(Box::new((descriptor.clone(), value))),
                None => value,
            });
        }
        self.end()?;
        Ok(items)
    }

    fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError("bytes after the last item")) }
    }

    fn text(&mut self, code: u8) -> Result<String, DecodeError> {
        let bytes = self.sized(code)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| DecodeError("text is not UTF-8"))
    }

    fn sized(&mut self, code: u8) -> Result<&'a [u8], DecodeError> {
        self.sized_by(code >= 0xb0)
    }

    fn sized_by(&mut self, wide: bool) -> Result<&'a [u8], DecodeError> {
        let len = if wide { self.len32()? } else { usize::from(self.u8()?) };
        self.take(len)
    }

    fn len32(&mut self) -> Result<usize, DecodeError> {
        usize::try_from(u32::from_be_bytes(self.fixed()?)).map_err(|_| SHORT)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        let (first, rest) = self.rest.split_first().ok_or(SHORT)?;
        self.rest = rest;
        Ok(*first)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (first, rest) = self.rest.split_first_chunk::<N>().ok_or(SHORT)?;
        self.rest = rest;
        Ok(*first)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(SHORT)?;
        self.rest = rest;
        Ok(taken)
    }
}

fn deeper(depth: u8) -> Result<u8, DecodeError> {
    if depth < MAX_DEPTH { Ok(depth + 1) } else { Err(DecodeError("nested too deeply")) }
}

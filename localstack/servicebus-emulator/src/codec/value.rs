//! An AMQP 1.0 value of any type, as it was on the wire.
//!
//! The protocol's own records (open, attach, source…) are described lists of these, so one dynamic type serves frames,
//! message sections and management requests alike, and a peer's unusual encodings need no code of their own.

use bytes::Bytes;

/// One value of the AMQP 1.0 type system.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// No value.
    Null,
    /// True or false.
    Bool(bool),
    /// 8 bits, unsigned.
    Ubyte(u8),
    /// 16 bits, unsigned.
    Ushort(u16),
    /// 32 bits, unsigned.
    Uint(u32),
    /// 64 bits, unsigned.
    Ulong(u64),
    /// 8 bits, signed.
    Byte(i8),
    /// 16 bits, signed.
    Short(i16),
    /// 32 bits, signed.
    Int(i32),
    /// 64 bits, signed.
    Long(i64),
    /// IEEE 754, 32 bits.
    Float(f32),
    /// IEEE 754, 64 bits.
    Double(f64),
    /// IEEE 754 decimal, 32 bits, as it was on the wire.
    Decimal32([u8; 4]),
    /// IEEE 754 decimal, 64 bits, as it was on the wire.
    Decimal64([u8; 8]),
    /// IEEE 754 decimal, 128 bits, as it was on the wire.
    Decimal128([u8; 16]),
    /// One Unicode scalar value.
    Char(char),
    /// Milliseconds since the Unix epoch.
    Timestamp(i64),
    /// A UUID in network order.
    Uuid([u8; 16]),
    /// Bytes.
    Binary(Bytes),
    /// UTF-8 text.
    String(String),
    /// A name from a constrained domain, ASCII.
    Symbol(String),
    /// Values of any types, in order.
    List(Vec<Value>),
    /// Pairs, in the order they were on the wire.
    Map(Vec<(Value, Value)>),
    /// Values of one type.
    Array(Vec<Value>),
    /// A descriptor and the value it describes.
    Described(Box<(Value, Value)>),
}

impl Value {
    /// A string value.
    pub fn string(text: impl Into<String>) -> Self {
        Self::String(text.into())
    }

    /// A symbol value.
    pub fn symbol(name: impl Into<String>) -> Self {
        Self::Symbol(name.into())
    }

    /// A value under a numeric descriptor.
    pub fn described(descriptor: u64, value: Value) -> Self {
        Self::Described(Box::new((Value::Ulong(descriptor), value)))
    }

    /// True for [`Value::Null`].
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The text of a string or a symbol. Peers mix the two up, in the keys of maps above all.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::String(text) | Self::Symbol(text) => Some(text),
            _ => None,
        }
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(truth) => Some(*truth),
            _ => None,
        }
    }

    /// A whole number of any width; `None` when it does not fit an `i64`. A timestamp counts as its milliseconds.
    pub fn as_i64(&self) -> Option<i64> {
        Some(match self {
            Self::Ubyte(n) => i64::from(*n),
            Self::Ushort(n) => i64::from(*n),
            Self::Uint(n) => i64::from(*n),
            Self::Ulong(n) => i64::try_from(*n).ok()?,
            Self::Byte(n) => i64::from(*n),
            Self::Short(n) => i64::from(*n),
            Self::Int(n) => i64::from(*n),
            Self::Long(n) | Self::Timestamp(n) => *n,
            _ => return None,
        })
    }

    /// A whole number of any width; `None` when it is negative or above `u32::MAX`.
    pub fn as_u32(&self) -> Option<u32> {
        u32::try_from(self.as_i64()?).ok()
    }

    /// The bytes of a binary.
    pub fn as_bytes(&self) -> Option<&Bytes> {
        match self {
            Self::Binary(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The pairs of a map.
    pub fn as_map(&self) -> Option<&[(Value, Value)]> {
        match self {
            Self::Map(pairs) => Some(pairs),
            _ => None,
        }
    }

    /// The items of a list or an array.
    pub fn as_items(&self) -> Option<&[Value]> {
        match self {
            Self::List(items) | Self::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The value of a map's entry whose key, string or symbol, reads `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        lookup(self.as_map()?, key)
    }
}

/// The value under a string or symbol key.
pub fn lookup<'a>(pairs: &'a [(Value, Value)], key: &str) -> Option<&'a Value> {
    pairs.iter().find(|(name, _)| name.as_text() == Some(key)).map(|(_, value)| value)
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

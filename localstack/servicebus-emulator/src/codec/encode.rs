//! Encodes values to bytes, in the shortest form that the type has.

use super::Value;

/// Encodes one value.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put_value(&mut out, value);
    out
}

/// Appends a value.
pub fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => put_null(out),
        Value::Bool(truth) => put_bool(out, *truth),
        Value::Ubyte(n) => out.extend([0x50, *n]),
        Value::Ushort(n) => put_fixed(out, 0x60, n.to_be_bytes()),
        Value::Uint(n) => put_uint(out, *n),
        Value::Ulong(n) => put_ulong(out, *n),
        Value::Byte(n) => put_fixed(out, 0x51, n.to_be_bytes()),
        Value::Short(n) => put_fixed(out, 0x61, n.to_be_bytes()),
        Value::Int(n) => match i8::try_from(*n) {
            Ok(small) => put_fixed(out, 0x54, small.to_be_bytes()),
            Err(_) => put_fixed(out, 0x71, n.to_be_bytes()),
        },
        Value::Long(n) => match i8::try_from(*n) {
            Ok(small) => put_fixed(out, 0x55, small.to_be_bytes()),
            Err(_) => put_fixed(out, 0x81, n.to_be_bytes()),
        },
        Value::Float(n) => put_fixed(out, 0x72, n.to_be_bytes()),
        Value::Double(n) => put_fixed(out, 0x82, n.to_be_bytes()),
        Value::Decimal32(raw) => put_fixed(out, 0x74, *raw),
        Value::Decimal64(raw) => put_fixed(out, 0x84, *raw),
        Value::Decimal128(raw) => put_fixed(out, 0x94, *raw),
        Value::Char(c) => put_fixed(out, 0x73, u32::from(*c).to_be_bytes()),
        Value::Timestamp(ms) => put_fixed(out, 0x83, ms.to_be_bytes()),
        Value::Uuid(id) => put_fixed(out, 0x98, *id),
        Value::Binary(bytes) => put_binary(out, bytes),
        Value::String(text) => put_string(out, text),
        Value::Symbol(name) => put_symbol(out, name),
        Value::List(items) => {
            let list = begin_list(out);
            items.iter().for_each(|item| put_value(out, item));
            end_list(out, list, items.len());
        }
        Value::Map(pairs) => {
            let start = begin(out);
            for (key, value) in pairs {
                put_value(out, key);
                put_value(out, value);
            }
            end(out, start, pairs.len() * 2, 0xc1, 0xd1);
        }
        Value::Array(items) => put_array(out, items),
        Value::Described(described) => {
            out.push(0x00);
            put_value(out, &described.0);
            put_value(out, &described.1);
        }
    }
}

/// Appends null.
pub fn put_null(out: &mut Vec<u8>) {
    out.push(0x40);
}

/// Appends a boolean.
pub fn put_bool(out: &mut Vec<u8>, truth: bool) {
    out.push(if truth { 0x41 } else { 0x42 });
}

/// Appends an unsigned integer of 32 bits.
pub fn put_uint(out: &mut Vec<u8>, n: u32) {
    match u8::try_from(n) {
        Ok(0) => out.push(0x43),
        Ok(small) => out.extend([0x52, small]),
        Err(_) => put_fixed(out, 0x70, n.to_be_bytes()),
    }
}

/// Appends an unsigned integer of 64 bits.
pub fn put_ulong(out: &mut Vec<u8>, n: u64) {
    match u8::try_from(n) {
        Ok(0) => out.push(0x44),
        Ok(small) => out.extend([0x53, small]),
        Err(_) => put_fixed(out, 0x80, n.to_be_bytes()),
    }
}

/// Appends the start of a described value; its value comes next.
pub fn put_descriptor(out: &mut Vec<u8>, descriptor: u64) {
    out.push(0x00);
    put_ulong(out, descriptor);
}

/// Appends bytes.
pub fn put_binary(out: &mut Vec<u8>, bytes: &[u8]) {
    put_sized(out, 0xa0, bytes);
}

/// Appends a string.
pub fn put_string(out: &mut Vec<u8>, text: &str) {
    put_sized(out, 0xa1, text.as_bytes());
}

/// Appends a symbol.
pub fn put_symbol(out: &mut Vec<u8>, name: &str) {
    put_sized(out, 0xa3, name.as_bytes());
}

/// Starts a list; [`end_list`] takes what this returns.
pub fn begin_list(out: &mut Vec<u8>) -> usize {
    begin(out)
}

/// Ends the list that [`begin_list`] started, now that the number of its items is known.
pub fn end_list(out: &mut Vec<u8>, start: usize, count: usize) {
    if count == 0 {
        out.truncate(start);
        out.push(0x45);
    } else {
        end(out, start, count, 0xc0, 0xd0);
    }
}

/// Starts a map; [`end_map`] takes what this returns.
pub fn begin_map(out: &mut Vec<u8>) -> usize {
    begin(out)
}

/// Ends the map that [`begin_map`] started, of that many pairs.
pub fn end_map(out: &mut Vec<u8>, start: usize, pairs: usize) {
    end(out, start, pairs * 2, 0xc1, 0xd1);
}

/// The code, the size and the count, in their wide forms.
const WIDE_HEAD: usize = 9;

fn begin(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend([0; WIDE_HEAD]);
    start
}

/// Fills in the head, and closes the gap when the narrow form is enough.
fn end(out: &mut Vec<u8>, start: usize, count: usize, narrow: u8, wide: u8) {
    let content = out.len() - start - WIDE_HEAD;
    match (u8::try_from(content + 1), u8::try_from(count)) {
        (Ok(size), Ok(count)) => {
            out[start..start + 3].copy_from_slice(&[narrow, size, count]);
            out.copy_within(start + WIDE_HEAD.., start + 3);
            out.truncate(start + 3 + content);
        }
        _ => {
            out[start] = wide;
            out[start + 1..start + 5].copy_from_slice(&len32(content + 4));
            out[start + 5..start + 9].copy_from_slice(&len32(count));
        }
    }
}

/// Elements share one constructor, so each is written in the widest form of its type. Elements of several types are no
/// array; they go out as the list they are.
fn put_array(out: &mut Vec<u8>, items: &[Value]) {
    let code = items.first().map_or(Some(0x40), element_code);
    let alike = |item: &Value| element_code(item) == code;
    let Some(code) = code.filter(|_| items.iter().all(alike)) else {
        return put_value(out, &Value::List(items.to_vec()));
    };
    let start = begin(out);
    out.push(code);
    items.iter().for_each(|item| put_element(out, item));
    end(out, start, items.len(), 0xe0, 0xf0);
}

fn element_code(item: &Value) -> Option<u8> {
    Some(match item {
        Value::Null => 0x40,
        Value::Bool(_) => 0x56,
        Value::Ubyte(_) => 0x50,
        Value::Ushort(_) => 0x60,
        Value::Uint(_) => 0x70,
        Value::Ulong(_) => 0x80,
        Value::Byte(_) => 0x51,
        Value::Short(_) => 0x61,
        Value::Int(_) => 0x71,
        Value::Long(_) => 0x81,
        Value::Float(_) => 0x72,
        Value::Double(_) => 0x82,
        Value::Decimal32(_) => 0x74,
        Value::Decimal64(_) => 0x84,
        Value::Decimal128(_) => 0x94,
        Value::Char(_) => 0x73,
        Value::Timestamp(_) => 0x83,
        Value::Uuid(_) => 0x98,
        Value::Binary(_) => 0xb0,
        Value::String(_) => 0xb1,
        Value::Symbol(_) => 0xb3,
        Value::List(_) => 0xd0,
        Value::Map(_) => 0xd1,
        // Their constructors differ from element to element.
        Value::Array(_) | Value::Described(_) => return None,
    })
}

fn put_element(out: &mut Vec<u8>, item: &Value) {
    let from = out.len();
    match item {
        Value::Bool(truth) => out.extend([0x56, u8::from(*truth)]),
        Value::Uint(n) => put_fixed(out, 0x70, n.to_be_bytes()),
        Value::Ulong(n) => put_fixed(out, 0x80, n.to_be_bytes()),
        Value::Int(n) => put_fixed(out, 0x71, n.to_be_bytes()),
        Value::Long(n) => put_fixed(out, 0x81, n.to_be_bytes()),
        Value::Binary(bytes) => put_wide(out, 0xb0, bytes),
        Value::String(text) => put_wide(out, 0xb1, text.as_bytes()),
        Value::Symbol(name) => put_wide(out, 0xb3, name.as_bytes()),
        Value::List(items) => {
            let start = begin(out);
            items.iter().for_each(|item| put_value(out, item));
            widen(out, start, items.len());
        }
        Value::Map(pairs) => {
            let start = begin(out);
            for (key, value) in pairs {
                put_value(out, key);
                put_value(out, value);
            }
            widen(out, start, pairs.len() * 2);
        }
        other => put_value(out, other),
    }
    out.remove(from);
}

fn widen(out: &mut [u8], start: usize, count: usize) {
    let content = out.len() - start - WIDE_HEAD;
    out[start + 1..start + 5].copy_from_slice(&len32(content + 4));
    out[start + 5..start + 9].copy_from_slice(&len32(count));
}

fn put_fixed<const N: usize>(out: &mut Vec<u8>, code: u8, bytes: [u8; N]) {
    out.push(code);
    out.extend(bytes);
}

/// The narrow codes of binary, string and symbol are 0x10 below their wide ones.
fn put_sized(out: &mut Vec<u8>, narrow: u8, bytes: &[u8]) {
    match u8::try_from(bytes.len()) {
        Ok(len) => {
            out.extend([narrow, len]);
            out.extend_from_slice(bytes);
        }
        Err(_) => put_wide(out, narrow + 0x10, bytes),
    }
}

fn put_wide(out: &mut Vec<u8>, code: u8, bytes: &[u8]) {
    out.push(code);
    out.extend(len32(bytes.len()));
    out.extend_from_slice(bytes);
}

/// A length as four bytes. It never exceeds 4 GiB, because frames and messages are bounded far below.
fn len32(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes()
}

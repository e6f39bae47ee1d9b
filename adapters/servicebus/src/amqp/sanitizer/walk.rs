//! A walk through the values of one message, as serde_amqp will read them, that leaves none nested too deeply.
//!
//! serde_amqp goes by the count of a list or map, and ignores its size. So does this walk: bytes that the size would
//! leave out are read on where the count says so. Both then agree on which byte is the code of a value, whatever the
//! sender has made of it. At a wrong code serde_amqp gives the message up.
//!
//! The walk changes, in place and in whatever pieces the message comes:
//! - A list, map or array that is too deep: its code becomes that of binary, which has the same layout.
//! - The elements of an array of lists, maps or arrays, at any depth: binary as well. serde_amqp reads the second of
//!   them wrong, and takes the content of a map for a map within it, and so on.
//! - A described value that is too deep, and an array of described values: a code that does not exist, since no other
//!   value has their layout. Then the message cannot be read.
//! - Numbers by which serde_amqp would underflow, or would ask for memory that no message fills.

/// How many lists, maps, arrays and described values may be nested in a section of a message. serde_amqp needs up to 10
/// KiB of stack for each in a debug build, and threads have 2 MiB.
pub(crate) const MAX_DEPTH: usize = 32;

/// A code that no type has.
const INVALID_CODE: u8 = 0x3f;
/// The first byte of the greatest length that passes, 128 MiB. The broker takes messages up to 100 MiB.
const MAX_LENGTH_FIRST_BYTE: u8 = 0x07;

#[derive(Clone, Copy)]
enum WalkStep {
    /// The code of a value comes next, or the next element of an array.
    Value,
    /// The next byte of a number comes, of which `left` are still to come.
    Number { of: NumberKind, left: u8, value: u32 },
    /// The code of this many array elements comes.
    Elements(u32),
    /// The rest of the message is not looked at.
    Rest,
}

#[derive(Clone, Copy)]
enum NumberKind {
    Bytes,
    /// The size of a compound with this code, and then its count.
    Size(u8),
    Count(u8),
}

/// Where the walk is in a message.
#[derive(Clone)]
pub(crate) struct MessageWalk {
    step: WalkStep,
    /// How many bytes to skip first.
    skip: usize,
    /// How many values are still to come at each level: in the section, and in each compound that is open in it.
    open: [u32; MAX_DEPTH + 1],
    depth: usize,
    /// Array elements that are still to come, each with its length in four bytes if `wide`, else in one.
    elements: u32,
    wide: bool,
}

impl MessageWalk {
    pub(crate) fn new() -> Self {
        Self { step: WalkStep::Value, skip: 0, open: [0; MAX_DEPTH + 1], depth: 0, elements: 0, wide: false }
    }

    /// Starts with a new message.
    pub(crate) fn restart(&mut self) {
        (self.step, self.skip, self.depth, self.elements) = (WalkStep::Value, 0, 0, 0);
    }

    /// Walks through the next bytes of the message.
    pub(crate) fn walk(&mut self, bytes: &mut [u8]) {
        let mut next = self.skip;
        while next < bytes.len() {
            next = next.saturating_add(self.step(&mut bytes[next..]));
        }
        self.skip = next - bytes.len();
    }

    /// Takes one step. Returns how many bytes it covers, which may be more than are there.
    fn step(&mut self, rest: &mut [u8]) -> usize {
        match self.step {
            WalkStep::Value if self.elements > 0 => {
                self.elements -= 1;
                self.bytes(rest, 0, self.wide)
            }
            WalkStep::Value => self.value(rest),
            WalkStep::Number { of, left, value } => self.number(&mut rest[0], of, left, value),
            WalkStep::Elements(count) => self.array(&mut rest[0], count),
            WalkStep::Rest => rest.len(),
        }
    }

    fn value(&mut self, rest: &mut [u8]) -> usize {
        while self.depth > 0 && self.open[self.depth - 1] == 0 {
            self.depth -= 1;
        }
        if self.depth > 0 {
            self.open[self.depth - 1] -= 1;
        }
        if self.depth == self.open.len() {
            match rest[0] {
                0x00 => return self.refuse(&mut rest[0]),
                code => rest[0] = as_binary(code),
            }
        }
        match rest[0] {
            0x00 => self.enter(2),
            code @ 0xc0.. => return self.compound(code, rest),
            code @ 0xa0.. => return self.bytes(rest, 1, is_wide(code)),
            code => match width(code) {
                Some(width) => return 1 + width,
                None => self.step = WalkStep::Rest,
            },
        }
        1
    }

    fn compound(&mut self, code: u8, rest: &mut [u8]) -> usize {
        match rest {
            [_, size, count, ..] if !is_wide(code) => {
                raise_size(code, size, u32::from(*size));
                self.enter_counted(code, count, u32::from(*count));
                3
            }
            [_, a, b, c, size, d, e, f, count, ..] if is_wide(code) => {
                raise_size(code, size, u32::from_be_bytes([*a, *b, *c, *size]));
                self.enter_counted(code, count, u32::from_be_bytes([*d, *e, *f, *count]));
                9
            }
            _ => {
                self.step = expect(NumberKind::Size(code), code);
                1
            }
        }
    }

    /// Skips bytes whose length is written at `at`.
    fn bytes(&mut self, rest: &mut [u8], at: usize, wide: bool) -> usize {
        match &mut rest[at..] {
            [length, ..] if !wide => return at + 1 + usize::from(*length),
            [first, second, third, fourth, ..] if wide => {
                *first = MAX_LENGTH_FIRST_BYTE.min(*first);
                return at + 4 + u32::from_be_bytes([*first, *second, *third, *fourth]) as usize;
            }
            _ => self.step = WalkStep::Number { of: NumberKind::Bytes, left: if wide { 4 } else { 1 }, value: 0 },
        }
        at
    }

    fn number(&mut self, byte: &mut u8, of: NumberKind, left: u8, value: u32) -> usize {
        if left == 4 && matches!(of, NumberKind::Bytes) {
            *byte = MAX_LENGTH_FIRST_BYTE.min(*byte);
        }
        let value = value << 8 | u32::from(*byte);
        match (left - 1, of) {
            (0, NumberKind::Bytes) => {
                self.step = WalkStep::Value;
                return 1 + value as usize;
            }
            (0, NumberKind::Size(code)) => {
                raise_size(code, byte, value);
                self.step = expect(NumberKind::Count(code), code);
            }
            (0, NumberKind::Count(code)) => self.enter_counted(code, byte, value),
            (left, of) => self.step = WalkStep::Number { of, left, value },
        }
        1
    }

    /// Enters a compound with this count, whose last byte is `byte`.
    fn enter_counted(&mut self, code: u8, byte: &mut u8, count: u32) {
        self.step = match code {
            0xe0.. if count > 0 => WalkStep::Elements(count),
            // serde_amqp reads no element code where there are no elements.
            0xe0.. => WalkStep::Value,
            _ => {
                // A map has a value for each key. serde_amqp counts down by two, and would not end at an odd count.
                let odd = u8::from(is_map(code)) & *byte;
                *byte &= !odd;
                self.enter(count & !u32::from(odd));
                WalkStep::Value
            }
        };
    }

    fn array(&mut self, code: &mut u8, count: u32) -> usize {
        self.step = WalkStep::Value;
        *code = as_binary(*code);
        match *code {
            0xa0.. => (self.elements, self.wide) = (count, is_wide(*code)),
            other => match width(other) {
                Some(width) => return 1 + width.saturating_mul(count as usize),
                None => return self.refuse(code),
            },
        }
        1
    }

    fn enter(&mut self, values: u32) {
        self.open[self.depth] = values;
        self.depth += 1;
    }

    fn refuse(&mut self, code: &mut u8) -> usize {
        *code = INVALID_CODE;
        self.step = WalkStep::Rest;
        1
    }
}

fn expect(of: NumberKind, code: u8) -> WalkStep {
    WalkStep::Number { of, left: if is_wide(code) { 4 } else { 1 }, value: 0 }
}

/// The width of values with this code, which its high half tells.
/// <https://docs.oasis-open.org/amqp/core/v1.0/amqp-core-types-v1.0.html#section-encodings>
fn width(code: u8) -> Option<usize> {
    Some(match code >> 4 {
        0x4 => 0,
        0x5 => 1,
        0x6 => 2,
        0x7 => 4,
        0x8 => 8,
        0x9 => 16,
        _ => return None,
    })
}

fn is_wide(code: u8) -> bool {
    code & 0x10 != 0
}

fn is_map(code: u8) -> bool {
    code & 0x0f == 1
}

/// The code of binary, of the same width, for that of a list, map or array. Other codes stay.
fn as_binary(code: u8) -> u8 {
    if code < 0xc0 { code } else { 0xa0 | code & 0x10 }
}

/// Raises a size, whose last byte is `byte`, to the bytes that serde_amqp subtracts from it without looking: the count,
/// and the code of an array.
fn raise_size(code: u8, byte: &mut u8, size: u32) {
    let own = if is_wide(code) { 4 } else { 1 } + u8::from(code >= 0xe0);
    if size < u32::from(own) {
        *byte = own;
    }
}

#[cfg(test)]
#[path = "walk_tests.rs"]
pub(crate) mod tests;

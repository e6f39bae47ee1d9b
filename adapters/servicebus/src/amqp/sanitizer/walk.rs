//! A walk through the values of one message, as serde_amqp will read them, that leaves none too deep.
//!
//! serde_amqp believes a list's or map's count and passes over its size. So does this walk: what is cut off where the size says
//! would be read on where the count says. Both then agree on which byte is the code of a value, whatever the sender made of it, and
//! a wrong code at such a place is where serde_amqp gives the message up.
//!
//! Changed are, in place and each in the piece it comes in:
//! - a list, map or array that is too deep: it becomes binary, which is laid out alike;
//! - the elements of an array of lists, maps or arrays, however deep: binary as well. serde_amqp reads the second of them wrong, and
//!   what is in a map as a map within it, and so on;
//! - a described value that is too deep, and an array of described values: a code that does not exist, since nothing else has
//!   their layout. The message cannot be read then;
//! - numbers with which serde_amqp calculates beyond zero, or asks for memory that no message fills.

/// Lists, maps, arrays and described values that may stand within each other in a section of a message. serde_amqp needs up to
/// 10 KiB of stack for each in a debug build, and has 2 MiB.
pub(crate) const DEEPEST: usize = 32;

/// The code of no type.
const NONE: u8 = 0x3f;
/// The first byte of the greatest length that is let pass, 128 MiB: the broker takes 100 MiB.
const LONGEST: u8 = 0x07;

#[derive(Clone, Copy)]
enum Step {
    /// The code of a value, or the next element of an array.
    Value,
    /// A number's next byte, of so many.
    Number { of: Of, left: u8, value: u32 },
    /// The code of this many elements.
    Elements(u32),
    /// Nothing more to see.
    Rest,
}

#[derive(Clone, Copy)]
enum Of {
    Bytes,
    /// The size, and then the count, of what has this code.
    Size(u8),
    Count(u8),
}

/// What has come of a message.
#[derive(Clone)]
pub(crate) struct Walk {
    step: Step,
    /// Bytes to pass over first.
    skip: usize,
    /// How many values are yet to come in each that is open: the section, and what is within each other in it.
    open: [u32; DEEPEST + 1],
    depth: usize,
    /// Elements of an array that are yet to come, each with its length in four bytes, or one.
    elements: u32,
    wide: bool,
}

impl Walk {
    pub(crate) fn new() -> Self {
        Self { step: Step::Value, skip: 0, open: [0; DEEPEST + 1], depth: 0, elements: 0, wide: false }
    }

    /// Forgets the message.
    pub(crate) fn restart(&mut self) {
        (self.step, self.skip, self.depth, self.elements) = (Step::Value, 0, 0, 0);
    }

    /// The next bytes of the message.
    pub(crate) fn walk(&mut self, bytes: &mut [u8]) {
        let mut next = self.skip;
        while next < bytes.len() {
            next = next.saturating_add(self.step(&mut bytes[next..]));
        }
        self.skip = next - bytes.len();
    }

    /// How many bytes to go on, which may be more than are there.
    fn step(&mut self, rest: &mut [u8]) -> usize {
        match self.step {
            Step::Value if self.elements > 0 => {
                self.elements -= 1;
                self.bytes(rest, 0, self.wide)
            }
            Step::Value => self.value(rest),
            Step::Number { of, left, value } => self.number(&mut rest[0], of, left, value),
            Step::Elements(count) => self.array(&mut rest[0], count),
            Step::Rest => rest.len(),
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
                code => rest[0] = opaque(code),
            }
        }
        match rest[0] {
            0x00 => self.enter(2),
            code @ 0xc0.. => return self.compound(code, rest),
            code @ 0xa0.. => return self.bytes(rest, 1, is_wide(code)),
            code => match width(code) {
                Some(width) => return 1 + width,
                None => self.step = Step::Rest,
            },
        }
        1
    }

    fn compound(&mut self, code: u8, rest: &mut [u8]) -> usize {
        match rest {
            [_, size, count, ..] if !is_wide(code) => {
                sized(code, size, u32::from(*size));
                self.counted(code, count, u32::from(*count));
                3
            }
            [_, a, b, c, size, d, e, f, count, ..] if is_wide(code) => {
                sized(code, size, u32::from_be_bytes([*a, *b, *c, *size]));
                self.counted(code, count, u32::from_be_bytes([*d, *e, *f, *count]));
                9
            }
            _ => {
                self.step = expect(Of::Size(code), code);
                1
            }
        }
    }

    /// Bytes whose length stands `at` there.
    fn bytes(&mut self, rest: &mut [u8], at: usize, wide: bool) -> usize {
        match &mut rest[at..] {
            [length, ..] if !wide => return at + 1 + usize::from(*length),
            [first, second, third, fourth, ..] if wide => {
                *first = LONGEST.min(*first);
                return at + 4 + u32::from_be_bytes([*first, *second, *third, *fourth]) as usize;
            }
            _ => self.step = Step::Number { of: Of::Bytes, left: if wide { 4 } else { 1 }, value: 0 },
        }
        at
    }

    fn number(&mut self, byte: &mut u8, of: Of, left: u8, value: u32) -> usize {
        if left == 4 && matches!(of, Of::Bytes) {
            *byte = LONGEST.min(*byte);
        }
        let value = value << 8 | u32::from(*byte);
        match (left - 1, of) {
            (0, Of::Bytes) => {
                self.step = Step::Value;
                return 1 + value as usize;
            }
            (0, Of::Size(code)) => {
                sized(code, byte, value);
                self.step = expect(Of::Count(code), code);
            }
            (0, Of::Count(code)) => self.counted(code, byte, value),
            (left, of) => self.step = Step::Number { of, left, value },
        }
        1
    }

    /// Enters what has this count, whose last byte is given.
    fn counted(&mut self, code: u8, byte: &mut u8, count: u32) {
        self.step = match code {
            0xe0.. if count > 0 => Step::Elements(count),
            // As serde_amqp reads it there is no code for elements that are not there.
            0xe0.. => Step::Value,
            _ => {
                // A map has a value for each key. serde_amqp counts down by two, and would not end where one is missing.
                let odd = u8::from(is_map(code)) & *byte;
                *byte &= !odd;
                self.enter(count & !u32::from(odd));
                Step::Value
            }
        };
    }

    fn array(&mut self, code: &mut u8, count: u32) -> usize {
        self.step = Step::Value;
        *code = opaque(*code);
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
        *code = NONE;
        self.step = Step::Rest;
        1
    }
}

fn expect(of: Of, code: u8) -> Step {
    Step::Number { of, left: if is_wide(code) { 4 } else { 1 }, value: 0 }
}

/// The high half of a code tells the layout. <https://docs.oasis-open.org/amqp/core/v1.0/amqp-core-types-v1.0.html#section-encodings>
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

/// The code of binary in place of a list's, map's or array's.
fn opaque(code: u8) -> u8 {
    if code < 0xc0 { code } else { 0xa0 | code & 0x10 }
}

/// Raises a size, whose last byte is given, to what serde_amqp takes from it without looking: the count, and an array's code.
fn sized(code: u8, byte: &mut u8, size: u32) {
    let own = if is_wide(code) { 4 } else { 1 } + u8::from(code >= 0xe0);
    if size < u32::from(own) {
        *byte = own;
    }
}

#[cfg(test)]
#[path = "walk_tests.rs"]
pub(crate) mod tests;

//! A walk through a method or content header, in whatever pieces it comes: bounds its nesting and mends its text.
//!
//! What is malformed passes: lapin refuses it where this walk gives up, and looks no further.

use crate::transport::sanitizer::{
    nesting::{Holder, Nesting, Place},
    utf8,
};

enum Field {
    Octets(usize),
    Short,
    Table,
}

/// A content header's properties, each there if its flag is set, the first by the highest.
const PROPERTIES: &[Field] = {
    use Field::{Octets, Short, Table};
    &[Short, Short, Table, Octets(1), Octets(1), Short, Short, Short, Short, Octets(8), Short, Short, Short, Short]
};

/// The arguments of methods that bring text of others: what a publisher wrote, and reply texts, in which the broker cuts names
/// to fit.
fn arguments(class: u16, method: u16) -> &'static [Field] {
    use Field::{Octets, Short};
    match (class, method) {
        // connection.close, channel.close
        (10, 50) | (20, 40) => &[Octets(2), Short],
        // basic.return
        (60, 50) => &[Octets(2), Short, Short, Short],
        // basic.deliver
        (60, 60) => &[Short, Octets(9), Short, Short],
        // basic.get-ok
        (60, 71) => &[Octets(9), Short, Short],
        _ => &[],
    }
}

/// What comes next.
#[derive(Clone, Copy, Default)]
enum Step {
    /// Bytes of a number that are yet to come, and its value so far.
    Number {
        of: Of,
        left: usize,
        value: u32,
    },
    /// A property or argument.
    Field,
    /// The length of one that is a short string.
    Short,
    /// The end of a table or array, or its next entry.
    Entry,
    Key,
    Type,
    /// Nothing more to see.
    #[default]
    Rest,
}

/// What a number tells.
#[derive(Clone, Copy)]
enum Of {
    /// Class and method.
    Method,
    /// Which properties are there.
    Flags,
    /// A length.
    Holder(Holder),
    Bytes,
}

#[derive(Default)]
pub(crate) struct Payload {
    step: Step,
    /// Bytes to pass over first.
    skip: usize,
    /// Bytes of a short string that come first.
    text: usize,
    /// Bytes that are done.
    at: usize,
    fields: &'static [Field],
    flags: u16,
    nesting: Nesting,
}

impl Payload {
    pub(crate) fn begin_method(&mut self) {
        self.begin(Step::number(Of::Method, 4), 0);
    }

    /// Class, weight and body size come before the flags.
    pub(crate) fn begin_header(&mut self) {
        self.begin(Step::number(Of::Flags, 2), 12);
    }

    /// One in which there is nothing to see.
    pub(crate) fn begin_other(&mut self) {
        self.begin(Step::Rest, 0);
    }

    fn begin(&mut self, step: Step, skip: usize) {
        (self.step, self.skip, self.text, self.at) = (step, skip, 0, 0);
        self.nesting.close_all();
    }

    /// Walks on, and tells how many bytes are done. The others, the beginning of a character, are to be shown again with more.
    pub(crate) fn walk(&mut self, bytes: &mut [u8]) -> usize {
        let mut next = 0;
        while next < bytes.len() {
            let there = bytes.len() - next;
            let done = if self.skip > 0 {
                let done = self.skip.min(there);
                self.skip -= done;
                done
            } else if self.text > 0 {
                let here = self.text.min(there);
                let done = utf8::mend(&mut bytes[next..next + here], here < self.text);
                if done == 0 {
                    break;
                }
                self.text -= done;
                done
            } else if self.needs_bytes() {
                self.take(&mut bytes[next..])
            } else if let Step::Rest = self.step {
                return bytes.len();
            } else {
                0
            };
            self.at += done;
            next += done;
        }
        next
    }

    /// Takes steps that need no bytes, until one does, or there is something to pass over.
    fn needs_bytes(&mut self) -> bool {
        while self.skip == 0 {
            self.step = match self.step {
                Step::Number { of, left: 0, value } => self.number(of, value),
                Step::Field => self.field(),
                Step::Entry => match self.nesting.place(self.at) {
                    Place::Inside(Holder::Table) => Step::Key,
                    Place::Inside(Holder::Array) => Step::Type,
                    Place::Outside => Step::Field,
                    Place::Torn => Step::Rest,
                },
                Step::Rest => return false,
                Step::Number { .. } | Step::Short | Step::Key | Step::Type => return true,
            };
        }
        false
    }

    fn number(&mut self, of: Of, value: u32) -> Step {
        let end = self.at.saturating_add(value as usize);
        match of {
            Of::Method => {
                (self.fields, self.flags) = (arguments((value >> 16) as u16, value as u16), u16::MAX);
                Step::Field
            }
            Of::Flags => {
                (self.fields, self.flags) = (PROPERTIES, value as u16);
                Step::Field
            }
            Of::Holder(_) | Of::Bytes if !self.nesting.has_room(end) => Step::Rest,
            Of::Holder(holder) => {
                self.nesting.open(holder, end);
                Step::Entry
            }
            Of::Bytes => {
                self.skip = value as usize;
                Step::Entry
            }
        }
    }

    fn field(&mut self) -> Step {
        let Some((field, later)) = self.fields.split_first() else { return Step::Rest };
        let there = self.flags & 1 << 15 != 0;
        (self.fields, self.flags) = (later, self.flags << 1);
        match field {
            _ if !there => Step::Field,
            Field::Short => Step::Short,
            Field::Table => Step::number(Of::Holder(Holder::Table), 4),
            Field::Octets(count) => {
                self.skip = *count;
                Step::Field
            }
        }
    }

    /// Takes a step, and tells for how many bytes.
    fn take(&mut self, bytes: &mut [u8]) -> usize {
        let mut taken = 1;
        self.step = match self.step {
            Step::Number { of, left, value } => {
                taken = left.min(bytes.len());
                let value = bytes[..taken].iter().fold(value, |value, byte| value << 8 | u32::from(*byte));
                Step::Number { of, left: left - taken, value }
            }
            Step::Short => {
                self.text = usize::from(bytes[0]);
                Step::Field
            }
            Step::Key => {
                self.text = usize::from(bytes[0]);
                Step::Type
            }
            Step::Type => self.value(&mut bytes[0]),
            other => other,
        };
        taken
    }

    /// The type of a value. <https://www.rabbitmq.com/amqp-0-9-1-errata#section_3>, as lapin reads it.
    fn value(&mut self, kind: &mut u8) -> Step {
        let of = match *kind {
            b'F' | b'A' if self.nesting.is_full() => {
                *kind = b'x';
                Of::Bytes
            }
            b'F' => Of::Holder(Holder::Table),
            b'A' => Of::Holder(Holder::Array),
            b'S' | b'x' => Of::Bytes,
            fixed => {
                self.skip = match fixed {
                    b'V' => 0,
                    b't' | b'b' | b'B' => 1,
                    b's' | b'U' | b'u' => 2,
                    b'I' | b'i' | b'f' => 4,
                    b'D' => 5,
                    b'L' | b'l' | b'd' | b'T' => 8,
                    _ => return Step::Rest,
                };
                return Step::Entry;
            }
        };
        Step::number(of, 4)
    }
}

impl Step {
    fn number(of: Of, bytes: usize) -> Self {
        Self::Number { of, left: bytes, value: 0 }
    }
}

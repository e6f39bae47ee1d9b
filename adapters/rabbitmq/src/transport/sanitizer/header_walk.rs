//! Walks through the payload of a method or a content header, bounds its nesting and mends its text.
//!
//! The payload may come in pieces of any size, so the walk is a state machine. A malformed payload passes: the walk
//! stops looking where lapin will refuse it.

use crate::transport::sanitizer::{
    nesting::{ContainerKind, NestingPlace, OpenContainers},
    utf8,
};

/// How a property of a content header or an argument of a method is laid out.
enum FieldKind {
    /// So many bytes, whatever they mean.
    Octets(usize),
    /// A short string.
    Short,
    /// A table of headers.
    Table,
}

/// The properties of a content header, in order. Each is present if its flag is set; the first has the highest flag.
const PROPERTIES: &[FieldKind] = {
    use FieldKind::{Octets, Short, Table};
    &[Short, Short, Table, Octets(1), Octets(1), Short, Short, Short, Short, Octets(8), Short, Short, Short, Short]
};

/// The arguments of those methods that may bring text that is not UTF-8: what a publisher wrote, and reply texts, in
/// which the broker cuts names to fit.
fn arguments(class: u16, method: u16) -> &'static [FieldKind] {
    use FieldKind::{Octets, Short};
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

/// What the next byte of the payload is.
#[derive(Clone, Copy, Default)]
enum WalkStep {
    /// A byte of a number: what it says, how many of its bytes are yet to come, and its value so far.
    Number { of: NumberKind, left: usize, value: u32 },
    /// The beginning of a property or argument.
    Field,
    /// The length of a short string.
    Short,
    /// The next entry of a table or array, or what follows its end.
    Entry,
    /// The length of a key in a table.
    Key,
    /// The type of a value.
    Type,
    /// Nothing more of this payload is looked at.
    #[default]
    Rest,
}

/// What a number says.
#[derive(Clone, Copy)]
enum NumberKind {
    /// The class and the method.
    Method,
    /// Which properties are present.
    Flags,
    /// The length of a table or array.
    Container(ContainerKind),
    /// The length of a long string or byte array.
    Bytes,
}

/// A walk through one payload.
#[derive(Default)]
pub(crate) struct PayloadWalk {
    step: WalkStep,
    /// How many bytes are passed over before the next step.
    skip: usize,
    /// How many bytes of a short string come before the next step.
    text: usize,
    /// How many bytes of the payload are done.
    at: usize,
    /// The properties or arguments that are yet to come.
    fields: &'static [FieldKind],
    /// Their flags, that of the next one highest.
    flags: u16,
    nesting: OpenContainers,
}

impl PayloadWalk {
    /// Begins the payload of a method.
    pub(crate) fn begin_method(&mut self) {
        self.begin(WalkStep::number(NumberKind::Method, 4), 0);
    }

    /// Begins the payload of a content header. Class, weight and body size come before its flags.
    pub(crate) fn begin_header(&mut self) {
        self.begin(WalkStep::number(NumberKind::Flags, 2), 12);
    }

    /// Begins a payload of which nothing is looked at.
    pub(crate) fn begin_other(&mut self) {
        self.begin(WalkStep::Rest, 0);
    }

    fn begin(&mut self, step: WalkStep, skip: usize) {
        (self.step, self.skip, self.text, self.at) = (step, skip, 0, 0);
        self.nesting.close_all();
    }

    /// Walks through the next bytes, and answers how many are done. The others begin a character. The caller passes
    /// them again with more bytes behind them.
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
            } else if let WalkStep::Rest = self.step {
                return bytes.len();
            } else {
                0
            };
            self.at += done;
            next += done;
        }
        next
    }

    /// Takes the steps that need no bytes. Answers true if the next step needs some, and false if bytes are passed
    /// over first or nothing more is looked at.
    fn needs_bytes(&mut self) -> bool {
        while self.skip == 0 {
            self.step = match self.step {
                WalkStep::Number { of, left: 0, value } => self.number(of, value),
                WalkStep::Field => self.field(),
                WalkStep::Entry => match self.nesting.place(self.at) {
                    NestingPlace::Inside(ContainerKind::Table) => WalkStep::Key,
                    NestingPlace::Inside(ContainerKind::Array) => WalkStep::Type,
                    NestingPlace::Outside => WalkStep::Field,
                    NestingPlace::Torn => WalkStep::Rest,
                },
                WalkStep::Rest => return false,
                WalkStep::Number { .. } | WalkStep::Short | WalkStep::Key | WalkStep::Type => return true,
            };
        }
        false
    }

    /// The step after a number that is complete.
    fn number(&mut self, of: NumberKind, value: u32) -> WalkStep {
        let end = self.at.saturating_add(value as usize);
        match of {
            NumberKind::Method => {
                (self.fields, self.flags) = (arguments((value >> 16) as u16, value as u16), u16::MAX);
                WalkStep::Field
            }
            NumberKind::Flags => {
                (self.fields, self.flags) = (PROPERTIES, value as u16);
                WalkStep::Field
            }
            NumberKind::Container(_) | NumberKind::Bytes if !self.nesting.has_room(end) => WalkStep::Rest,
            NumberKind::Container(container) => {
                self.nesting.open(container, end);
                WalkStep::Entry
            }
            NumberKind::Bytes => {
                self.skip = value as usize;
                WalkStep::Entry
            }
        }
    }

    /// The step into the next property or argument, if it is present.
    fn field(&mut self) -> WalkStep {
        let Some((field, later)) = self.fields.split_first() else { return WalkStep::Rest };
        let there = self.flags & 1 << 15 != 0;
        (self.fields, self.flags) = (later, self.flags << 1);
        match field {
            _ if !there => WalkStep::Field,
            FieldKind::Short => WalkStep::Short,
            FieldKind::Table => WalkStep::number(NumberKind::Container(ContainerKind::Table), 4),
            FieldKind::Octets(count) => {
                self.skip = *count;
                WalkStep::Field
            }
        }
    }

    /// Takes a step that needs bytes, and answers how many it took.
    fn take(&mut self, bytes: &mut [u8]) -> usize {
        let mut taken = 1;
        self.step = match self.step {
            WalkStep::Number { of, left, value } => {
                taken = left.min(bytes.len());
                let value = bytes[..taken].iter().fold(value, |value, byte| value << 8 | u32::from(*byte));
                WalkStep::Number { of, left: left - taken, value }
            }
            WalkStep::Short => {
                self.text = usize::from(bytes[0]);
                WalkStep::Field
            }
            WalkStep::Key => {
                self.text = usize::from(bytes[0]);
                WalkStep::Type
            }
            WalkStep::Type => self.value(&mut bytes[0]),
            other => other,
        };
        taken
    }

    /// The step after the type of a value. A table or array that is too deep becomes a byte array.
    ///
    /// The types are those of <https://www.rabbitmq.com/amqp-0-9-1-errata#section_3>, as lapin reads them.
    fn value(&mut self, kind: &mut u8) -> WalkStep {
        let of = match *kind {
            b'F' | b'A' if self.nesting.is_full() => {
                *kind = b'x';
                NumberKind::Bytes
            }
            b'F' => NumberKind::Container(ContainerKind::Table),
            b'A' => NumberKind::Container(ContainerKind::Array),
            b'S' | b'x' => NumberKind::Bytes,
            fixed => {
                self.skip = match fixed {
                    b'V' => 0,
                    b't' | b'b' | b'B' => 1,
                    b's' | b'U' | b'u' => 2,
                    b'I' | b'i' | b'f' => 4,
                    b'D' => 5,
                    b'L' | b'l' | b'd' | b'T' => 8,
                    _ => return WalkStep::Rest,
                };
                return WalkStep::Entry;
            }
        };
        WalkStep::number(of, 4)
    }
}

impl WalkStep {
    fn number(of: NumberKind, bytes: usize) -> Self {
        Self::Number { of, left: bytes, value: 0 }
    }
}

//! Walks through messages that are deep, wrong, or random.
#![allow(clippy::unwrap_used)]
use std::thread;

use fe2o3_amqp::types::{
    messaging::{AmqpValue, Body, Message, message::__private::Deserializable},
    primitives::{Array, Binary, Value},
};

use super::*;

const LIST8: u8 = 0xc0;
const MAP8: u8 = 0xc1;
const LIST32: u8 = 0xd0;
const MAP32: u8 = 0xd1;
const ARRAY8: u8 = 0xe0;
const ARRAY32: u8 = 0xf0;

/// What has this code and so many values, or elements after their code.
pub(crate) fn compound(code: u8, count: usize, content: &[u8]) -> Vec<u8> {
    let mut encoded = vec![code];
    if is_wide(code) {
        encoded.extend((content.len() as u32 + 4).to_be_bytes());
        encoded.extend((count as u32).to_be_bytes());
    } else {
        encoded.extend([u8::try_from(content.len() + 1).unwrap(), count as u8]);
    }
    [&encoded, content].concat()
}

/// These within each other, the outermost first, with a value beside each that is no list.
pub(crate) fn nested(codes: &[u8]) -> Vec<u8> {
    codes.iter().rev().fold(b"\xa1\x03end".to_vec(), |inner, code| match *code {
        0x00 => [b"\x00\x53\x07", &inner[..]].concat(),
        code if is_map(code) => compound(code, 4, &[b"\xa1\x01k", &inner[..], b"\xa0\x02\xc0\xd0\x54\xc0"].concat()),
        code => compound(code, 2, &[&inner[..], b"\x71\xd0\xd0\xd0\xd0"].concat()),
    })
}

pub(crate) fn section(code: u8, value: &[u8]) -> Vec<u8> {
    [&[0x00, 0x53, code][..], value].concat()
}

pub(crate) fn annotations(value: &[u8]) -> Vec<u8> {
    section(0x72, &compound(MAP32, 2, &[b"\xa3\x01k", value].concat()))
}

pub(crate) fn body(value: &[u8]) -> Vec<u8> {
    section(0x77, value)
}

/// A message that is walked over without a change.
pub(crate) fn harmless() -> Vec<u8> {
    let deepest: Vec<u8> = [LIST32, MAP32, 0x00, LIST32].repeat(MAX_DEPTH / 4);
    let mut values = Vec::new();
    let simple: [&[u8]; 34] = [
        b"\x40",
        b"\x41",
        b"\x42",
        b"\x56\x01",
        b"\x50\xc0",
        b"\x60\xc0\xc0",
        b"\x70\0\0\xc0\xd0",
        b"\x52\xd0",
        b"\x43",
        b"\x80\0\0\0\0\0\0\0\xd0",
        b"\x53\xd0",
        b"\x44",
        b"\x51\xd0",
        b"\x61\xd0\xd0",
        b"\x71\0\0\0\xd0",
        b"\x54\xd0",
        b"\x81\0\0\0\0\0\0\0\xd0",
        b"\x55\xd0",
        b"\x72\0\0\0\xd0",
        b"\x82\0\0\0\0\0\0\0\xd0",
        b"\x73\0\0\0A",
        b"\x83\0\0\0\0\0\0\0\xd0",
        b"\x98\xd0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xd0",
        b"\xa0\x02\xc0\xd0",
        b"\xb0\0\0\0\x01\xd0",
        b"\xa1\0",
        b"\xb1\0\0\0\x01A",
        b"\xa3\x01A",
        b"\xb3\0\0\0\0",
        b"\x45",
        b"\xc1\x01\0",
        b"\xe0\x08\x03\xa1\x01A\0\x01A",
        b"\xf0\0\0\0\x09\0\0\0\x02\x61\xc0\xc0\xd0\xd0",
        b"\xf0\0\0\0\x12\0\0\0\x02\xb0\0\0\0\x01\xd0\0\0\0\x02\xd0\xd0",
    ];
    simple.iter().for_each(|value| values.extend(*value));
    let header = section(0x70, &compound(LIST8, 2, b"\x41\x50\x04"));
    let sequence = section(0x76, &compound(LIST32, simple.len(), &values));
    [header, annotations(&nested(&deepest[1..])), sequence.clone(), sequence].concat()
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Message<Body<Value>>, serde_amqp::Error> {
    serde_amqp::from_slice::<Deserializable<Message<Body<Value>>>>(bytes).map(|message| message.0)
}

fn value(bytes: &[u8]) -> Value {
    match decode(bytes).unwrap().body {
        Body::Value(AmqpValue(value)) => value,
        other => panic!("{other:?}"),
    }
}

fn walked(message: &[u8], piece: usize) -> Vec<u8> {
    let mut out = message.to_vec();
    let mut walk = MessageWalk::new();
    out.chunks_mut(piece).for_each(|piece| walk.walk(piece));
    out
}

fn changes(before: &[u8], after: &[u8]) -> Vec<usize> {
    assert_eq!(before.len(), after.len());
    (0..before.len()).filter(|i| before[*i] != after[*i]).collect()
}

/// Whether it can be read does not matter here: a stack that overflows ends the process.
pub(crate) fn is_decoded_on_a_small_stack(messages: Vec<Vec<u8>>) {
    let decoding = move || messages.iter().map(|message| decode(message).is_ok()).filter(|read| *read).count();
    let read = thread::Builder::new().stack_size(1 << 20).spawn(decoding).unwrap().join().unwrap();
    println!("{read} were read");
}

#[test]
fn what_is_not_too_deep_passes_unchanged() {
    let message = harmless();
    assert!(matches!(decode(&message).unwrap().body, Body::Sequence(_)));
    for piece in 1..40 {
        assert!(walked(&message, piece) == message, "in pieces of {piece}");
    }
    assert!(walked(&message, message.len()) == message);
}

#[test]
fn what_is_too_deep_becomes_binary() {
    let around = [LIST32; MAX_DEPTH];
    for code in [LIST8, MAP8, LIST32, MAP32] {
        let inner = nested(&[code, LIST8]);
        let message = body(&nested(&[&around[..], &[code, LIST8]].concat()));
        for piece in [1, 2, 3, 7, 64, 4096] {
            let changed = walked(&message, piece);
            let [at] = changes(&message, &changed)[..] else { panic!("one byte, in pieces of {piece}") };
            assert_eq!((message[at], changed[at]), (code, 0xa0 | code & 0x10), "in pieces of {piece}");
            let mut found = value(&changed);
            for _ in 0..MAX_DEPTH {
                let Value::List(mut values) = found else { panic!("{found:?}") };
                found = values.swap_remove(0);
            }
            let content = &inner[if is_wide(code) { 5 } else { 2 }..];
            assert_eq!(found, Value::Binary(Binary::from(content.to_vec())));
        }
    }
}

#[test]
fn thousands_of_levels_leave_the_stack_alone_wherever_they_are() {
    let deep = |code: u8| nested(&[code; 3_000]);
    let mut messages = Vec::new();
    for value in [deep(LIST32), deep(MAP32), deep(0x00), vec![0x00; 3_000]] {
        messages.push(body(&value));
        messages.push(section(0x76, &compound(LIST32, 1, &value)));
        for map in [0x71, 0x72, 0x74, 0x78] {
            let map = section(map, &compound(MAP32, 2, &[b"\xa1\x01k", &value[..]].concat()));
            messages.push([annotations(b"\x40"), map].concat());
        }
        messages.push(annotations(&value));
        messages.push(section(0x70, &value));
    }
    let walked: Vec<_> = messages.iter().map(|message| walked(message, usize::MAX)).collect();
    assert_eq!(walked.iter().zip(&messages).filter(|(after, before)| after == before).count(), 0);
    is_decoded_on_a_small_stack(walked);
}

#[test]
fn described_values_that_are_too_deep_make_a_message_unreadable() {
    let message = body(&nested(&[0x00; MAX_DEPTH]));
    assert!(walked(&message, 1) == message && decode(&message).is_ok());
    let message = body(&nested(&[0x00; MAX_DEPTH + 1]));
    for piece in [1, 5, 4096] {
        let changed = walked(&message, piece);
        assert_eq!(changes(&message, &changed).len(), 1);
        assert!(decode(&changed).is_err());
    }
}

#[test]
fn in_an_array_lists_and_maps_and_arrays_are_binary_and_described_values_unreadable() {
    let binary = |bytes: &[u8]| Value::Binary(Binary::from(bytes.to_vec()));
    for array in [ARRAY8, ARRAY32] {
        for (code, elements) in [
            (LIST8, &b"\x02\x01\x41\x03\x01\x50\xc0"[..]),
            (MAP8, b"\x02\x01\x41\x03\x01\x50\xc0"),
            (ARRAY8, b"\x02\x01\x41\x03\x01\x50\xc0"),
            (LIST32, b"\0\0\0\x02\x01\x41\0\0\0\x03\x01\x50\xc0"),
        ] {
            let message = body(&compound(array, 2, &[&[code], elements].concat()));
            for piece in [1, 4096] {
                let Value::Array(Array(found)) = value(&walked(&message, piece)) else { panic!("no array") };
                assert_eq!(found, [binary(b"\x01\x41"), binary(b"\x01\x50\xc0")]);
            }
        }
        let message = body(&compound(array, 1, b"\x00\x53\x07\x50\x01"));
        assert!(decode(&walked(&message, 1)).is_err());
    }
    // Maps that hold no other, in which serde_amqp would go a level deeper with every second byte.
    let maps = b"\x09\x02\xa0\x02\x02\x02\xa0\x02\x02\x02".repeat(2_000);
    let message = body(&compound(ARRAY32, 2_000, &[&[MAP8], &maps[..]].concat()));
    is_decoded_on_a_small_stack(vec![walked(&message, usize::MAX)]);
}

#[test]
fn sizes_and_counts_that_lie_lead_nowhere() {
    let mut messages = Vec::new();
    for lie in [0, 1, 2, 255] {
        // serde_amqp goes by the count, and would find each list or map within the one before.
        messages.push(body(&[LIST8, lie, 1].repeat(20_000)));
        messages.push(body(&[&[LIST32, 0, 0, 0, lie], &[0, 0, 0, 1][..]].concat().repeat(20_000)));
        for odd in [1, 3] {
            messages.push(body(&[MAP8, lie, odd, 0x40].repeat(20_000)));
            messages.push(body(&[&[MAP32, 0, 0, 0, lie, 0, 0, 0], &[odd, 0x40][..]].concat().repeat(20_000)));
        }
        messages.push(body(&[ARRAY8, lie, 1].repeat(20_000)));
        messages.push(body(&[&[ARRAY32, 0, 0, 0, lie], &[0, 0, 0, 1][..]].concat().repeat(20_000)));
    }
    for piece in [1, 4096] {
        is_decoded_on_a_small_stack(messages.iter().map(|message| walked(message, piece)).collect());
    }
}

#[test]
fn a_length_that_no_message_has_takes_no_memory() {
    for code in [0xb0, 0xb1, 0xb3] {
        let message = body(&[code, 0xff, 0xff, 0xff, 0xff, 0x41]);
        for piece in [1, 4096] {
            assert_eq!(walked(&message, piece)[4], MAX_LENGTH_FIRST_BYTE);
        }
    }
}

/// A xorshift generator: the same numbers in every run.
pub(crate) fn random() -> impl FnMut() -> usize {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 8) as usize
    }
}

#[test]
fn whatever_comes_is_read_on_a_small_stack_and_pieces_make_no_difference() {
    let mut random = random();
    let mut messages = Vec::new();
    for round in 0..1_500 {
        let mut message =
            if round % 3 == 0 { harmless() } else { section([0x72, 0x74, 0x76, 0x77][random() % 4], b"") };
        if round % 3 == 0 {
            for _ in 0..=random() % 4 {
                let at = random() % message.len();
                message[at] = random() as u8;
            }
        } else {
            for _ in 0..600 {
                let (size, count) = (random() as u8, [1, 1, 1, 2, 3][random() % 5]);
                let inner = [LIST8, MAP8, LIST32, MAP32, ARRAY8, ARRAY32, 0x00, 0x45, 0x61, 0xa0][random() % 10];
                match random() % 16 {
                    0..4 => message.extend([LIST8, size, count]),
                    4..6 => message.extend([MAP8, size, 2 * count - 1, 0x40]),
                    6..8 => message.extend([MAP8, size, 2 * count, 0xa1, 1, b'k']),
                    8 => message.extend([LIST32, 0, 0, 0, size, 0, 0, 0, count]),
                    9 => message.extend([MAP32, 0, 0, 0, size, 0, 0, 0, count, 0x43]),
                    10 => message.extend([ARRAY8, size.max(4), count, inner, 1, 1]),
                    11 => message.extend([ARRAY32, 0, 0, 0, size.max(9), 0, 0, 0, count, inner, 0, 0, 0, 1, 1]),
                    12..15 => message.extend([0x00, 0x53, size]),
                    _ => message.extend([0x54, size]),
                }
            }
        }
        let whole = walked(&message, usize::MAX);
        assert!(walked(&message, 1 + random() % 9) == whole, "pieces make a difference");
        messages.push(whole);
    }
    is_decoded_on_a_small_stack(messages);
}

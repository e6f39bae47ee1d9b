//! Values and messages from bytes nobody vouches for, and there and back.

use bytes::Bytes;
use polybus_servicebus_emulator::codec::{MAX_DEPTH, Value, ValueReader, decode, encode};
use polybus_servicebus_emulator::message::{BATCH_FORMAT, Message, MessageHeader, MessageProperties};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// Each of the five properties over bytes makes this many times a hundred inputs; `FUZZ_ROUNDS` asks for another
/// number. A thousand, half a million inputs in all, take some minutes.
fn rounds() -> u32 {
    std::env::var("FUZZ_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(40)
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Values of one type, as arrays have them; NaN is left out, since it is not equal to itself.
fn scalars() -> Vec<BoxedStrategy<Value>> {
    vec![
        any::<bool>().prop_map(Value::Bool).boxed(),
        any::<u8>().prop_map(Value::Ubyte).boxed(),
        any::<u16>().prop_map(Value::Ushort).boxed(),
        prop_oneof![any::<u32>(), 0..300_u32].prop_map(Value::Uint).boxed(),
        prop_oneof![any::<u64>(), 0..300_u64].prop_map(Value::Ulong).boxed(),
        any::<i8>().prop_map(Value::Byte).boxed(),
        any::<i16>().prop_map(Value::Short).boxed(),
        prop_oneof![any::<i32>(), -200..200_i32].prop_map(Value::Int).boxed(),
        prop_oneof![any::<i64>(), -200..200_i64].prop_map(Value::Long).boxed(),
        proptest::num::f32::NORMAL.prop_map(Value::Float).boxed(),
        proptest::num::f64::NORMAL.prop_map(Value::Double).boxed(),
        any::<[u8; 4]>().prop_map(Value::Decimal32).boxed(),
        any::<[u8; 8]>().prop_map(Value::Decimal64).boxed(),
        any::<[u8; 16]>().prop_map(Value::Decimal128).boxed(),
        any::<char>().prop_map(Value::Char).boxed(),
        any::<i64>().prop_map(Value::Timestamp).boxed(),
        any::<[u8; 16]>().prop_map(Value::Uuid).boxed(),
        vec(any::<u8>(), 0..300).prop_map(|bytes| Value::Binary(bytes.into())).boxed(),
        "\\PC{0,90}".prop_map(Value::String).boxed(),
        "[ -~]{0,300}".prop_map(Value::Symbol).boxed(),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let arrays: Vec<_> = scalars().into_iter().map(|of| vec(of, 0..5).prop_map(Value::Array).boxed()).collect();
    let mut leaves = scalars();
    leaves.push(Just(Value::Null).boxed());
    leaves.extend(arrays);
    proptest::strategy::Union::new(leaves).prop_recursive(4, 60, 8, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..8).prop_map(Value::List),
            vec((inner.clone(), inner.clone()), 0..8).prop_map(Value::Map),
            (inner.clone(), inner.clone()).prop_map(|described| Value::Described(Box::new(described))),
            vec(vec(inner, 0..3).prop_map(Value::List), 0..4).prop_map(Value::Array),
        ]
    })
}

fn pairs() -> impl Strategy<Value = Vec<(Value, Value)>> {
    vec(("[a-z-]{1,20}".prop_map(Value::Symbol), value()), 0..4)
}

fn text() -> impl Strategy<Value = Option<String>> {
    option::of("\\PC{0,20}".prop_map(String::from))
}

fn properties() -> impl Strategy<Value = MessageProperties> {
    let ids = (option::of("\\PC{0,20}".prop_map(Value::String)), option::of(any::<u64>().prop_map(Value::Ulong)));
    let user = option::of(vec(any::<u8>(), 0..5).prop_map(Bytes::from));
    let times = (option::of(any::<i64>()), option::of(any::<i64>()), option::of(any::<u32>()));
    (ids, user, [text(), text(), text(), text(), text(), text(), text()], times).prop_map(
        |((message_id, correlation_id), user_id, texts, (absolute_expiry, creation_time, group_sequence))| {
            let [to, subject, reply_to, content_type, content_encoding, group_id, reply_to_group_id] = texts;
            MessageProperties {
                message_id,
                user_id,
                to,
                subject,
                reply_to,
                correlation_id,
                content_type,
                content_encoding,
                absolute_expiry,
                creation_time,
                group_id,
                group_sequence,
                reply_to_group_id,
            }
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    let header = (any::<bool>(), any::<u8>(), option::of(any::<u32>()), any::<bool>(), any::<u32>()).prop_map(
        |(durable, priority, ttl_ms, first_acquirer, delivery_count)| MessageHeader {
            durable,
            priority,
            ttl_ms,
            first_acquirer,
            delivery_count,
        },
    );
    let application = vec(("[a-z]{1,10}", value()), 0..4);
    let body = prop_oneof![
        vec(vec(any::<u8>(), 0..50).prop_map(|bytes| Value::described(0x75, Value::Binary(bytes.into()))), 0..3),
        vec(vec(value(), 0..3).prop_map(|items| Value::described(0x76, Value::List(items))), 0..3),
        value().prop_map(|value| vec![Value::described(0x77, value)]),
    ];
    (header, pairs(), pairs(), properties(), application, body, pairs()).prop_map(
        |(header, delivery_annotations, annotations, properties, application_properties, body, footer)| {
            let body = body.iter().flat_map(encode).collect::<Vec<u8>>().into();
            let mut message = Message {
                header,
                delivery_annotations,
                annotations,
                properties,
                application_properties,
                body,
                footer,
                encoded_size: 0,
            };
            message.encoded_size = message.encode().len();
            message
        },
    )
}

/// Numbers from a seed: much cheaper than a strategy per byte, and a failing seed is an input all the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // Xorshift, as Marsaglia gave it.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("small")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }

    fn bytes(&mut self) -> Vec<u8> {
        (0..self.below(200)).map(|_| self.byte()).collect()
    }

    /// Mostly the codes of types and small lengths, which arbitrary bytes hardly ever are.
    fn codes(&mut self) -> Vec<u8> {
        const CODES: [u8; 36] = [
            0x00, 0x40, 0x41, 0x43, 0x44, 0x45, 0x50, 0x52, 0x53, 0x56, 0x60, 0x70, 0x73, 0x80, 0x83, 0x94, 0x98, 0xa0,
            0xa1, 0xa3, 0xb0, 0xb1, 0xc0, 0xc1, 0xd0, 0xd1, 0xe0, 0xf0, 0x70, 0x71, 0x72, 0x73, 0x74, 0x75, 0x77, 0x78,
        ];
        let one = |random: &mut Self| match random.below(8) {
            0..4 => CODES[random.below(CODES.len())],
            4..7 => random.byte() % 12,
            _ => random.byte(),
        };
        (0..self.below(120)).map(|_| one(self)).collect()
    }

    /// Good bytes with a few of them changed, perhaps without their end.
    fn damaged(&mut self, good: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = good[self.below(good.len())].clone();
        for _ in 0..self.below(4) {
            let at = self.below(bytes.len());
            bytes[at] = if self.below(2) == 0 { self.byte() } else { self.byte() % 8 };
        }
        if self.below(4) == 0 {
            bytes.truncate(self.below(bytes.len()) + 1);
        }
        bytes
    }
}

/// A hundred things of a strategy, encoded.
fn samples<T>(strategy: impl Strategy<Value = T>, encode: impl Fn(&T) -> Vec<u8>) -> Vec<Vec<u8>> {
    let mut runner = TestRunner::deterministic();
    (0..100).map(|_| encode(&strategy.new_tree(&mut runner).expect("a sample").current())).collect()
}

/// Checks a hundred inputs for each seed.
fn fuzz(input: impl Fn(&mut Random) -> Vec<u8>) {
    let check_hundred = |seed: u64| {
        let mut random = Random(seed | 1);
        (0..100).try_for_each(|_| check(&input(&mut random)))
    };
    TestRunner::new(config(rounds())).run(&any::<u64>(), check_hundred).expect("no input fails");
}

/// What decodes is written back as something that decodes to the same, and stepping over it takes the same bytes.
fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    let mut reader = ValueReader::new(bytes);
    if let Ok(value) = reader.value() {
        let read = bytes.len() - reader.rest().len();
        let mut skipping = ValueReader::new(bytes);
        prop_assert_eq!(skipping.skip(), Ok(()));
        prop_assert_eq!(bytes.len() - skipping.rest().len(), read);
        let written = encode(&value);
        let again = decode(&written).expect("what was written can be read");
        // Compared as bytes, because NaN is not equal to itself.
        prop_assert_eq!(encode(&again), written);
    }
    if let Ok(message) = Message::decode(bytes) {
        let written = message.encode();
        let again = Message::decode(&written).expect("what was written can be read");
        prop_assert_eq!(again.encode(), written);
        let _ = message.body_value();
    }
    let _ = Message::decode_batch(bytes);
    Ok(())
}

#[test]
fn arbitrary_bytes_never_panic() {
    fuzz(Random::bytes);
}

#[test]
fn bytes_of_type_codes_never_panic() {
    fuzz(Random::codes);
}

#[test]
fn sections_of_type_codes_never_panic() {
    fuzz(|random| {
        let mut bytes = random.codes();
        bytes.splice(0..0, [0x00, 0x53, 0x70 + random.byte() % 9]);
        bytes
    });
}

#[test]
fn damaged_values_never_panic() {
    let good = samples(value(), encode);
    fuzz(|random| random.damaged(&good));
}

#[test]
fn damaged_messages_never_panic() {
    let good = samples(message(), Message::encode);
    fuzz(|random| random.damaged(&good));
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn values_go_there_and_back(value in value()) {
        let bytes = encode(&value);
        prop_assert_eq!(decode(&bytes), Ok(value));
        prop_assert!(bytes.len() < 2 || decode(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn messages_go_there_and_back(message in message()) {
        prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn batches_come_apart(messages in vec(message(), 1..3)) {
        let section = |message: &Message| encode(&Value::described(0x75, Value::Binary(message.encode().into())));
        let batch: Vec<u8> = messages.iter().flat_map(section).collect();
        let (_, read) = Message::decode_batch(&batch).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(read, messages);
    }
}

#[test]
fn every_width_of_every_type_is_read() {
    let cases: [(&[u8], Value); 22] = [
        (&[0x40], Value::Null),
        (&[0x41], Value::Bool(true)),
        (&[0x56, 0], Value::Bool(false)),
        (&[0x43], Value::Uint(0)),
        (&[0x52, 7], Value::Uint(7)),
        (&[0x70, 0, 0, 0, 7], Value::Uint(7)),
        (&[0x44], Value::Ulong(0)),
        (&[0x53, 7], Value::Ulong(7)),
        (&[0x80, 0, 0, 0, 0, 0, 0, 0, 7], Value::Ulong(7)),
        (&[0x54, 0xff], Value::Int(-1)),
        (&[0x71, 0xff, 0xff, 0xff, 0xff], Value::Int(-1)),
        (&[0x55, 0xff], Value::Long(-1)),
        (&[0xa1, 1, b'a'], Value::string("a")),
        (&[0xb1, 0, 0, 0, 1, b'a'], Value::string("a")),
        (&[0xa3, 1, b'a'], Value::symbol("a")),
        (&[0xb0, 0, 0, 0, 1, 9], Value::Binary(Bytes::from_static(&[9]))),
        (&[0x45], Value::List(vec![])),
        (&[0xc0, 2, 1, 0x40], Value::List(vec![Value::Null])),
        (&[0xd0, 0, 0, 0, 5, 0, 0, 0, 1, 0x40], Value::List(vec![Value::Null])),
        (&[0xc1, 3, 2, 0x40, 0x41], Value::Map(vec![(Value::Null, Value::Bool(true))])),
        (&[0xe0, 4, 2, 0x50, 1, 2], Value::Array(vec![Value::Ubyte(1), Value::Ubyte(2)])),
        (&[0xf0, 0, 0, 0, 7, 0, 0, 0, 2, 0x50, 1, 2], Value::Array(vec![Value::Ubyte(1), Value::Ubyte(2)])),
    ];
    for (bytes, value) in cases {
        assert_eq!(decode(bytes), Ok(value), "{bytes:02x?}");
    }
}

#[test]
fn an_array_of_described_values_is_read() {
    let bytes = [0xe0, 7, 2, 0x00, 0x53, 9, 0x50, 1, 2];
    let described = |n| Value::described(9, Value::Ubyte(n));
    assert_eq!(decode(&bytes), Ok(Value::Array(vec![described(1), described(2)])));
    // It goes out as a list, since each element would need a constructor of its own.
    let items = vec![described(1), described(2)];
    assert_eq!(decode(&encode(&Value::Array(items.clone()))), Ok(Value::List(items)));
}

#[test]
fn a_count_alone_takes_no_memory() {
    for bytes in [
        &[0xd0_u8, 0, 0, 0, 4, 255, 255, 255, 255][..],
        &[0xd1, 0, 0, 0, 4, 255, 255, 255, 254],
        &[0xf0, 0, 0, 0, 5, 255, 255, 255, 255, 0x40],
        &[0xf0, 0, 0, 0, 5, 0, 1, 0, 0, 0x45],
        &[0xe0, 2, 17, 0x45],
        &[0xe0, 5, 2, 0x00, 0xe0, 2, 9, 0x43, 0x41],
        &[0xf0, 0, 0, 0, 8, 255, 255, 255, 255, 0x00, 0x53, 1, 0x41],
    ] {
        assert!(decode(bytes).is_err(), "{bytes:02x?}");
    }
}

#[test]
fn nesting_ends_somewhere() {
    let nested = |depth: u8| (0..depth).fold(Value::Null, |inner, _| Value::List(vec![inner]));
    assert!(decode(&encode(&nested(MAX_DEPTH))).is_ok());
    assert!(decode(&encode(&nested(MAX_DEPTH + 1))).is_err());
    let described = (0..200).fold(Value::Null, |inner, _| Value::described(1, inner));
    assert!(decode(&encode(&described)).is_err());
    assert!(ValueReader::new(&[0; 100_000]).skip().is_err());
    assert!(decode(&[0xe0; 200]).is_err());
}

#[test]
fn the_sdks_batch_format_is_known() {
    assert_eq!(BATCH_FORMAT, 2_147_563_264);
}

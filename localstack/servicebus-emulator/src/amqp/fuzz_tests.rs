//! Frames in any order, with anything in them: the engine answers in frames, never panics, and counts right.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::AmqpOptions;
use super::engine::{ConnectionEngine, ConnectionPhase};
use super::wire::frame::{self, AMQP};
use super::wire::performative::{ATTACH, BEGIN, CLOSE, DETACH, DISPOSITION, END, FLOW, OPEN, TRANSFER};
use super::wire::{Frame, Performative};
use crate::SharedState;
use crate::broker::{Broker, NamespaceLimits, QueueSettings};
use crate::clock::Clock;
use crate::codec::{Value, encode};
use crate::message::{BATCH_FORMAT, Message};

/// Connections, each of up to `FRAMES` frames.
const CONNECTIONS: u32 = 3_000;
const FRAMES: usize = 60;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).expect("small")].clone()
    }

    fn number(&mut self) -> Value {
        let small = u32::try_from(self.below(6)).expect("small");
        match self.below(300) {
            0 => Value::Null,
            1 => Value::string("no number"),
            2..20 => Value::Uint(u32::MAX - small),
            20..40 => Value::Uint(u32::MAX / 2 + small),
            40..80 => Value::Uint(1000 + small),
            _ => Value::Uint(small),
        }
    }

    /// One that is likely to be attached.
    fn handle(&mut self) -> Value {
        if self.below(100) == 0 { self.number() } else { Value::Uint(u32::try_from(self.below(4)).expect("small")) }
    }

    /// One that the peer is likely to send on.
    fn sending(&mut self) -> Value {
        if self.below(50) == 0 { self.handle() } else { self.pick(&[Value::Uint(0), Value::Uint(2)]) }
    }

    fn truth(&mut self) -> Value {
        self.pick(&[Value::Bool(true), Value::Bool(false), Value::Bool(false), Value::Null])
    }

    fn terminus(&mut self, code: u64) -> Value {
        let address =
            self.pick(&["q", "q", "s", "q/$DeadLetterQueue", "$cbs", "q/$management", "s/$management", "nope", ""]);
        let mut fields = vec![Value::string(address)];
        if self.below(3) == 0 {
            fields.extend(vec![Value::Null; 6]);
            let session = self.pick(&[Value::Null, Value::string("a"), Value::described(1, Value::Null)]);
            fields.push(Value::Map(vec![(Value::symbol("com.microsoft:session-filter"), session)]));
        }
        self.pick(&[Value::described(code, Value::List(fields)), Value::described(code, Value::List(vec![]))])
    }

    fn state(&mut self) -> Value {
        let info = Value::Map(vec![(Value::symbol("DeadLetterReason"), Value::string("why"))]);
        let error = Value::described(0x1d, Value::List(vec![Value::symbol("x"), Value::Null, info]));
        let fields = self.pick(&[vec![], vec![error], vec![Value::Bool(true), Value::Bool(true)]]);
        let code = 0x23 + self.below(6);
        self.pick(&[Value::described(code, Value::List(fields)), Value::Null])
    }

    fn payload(&mut self) -> Vec<u8> {
        let mut message = Message::default();
        message.properties.group_id = self.pick(&[None, Some("a".to_owned())]);
        message.properties.reply_to = self.pick(&[None, Some("q".to_owned())]);
        let operation = self.pick(&["peek-message", "renew-lock", "update-disposition", "enumerate-rules", "x"]);
        message.application_properties =
            vec![("operation".to_owned(), Value::string(format!("com.microsoft:{operation}")))];
        let tokens = Value::Array(vec![Value::Uuid([1; 16])]);
        let body = vec![
            (Value::string("lock-tokens"), tokens),
            (Value::string("disposition-status"), Value::string("completed")),
            (Value::string("message-count"), Value::Long(i64::from_ne_bytes(self.0.to_ne_bytes()))),
        ];
        message.set_body_value(&Value::Map(body));
        let mut bytes = message.encode();
        if self.below(6) == 0 {
            let at = usize::try_from(self.below(bytes.len() as u64)).expect("small");
            bytes[at] = self.0.to_le_bytes()[3];
        }
        bytes
    }

    fn body(&mut self) -> Vec<u8> {
        let code =
            self.pick(&[ATTACH, FLOW, FLOW, FLOW, TRANSFER, TRANSFER, TRANSFER, DISPOSITION, DISPOSITION, DETACH]);
        let code = if self.below(80) == 0 { self.pick(&[OPEN, BEGIN, END, END, END, CLOSE, 0x19]) } else { code };
        let mut fields = match code {
            BEGIN => vec![Value::Null, self.number(), self.number(), self.number(), self.number()],
            ATTACH => vec![
                Value::string("name"),
                Value::Uint(u32::try_from(self.below(20)).expect("small")),
                self.pick(&[Value::Bool(true), Value::Bool(false)]),
                self.number(),
                self.number(),
                self.terminus(0x28),
                self.terminus(0x29),
                Value::Null,
                Value::Null,
                self.number(),
                self.number(),
                Value::Null,
                Value::Null,
                Value::Map(vec![(Value::symbol("com.microsoft:timeout"), self.number())]),
            ],
            FLOW => {
                let mut fields: Vec<Value> = (0..8).map(|_| self.number()).collect();
                fields[4] = self.handle();
                fields.extend([self.truth(), self.truth()]);
                fields
            }
            TRANSFER => {
                let format = self.pick(&[Value::Uint(0), Value::Uint(BATCH_FORMAT), Value::Null]);
                let tag = Value::Binary(Bytes::from_static(b"tag"));
                let mut fields = vec![self.sending(), self.number(), tag, format, self.truth()];
                let more = Value::Bool(self.below(10) == 0);
                let aborted = Value::Bool(self.below(20) == 0);
                fields.extend([more, Value::Null, Value::Null, Value::Null, aborted]);
                fields
            }
            DISPOSITION => vec![self.truth(), self.number(), self.number(), self.truth(), self.state()],
            _ => vec![self.handle(), self.truth()],
        };
        if self.below(200) == 0 {
            fields.truncate(usize::try_from(self.below(4)).expect("small"));
        }
        let mut body = encode(&Value::described(code, Value::List(fields)));
        if code == TRANSFER {
            body.extend(self.payload());
        }
        if self.below(200) == 0 {
            let at = usize::try_from(self.below(body.len() as u64)).expect("small");
            body[at] ^= 0x11;
        }
        body
    }
}

/// Reads what the engine wrote, every frame of it.
fn read_out(engine: &mut ConnectionEngine) -> Result<(), TestCaseError> {
    let mut bytes = BytesMut::from(engine.out.as_slice());
    engine.out.clear();
    while let Some(frame) = frame::take(&mut bytes, 512).map_err(TestCaseError::fail)? {
        prop_assert_eq!(frame.kind, AMQP);
        prop_assert!(Performative::decode(&frame.body).is_ok());
    }
    prop_assert!(bytes.is_empty());
    Ok(())
}

fn connection(shared: &SharedState, seed: u64) -> Result<(), TestCaseError> {
    let mut random = Random(seed | 1);
    let mut engine = ConnectionEngine::new(shared.clone(), AmqpOptions::default(), None);
    let open = encode(&Value::described(OPEN, Value::List(vec![Value::string("x"), Value::Null, Value::Uint(512)])));
    let begin = vec![Value::Null, Value::Uint(0), Value::Uint(100), Value::Uint(100)];
    let begin = encode(&Value::described(BEGIN, Value::List(begin)));
    let mut first = vec![open, begin];
    for (handle, node) in ["q", "q", "q/$management", "q/$management"].into_iter().enumerate() {
        let end = |code| Value::described(code, Value::List(vec![Value::string(node)]));
        let handle = Value::Uint(u32::try_from(handle).expect("small"));
        let receives = Value::Bool(handle == Value::Uint(1) || handle == Value::Uint(3));
        let settles = Value::Ubyte(u8::try_from(random.below(3)).expect("small"));
        let fields = vec![Value::string(node), handle, receives, settles, Value::Null, end(0x28), end(0x29)];
        first.push(encode(&Value::described(ATTACH, Value::List(fields))));
    }
    for body in first {
        engine.frame(&Frame { kind: AMQP, channel: 0, body: body.into() });
    }
    for _ in 0..random.below(FRAMES as u64) {
        let channel = random.pick(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        engine.frame(&Frame { kind: AMQP, channel, body: random.body().into() });
        if random.below(4) == 0 {
            engine.flush_settling();
            let wakes = engine.wakes.take();
            wakes.into_iter().for_each(|key| engine.woken(key));
            engine.pump();
            read_out(&mut engine)?;
        }
    }
    engine.flush_settling();
    engine.pump();
    read_out(&mut engine)?;
    if engine.phase == ConnectionPhase::Open {
        let channels: Vec<u16> = engine.sessions.keys().copied().collect();
        for channel in channels {
            let end = encode(&Value::described(END, Value::List(vec![])));
            engine.frame(&Frame { kind: AMQP, channel, body: end.into() });
        }
        prop_assert!(engine.sessions.is_empty());
        prop_assert_eq!((engine.links, engine.partial_bytes), (0, 0));
        read_out(&mut engine)?;
    }
    Ok(())
}

#[test]
fn frames_in_any_order_with_anything_in_them() {
    // The broker starts its timers on it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _entered = runtime.enter();
    let broker = Broker::new(Clock::manual(1_700_000_000_000), NamespaceLimits::default());
    broker.create_queue("q", QueueSettings::default()).expect("q");
    let sessions = QueueSettings { requires_session: true, ..QueueSettings::default() };
    broker.create_queue("s", sessions).expect("s");
    let shared = SharedState::new(broker);
    let config = ProptestConfig { cases: CONNECTIONS, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&any::<u64>(), |seed| connection(&shared, seed))
        .expect("no sequence of frames breaks the engine");
    let queue = shared.broker.target("q").expect("q");
    let later = i64::MAX / 2;
    let number = queue.schedule(vec![(Message::default(), later)]).expect("scheduled")[0];
    assert!(number > 500, "the frames are good enough to get messages through: {number}");
}

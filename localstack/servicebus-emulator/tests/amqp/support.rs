//! An emulator within the test.

use std::sync::Arc;

use polybus_servicebus_emulator::SharedState;
use polybus_servicebus_emulator::amqp::{self, AmqpOptions};
use polybus_servicebus_emulator::auth::{AccessKey, JwtKey};
use polybus_servicebus_emulator::broker::{Broker, NamespaceLimits, Outcome, QueueSettings};
use polybus_servicebus_emulator::clock::Clock;
use polybus_servicebus_emulator::codec::Value;
use polybus_servicebus_emulator::message::Message;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub(crate) struct Emulator {
    pub(crate) address: String,
    pub(crate) shared: SharedState,
    server: JoinHandle<()>,
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// With a queue `q`, and `s` that requires sessions.
pub(crate) async fn emulator() -> Emulator {
    emulator_with(None, AmqpOptions::default()).await
}

pub(crate) async fn emulator_with(key: Option<AccessKey>, options: AmqpOptions) -> Emulator {
    emulator_guarded(key, None, options).await
}

pub(crate) async fn emulator_guarded(key: Option<AccessKey>, jwt: Option<JwtKey>, options: AmqpOptions) -> Emulator {
    let broker = Broker::new(Clock::system(), NamespaceLimits::default());
    broker.create_queue("q", QueueSettings::default()).expect("q");
    let sessions = QueueSettings { requires_session: true, ..QueueSettings::default() };
    broker.create_queue("s", sessions).expect("s");
    let shared = SharedState { jwt: jwt.map(Arc::new), ..SharedState::new(broker) };
    key.into_iter().for_each(|key| shared.keys.put(key));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let server = tokio::spawn(amqp::serve_with(listener, None, shared.clone(), options));
    Emulator { address, shared, server }
}

/// A message with this text as its body.
pub(crate) fn message(text: &str) -> Vec<u8> {
    let mut message = Message::default();
    message.set_body_value(&Value::string(text));
    message.encode()
}

pub(crate) fn text_of(payload: &[u8]) -> String {
    let message = Message::decode(payload).expect("a message");
    message.body_value().expect("a body").as_text().expect("text").to_owned()
}

impl Emulator {
    /// How many messages a queue or dead-letter queue has, by taking a look.
    pub(crate) fn stored(&self, address: &str) -> usize {
        self.shared.broker.source(address).expect("a source").peek(0, 10_000, None).expect("messages").len()
    }

    pub(crate) fn put(&self, address: &str, texts: &[&str]) {
        let messages = texts.iter().map(|text| Message::decode(&message(text)).expect("a message")).collect();
        self.shared.broker.target(address).expect("a target").send(messages).expect("sent");
    }

    /// Settles as another client would.
    pub(crate) fn settle(&self, address: &str, tag: &[u8], outcome: Outcome) {
        let token = polybus_servicebus_emulator::broker::token_of_tag(tag).expect("a token");
        self.shared.broker.source(address).expect("a source").settle(token, outcome).expect("settled");
    }
}

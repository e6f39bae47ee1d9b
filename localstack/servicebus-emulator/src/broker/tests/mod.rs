//! The broker's promises, on a clock that is moved by hand.

mod dead_letters;
mod entities;
mod forwarding;
mod locks;
mod partitions;
mod queues;
mod sessions;
mod statuses;
mod time;
mod topics;
mod waking;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::*;
use crate::clock::Clock;
use crate::codec::Value;
use crate::message::Message;
use crate::refusal::{Condition, Refusal};

const START_MS: i64 = 1_700_000_000_000;

fn broker() -> Broker {
    Broker::new(Clock::manual(START_MS), NamespaceLimits::default())
}

/// A broker with the queue `q`.
fn with_queue(settings: QueueSettings) -> Broker {
    let broker = broker();
    broker.create_queue("q", settings).unwrap();
    broker
}

fn message(id: &str) -> Message {
    let mut message = Message { body: Bytes::from_static(b"body"), encoded_size: 100, ..Message::default() };
    message.properties.message_id = Some(Value::string(id));
    message
}

fn in_session(id: &str, session: &str) -> Message {
    let mut message = message(id);
    message.properties.group_id = Some(session.to_owned());
    message
}

fn lasting(id: &str, ttl_ms: u32) -> Message {
    let mut message = message(id);
    message.header.ttl_ms = Some(ttl_ms);
    message
}

fn send(broker: &Broker, address: &str, messages: impl IntoIterator<Item = Message>) {
    broker.target(address).unwrap().send(messages.into_iter().collect()).unwrap();
}

fn receive_as(broker: &Broker, address: &str, mode: ReceiveMode, max: usize) -> Vec<DeliveredMessage> {
    let source = broker.source(address).unwrap();
    let mut receiver = source.receiver(mode, None, Arc::new(Notify::new())).unwrap();
    receiver.try_receive(max).unwrap()
}

fn lock(broker: &Broker, address: &str, max: usize) -> Vec<DeliveredMessage> {
    receive_as(broker, address, ReceiveMode::PeekLock, max)
}

/// The ids of everything that is there, which is gone after.
fn drain(broker: &Broker, address: &str) -> Vec<String> {
    ids(&receive_as(broker, address, ReceiveMode::ReceiveAndDelete, usize::MAX))
}

fn ids(delivered: &[DeliveredMessage]) -> Vec<String> {
    delivered.iter().map(id).collect()
}

fn id(delivered: &DeliveredMessage) -> String {
    delivered.message.properties.message_id.as_ref().and_then(Value::as_text).unwrap().to_owned()
}

fn settle(broker: &Broker, address: &str, delivered: &DeliveredMessage, outcome: Outcome) -> Result<(), Refusal> {
    broker.source(address).unwrap().settle(delivered.lock_token.unwrap(), outcome)
}

fn abandon() -> Outcome {
    Outcome::Abandon(Vec::new())
}

fn defer() -> Outcome {
    Outcome::Defer(Vec::new())
}

fn dead_letter(reason: &str) -> Outcome {
    Outcome::DeadLetter { reason: Some(reason.to_owned()), description: None, properties: Vec::new() }
}

fn property<'a>(delivered: &'a DeliveredMessage, name: &str) -> Option<&'a str> {
    delivered.message.application_property(name).and_then(Value::as_text)
}

fn move_clock(broker: &Broker, ms: u64) {
    broker.clock().advance(Duration::from_millis(ms));
}

fn condition<T>(result: Result<T, Refusal>) -> Condition {
    match result {
        Ok(_) => panic!("it was not refused"),
        Err(refusal) => refusal.condition,
    }
}

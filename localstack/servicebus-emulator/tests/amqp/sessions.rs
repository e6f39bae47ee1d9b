//! Sessions: asked for by filter, held, given back.

use std::time::{Duration, Instant};

use bytes::Bytes;
use polybus_servicebus_emulator::codec::Value;
use polybus_servicebus_emulator::message::Message;

use crate::client::{ACCEPTED, ATTACH, Client, DETACH, DISPOSITION, TRANSFER, described, receiver, state};
use crate::support::{Emulator, emulator, message, text_of};

const FILTER: &str = "com.microsoft:session-filter";

fn put(emulator: &Emulator, session: &str, text: &str) {
    let mut one = Message::decode(&message(text)).expect("a message");
    one.properties.group_id = Some(session.to_owned());
    emulator.shared.broker.target("s").expect("s").send(vec![one]).expect("sent");
}

pub(crate) fn asking(handle: u32, filter: Value, timeout_ms: u32) -> Vec<Value> {
    let mut fields = receiver(handle, "s", 0);
    let mut source = vec![Value::string("s")];
    source.extend(vec![Value::Null; 6]);
    source.push(Value::Map(vec![(Value::symbol(FILTER), filter)]));
    fields[5] = Value::described(0x28, Value::List(source));
    fields.extend(vec![Value::Null; 6]);
    fields.push(Value::Map(vec![(Value::symbol("com.microsoft:timeout"), Value::Uint(timeout_ms))]));
    fields
}

fn answered(attach: &crate::client::Frame) -> Value {
    described(attach.field(5)).1[7].get(FILTER).expect("the filter").clone()
}

#[tokio::test]
async fn a_named_session_and_its_messages() {
    let emulator = emulator().await;
    put(&emulator, "a", "1");
    put(&emulator, "b", "2");
    put(&emulator, "a", "3");
    let mut client = Client::begun(&emulator.address).await;
    client.send(0, ATTACH, asking(0, Value::string("a"), 1000)).await;
    let attach = client.expect(ATTACH).await;
    assert_eq!(answered(&attach), Value::string("a"));
    let ticks = attach.field(13).get("com.microsoft:locked-until-utc").and_then(Value::as_i64).expect("ticks");
    let until = (ticks - 621_355_968_000_000_000) / 10_000;
    assert!((until - emulator.shared.clock().now_ms() - 60_000).abs() < 5_000, "{until}");
    client.credit(0, 0, 10, false).await;
    for text in ["1", "3"] {
        assert_eq!(text_of(&client.expect(TRANSFER).await.payload), text);
    }
    client.expect_nothing().await;
    client.settle(0, 1, state(ACCEPTED)).await;
    assert_eq!(client.expect(DISPOSITION).await.field(4), &state(ACCEPTED));
    put(&emulator, "a", "4");
    assert_eq!(text_of(&client.expect(TRANSFER).await.payload), "4");
}

#[tokio::test]
async fn the_next_session_keeps_the_shape_it_was_asked_in() {
    let emulator = emulator().await;
    put(&emulator, "a", "1");
    put(&emulator, "b", "2");
    let mut client = Client::begun(&emulator.address).await;
    client.send(0, ATTACH, asking(0, Value::Null, 1000)).await;
    assert_eq!(answered(&client.expect(ATTACH).await), Value::string("a"));
    client.send(0, ATTACH, asking(1, Value::described(0x137_0000_000c, Value::Null), 1000)).await;
    let id = answered(&client.expect(ATTACH).await);
    assert_eq!(id, Value::described(0x137_0000_000c, Value::string("b")));
}

#[tokio::test]
async fn a_held_session_is_refused() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    client.send(0, ATTACH, asking(0, Value::string("a"), 1000)).await;
    client.expect(ATTACH).await;
    let mut other = Client::begun(&emulator.address).await;
    other.send(0, ATTACH, asking(0, Value::string("a"), 1000)).await;
    assert!(other.expect(ATTACH).await.field(5).is_null());
    assert_eq!(other.expect(DETACH).await.condition(2), "com.microsoft:session-cannot-be-locked");
    other.send(0, DETACH, vec![Value::Uint(0), Value::Bool(true)]).await;
    // Given back with its link.
    client.send(0, DETACH, vec![Value::Uint(0), Value::Bool(true)]).await;
    client.expect(DETACH).await;
    other.send(0, ATTACH, asking(0, Value::string("a"), 1000)).await;
    assert_eq!(answered(&other.expect(ATTACH).await), Value::string("a"));
}

#[tokio::test]
async fn a_dropped_connection_gives_its_session_back() {
    let emulator = emulator().await;
    put(&emulator, "a", "1");
    let mut client = Client::begun(&emulator.address).await;
    client.send(0, ATTACH, asking(0, Value::string("a"), 1000)).await;
    client.expect(ATTACH).await;
    let mut other = Client::begun(&emulator.address).await;
    other.send(0, ATTACH, asking(0, Value::Null, 60_000)).await;
    other.expect_nothing().await;
    drop(client);
    assert_eq!(answered(&other.expect(ATTACH).await), Value::string("a"));
}

#[tokio::test]
async fn waiting_ends_with_the_time_given() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    let since = Instant::now();
    client.send(0, ATTACH, asking(0, Value::Null, 100)).await;
    assert!(client.expect(ATTACH).await.field(5).is_null());
    assert!(since.elapsed() >= Duration::from_millis(100), "{:?}", since.elapsed());
    assert_eq!(client.expect(DETACH).await.condition(2), "com.microsoft:timeout");
}

#[tokio::test]
async fn a_session_that_comes_while_it_is_waited_for() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    client.send(0, ATTACH, asking(0, Value::Null, 60_000)).await;
    // Credit that comes before the answer counts.
    client.credit(0, 0, 1, false).await;
    client.expect_nothing().await;
    put(&emulator, "late", "1");
    assert_eq!(answered(&client.expect(ATTACH).await), Value::string("late"));
    assert_eq!(text_of(&client.expect(TRANSFER).await.payload), "1");
}

#[tokio::test]
async fn who_stops_waiting_gets_no_session() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    client.send(0, ATTACH, asking(0, Value::Null, 10_000)).await;
    client.send(0, DETACH, vec![Value::Uint(0), Value::Bool(true)]).await;
    assert!(client.expect(ATTACH).await.field(5).is_null());
    client.expect(DETACH).await;
    put(&emulator, "a", "1");
    let accepted = emulator.shared.broker.source("s").expect("s").accept_session(None, Duration::from_secs(60)).await;
    assert_eq!(accepted.expect("it is free").id(), "a");
}

#[tokio::test]
async fn a_session_lock_that_runs_out_detaches_the_link() {
    let emulator = emulator().await;
    put(&emulator, "a", "1");
    let mut client = Client::begun(&emulator.address).await;
    client.send(0, ATTACH, asking(0, Value::string("a"), 1000)).await;
    client.expect(ATTACH).await;
    client.credit(0, 0, 5, false).await;
    client.expect(TRANSFER).await;
    client.expect_nothing().await;
    emulator.shared.clock().advance(Duration::from_secs(61));
    assert_eq!(client.expect(DETACH).await.condition(2), "com.microsoft:session-lock-lost");
}

#[tokio::test]
async fn only_entities_with_sessions_have_them() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    let mut fields = asking(0, Value::Null, 100);
    if let Value::Described(source) = &mut fields[5]
        && let Value::List(source) = &mut source.1
    {
        source[0] = Value::string("q");
    }
    client.send(0, ATTACH, fields).await;
    client.expect(ATTACH).await;
    assert_eq!(client.expect(DETACH).await.condition(2), "amqp:not-allowed");
}

#[tokio::test]
async fn a_sessions_state_and_lock_through_management() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    client.send(0, ATTACH, asking(0, Value::string("a"), 1000)).await;
    client.expect(ATTACH).await;
    let mut management = crate::requests::Requests::open(&mut client, "s/$management").await;
    let session = ("session-id", Value::string("a"));
    let (status, body) = management.manage(&mut client, "get-session-state", std::slice::from_ref(&session)).await;
    assert_eq!((status, body.get("session-state")), (200, Some(&Value::Null)));
    let state = ("session-state", Value::Binary(Bytes::from_static(b"state")));
    assert_eq!(management.manage(&mut client, "set-session-state", &[session.clone(), state.clone()]).await.0, 200);
    let (_, body) = management.manage(&mut client, "get-session-state", std::slice::from_ref(&session)).await;
    assert_eq!(body.get("session-state"), Some(&state.1));
    let (status, body) = management.manage(&mut client, "renew-session-lock", &[session]).await;
    assert!(status == 200 && body.get("expiration").and_then(Value::as_i64).is_some(), "{body:?}");
    let (status, body) = management.manage(&mut client, "get-message-sessions", &[]).await;
    assert_eq!((status, body.get("sessions-ids")), (200, Some(&Value::Array(vec![Value::string("a")]))));
    let other = ("session-id", Value::string("b"));
    assert_eq!(management.manage(&mut client, "renew-session-lock", &[other]).await.0, 410);
}

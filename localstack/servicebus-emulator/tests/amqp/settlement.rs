//! Dispositions of a receiver, and what it hears.

use std::time::Duration;

use polybus_servicebus_emulator::codec::Value;
use polybus_servicebus_emulator::message::Message;

use crate::client::{
    ACCEPTED, Client, DISPOSITION, Frame, MODIFIED, REJECTED, RELEASED, TRANSFER, described, disposition, state,
};
use crate::support::{Emulator, emulator, text_of};

/// A client that was delivered these messages.
async fn delivered(texts: &[&str]) -> (Emulator, Client) {
    let emulator = emulator().await;
    emulator.put("q", texts);
    let mut client = Client::begun(&emulator.address).await;
    client.receiver(0, "q").await;
    client.credit(0, 0, u32::try_from(texts.len()).expect("few"), false).await;
    for (id, text) in texts.iter().enumerate() {
        let frame = client.expect(TRANSFER).await;
        assert_eq!((frame.number(1) as usize, text_of(&frame.payload).as_str()), (id, *text));
    }
    (emulator, client)
}

fn assert_confirms(frame: &Frame, first: u32, last: u32) {
    assert_eq!(frame.field(0), &Value::Bool(false), "as the sender: {frame:?}");
    assert_eq!((frame.number(1), frame.number(2), frame.field(3)), (first, last, &Value::Bool(true)), "{frame:?}");
}

fn assert_lock_lost(frame: &Frame) {
    let (code, fields) = described(frame.field(4));
    assert_eq!(code, REJECTED, "{frame:?}");
    assert_eq!(described(&fields[0]).1[0], Value::symbol("com.microsoft:message-lock-lost"));
}

#[tokio::test]
async fn a_range_is_completed_and_confirmed_as_one() {
    let (emulator, mut client) = delivered(&["1", "2", "3", "4"]).await;
    client.settle(0, 2, state(ACCEPTED)).await;
    let confirmed = client.expect(DISPOSITION).await;
    assert_confirms(&confirmed, 0, 2);
    assert_eq!(confirmed.field(4), &state(ACCEPTED));
    assert_eq!(emulator.stored("q"), 1);
}

#[tokio::test]
async fn neighbours_settled_at_once_are_confirmed_as_one() {
    let (_emulator, mut client) = delivered(&["1", "2", "3"]).await;
    let mut bytes = Vec::new();
    for id in 0..3 {
        let fields = disposition(id, id, false, state(ACCEPTED));
        let body = Value::described(DISPOSITION, Value::List(fields));
        bytes.extend(crate::client::frame(0, 0, &polybus_servicebus_emulator::codec::encode(&body)));
    }
    client.write(&bytes).await;
    assert_confirms(&client.expect(DISPOSITION).await, 0, 2);
}

#[tokio::test]
async fn abandoned_messages_come_again() {
    let (_emulator, mut client) = delivered(&["1"]).await;
    let changes = Value::Map(vec![(Value::symbol("why"), Value::string("busy"))]);
    let modified = Value::described(MODIFIED, Value::List(vec![Value::Bool(true), Value::Bool(false), changes]));
    client.settle(0, 0, modified).await;
    let confirmed = client.expect(DISPOSITION).await;
    assert_confirms(&confirmed, 0, 0);
    assert_eq!(described(confirmed.field(4)).0, MODIFIED);
    client.credit(0, 1, 1, false).await;
    let again = Message::decode(&client.expect(TRANSFER).await.payload).expect("a message");
    assert_eq!(again.header.delivery_count, 1);
    assert_eq!(again.application_property("why"), Some(&Value::string("busy")));
}

#[tokio::test]
async fn released_messages_come_again_uncounted() {
    let (_emulator, mut client) = delivered(&["1"]).await;
    client.settle(0, 0, state(RELEASED)).await;
    assert_eq!(client.expect(DISPOSITION).await.field(4), &state(RELEASED));
    client.credit(0, 1, 1, false).await;
    let again = Message::decode(&client.expect(TRANSFER).await.payload).expect("a message");
    assert_eq!(again.header.delivery_count, 0);
}

#[tokio::test]
async fn dead_letters_keep_their_reason_whatever_the_keys_are() {
    for key in [Value::string, Value::symbol] as [fn(&'static str) -> Value; 2] {
        let (emulator, mut client) = delivered(&["1"]).await;
        let info = Value::Map(vec![
            (key("DeadLetterReason"), Value::string("why")),
            (key("DeadLetterErrorDescription"), Value::string("because")),
            (key("more"), Value::Int(1)),
        ]);
        let error = vec![Value::symbol("com.microsoft:dead-letter"), Value::Null, info];
        let error = Value::described(0x1d, Value::List(error));
        client.settle(0, 0, Value::described(REJECTED, Value::List(vec![error]))).await;
        // The confirmation has no error, or it would read as a refusal.
        assert_eq!(client.expect(DISPOSITION).await.field(4), &state(REJECTED));
        assert_eq!(emulator.stored("q"), 0);
        let dead = emulator.shared.broker.source("q/$DeadLetterQueue").expect("dlq").peek(0, 1, None).expect("one");
        let dead = dead[0].to_message();
        assert_eq!(dead.application_property("DeadLetterReason"), Some(&Value::string("why")));
        assert_eq!(dead.application_property("DeadLetterErrorDescription"), Some(&Value::string("because")));
        assert_eq!(dead.application_property("more"), Some(&Value::Int(1)));
    }
}

#[tokio::test]
async fn a_lost_lock_is_told() {
    let (emulator, mut client) = delivered(&["1"]).await;
    emulator.shared.clock().advance(Duration::from_secs(61));
    client.settle(0, 0, state(ACCEPTED)).await;
    let confirmed = client.expect(DISPOSITION).await;
    assert_confirms(&confirmed, 0, 0);
    assert_lock_lost(&confirmed);
    assert_eq!(emulator.stored("q"), 1);
}

#[tokio::test]
async fn settling_twice_is_a_lost_lock() {
    let (_emulator, mut client) = delivered(&["1"]).await;
    client.settle(0, 0, state(ACCEPTED)).await;
    assert_eq!(client.expect(DISPOSITION).await.field(4), &state(ACCEPTED));
    client.settle(0, 0, state(ACCEPTED)).await;
    assert_lock_lost(&client.expect(DISPOSITION).await);
}

#[tokio::test]
async fn ranges_of_any_size_settle_what_is_there() {
    let (emulator, mut client) = delivered(&["1", "2"]).await;
    client.settle(0, u32::MAX - 1, state(ACCEPTED)).await;
    assert_confirms(&client.expect(DISPOSITION).await, 0, 1);
    assert_eq!(emulator.stored("q"), 0);
    // Nothing of what was never delivered.
    client.settle(100, 200, state(ACCEPTED)).await;
    client.settle(7, 6, state(ACCEPTED)).await;
    client.expect_nothing().await;
}

#[tokio::test]
async fn settled_dispositions_are_done_and_not_answered() {
    let (emulator, mut client) = delivered(&["1"]).await;
    client.send(0, DISPOSITION, disposition(0, 0, true, state(ACCEPTED))).await;
    client.expect_nothing().await;
    assert_eq!(emulator.stored("q"), 0);
}

#[tokio::test]
async fn a_range_partly_lost_is_answered_in_parts() {
    let (emulator, mut client) = delivered(&["1", "2", "3"]).await;
    client.settle(1, 1, state(ACCEPTED)).await;
    client.expect(DISPOSITION).await;
    client.settle(0, 2, state(ACCEPTED)).await;
    let parts = [client.expect(DISPOSITION).await, client.expect(DISPOSITION).await, client.expect(DISPOSITION).await];
    assert_confirms(&parts[0], 0, 0);
    assert_lock_lost(&parts[1]);
    assert_confirms(&parts[2], 2, 2);
    assert_eq!(emulator.stored("q"), 0);
}

#[tokio::test]
async fn settlements_can_be_lost_on_either_way() {
    let (emulator, mut client) = delivered(&["1", "2"]).await;
    emulator.shared.faults.lose_settlements(1);
    client.settle(0, 0, state(ACCEPTED)).await;
    client.expect_nothing().await;
    assert_eq!(emulator.stored("q"), 2);
    emulator.shared.faults.lose_answers(1);
    client.settle(1, 1, state(ACCEPTED)).await;
    client.expect_nothing().await;
    assert_eq!(emulator.stored("q"), 1);
}

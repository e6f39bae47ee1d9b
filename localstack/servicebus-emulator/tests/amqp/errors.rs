//! What is wrong ends what it is in, and nothing else.

use polybus_servicebus_emulator::codec::Value;

use crate::client::{
    ACCEPTED, AMQP_HEADER, ATTACH, BEGIN, CLOSE, Client, DETACH, END, FLOW, OPEN, TRANSFER, described, flow, frame,
    receiver, sender, state, transfer,
};
use crate::support::{emulator, message};

async fn closes_with(bytes: &[u8], condition: &str) {
    let emulator = emulator().await;
    let mut other = Client::begun(&emulator.address).await;
    other.sender(0, "q").await;
    let mut client = Client::begun(&emulator.address).await;
    client.write(bytes).await;
    let close = client.expect(CLOSE).await;
    assert_eq!(close.condition(0), condition, "{close:?}");
    client.expect_end_of_stream().await;
    assert_eq!(other.publish(0, 0, &message("still here")).await, state(ACCEPTED));
}

#[tokio::test]
async fn a_frame_shorter_than_its_header() {
    closes_with(&[0, 0, 0, 7, 2, 0, 0, 0], "amqp:connection:framing-error").await;
    closes_with(&[0, 0, 0, 8, 1, 0, 0, 0], "amqp:connection:framing-error").await;
    closes_with(&[0, 0, 0, 8, 255, 0, 0, 0], "amqp:connection:framing-error").await;
}

#[tokio::test]
async fn a_frame_longer_than_agreed() {
    closes_with(&[0, 1, 0, 1, 2, 0, 0, 0], "amqp:connection:framing-error").await;
    closes_with(&[255, 255, 255, 255, 2, 0, 0, 0], "amqp:connection:framing-error").await;
}

#[tokio::test]
async fn a_frame_of_another_protocol() {
    closes_with(&frame(1, 0, &[0x40]), "amqp:connection:framing-error").await;
    closes_with(b"GET / HTTP/1.1\r\n\r\n", "amqp:connection:framing-error").await;
}

#[tokio::test]
async fn a_body_that_is_no_performative() {
    for body in [&[0x40_u8][..], &[0x00, 0x53, 0x14, 0x40], &[0x00, 0x53, 0x14, 0xc0, 0x09, 0x01], &[0xff], &[0x00]] {
        closes_with(&frame(0, 0, body), "amqp:decode-error").await;
    }
    closes_with(&frame(0, 0, &[0x00, 0x53, 0x77, 0x45]), "amqp:not-implemented").await;
    // A flow and a transfer without what they must have.
    closes_with(&frame(0, 0, &[0x00, 0x53, 0x13, 0x45]), "amqp:decode-error").await;
    closes_with(&frame(0, 0, &[0x00, 0x53, 0x14, 0x45]), "amqp:decode-error").await;
}

#[tokio::test]
async fn a_body_nested_without_end() {
    let mut body = vec![0x00, 0x53, 0x12];
    body.extend([0xc0, 0xff, 0x01].repeat(2000));
    closes_with(&frame(0, 0, &body), "amqp:decode-error").await;
    closes_with(&frame(0, 0, &[0x00].repeat(60_000)), "amqp:decode-error").await;
}

#[tokio::test]
async fn a_list_that_counts_more_than_there_is() {
    let mut body = vec![0x00, 0x53, 0x12, 0xd0, 0, 0, 0, 6];
    body.extend([255, 255, 255, 255, 0x40, 0x40]);
    closes_with(&frame(0, 0, &body), "amqp:decode-error").await;
}

#[tokio::test]
async fn another_protocol_is_answered_with_ours() {
    let emulator = emulator().await;
    for header in [b"AMQP\x00\x00\x09\x01", b"GET / HT", b"AMQP\x02\x01\x00\x00"] {
        let mut client = Client::connect(&emulator.address).await;
        client.write(header).await;
        assert_eq!(&client.read(8).await, AMQP_HEADER);
        client.expect_end_of_stream().await;
    }
}

#[tokio::test]
async fn frames_before_open_and_a_second_open() {
    let emulator = emulator().await;
    let mut client = Client::connect(&emulator.address).await;
    client.write(AMQP_HEADER).await;
    client.read(8).await;
    client.send(0, BEGIN, vec![Value::Null, Value::Uint(0), Value::Uint(1), Value::Uint(1)]).await;
    // A close needs an open before it.
    client.expect(OPEN).await;
    assert_eq!(client.expect(CLOSE).await.condition(0), "amqp:not-allowed");
    client.expect_end_of_stream().await;

    let mut client = Client::begun(&emulator.address).await;
    client.send(0, OPEN, vec![Value::string("again")]).await;
    assert_eq!(client.expect(CLOSE).await.condition(0), "amqp:not-allowed");
}

#[tokio::test]
async fn channels_that_are_in_use_absent_or_too_high() {
    let begin = || vec![Value::Null, Value::Uint(0), Value::Uint(1), Value::Uint(1)];
    for (channel, code, fields) in
        [(0, BEGIN, begin()), (5000, BEGIN, begin()), (1, ATTACH, sender(0, "q")), (1, END, Vec::new())]
    {
        let emulator = emulator().await;
        let mut client = Client::begun(&emulator.address).await;
        client.send(channel, code, fields).await;
        assert_eq!(client.expect(CLOSE).await.condition(0), "amqp:not-allowed");
    }
}

#[tokio::test]
async fn a_wrong_handle_ends_the_session_and_not_the_connection() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    client.begin(1).await;
    client.send_with(1, TRANSFER, transfer(9, Some(0), 0, false), b"x").await;
    let end = client.expect(END).await;
    assert_eq!((end.channel, end.condition(0)), (1, "amqp:session:unattached-handle"));
    // What was under way is passed over until the client ends it too; then the channel is free again.
    client.send_with(1, TRANSFER, transfer(9, Some(1), 0, false), b"x").await;
    client.send(1, END, Vec::new()).await;
    client.begin(1).await;
    client.send(1, FLOW, flow(7, 0, 1, false)).await;
    assert_eq!(client.expect(END).await.condition(0), "amqp:session:unattached-handle");
    client.sender(0, "q").await;
    assert_eq!(client.publish(0, 0, &message("on channel 0")).await, state(ACCEPTED));
}

#[tokio::test]
async fn a_handle_in_use_ends_the_session() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    client.sender(0, "q").await;
    client.send(0, ATTACH, sender(0, "q")).await;
    assert_eq!(client.expect(END).await.condition(0), "amqp:session:handle-in-use");
}

#[tokio::test]
async fn an_absent_entity_is_refused_by_attach_then_detach() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    for (fields, terminus) in [(sender(0, "amqp://localhost/nope"), 6), (receiver(0, "nope", 0), 5)] {
        client.send(0, ATTACH, fields).await;
        let attach = client.expect(ATTACH).await;
        assert!(attach.field(terminus).is_null(), "{attach:?}");
        assert!(!attach.field(11 - terminus).is_null(), "{attach:?}");
        let detach = client.expect(DETACH).await;
        assert_eq!((detach.field(1), detach.condition(2)), (&Value::Bool(true), "amqp:not-found"));
        assert!(described(detach.field(2)).1[1].as_text().expect("text").contains("entity 'nope' could not be found"));
        client.send(0, DETACH, vec![Value::Uint(0), Value::Bool(true)]).await;
    }
    // The handle is free again.
    client.sender(0, "Q").await;
}

#[tokio::test]
async fn what_cannot_be_attached_says_why() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    let mut coordinator = sender(0, "");
    coordinator[6] = Value::described(0x30, Value::List(Vec::new()));
    let mut nowhere = receiver(0, "q", 0);
    nowhere[5] = Value::described(0x28, Value::List(Vec::new()));
    let cases = [
        (coordinator, "amqp:not-implemented"),
        (nowhere, "amqp:invalid-field"),
        (receiver(0, "s", 0), "amqp:not-allowed"),
        (sender(0, "q/$DeadLetterQueue"), "amqp:not-allowed"),
        (sender(0, "nope/$management"), "amqp:not-found"),
    ];
    for (fields, condition) in cases {
        client.send(0, ATTACH, fields).await;
        client.expect(ATTACH).await;
        assert_eq!(client.expect(DETACH).await.condition(2), condition);
        client.send(0, DETACH, vec![Value::Uint(0), Value::Bool(true)]).await;
    }
}

#[tokio::test]
async fn a_deleted_entity_detaches_its_receivers() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    client.receiver(0, "q").await;
    client.credit(0, 0, 1, false).await;
    client.expect_nothing().await;
    emulator.shared.broker.delete("q").expect("deleted");
    assert_eq!(client.expect(DETACH).await.condition(2), "amqp:not-found");
}

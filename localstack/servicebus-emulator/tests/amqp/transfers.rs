//! Messages in and out: frames, batches, credit, drain, modes.

use bytes::Bytes;
use polybus_servicebus_emulator::broker::{Outcome, token_of_tag};
use polybus_servicebus_emulator::codec::{Value, lookup};
use polybus_servicebus_emulator::message::{BATCH_FORMAT, Message};

use crate::client::{
    ACCEPTED, ATTACH, Client, DETACH, DISPOSITION, FLOW, REJECTED, TRANSFER, described, receiver, state, transfer,
};
use crate::support::{emulator, message, text_of};

#[tokio::test]
async fn a_message_comes_out_as_it_went_in() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    let attach = client.sender(0, "amqps://localhost:5672/q").await;
    let properties = attach.field(13);
    assert_eq!(properties.get("com.microsoft:max-message-batch-size"), Some(&Value::Ulong(256 * 1024)));
    let mut sent = Message::default();
    sent.properties.message_id = Some(Value::Uuid([7; 16]));
    sent.properties.subject = Some("label".into());
    sent.application_properties = vec![("a".into(), Value::Int(-1)), ("b".into(), Value::Timestamp(5))];
    sent.annotations = vec![(Value::symbol("x-opt-partition-key"), Value::string("p"))];
    sent.set_body_value(&Value::List(vec![Value::Double(1.5), Value::Binary(Bytes::from_static(b"\x00\xff"))]));
    assert_eq!(client.publish(0, 0, &sent.encode()).await, state(ACCEPTED));

    let attach = client.receiver(1, "Q").await;
    assert_eq!(attach.field(9), &Value::Uint(0), "SDKs read the initial delivery count");
    assert_eq!(described(attach.field(5)).1[0], Value::string("Q"), "the source comes back");
    client.credit(1, 0, 1, false).await;
    let frame = client.expect(TRANSFER).await;
    let got = Message::decode(&frame.payload).expect("a message");
    assert_eq!((&got.properties, &got.body), (&sent.properties, &sent.body));
    assert_eq!(got.application_properties, sent.application_properties);
    assert_eq!((got.header.delivery_count, frame.field(4)), (0, &Value::Bool(false)));
    let tag = frame.field(2).as_bytes().expect("a tag");
    let token = token_of_tag(tag).expect("a token");
    assert_eq!(lookup(&got.delivery_annotations, "x-opt-lock-token"), Some(&Value::Uuid(*token.as_bytes())));
    for name in ["x-opt-sequence-number", "x-opt-enqueued-time", "x-opt-locked-until", "x-opt-partition-key"] {
        assert!(got.annotation(name).is_some(), "{name} in {got:?}");
    }
    for name in ["x-opt-message-state", "x-opt-enqueue-sequence-number"] {
        assert_eq!(got.annotation(name), None, "it says nothing here");
    }
    assert!(!got.header.first_acquirer);
    // The delivery count is on the wire even though it is 0, its default.
    let count_written = &frame.payload[..12];
    assert_eq!(count_written[..3], [0x00, 0x53, 0x70]);
    assert_eq!(count_written[5], 5, "five fields: {count_written:02x?}");
}

#[tokio::test]
async fn deliveries_of_many_frames() {
    let emulator = emulator().await;
    let mut client = Client::connect(&emulator.address).await;
    client.open(512, None).await;
    client.begin(0).await;
    client.sender(0, "q").await;
    let text = "abcdefgh".repeat(5000);
    let bytes = message(&text);
    for (at, chunk) in bytes.chunks(300).enumerate() {
        let more = (at + 1) * 300 < bytes.len();
        // Only the first frame must carry the id.
        let fields = transfer(0, (at == 0).then_some(0), 0, more);
        client.send_with(0, TRANSFER, fields, chunk).await;
    }
    assert_eq!(client.expect(DISPOSITION).await.field(4), &state(ACCEPTED));

    client.receiver(1, "q").await;
    client.credit(1, 0, 10, false).await;
    let mut payload = Vec::new();
    loop {
        let frame = client.expect(TRANSFER).await;
        payload.extend_from_slice(&frame.payload);
        assert!(frame.payload.len() <= 512);
        if frame.field(5) != &Value::Bool(true) {
            break;
        }
    }
    assert_eq!(text_of(&payload), text);
}

#[tokio::test]
async fn an_aborted_delivery_is_not_stored() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    client.sender(0, "q").await;
    client.transfer(0, 0, 0, true, b"the beginning").await;
    let mut aborted = transfer(0, Some(0), 0, false);
    aborted.extend([Value::Null, Value::Null, Value::Null, Value::Bool(true)]);
    client.send(0, TRANSFER, aborted).await;
    assert_eq!(client.publish(0, 1, &message("after")).await, state(ACCEPTED));
    assert_eq!(emulator.stored("q"), 1);
}

#[tokio::test]
async fn a_delivery_within_another_detaches_the_link() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    client.sender(0, "q").await;
    client.transfer(0, 0, 0, true, b"the beginning").await;
    client.transfer(0, 1, 0, false, b"another").await;
    assert_eq!(client.expect(DETACH).await.condition(2), "amqp:decode-error");
}

#[tokio::test]
async fn what_is_too_large_is_rejected_and_the_link_goes_on() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    let attach = client.sender(0, "q").await;
    let limit = attach.field(10).as_i64().expect("max-message-size");
    assert_eq!(limit, 256 * 1024);
    let chunk = vec![0; 60_000];
    for at in 0..6 {
        client.transfer(0, 0, 0, at < 5, &chunk).await;
    }
    let state_ = client.expect(DISPOSITION).await.fields[4].clone();
    let (code, fields) = described(&state_);
    assert_eq!(code, REJECTED);
    assert_eq!(described(&fields[0]).1[0], Value::symbol("amqp:link:message-size-exceeded"));
    assert_eq!(client.publish(0, 1, &message("small")).await, state(ACCEPTED));
    assert_eq!(emulator.stored("q"), 1);
}

#[tokio::test]
async fn what_is_no_message_is_rejected() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    client.sender(0, "q").await;
    let state_ = client.publish(0, 0, &[0x00, 0x53, 0x70, 0x41]).await;
    assert_eq!(described(&described(&state_).1[0]).1[0], Value::symbol("amqp:decode-error"));
    // A sender that settles itself has no other way to hear of it.
    let mut settled = transfer(0, Some(1), 0, false);
    settled[4] = Value::Bool(true);
    client.send_with(0, TRANSFER, settled, b"no message").await;
    assert_eq!(client.expect(DETACH).await.condition(2), "amqp:decode-error");
}

#[tokio::test]
async fn a_settled_transfer_is_stored_and_not_answered() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    client.sender(0, "q").await;
    let mut settled = transfer(0, Some(0), 0, false);
    settled[4] = Value::Bool(true);
    client.send_with(0, TRANSFER, settled, &message("x")).await;
    client.expect_nothing().await;
    assert_eq!(emulator.stored("q"), 1);
}

#[tokio::test]
async fn a_batch_is_stored_message_by_message() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    client.sender(0, "q").await;
    let mut batch = Vec::new();
    for text in ["one", "two", "three"] {
        let section = Value::described(0x75, Value::Binary(message(text).into()));
        batch.extend(polybus_servicebus_emulator::codec::encode(&section));
    }
    client.transfer(0, 0, BATCH_FORMAT, false, &batch).await;
    assert_eq!(client.expect(DISPOSITION).await.field(4), &state(ACCEPTED));
    assert_eq!(emulator.stored("q"), 3);
    // All or none: the second message of this one is broken.
    for part in [message("four"), vec![0xff]] {
        let section = Value::described(0x75, Value::Binary(part.into()));
        batch.extend(polybus_servicebus_emulator::codec::encode(&section));
    }
    client.transfer(0, 1, BATCH_FORMAT, false, &batch).await;
    assert_eq!(described(client.expect(DISPOSITION).await.field(4)).0, REJECTED);
    assert_eq!(emulator.stored("q"), 3);
}

#[tokio::test]
async fn a_sender_gets_more_credit_before_it_runs_out_and_none_beyond() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    client.sender(0, "q").await;
    let bytes = message("x");
    let (mut settled, mut credit) = (0, 1000);
    for id in 0..1500 {
        client.transfer(0, id, 0, false, &bytes).await;
    }
    while settled < 1500 {
        let frame = client.next().await;
        match frame.code {
            DISPOSITION => settled = frame.number(2) + 1,
            FLOW => credit = credit.max(frame.number(5) + frame.number(6)),
            _ => panic!("{frame:?}"),
        }
    }
    assert!(credit > 1500, "{credit}");
    assert_eq!(emulator.stored("q"), 1500);
}

#[tokio::test]
async fn no_more_is_sent_than_there_is_credit_for() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    client.receiver(0, "q").await;
    client.expect_nothing().await;
    emulator.put("q", &["1", "2", "3", "4"]);
    client.expect_nothing().await;
    client.credit(0, 0, 2, false).await;
    for text in ["1", "2"] {
        assert_eq!(text_of(&client.expect(TRANSFER).await.payload), text);
    }
    client.expect_nothing().await;
    // The credit counts from what the receiver has seen, not from what was sent.
    client.credit(0, 1, 2, false).await;
    assert_eq!(text_of(&client.expect(TRANSFER).await.payload), "3");
    client.expect_nothing().await;
    // Taken back before it is used.
    client.credit(0, 3, 5, false).await;
    assert_eq!(text_of(&client.expect(TRANSFER).await.payload), "4");
    client.credit(0, 4, 0, false).await;
    client.expect_nothing().await;
    emulator.put("q", &["5"]);
    client.expect_nothing().await;
}

#[tokio::test]
async fn waiting_receivers_are_woken() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    client.receiver(0, "q").await;
    client.credit(0, 0, 100, false).await;
    client.expect_nothing().await;
    for text in ["1", "2", "3"] {
        emulator.put("q", &[text]);
        assert_eq!(text_of(&client.expect(TRANSFER).await.payload), text);
    }
}

#[tokio::test]
async fn drain_gives_what_is_there_first() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    emulator.put("q", &["1", "2"]);
    client.receiver(0, "q").await;
    client.credit(0, 0, 10, true).await;
    for text in ["1", "2"] {
        assert_eq!(text_of(&client.expect(TRANSFER).await.payload), text);
    }
    let drained = client.expect(FLOW).await;
    assert_eq!((drained.number(5), drained.number(6), drained.field(8)), (10, 0, &Value::Bool(true)));
    emulator.put("q", &["3"]);
    client.expect_nothing().await;
    client.credit(0, 10, 1, false).await;
    assert_eq!(text_of(&client.expect(TRANSFER).await.payload), "3");
}

#[tokio::test]
async fn the_sessions_window_holds_deliveries_back() {
    let emulator = emulator().await;
    emulator.put("q", &["1", "2", "3"]);
    let mut client = Client::begun(&emulator.address).await;
    client.receiver(0, "q").await;
    let mut narrow = crate::client::flow(0, 0, 10, false);
    narrow[1] = Value::Uint(1);
    client.send(0, FLOW, narrow).await;
    assert_eq!(text_of(&client.expect(TRANSFER).await.payload), "1");
    // No echo is asked of the link here, since that would open the window.
    let mut seen = crate::client::flow(0, 0, 10, false);
    seen[0] = Value::Uint(1);
    seen[1] = Value::Uint(2);
    client.send(0, FLOW, seen).await;
    for text in ["2", "3"] {
        assert_eq!(text_of(&client.expect(TRANSFER).await.payload), text);
    }
}

#[tokio::test]
async fn receive_and_delete_is_settled_on_the_way_out() {
    let emulator = emulator().await;
    emulator.put("q", &["1"]);
    let mut client = Client::begun(&emulator.address).await;
    client.send(0, ATTACH, receiver(0, "q", 1)).await;
    assert_eq!(client.expect(ATTACH).await.field(3), &Value::Ubyte(1));
    client.credit(0, 0, 1, false).await;
    let frame = client.expect(TRANSFER).await;
    assert_eq!(frame.field(4), &Value::Bool(true));
    let got = Message::decode(&frame.payload).expect("a message");
    assert!(got.delivery_annotations.is_empty() && got.annotation("x-opt-locked-until").is_none(), "{got:?}");
    assert_eq!(emulator.stored("q"), 0);
}

#[tokio::test]
async fn what_was_delivered_stays_locked_when_its_link_goes() {
    let emulator = emulator().await;
    emulator.put("q", &["1"]);
    let mut client = Client::begun(&emulator.address).await;
    client.receiver(0, "q").await;
    client.credit(0, 0, 1, false).await;
    let frame = client.expect(TRANSFER).await;
    client.send(0, DETACH, vec![Value::Uint(0), Value::Bool(true)]).await;
    assert_eq!(client.expect(DETACH).await.field(1), &Value::Bool(true));
    client.receiver(0, "q").await;
    client.credit(0, 0, 1, true).await;
    assert_eq!(client.expect(FLOW).await.number(6), 0);
    emulator.settle("q", frame.field(2).as_bytes().expect("a tag"), Outcome::Complete);
    assert_eq!(emulator.stored("q"), 0);
}

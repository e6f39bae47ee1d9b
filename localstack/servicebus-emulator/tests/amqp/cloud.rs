//! What only the service in the cloud does.

use std::time::Duration;

use polybus_servicebus_emulator::broker::{EntityStatus, QueueSettings};
use polybus_servicebus_emulator::codec::Value;
use polybus_servicebus_emulator::faults::BusyOperation;
use polybus_servicebus_emulator::message::{BATCH_FORMAT, Message};

use crate::client::{
    ACCEPTED, ATTACH, Client, DETACH, DISPOSITION, Frame, REJECTED, TRANSFER, described, receiver, sender, state,
};
use crate::requests::Requests;
use crate::sessions::asking;
use crate::support::{Emulator, emulator, message};

const MINUTE: Duration = Duration::from_secs(60);

async fn with_idle_detach() -> Emulator {
    let emulator = emulator().await;
    emulator.shared.cloud.detach_idle_links(MINUTE * 10);
    emulator
}

async fn detached_as_idle(client: &mut Client, handle: u32, class: &str) {
    let detach = client.expect(DETACH).await;
    assert_eq!((detach.number(0), detach.condition(2)), (handle, "amqp:link:detach-forced"));
    let text = described(detach.field(2)).1[1].as_text().expect("a text").to_owned();
    assert!(text.ends_with(&format!("Details: {class}.IdleTimerExpired: Idle timeout: 00:10:00.")), "{text}");
}

fn condition_of(outcome: &Value) -> &str {
    let (code, fields) = described(outcome);
    assert_eq!(code, REJECTED);
    described(&fields[0]).1[0].as_text().expect("a condition")
}

async fn refused(client: &mut Client, attach: Vec<Value>) -> Frame {
    client.send(0, ATTACH, attach).await;
    client.expect(ATTACH).await;
    client.expect(DETACH).await
}

#[tokio::test]
async fn a_link_over_which_nothing_is_said_is_detached() {
    let emulator = with_idle_detach().await;
    let mut client = Client::begun(&emulator.address).await;
    client.receiver(0, "q").await;
    emulator.shared.clock().advance(MINUTE * 5);
    client.sender(1, "q").await;
    emulator.shared.clock().advance(MINUTE * 5);
    detached_as_idle(&mut client, 0, "AmqpMessageConsumer").await;
    assert_eq!(client.publish(1, 0, &message("1")).await, state(ACCEPTED));
    emulator.shared.clock().advance(MINUTE * 9);
    client.expect_nothing().await;
    emulator.shared.clock().advance(MINUTE);
    detached_as_idle(&mut client, 1, "AmqpMessagePublisher").await;
}

#[tokio::test]
async fn flows_deliveries_and_dispositions_keep_a_link() {
    let emulator = with_idle_detach().await;
    let mut client = Client::begun(&emulator.address).await;
    client.receiver(0, "q").await;
    emulator.shared.clock().advance(MINUTE * 6);
    client.credit(0, 0, 1, false).await;
    client.expect_nothing().await;
    emulator.shared.clock().advance(MINUTE * 6);
    emulator.put("q", &["1"]);
    client.expect(TRANSFER).await;
    // A lock lasts a minute, and asking to settle counts all the same.
    emulator.shared.clock().advance(MINUTE * 6);
    client.settle(0, 0, state(ACCEPTED)).await;
    client.expect(DISPOSITION).await;
    emulator.shared.clock().advance(MINUTE * 6);
    client.expect_nothing().await;
    emulator.shared.clock().advance(MINUTE * 4);
    detached_as_idle(&mut client, 0, "AmqpMessageConsumer").await;
}

async fn renew(management: &mut Requests, client: &mut Client, link: Option<&str>) -> i64 {
    let mut properties = vec![("operation", Value::string("com.microsoft:renew-session-lock"))];
    properties.extend(link.map(|link| ("associated-link-name", Value::string(link))));
    let body = Value::Map(vec![(Value::string("session-id"), Value::string("a"))]);
    let answer = management.ask(client, Some("answers"), &properties, &body).await;
    answer.application_property("statusCode").and_then(Value::as_i64).expect("a status")
}

#[tokio::test]
async fn renewals_keep_a_sessions_link_only_if_they_name_it() {
    let emulator = with_idle_detach().await;
    let mut client = Client::begun(&emulator.address).await;
    let mut management = Requests::open(&mut client, "s/$management").await;
    for named in [true, false] {
        client.send(0, ATTACH, asking(0, Value::string("a"), 1000)).await;
        let name = client.expect(ATTACH).await.field(0).as_text().expect("a name").to_owned();
        let link = Some(name.as_str()).filter(|_| named);
        for _ in 0..19 {
            emulator.shared.clock().advance(MINUTE / 2);
            assert_eq!(renew(&mut management, &mut client, link).await, 200);
        }
        emulator.shared.clock().advance(MINUTE / 2);
        if named {
            client.expect_nothing().await;
            client.send(0, DETACH, vec![Value::Uint(0), Value::Bool(true)]).await;
            client.expect(DETACH).await;
        } else {
            detached_as_idle(&mut client, 0, "AmqpMessageConsumer").await;
            assert_eq!(renew(&mut management, &mut client, None).await, 410, "the session's lock went with its link");
        }
    }
}

#[tokio::test]
async fn links_stay_unless_that_is_asked_for_and_hear_when_it_is() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    client.receiver(0, "q").await;
    emulator.shared.clock().advance(MINUTE * 60);
    client.expect_nothing().await;
    emulator.shared.cloud.detach_idle_links(MINUTE * 10);
    emulator.shared.faults.look_again();
    detached_as_idle(&mut client, 0, "AmqpMessageConsumer").await;
}

fn batch(envelope: &Message, texts: &[&str], session: Option<&str>) -> Vec<u8> {
    let mut bytes = envelope.encode();
    for text in texts {
        let mut one = Message::decode(&message(text)).expect("a message");
        one.properties.group_id = session.map(str::to_owned);
        let section = Value::described(0x75, Value::Binary(one.encode().into()));
        bytes.extend(polybus_servicebus_emulator::codec::encode(&section));
    }
    bytes
}

async fn send_batch(client: &mut Client, id: u32, payload: &[u8]) -> Value {
    client.transfer(0, id, BATCH_FORMAT, false, payload).await;
    client.expect(DISPOSITION).await.field(4).clone()
}

#[tokio::test]
async fn a_batch_for_a_partitioned_queue_needs_its_session_on_the_envelope() {
    let emulator = emulator().await;
    let settings = QueueSettings { enable_partitioning: true, requires_session: true, ..QueueSettings::default() };
    emulator.shared.broker.create_queue("p", settings).expect("p");
    let mut client = Client::begun(&emulator.address).await;
    client.sender(0, "p").await;
    let bare = send_batch(&mut client, 0, &batch(&Message::default(), &["1", "2"], Some("a"))).await;
    assert_eq!(condition_of(&bare), "amqp:not-allowed");
    let mut envelope = Message::default();
    envelope.properties.group_id = Some("a".to_owned());
    assert_eq!(send_batch(&mut client, 1, &batch(&envelope, &["1", "2"], Some("a"))).await, state(ACCEPTED));
    assert_eq!(emulator.stored("p"), 2);
}

#[tokio::test]
async fn no_batch_is_above_a_mebibyte_and_a_message_may_be() {
    let emulator = emulator().await;
    let large = QueueSettings { max_message_size_in_kilobytes: Some(8 * 1024), ..QueueSettings::default() };
    emulator.shared.broker.create_queue("large", large).expect("large");
    let mut client = Client::connect(&emulator.address).await;
    client.open(u32::MAX, None).await;
    client.begin(0).await;
    let attach = client.sender(0, "large").await;
    assert_eq!(attach.field(13).get("com.microsoft:max-message-batch-size"), Some(&Value::Ulong(1024 * 1024)));
    let text = "x".repeat(1024 * 1024);
    for (id, (format, payload, taken)) in (0_u32..).zip([
        (0, message(&text), true),
        (BATCH_FORMAT, batch(&Message::default(), &[&text], None), false),
        (BATCH_FORMAT, batch(&Message::default(), &[&text[..1000], &text[..1000]], None), true),
    ]) {
        for (at, part) in payload.chunks(60_000).enumerate() {
            client.transfer(0, id, format, (at + 1) * 60_000 < payload.len(), part).await;
        }
        let outcome = client.expect(DISPOSITION).await.field(4).clone();
        match taken {
            true => assert_eq!(outcome, state(ACCEPTED)),
            false => assert_eq!(condition_of(&outcome), "amqp:link:message-size-exceeded"),
        }
    }
}

#[tokio::test]
async fn a_busy_service_says_so_as_often_as_asked() {
    let emulator = emulator().await;
    emulator.put("q", &["1"]);
    let mut client = Client::begun(&emulator.address).await;
    client.sender(0, "q").await;
    client.receiver(1, "q").await;
    let faults = &emulator.shared.faults;
    faults.be_busy(1, &[BusyOperation::Send]);
    assert_eq!(condition_of(&client.publish(0, 0, &message("2")).await), "com.microsoft:server-busy");
    assert_eq!(client.publish(0, 1, &message("2")).await, state(ACCEPTED));
    faults.be_busy(1, &[BusyOperation::Attach]);
    assert_eq!(refused(&mut client, receiver(2, "q", 0)).await.condition(2), "com.microsoft:server-busy");
    client.credit(1, 0, 1, false).await;
    client.expect(TRANSFER).await;
    faults.be_busy(1, &[BusyOperation::Settle]);
    client.settle(0, 0, state(ACCEPTED)).await;
    assert_eq!(condition_of(client.expect(DISPOSITION).await.field(4)), "com.microsoft:server-busy");
    client.settle(0, 0, state(ACCEPTED)).await;
    assert_eq!(client.expect(DISPOSITION).await.field(4), &state(ACCEPTED), "the message is locked as before");
    let mut management = Requests::open(&mut client, "q/$management").await;
    faults.be_busy_until(emulator.shared.clock().now_ms() + 60_000, &[]);
    for _ in 0..3 {
        assert_eq!(management.manage(&mut client, "peek-message", &[]).await.0, 503);
    }
    emulator.shared.clock().advance(MINUTE);
    assert_eq!(management.manage(&mut client, "peek-message", &[]).await.0, 200);
}

#[tokio::test]
async fn a_disabled_queue_refuses_links_with_its_own_condition() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    for (handle, status, attach) in
        [(0, EntityStatus::SendDisabled, sender(0, "q")), (1, EntityStatus::ReceiveDisabled, receiver(1, "q", 0))]
    {
        let settings = QueueSettings { status, ..QueueSettings::default() };
        emulator.shared.broker.update_queue("q", settings).expect("changed");
        assert_eq!(refused(&mut client, attach).await.condition(2), "com.microsoft:entity-disabled", "{handle}");
    }
}

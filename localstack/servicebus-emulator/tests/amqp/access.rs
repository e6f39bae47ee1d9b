//! Keys with fewer rights than all, and keys of one entity.

use polybus_servicebus_emulator::amqp::AmqpOptions;
use polybus_servicebus_emulator::auth::{AccessKey, AccessRight, JwtKey, Rights};
use polybus_servicebus_emulator::broker::QueueSettings;
use polybus_servicebus_emulator::codec::Value;

use crate::client::{ATTACH, Client, DETACH, FLOW, receiver, sender};
use crate::requests::Requests;
use crate::support::{Emulator, emulator_guarded, emulator_with};

const LATER_S: i64 = 4_000_000_000;

fn key(right: AccessRight) -> AccessKey {
    AccessKey::new(format!("{right:?}"), format!("secret of {right:?}")).with_rights(Rights::NONE.with(right))
}

async fn guarded() -> Emulator {
    let emulator = emulator_with(Some(AccessKey::new("Root", "secret")), AmqpOptions::default()).await;
    for right in [AccessRight::Listen, AccessRight::Send] {
        emulator.shared.keys.put(key(right));
    }
    emulator
}

/// A client with a token for `q`.
async fn with_token(emulator: &Emulator, token: &str) -> Client {
    let mut client = Client::begun(&emulator.address).await;
    let mut cbs = Requests::open(&mut client, "$cbs").await;
    assert_eq!(cbs.put_token(&mut client, "amqp://localhost/q", token).await, 202);
    client
}

/// Whether a link was let in; if not, it was for want of this right.
async fn lets_in(client: &mut Client, attach: Vec<Value>, right: &str) -> bool {
    let handle = attach[1].clone();
    client.send(0, ATTACH, attach).await;
    let attached = client.expect(ATTACH).await;
    if !attached.field(5).is_null() && !attached.field(6).is_null() {
        if right == "Send" {
            client.expect(FLOW).await;
        }
        return true;
    }
    let detach = client.expect(DETACH).await;
    assert_eq!(detach.condition(2), "amqp:unauthorized-access");
    let text = crate::client::described(detach.field(2)).1[1].as_text().expect("a text").to_owned();
    assert!(text.starts_with(&format!("Unauthorized access. '{right}' claim(s) are required")), "{text}");
    client.send(0, DETACH, vec![handle, Value::Bool(true)]).await;
    false
}

#[tokio::test]
async fn a_key_lets_do_what_its_rights_say() {
    let emulator = guarded().await;
    for (right, listens, sends) in [(AccessRight::Listen, true, false), (AccessRight::Send, false, true)] {
        let token = key(right).token("amqp://localhost/q", LATER_S);
        let mut client = with_token(&emulator, &token).await;
        assert_eq!(lets_in(&mut client, receiver(0, "q", 0), "Listen").await, listens);
        assert_eq!(lets_in(&mut client, sender(1, "q"), "Send").await, sends);
    }
}

#[tokio::test]
async fn requests_take_the_rights_that_their_links_would() {
    let emulator = guarded().await;
    for (right, peeks) in [(AccessRight::Listen, 204), (AccessRight::Send, 401)] {
        let token = key(right).token("amqp://localhost/q", LATER_S);
        let mut client = with_token(&emulator, &token).await;
        for handle in [10, 11] {
            client.send(0, DETACH, vec![Value::Uint(handle), Value::Bool(true)]).await;
            client.expect(DETACH).await;
        }
        let mut management = Requests::open(&mut client, "q/$management").await;
        assert_eq!(management.manage(&mut client, "peek-message", &[]).await.0, peeks);
        let cancel = [("sequence-numbers", Value::Array(vec![Value::Long(1)]))];
        assert_eq!(management.manage(&mut client, "cancel-scheduled-message", &cancel).await.0, 404);
    }
}

/// JavaScript's SDK puts one for the requests alone.
#[tokio::test]
async fn a_token_for_the_requests_is_enough_for_them() {
    let emulator = guarded().await;
    let mut client = Client::begun(&emulator.address).await;
    let mut cbs = Requests::open(&mut client, "$cbs").await;
    let token = key(AccessRight::Listen).token("amqp://localhost/q", LATER_S);
    assert_eq!(cbs.put_token(&mut client, "amqp://localhost/q/$management", &token).await, 202);
    for handle in [10, 11] {
        client.send(0, DETACH, vec![Value::Uint(handle), Value::Bool(true)]).await;
        client.expect(DETACH).await;
    }
    let mut management = Requests::open(&mut client, "q/$management").await;
    assert_eq!(management.manage(&mut client, "peek-message", &[]).await.0, 204);
    assert!(!lets_in(&mut client, receiver(0, "q", 0), "Listen").await);
}

#[tokio::test]
async fn an_entitys_rule_opens_that_entity_as_it_says() {
    let emulator = guarded().await;
    let rules = "<AuthorizationRule><Rights><AccessRights>Send</AccessRights></Rights><KeyName>own</KeyName>\
                 <PrimaryKey>one</PrimaryKey><SecondaryKey>two</SecondaryKey></AuthorizationRule>";
    let settings = QueueSettings { authorization_rules: Some(rules.to_owned()), ..QueueSettings::default() };
    emulator.shared.broker.update_queue("q", settings).expect("changed");
    for secret in ["one", "two"] {
        let token = AccessKey::new("own", secret).token("amqp://localhost/q", LATER_S);
        let mut client = with_token(&emulator, &token).await;
        assert!(lets_in(&mut client, sender(0, "q"), "Send").await);
        assert!(!lets_in(&mut client, receiver(1, "q", 0), "Listen").await);
    }
    let mut client = Client::begun(&emulator.address).await;
    let mut cbs = Requests::open(&mut client, "$cbs").await;
    let elsewhere = AccessKey::new("own", "one").token("amqp://localhost/s", LATER_S);
    assert_eq!(cbs.put_token(&mut client, "amqp://localhost/s", &elsewhere).await, 401);
    let other = AccessKey::new("own", "three").token("amqp://localhost/q", LATER_S);
    assert_eq!(cbs.put_token(&mut client, "amqp://localhost/q", &other).await, 401);
}

#[tokio::test]
async fn roles_of_a_json_web_token_are_rights() {
    let jwt = JwtKey::new("secret");
    let emulator = emulator_guarded(None, Some(jwt.clone()), AmqpOptions::default()).await;
    let token = jwt.token_with_roles(LATER_S, &["Azure Service Bus Data Receiver"]);
    let mut client = with_token(&emulator, &token).await;
    assert!(lets_in(&mut client, receiver(0, "q", 0), "Listen").await);
    assert!(!lets_in(&mut client, sender(1, "q"), "Send").await);
}

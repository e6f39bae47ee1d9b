//! `$cbs` and `$management`.

use std::time::Duration;

use polybus_servicebus_emulator::amqp::AmqpOptions;
use polybus_servicebus_emulator::auth::{AccessKey, JwtKey};
use polybus_servicebus_emulator::broker::{SubscriptionSettings, TopicSettings};
use polybus_servicebus_emulator::codec::Value;
use polybus_servicebus_emulator::message::Message;

use crate::client::{
    ACCEPTED, ATTACH, Client, DETACH, DISPOSITION, Frame, SASL_HEADER, TRANSFER, frame, receiver, sender, state,
};
use crate::support::{Emulator, emulator, emulator_guarded, emulator_with, message, text_of};

/// A pair of request links on handles 10 and 11, with the ids they need.
pub(crate) struct Requests {
    next: u32,
}

impl Requests {
    pub(crate) async fn open(client: &mut Client, node: &str) -> Self {
        client.sender(10, node).await;
        let mut fields = receiver(11, node, 2);
        fields[6] = crate::client::target("answers");
        client.send(0, ATTACH, fields).await;
        client.expect(ATTACH).await;
        client.credit(11, 0, 100, false).await;
        Self { next: 0 }
    }

    /// Asks, and returns the answer as it came.
    pub(crate) async fn ask(
        &mut self,
        client: &mut Client,
        reply_to: Option<&str>,
        properties: &[(&str, Value)],
        body: &Value,
    ) -> Message {
        let mut request = Message::default();
        request.properties.message_id = Some(Value::Ulong(u64::from(self.next)));
        request.properties.reply_to = reply_to.map(str::to_owned);
        request.application_properties =
            properties.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        request.set_body_value(body);
        client.transfer(10, self.next, 0, false, &request.encode()).await;
        let (one, other) = (client.next().await, client.next().await);
        let (answer, outcome) = if one.code == TRANSFER { (one, other) } else { (other, one) };
        assert_eq!((outcome.code, outcome.field(4)), (DISPOSITION, &state(ACCEPTED)));
        let answer = Message::decode(&answer.payload).expect("an answer");
        assert_eq!(answer.properties.correlation_id, request.properties.message_id, "in its own type");
        self.next += 1;
        answer
    }

    pub(crate) async fn manage(
        &mut self,
        client: &mut Client,
        operation: &str,
        body: &[(&str, Value)],
    ) -> (i64, Value) {
        let operation = Value::string(format!("com.microsoft:{operation}"));
        let body = Value::Map(body.iter().map(|(key, value)| (Value::string(*key), value.clone())).collect());
        let answer = self.ask(client, Some("answers"), &[("operation", operation)], &body).await;
        let status = answer.application_property("statusCode").and_then(Value::as_i64).expect("a status");
        assert!(answer.application_property("statusDescription").is_some());
        assert_eq!(answer.application_property("errorCondition").is_some(), status >= 300, "{answer:?}");
        (status, answer.body_value().expect("a body"))
    }

    pub(crate) async fn put_token(&mut self, client: &mut Client, audience: &str, token: &str) -> i64 {
        self.put_token_of("servicebus.windows.net:sastoken", client, audience, token).await
    }

    async fn put_token_of(&mut self, kind: &str, client: &mut Client, audience: &str, token: &str) -> i64 {
        let properties = [
            ("operation", Value::string("put-token")),
            ("type", Value::string(kind)),
            ("name", Value::string(audience)),
        ];
        let answer = self.ask(client, None, &properties, &Value::string(token)).await;
        let status = answer.application_property("status-code").expect("a status");
        assert!(matches!(status, Value::Int(_)), "{status:?}");
        status.as_i64().expect("a number")
    }
}

fn uuids(tokens: &[Value]) -> Value {
    Value::Array(tokens.to_vec())
}

/// A client that received this message; with its lock token.
async fn received(client: &mut Client, emulator: &Emulator, text: &str) -> Value {
    emulator.put("q", &[text]);
    client.receiver(0, "q").await;
    client.credit(0, 0, 1, false).await;
    token_of(&client.expect(TRANSFER).await)
}

fn token_of(frame: &Frame) -> Value {
    let message = Message::decode(&frame.payload).expect("a message");
    message.delivery_annotations[0].1.clone()
}

const LATER_S: i64 = 4_000_000_000;

#[tokio::test]
async fn without_a_key_every_token_is_taken() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    let mut cbs = Requests::open(&mut client, "$cbs").await;
    assert_eq!(cbs.put_token(&mut client, "amqp://localhost/q", "whatever").await, 202);
    let answer = cbs.ask(&mut client, None, &[("operation", Value::string("nonsense"))], &Value::Null).await;
    assert_eq!(answer.application_property("status-code"), Some(&Value::Int(400)));
}

#[tokio::test]
async fn with_a_key_links_need_a_token_that_it_signed() {
    let key = AccessKey::new("Root", "secret");
    let emulator = emulator_with(Some(key.clone()), AmqpOptions::default()).await;
    let mut client = Client::begun(&emulator.address).await;
    let refused = async |client: &mut Client| {
        for fields in [sender(0, "q"), receiver(0, "q", 0), sender(0, "q/$management")] {
            client.send(0, ATTACH, fields).await;
            client.expect(ATTACH).await;
            let detach = client.expect(DETACH).await;
            assert_eq!(detach.condition(2), "amqp:unauthorized-access");
            assert!(!format!("{detach:?}").contains("secret"));
            client.send(0, DETACH, vec![Value::Uint(0), Value::Bool(true)]).await;
        }
    };
    refused(&mut client).await;
    let mut cbs = Requests::open(&mut client, "$cbs").await;
    let wrong = AccessKey::new("Root", "wrong").token("sb://localhost/q", LATER_S);
    assert_eq!(cbs.put_token(&mut client, "sb://localhost/q", &wrong).await, 401);
    let other = key.token("sb://localhost/s", LATER_S);
    assert_eq!(cbs.put_token(&mut client, "sb://localhost/q", &other).await, 401);
    assert_eq!(cbs.put_token(&mut client, "sb://localhost/s", &other).await, 202);
    refused(&mut client).await;
    let good = key.token("sb://localhost/q", LATER_S);
    assert_eq!(cbs.put_token(&mut client, "sb://localhost/q", &good).await, 202);
    client.sender(0, "amqps://localhost/q").await;
    client.receiver(1, "Q/$DeadLetterQueue").await;
    client.sender(2, "q/$management").await;
}

#[tokio::test]
async fn json_web_tokens_are_checked_with_a_key_of_their_own() {
    let (key, jwt) = (AccessKey::new("Root", "secret"), JwtKey::new("secret"));
    let emulator = emulator_guarded(None, Some(jwt.clone()), AmqpOptions::default()).await;
    let mut client = Client::begun(&emulator.address).await;
    let mut cbs = Requests::open(&mut client, "$cbs").await;
    let expires_s = emulator.shared.clock().now_ms() / 1000 + 60;
    let audience = "sb://localhost/q";
    let mut put = async |kind: &str, token: &str| cbs.put_token_of(kind, &mut client, audience, token).await;
    assert_eq!(put("jwt", &JwtKey::new("other").token(expires_s)).await, 401);
    assert_eq!(put("jwt", &key.token(audience, expires_s)).await, 401);
    let sas = "servicebus.windows.net:sastoken";
    assert_eq!(put(sas, &key.token(audience, expires_s)).await, 401);
    assert_eq!(put(sas, &jwt.token(expires_s)).await, 202, "the content tells, not the type");
    assert_eq!(put("jwt", &jwt.token(expires_s)).await, 202);
    client.sender(0, "q").await;
    emulator.shared.clock().advance(Duration::from_secs(61));
    assert_eq!(client.expect(DETACH).await.condition(2), "amqp:unauthorized-access");
}

/// Python's SDK does so.
#[tokio::test]
async fn a_signature_may_be_put_as_a_json_web_token() {
    let key = AccessKey::new("Root", "secret");
    for jwt in [None, Some(JwtKey::new("secret"))] {
        let emulator = emulator_guarded(Some(key.clone()), jwt, AmqpOptions::default()).await;
        let mut client = Client::begun(&emulator.address).await;
        let mut cbs = Requests::open(&mut client, "$cbs").await;
        let token = key.token("sb://localhost/q", LATER_S);
        assert_eq!(cbs.put_token_of("jwt", &mut client, "sb://localhost/q", &token).await, 202);
        client.sender(0, "q").await;
    }
}

#[tokio::test]
async fn a_token_for_what_is_not_there_is_answered_with_that() {
    let key = AccessKey::new("Root", "secret");
    for key in [Some(key.clone()), None] {
        let emulator = emulator_with(key, AmqpOptions::default()).await;
        emulator.shared.broker.create_topic("t", TopicSettings::default()).expect("t");
        let mut client = Client::begun(&emulator.address).await;
        let mut cbs = Requests::open(&mut client, "$cbs").await;
        let token = AccessKey::new("Root", "secret").token("sb://localhost/", LATER_S);
        for (audience, status) in [
            ("sb://localhost/none", 404),
            ("sb://localhost/none/$management", 404),
            ("amqps://localhost/t/Subscriptions/none", 404),
            ("amqps://localhost/t/Subscriptions/none/$management", 404),
            ("sb://localhost/t", 202),
            ("sb://localhost/Q/$DeadLetterQueue/$management", 202),
            ("sb://localhost/", 202),
            ("sb://localhost/$cbs", 202),
        ] {
            assert_eq!(cbs.put_token(&mut client, audience, &token).await, status, "{audience}");
        }
    }
}

#[tokio::test]
async fn the_management_of_what_is_not_there_is_not_found() {
    let emulator = emulator().await;
    emulator.shared.broker.create_topic("t", TopicSettings::default()).expect("t");
    let mut client = Client::begun(&emulator.address).await;
    for (handle, node) in [(0, "none/$management"), (1, "t/Subscriptions/none/$management"), (2, "none")] {
        client.send(0, ATTACH, sender(handle, node)).await;
        client.expect(ATTACH).await;
        assert_eq!(client.expect(DETACH).await.condition(2), "amqp:not-found", "{node}");
    }
    client.sender(3, "t/$management").await;
}

#[tokio::test]
async fn a_connection_has_one_pair_of_links_for_claims() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    let mut cbs = Requests::open(&mut client, "$cbs").await;
    for fields in [sender(0, "$cbs"), receiver(1, "amqp://localhost/$cbs", 0)] {
        client.send(0, ATTACH, fields).await;
        client.expect(ATTACH).await;
        assert_eq!(client.expect(DETACH).await.condition(2), "amqp:not-allowed");
    }
    assert_eq!(cbs.put_token(&mut client, "amqp://localhost/q", "whatever").await, 202, "the first pair goes on");
    for handle in [10, 11] {
        client.send(0, DETACH, vec![Value::Uint(handle), Value::Bool(true)]).await;
        client.expect(DETACH).await;
    }
    Requests::open(&mut client, "$cbs").await;
}

#[tokio::test]
async fn a_claim_ends_with_its_token() {
    let key = AccessKey::new("Root", "secret");
    let emulator = emulator_with(Some(key.clone()), AmqpOptions::default()).await;
    let mut client = Client::begun(&emulator.address).await;
    let mut cbs = Requests::open(&mut client, "$cbs").await;
    let expires_s = emulator.shared.clock().now_ms() / 1000 + 60;
    let token = key.token("sb://localhost/", expires_s);
    assert_eq!(cbs.put_token(&mut client, "sb://localhost/q", &token).await, 202);
    client.sender(0, "q").await;
    client.receiver(2, "q").await;
    // A newer token for one entity outlives it there.
    let newer = key.token("sb://localhost/s", expires_s + 60);
    assert_eq!(cbs.put_token(&mut client, "sb://localhost/s", &newer).await, 202);
    client.sender(3, "s").await;
    emulator.shared.clock().advance(Duration::from_secs(30));
    client.expect_nothing().await;
    emulator.shared.clock().advance(Duration::from_secs(31));
    let mut detached = Vec::new();
    for _ in 0..2 {
        let detach = client.expect(DETACH).await;
        assert_eq!(detach.condition(2), "amqp:unauthorized-access");
        detached.push(detach.number(0));
    }
    detached.sort_unstable();
    assert_eq!(detached, [0, 2]);
    client.expect_nothing().await;
    assert_eq!(cbs.put_token(&mut client, "sb://localhost/q", &token).await, 401);
    client.send(0, ATTACH, receiver(1, "q", 0)).await;
    client.expect(ATTACH).await;
    assert_eq!(client.expect(DETACH).await.condition(2), "amqp:unauthorized-access");
}

/// The outcome of logging in with PLAIN, and the client.
async fn plain(emulator: &Emulator, name: &str, key: &str) -> (u8, Client) {
    let mut client = Client::connect(&emulator.address).await;
    client.write(SASL_HEADER).await;
    assert_eq!(&client.read(8).await, SASL_HEADER);
    assert_eq!(client.next().await.code, 0x40);
    let response = Value::Binary(format!("\0{name}\0{key}").into_bytes().into());
    let init = Value::described(0x41, Value::List(vec![Value::symbol("PLAIN"), response]));
    client.write(&frame(1, 0, &polybus_servicebus_emulator::codec::encode(&init))).await;
    let outcome = client.next().await;
    assert_eq!(outcome.code, 0x44);
    (u8::try_from(outcome.number(0)).expect("a code"), client)
}

#[tokio::test]
async fn a_key_by_plain_needs_no_claims() {
    let key = AccessKey::new("Root", "secret");
    let emulator = emulator_with(Some(key), AmqpOptions::default()).await;
    let (outcome, mut client) = plain(&emulator, "Root", "secret").await;
    assert_eq!(outcome, 0);
    client.open(65536, None).await;
    client.begin(0).await;
    client.sender(0, "q").await;
    for (name, key) in [("Root", "wrong"), ("Other", "secret")] {
        let (outcome, mut client) = plain(&emulator, name, key).await;
        assert_eq!(outcome, 1);
        client.expect_end_of_stream().await;
    }
}

#[tokio::test]
async fn locks_are_renewed_and_lost() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    let token = received(&mut client, &emulator, "1").await;
    let mut management = Requests::open(&mut client, "q/$management").await;
    emulator.shared.clock().advance(Duration::from_secs(50));
    let before = emulator.shared.clock().now_ms();
    let (status, body) =
        management.manage(&mut client, "renew-lock", &[("lock-tokens", uuids(std::slice::from_ref(&token)))]).await;
    assert_eq!(status, 200);
    let until = body.get("expirations").and_then(Value::as_items).expect("an array")[0].as_i64().expect("a time");
    assert!(until >= before + 60_000, "{until}, {before}");
    emulator.shared.clock().advance(Duration::from_secs(61));
    for operation in ["renew-lock", "update-disposition"] {
        let body =
            [("lock-tokens", uuids(std::slice::from_ref(&token))), ("disposition-status", Value::string("completed"))];
        assert_eq!(management.manage(&mut client, operation, &body).await.0, 410);
    }
}

#[tokio::test]
async fn dispositions_by_token_settle_all_or_none() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    emulator.put("q", &["1", "2", "3"]);
    client.receiver(0, "q").await;
    client.credit(0, 0, 3, false).await;
    let mut tokens = Vec::new();
    for _ in 0..3 {
        tokens.push(token_of(&client.expect(TRANSFER).await));
    }
    let mut management = Requests::open(&mut client, "q/$management").await;
    let mut settle = async |client: &mut Client, status: &str, tokens: &[Value]| {
        let body = [
            ("disposition-status", Value::string(status)),
            ("lock-tokens", uuids(tokens)),
            ("deadletter-reason", Value::string("why")),
            ("deadletter-description", Value::string("because")),
        ];
        management.manage(client, "update-disposition", &body).await.0
    };
    assert_eq!(settle(&mut client, "completed", &[tokens[0].clone(), Value::Uuid([1; 16])]).await, 410);
    assert_eq!(emulator.stored("q"), 3, "none was settled");
    assert_eq!(settle(&mut client, "completed", &tokens[..1]).await, 200);
    assert_eq!(settle(&mut client, "suspended", &tokens[1..2]).await, 200);
    assert_eq!(settle(&mut client, "defered", &tokens[2..]).await, 200);
    assert_eq!(settle(&mut client, "nonsense", &tokens[..1]).await, 400);
    let dead = emulator.shared.broker.source("q/$DeadLetterQueue").expect("dlq").peek(0, 1, None).expect("one");
    let dead = dead[0].to_message();
    assert_eq!(dead.application_property("DeadLetterReason"), Some(&Value::string("why")));
    assert_eq!(dead.application_property("DeadLetterErrorDescription"), Some(&Value::string("because")));
    // What was settled here is not held on the link any more.
    client.settle(0, 0, state(ACCEPTED)).await;
    let refused = client.expect(DISPOSITION).await;
    assert_eq!(crate::client::described(refused.field(4)).0, crate::client::REJECTED);
}

#[tokio::test]
async fn deferred_messages_come_by_number() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    let token = received(&mut client, &emulator, "1").await;
    let mut management = Requests::open(&mut client, "q/$management").await;
    let defer = [("disposition-status", Value::string("defered")), ("lock-tokens", uuids(&[token]))];
    assert_eq!(management.manage(&mut client, "update-disposition", &defer).await.0, 200);
    let ask = [("sequence-numbers", Value::Array(vec![Value::Long(1)])), ("receiver-settle-mode", Value::Uint(1))];
    let (status, body) = management.manage(&mut client, "receive-by-sequence-number", &ask).await;
    assert_eq!(status, 200);
    let entry = &body.get("messages").and_then(Value::as_items).expect("messages")[0];
    let bytes = entry.get("message").and_then(Value::as_bytes).expect("bytes");
    assert_eq!(text_of(bytes), "1");
    let token = entry.get("lock-token").expect("a token").clone();
    let complete = [("disposition-status", Value::string("completed")), ("lock-tokens", uuids(&[token]))];
    assert_eq!(management.manage(&mut client, "update-disposition", &complete).await.0, 200);
    assert_eq!(management.manage(&mut client, "receive-by-sequence-number", &ask).await.0, 404);
}

#[tokio::test]
async fn messages_are_scheduled_peeked_at_and_cancelled() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    let mut management = Requests::open(&mut client, "q/$management").await;
    let peek = [("from-sequence-number", Value::Long(0)), ("message-count", Value::Int(10))];
    assert_eq!(management.manage(&mut client, "peek-message", &peek).await.0, 204);
    let mut later = Message::decode(&message("later")).expect("a message");
    later.set_annotation("x-opt-scheduled-enqueue-time", Value::Timestamp(emulator.shared.clock().now_ms() + 60_000));
    let entry = Value::Map(vec![
        (Value::string("message"), Value::Binary(later.encode().into())),
        (Value::string("message-id"), Value::string("x")),
    ]);
    let messages = Value::List(vec![entry.clone(), entry]);
    let (status, body) = management.manage(&mut client, "schedule-message", &[("messages", messages)]).await;
    let numbers = body.get("sequence-numbers").expect("numbers").clone();
    assert_eq!((status, numbers.as_items().map(<[Value]>::len)), (200, Some(2)));
    let (_, body) = management.manage(&mut client, "peek-message", &peek).await;
    let peeked = body.get("messages").and_then(Value::as_items).expect("messages");
    let peeked = Message::decode(peeked[0].get("message").and_then(Value::as_bytes).expect("bytes")).expect("one");
    assert_eq!(peeked.annotation("x-opt-message-state"), Some(&Value::Int(2)));
    let first = Value::Array(numbers.as_items().expect("two")[..1].to_vec());
    assert_eq!(
        management.manage(&mut client, "cancel-scheduled-message", &[("sequence-numbers", first.clone())]).await.0,
        200
    );
    assert_eq!(management.manage(&mut client, "cancel-scheduled-message", &[("sequence-numbers", first)]).await.0, 404);
    client.receiver(0, "q").await;
    client.credit(0, 0, 5, false).await;
    client.expect_nothing().await;
    emulator.shared.clock().advance(Duration::from_secs(61));
    assert_eq!(text_of(&client.expect(TRANSFER).await.payload), "later");
    client.expect_nothing().await;
}

#[tokio::test]
async fn a_look_at_much_comes_in_parts() {
    let emulator = emulator().await;
    let text = "x".repeat(200_000);
    emulator.put("q", &[text.as_str(); 8]);
    let mut client = Client::connect(&emulator.address).await;
    client.open(u32::MAX, None).await;
    client.begin(0).await;
    let mut management = Requests::open(&mut client, "q/$management").await;
    let (mut from, mut seen) = (0, Vec::new());
    while seen.len() < 8 {
        let peek = [("from-sequence-number", Value::Long(from)), ("message-count", Value::Int(100))];
        let (_, body) = management.manage(&mut client, "peek-message", &peek).await;
        let part = body.get("messages").and_then(Value::as_items).expect("messages").len();
        assert!((1..=5).contains(&part), "{part}");
        seen.extend(vec![(); part]);
        from = i64::try_from(seen.len()).expect("few") + 1;
    }
}

#[tokio::test]
async fn rules_are_added_listed_and_removed() {
    let emulator = emulator().await;
    emulator.shared.broker.create_topic("t", TopicSettings::default()).expect("t");
    emulator.shared.broker.create_subscription("t", "sub", SubscriptionSettings::default(), None).expect("sub");
    let mut client = Client::begun(&emulator.address).await;
    let mut management = Requests::open(&mut client, "t/Subscriptions/sub/$management").await;
    let map = |key: &str, value: Value| Value::Map(vec![(Value::string(key), value)]);
    let sql = map("sql-filter", map("expression", Value::string("a = 1")));
    let add = [("rule-name", Value::string("sql")), ("rule-description", sql)];
    assert_eq!(management.manage(&mut client, "add-rule", &add).await.0, 200);
    assert_eq!(management.manage(&mut client, "add-rule", &add).await.0, 409);
    let wrong = map("sql-filter", map("expression", Value::string("a = = 1")));
    let add = [("rule-name", Value::string("wrong")), ("rule-description", wrong)];
    assert_eq!(management.manage(&mut client, "add-rule", &add).await.0, 400);
    let correlation = map("correlation-filter", map("label", Value::string("x")));
    let add = [("rule-name", Value::string("correlation")), ("rule-description", correlation)];
    assert_eq!(management.manage(&mut client, "add-rule", &add).await.0, 200);
    let list = [("top", Value::Int(100)), ("skip", Value::Int(0))];
    let (status, body) = management.manage(&mut client, "enumerate-rules", &list).await;
    assert_eq!(status, 200);
    let mut found = Vec::new();
    for rule in body.get("rules").and_then(Value::as_items).expect("rules") {
        let (code, fields) = crate::client::described(rule.get("rule-description").expect("a description"));
        let filter = crate::client::described(&fields[0]).0;
        found.push((code, fields[2].as_text().expect("a name").to_owned(), filter));
    }
    found.sort();
    let rule = |name: &str, filter: u64| (0x137_0000_0004, name.to_owned(), filter);
    let expected = [rule("$Default", 0x13_7000_0007), rule("correlation", 0x13_7000_0009), rule("sql", 0x13_7000_0006)];
    assert_eq!(found, expected);
    for (name, status) in [("sql", 200), ("sql", 404)] {
        let remove = [("rule-name", Value::string(name))];
        assert_eq!(management.manage(&mut client, "remove-rule", &remove).await.0, status);
    }
}

#[tokio::test]
async fn what_is_not_known_or_incomplete_is_refused() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    let mut management = Requests::open(&mut client, "q/$management").await;
    for operation in [
        "no-such-thing",
        "renew-lock",
        "update-disposition",
        "schedule-message",
        "cancel-scheduled-message",
        "receive-by-sequence-number",
        "get-session-state",
        "add-rule",
        "remove-rule",
        "enumerate-rules",
    ] {
        assert_eq!(management.manage(&mut client, operation, &[]).await.0, 400, "{operation}");
    }
    // An array of the wrong things is told apart from an empty one.
    let wrong = [("lock-tokens", Value::Array(vec![Value::Int(1)]))];
    assert_eq!(management.manage(&mut client, "renew-lock", &wrong).await.0, 400);
}

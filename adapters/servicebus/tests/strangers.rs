//! Entities that others declared and messages that others wrote: whatever is done with a message, it comes back as it
//! was, or is counted.
#![allow(clippy::unwrap_used)]

mod foreign;

use std::{collections::BTreeSet, time::Duration};

use foreign::{EmulatorSetup, ForeignMessage};
use polybus_core::{
    Address, Delivery, Envelope, QueueSpec, Source, Subscription, SubscriptionSpec, TopicSpec, Topology,
    redrive::{RedriveOptions, RedriveVerdict},
};
use polybus_servicebus::NativeMessage;
use polybus_servicebus_emulator::{
    auth::{AccessRight, Rights},
    broker::QueueSettings,
};
use tokio::time::timeout;

async fn next(sub: &mut Subscription) -> Delivery {
    timeout(Duration::from_secs(120), sub.next()).await.expect("nothing came").unwrap().unwrap()
}

fn own_annotation(native: &NativeMessage) -> Option<String> {
    native.annotations()?.iter().find(|(key, _)| format!("{key:?}").contains("x-own")).map(|(_, v)| format!("{v:?}"))
}

fn deduplicating() -> QueueSettings {
    QueueSettings { requires_duplicate_detection: true, ..QueueSettings::default() }
}

/// Where the broker detects duplicates, a copy under the original's id would be accepted and dropped, and the original
/// completed.
async fn copies_are_no_duplicates(parameters: &'static str) {
    let setup = EmulatorSetup::new(parameters).await;
    setup.emulator.broker().create_queue("q", deduplicating()).unwrap();
    if !parameters.is_empty() {
        setup.emulator.broker().create_queue("q.dlq", deduplicating()).unwrap();
    }
    let bus = setup.bus(Topology::new().queue("q", QueueSpec::new())).await;
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(4).open().await.unwrap();
    let own = Envelope::new("a", "own").source("s").header("h", "v");
    let foreign = setup.foreign().await;
    for n in 0..3 {
        match n {
            0 => drop(bus.publish(Address::queue("q"), own.clone()).await.unwrap()),
            1 => foreign.send("q", ForeignMessage::new("with").id("m-1").property("n", "7")).await,
            _ => foreign.send("q", ForeignMessage::new("without")).await,
        }
        let first = next(&mut sub).await;
        let seen = first.envelope().clone();
        first.retry_after(Duration::from_millis(300)).await.unwrap();
        let again = next(&mut sub).await;
        assert_eq!((again.attempt(), again.envelope()), (2, &seen));
        again.dead_letter("why", "").await.unwrap();
        // Closed before the redrive, which does not see messages that another consumer holds.
        let mut dead = bus.subscribe(Source::queue("q").dead_letters()).prefetch(1).open().await.unwrap();
        let letter = next(&mut dead).await;
        assert_eq!(letter.envelope(), &seen);
        letter.release().await.unwrap();
        dead.close().await.unwrap();
        let _ = bus.redrive(Source::queue("q"), |_| true, usize::MAX).await.unwrap();
        let back = next(&mut sub).await;
        assert_eq!((back.attempt(), back.envelope()), (1, &seen));
        if seen.data == own.data {
            assert_eq!(seen, own);
        }
        if &seen.data[..] == b"with" {
            assert_eq!((&*seen.id, &*seen.event_type), ("m-1", Envelope::FOREIGN_TYPE));
        }
        back.ack().await.unwrap();
    }
    bus.close().await.unwrap();
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_no_duplicates_where_nobody_said_that_the_broker_looks_for_them() {
    copies_are_no_duplicates("").await;
}

#[cfg(feature = "rest")]
#[tokio::test(flavor = "multi_thread")]
async fn over_https_copies_are_no_duplicates_where_nobody_said_that_the_broker_looks_for_them() {
    copies_are_no_duplicates("&transport=rest&poll=1s").await;
}

/// Five hundred messages of polybus and five hundred of others; a third is retried, a third dead-lettered and redriven.
/// Each is handled in the end.
async fn a_thousand(ordered: bool) {
    const EACH: usize = 500;
    let setup = EmulatorSetup::with_key("", Rights::NONE.with(AccessRight::Listen).with(AccessRight::Send)).await;
    let settings = QueueSettings {
        requires_session: ordered,
        enable_partitioning: true,
        lock_duration_ms: 5000,
        max_delivery_count: 100,
        ..deduplicating()
    };
    setup.emulator.broker().create_queue("q", settings).unwrap();
    let bus = setup.bus(Topology::new().queue("q", QueueSpec::new().ordered(ordered).max_deliveries(50))).await;
    let publisher = bus.publisher(Address::queue("q")).await.unwrap();
    let own = (0..EACH).map(|n| Envelope::new("a", format!("own-{n}")).key(format!("k{}", n % 20)));
    publisher.publish_all(own).await.into_iter().for_each(|done| drop(done.unwrap()));
    let foreign = setup.foreign().await;
    let theirs = (0..EACH).map(|n| {
        let message = ForeignMessage::new(&format!("foreign-{n}")).id(&format!("m-{n}"));
        if ordered { message.session(&format!("s{}", n % 20)) } else { message }
    });
    foreign.send_all("q", theirs).await;
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(64).open().await.unwrap();
    let (mut done, mut buried, mut retried) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let text = |d: &Delivery| String::from_utf8(d.envelope().data.to_vec()).unwrap();
    while done.len() + buried.len() < 2 * EACH {
        let delivery = next(&mut sub).await;
        let text = text(&delivery);
        let n: usize = text.rsplit('-').next().unwrap().parse().unwrap();
        let settled = match n % 3 {
            0 if retried.insert(text.clone()) => delivery.retry_after(Duration::from_millis(200)).await,
            1 => {
                buried.insert(text.clone());
                delivery.dead_letter("no", "").await
            }
            _ => {
                done.insert(text.clone());
                delivery.ack().await
            }
        };
        if let Err(e) = settled {
            // It comes again.
            assert_eq!(e.error().kind(), polybus_core::ErrorKind::LockLost, "{text}: {e}");
        }
    }
    // A dead letter whose lock ends while it is moved stays beside its copy, and is moved again.
    let moved = async {
        while setup.emulator.broker().queue("q").unwrap().counts.dead_letter > 0 {
            let _ = bus.redrive(Source::queue("q"), |_| true, usize::MAX).await.unwrap();
        }
    };
    timeout(Duration::from_secs(300), moved).await.expect("all of them are moved");
    while done.len() < 2 * EACH {
        let delivery = next(&mut sub).await;
        done.insert(text(&delivery));
        drop(delivery.ack().await);
    }
    let counts = setup.emulator.broker().queue("q").unwrap().counts;
    assert_eq!(counts.dead_letter, 0, "{counts:?}");
    bus.close().await.unwrap();
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_messages_on_an_entity_that_nothing_is_known_of_are_accounted_for() {
    a_thousand(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_messages_in_sessions_of_an_entity_that_nothing_is_known_of_are_accounted_for() {
    a_thousand(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_anothers_message_keeps_all_that_the_broker_did_not_write() {
    let setup = EmulatorSetup::new("").await;
    let bus = setup.bus(Topology::new().queue("q", QueueSpec::new())).await;
    bus.declare().await.unwrap();
    let foreign = setup.foreign().await;
    let sent = std::time::Instant::now();
    foreign.send("q", ForeignMessage::full()).await;
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let first = next(&mut sub).await;
    let of = |d: &Delivery| {
        let native = d.native::<NativeMessage>().unwrap();
        let mut properties = native.properties().clone();
        (properties.message_id, properties.absolute_expiry_time, properties.creation_time) = (None, None, None);
        let header = native.header().unwrap();
        (properties, header.priority, header.ttl, own_annotation(native))
    };
    let (properties, priority, ttl, annotation) = of(&first);
    assert_eq!((priority.0, ttl, annotation.is_some()), (7, Some(30_000), true));
    let headers = first.envelope().clone();
    for (name, value) in [
        ("native.reply-to", "answers"),
        ("native.reply-to-session-id", "rs"),
        ("native.content-encoding", "gzip"),
        ("native.user-id", "me"),
        ("native.to", "them"),
        ("native.priority", "7"),
    ] {
        assert_eq!(headers.headers.get(name), Some(value), "{name}");
    }
    assert_eq!((headers.correlation_id.as_deref(), headers.subject.as_deref()), (Some("c"), Some("label")));
    first.retry_after(Duration::from_secs(2)).await.unwrap();
    let again = next(&mut sub).await;
    let copied = of(&again);
    assert_eq!((&copied.0, copied.1.0, &copied.3), (&properties, 7, &annotation));
    // Two seconds of its time to live are over, and what the machine took.
    let least = u128::from(30_000_u32).saturating_sub(sent.elapsed().as_millis() + 500);
    assert!(copied.2.is_some_and(|left| left <= 28_000 && u128::from(left) >= least), "{:?}", copied.2);
    assert_eq!(again.envelope().id, headers.id);
    again.ack().await.unwrap();
    bus.close().await.unwrap();
    setup.stop().await;
}

/// Without the check, the copy would live on from when it is due.
async fn a_retry_after_the_end(parameters: &'static str) {
    let setup = EmulatorSetup::new(parameters).await;
    let bus = setup.bus(Topology::new().queue("q", QueueSpec::new())).await;
    bus.declare().await.unwrap();
    let foreign = setup.foreign().await;
    foreign.send("q", ForeignMessage::new("x").id("m").ttl(Duration::from_secs(300))).await;
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let first = next(&mut sub).await;
    let seen = first.envelope().clone();
    first.retry_after(Duration::from_secs(400)).await.unwrap();
    let mut dead = bus.subscribe(Source::queue("q").dead_letters()).open().await.unwrap();
    let letter = next(&mut dead).await;
    let told = letter.dead_letter_info().unwrap();
    assert_eq!((told.reason.as_deref(), told.attempt), (Some("expired"), Some(1)));
    assert_eq!((&letter.envelope().id, &letter.envelope().data), (&seen.id, &seen.data));
    letter.ack().await.unwrap();
    bus.close().await.unwrap();
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_is_due_after_the_message_has_ended_is_a_dead_letter_at_once() {
    a_retry_after_the_end("").await;
}

#[cfg(feature = "rest")]
#[tokio::test(flavor = "multi_thread")]
async fn over_https_a_retry_that_is_due_after_the_message_has_ended_is_a_dead_letter_at_once() {
    a_retry_after_the_end("&transport=rest&poll=1s").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_message_can_be_retried_late_and_redriven() {
    the_largest_message("").await;
}

#[cfg(feature = "rest")]
#[tokio::test(flavor = "multi_thread")]
async fn over_https_the_largest_message_can_be_retried_late_and_redriven() {
    the_largest_message("&transport=rest&poll=1s").await;
}

async fn the_largest_message(parameters: &'static str) {
    let setup = EmulatorSetup::new(parameters).await;
    let bus = setup.bus(Topology::new().queue("q", QueueSpec::new())).await;
    bus.declare().await.unwrap();
    let foreign = setup.foreign().await;
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(4).open().await.unwrap();
    for own in [true, false] {
        if own {
            let mut size = 256 << 10;
            let of = |size| Envelope::new("a", vec![b'x'; size]).id("i").source("s");
            while bus.publish(Address::queue("q"), of(size)).await.is_err() {
                size -= 16;
            }
        } else {
            // A message that is full almost to its last byte; polybus leaves room in its own.
            foreign
                .send("q", ForeignMessage::new(&"y".repeat(261_980)).id("a-message-id-of-36-characters-or-so"))
                .await;
        }
        let delivery = next(&mut sub).await;
        let began = std::time::Instant::now();
        delivery.retry_after(Duration::from_secs(7)).await.unwrap();
        let again = next(&mut sub).await;
        assert!(began.elapsed() >= Duration::from_secs(7) && again.attempt() == 2, "{:?}", began.elapsed());
        again.dead_letter("no", "").await.unwrap();
        let _ = bus.redrive(Source::queue("q"), |_| true, usize::MAX).await.unwrap();
        let back = next(&mut sub).await;
        assert_eq!(back.attempt(), 1);
        back.ack().await.unwrap();
    }
    bus.close().await.unwrap();
    setup.stop().await;
}

/// The broker holds a message that is larger than this side is configured for. Whatever is done with it is done: the
/// limit is for what is published here.
async fn a_message_above_the_configured_limit(parameters: &'static str) {
    let setup = EmulatorSetup::new(parameters).await;
    let q = Source::queue("q");
    let spec = QueueSpec::new().max_hold(Duration::from_secs(1));
    let bus = setup.bus(Topology::new().queue("q", spec)).await;
    bus.declare().await.unwrap();
    setup.foreign().await.send("q", ForeignMessage::new(&"y".repeat(100_000)).id("m")).await;
    let mut sub = bus.subscribe(q.clone()).prefetch(4).open().await.unwrap();
    // Longer than a message may be held, so it takes a copy.
    next(&mut sub).await.retry_after(Duration::from_secs(3)).await.unwrap();
    let again = next(&mut sub).await;
    assert_eq!((again.attempt(), again.envelope().data.len()), (2, 100_000));
    again.dead_letter("unfit", "too long to read").await.unwrap();
    let mut dead = bus.subscribe(q.dead_letters()).prefetch(1).open().await.unwrap();
    let letter = next(&mut dead).await;
    let info = letter.dead_letter_info().unwrap();
    assert_eq!((info.reason.as_deref(), info.detail.as_deref()), (Some("unfit"), Some("too long to read")));
    letter.release().await.unwrap();
    dead.close().await.unwrap();
    for edited in [false, true] {
        let redriven = bus.redrive_each(&q, RedriveOptions::new(), |letter| match edited {
            true => {
                RedriveVerdict::RedriveAs(Envelope::new("a", letter.envelope().data.clone()).header("edited", "yes"))
            }
            false => RedriveVerdict::Redrive,
        });
        let redriven = redriven.await.unwrap();
        assert_eq!(redriven.moved, 1, "edited: {edited}: {redriven}");
        let back = next(&mut sub).await;
        assert_eq!((back.envelope().data.len(), back.envelope().headers.get("edited").is_some()), (100_000, edited));
        match edited {
            true => back.ack().await.unwrap(),
            false => back.dead_letter("again", "").await.unwrap(),
        }
    }
    bus.close().await.unwrap();
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_above_the_configured_limit_is_retried_dead_lettered_and_redriven() {
    a_message_above_the_configured_limit("&max_message_size=16KiB").await;
}

#[cfg(feature = "rest")]
#[tokio::test(flavor = "multi_thread")]
async fn over_https_a_message_above_the_configured_limit_is_retried_dead_lettered_and_redriven() {
    a_message_above_the_configured_limit("&max_message_size=16KiB&transport=rest&poll=1s").await;
}

/// The broker allows less than this side is configured for, and says so only when a copy is sent.
async fn a_copy_that_the_broker_finds_too_large(parameters: &'static str) {
    let setup = EmulatorSetup::new(parameters).await;
    let small = QueueSettings { max_message_size_in_kilobytes: Some(32), ..QueueSettings::default() };
    let broker = setup.emulator.broker();
    broker.create_queue("q", small.clone()).unwrap();
    if parameters.contains("rest") {
        broker.create_queue("q.dlq", small).unwrap();
    }
    let bus = setup.bus(Topology::new().queue("q", QueueSpec::new())).await;
    let foreign = ForeignMessage::new(&"y".repeat((32 << 10) - 164)).id("a-message-id-of-36-characters-or-so");
    setup.foreign().await.send("q", foreign).await;
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(4).open().await.unwrap();
    next(&mut sub).await.dead_letter("no", "because").await.unwrap();
    let redriven = bus.redrive(Source::queue("q"), |_| true, usize::MAX).await.unwrap();
    assert_eq!(redriven.moved, 1, "{redriven}");
    let back = next(&mut sub).await;
    assert_eq!(back.envelope().data.len(), (32 << 10) - 164);
    back.ack().await.unwrap();
    bus.close().await.unwrap();
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_for_which_the_broker_has_no_room_loses_what_it_carries() {
    a_copy_that_the_broker_finds_too_large("&max_message_size=1MiB").await;
}

#[cfg(feature = "rest")]
#[tokio::test(flavor = "multi_thread")]
async fn over_https_moves_for_which_the_broker_has_no_room_lose_what_they_carry() {
    a_copy_that_the_broker_finds_too_large("&max_message_size=1MiB&transport=rest&poll=1s").await;
}

/// A topic accepts a message that no rule lets through: the copy would be lost, and counted as moved.
#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_reaches_its_subscription_whatever_its_types_are_by_now() {
    let setup = EmulatorSetup::new("").await;
    let typed = |types: &[&str]| {
        let spec = SubscriptionSpec::new().types(types.iter().copied());
        Topology::new().topic("t", TopicSpec::new().subscription("a", spec))
    };
    let old = setup.bus(typed(&["x.*"])).await;
    old.declare().await.unwrap();
    old.publish(Address::topic("t"), Envelope::new("x.y", "1")).await.unwrap();
    let a = Source::subscription("t", "a");
    let mut sub = old.subscribe(a.clone()).open().await.unwrap();
    next(&mut sub).await.dead_letter("no", "").await.unwrap();
    setup.emulator.broker().remove_rule("t", "a", "polybus_under_x").unwrap();
    let _ = old.redrive(&a, |_| true, usize::MAX).await.unwrap();
    let back = next(&mut sub).await;
    assert_eq!(&*back.envelope().event_type, "x.y");
    back.ack().await.unwrap();
    old.close().await.unwrap();
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_of_anothers_message_keeps_its_session() {
    let setup = EmulatorSetup::new("").await;
    let broker = setup.emulator.broker();
    broker.create_queue("q", QueueSettings { requires_session: true, ..QueueSettings::default() }).unwrap();
    let topic = TopicSpec::new().ordered(true).subscription("s", SubscriptionSpec::new());
    let bus = setup.bus(Topology::new().queue("q", QueueSpec::new().ordered(true)).topic("t", topic)).await;
    bus.declare().await.unwrap();
    let foreign = setup.foreign().await;
    for (address, source) in [("q", Source::queue("q")), ("t", Source::subscription("t", "s"))] {
        foreign.send(address, ForeignMessage::new("x").id("m").session("customer-7")).await;
        let mut sub = bus.subscribe(source.clone()).open().await.unwrap();
        next(&mut sub).await.dead_letter("no", "").await.unwrap();
        let _ = bus.redrive(&source, |_| true, usize::MAX).await.unwrap();
        let back = next(&mut sub).await;
        let native = back.native::<NativeMessage>().unwrap();
        assert_eq!(native.properties().group_id.as_deref(), Some("customer-7"), "{address}");
        back.ack().await.unwrap();
        sub.close().await.unwrap();
    }
    bus.close().await.unwrap();
    setup.stop().await;
}

/// The rule sees a type, but without a version the message is no CloudEvent.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_rule_let_in_is_handed_out_though_it_is_no_event() {
    let setup = EmulatorSetup::new("").await;
    let typed = SubscriptionSpec::new().types(["order.*"]);
    let structured = serde_json::json!({ "structured_events": true });
    let topic =
        TopicSpec::new().subscription("a", typed.clone()).subscription("b", typed.option("servicebus", structured));
    let bus = setup.bus(Topology::new().topic("t", topic)).await;
    bus.declare().await.unwrap();
    let foreign = setup.foreign().await;
    foreign.send("t", ForeignMessage::new("{}").id("m-2").property("cloudEvents_type", "order.placed")).await;
    let mut a = bus.subscribe(Source::subscription("t", "a")).open().await.unwrap();
    let delivery = next(&mut a).await;
    assert_eq!(&*delivery.envelope().event_type, Envelope::FOREIGN_TYPE);
    delivery.ack().await.unwrap();
    let event = r#"{"specversion":"1.0","id":"e","source":"/s","type":"order.placed","data":1}"#;
    foreign.send("t", ForeignMessage::new(event).content_type("application/cloudevents+json")).await;
    let mut b = bus.subscribe(Source::subscription("t", "b")).prefetch(4).open().await.unwrap();
    let mut types = BTreeSet::new();
    for _ in 0..2 {
        let delivery = next(&mut b).await;
        types.insert(delivery.envelope().event_type.to_string());
        delivery.ack().await.unwrap();
    }
    assert_eq!(types, BTreeSet::from([Envelope::FOREIGN_TYPE.to_owned(), "order.placed".to_owned()]));
    bus.close().await.unwrap();
    setup.stop().await;
}

use super::*;

fn to(target: &str) -> QueueSettings {
    QueueSettings { forward_to: Some(target.into()), ..QueueSettings::default() }
}

fn create(broker: &Broker, name: &str, settings: QueueSettings) {
    broker.create_queue(name, settings).unwrap();
}

#[test]
fn messages_go_on_at_once_and_keep_their_first_number() {
    let broker = broker();
    create(&broker, "end", QueueSettings::default());
    create(&broker, "q", to("sb://host/END"));
    send(&broker, "end", [message("0"), message("1")]);
    send(&broker, "q", [message("2")]);
    let got = lock(&broker, "end", 10);
    assert_eq!(ids(&got), ["0", "1", "2"]);
    assert_eq!((got[2].sequence_number, got[2].enqueued_sequence_number), (3, 1));
    assert_eq!(broker.queue("q").unwrap().counts.total(), 0);
    let source = broker.source("q").unwrap();
    assert_eq!(condition(source.receiver(ReceiveMode::PeekLock, None, Arc::new(Notify::new()))), Condition::NotAllowed);
}

#[test]
fn scheduled_messages_go_on_when_they_are_due() {
    let broker = broker();
    create(&broker, "end", QueueSettings::default());
    create(&broker, "q", to("end"));
    broker.target("q").unwrap().schedule(vec![(message("1"), START_MS + 100)]).unwrap();
    assert!(drain(&broker, "end").is_empty());
    move_clock(&broker, 100);
    assert_eq!(drain(&broker, "end"), ["1"]);
}

#[test]
fn subscriptions_forward_too() {
    let broker = broker();
    create(&broker, "end", QueueSettings::default());
    broker.create_topic("t", TopicSettings::default()).unwrap();
    let settings = SubscriptionSettings { forward_to: Some("end".into()), ..SubscriptionSettings::default() };
    broker.create_subscription("t", "s", settings, None).unwrap();
    send(&broker, "t", [message("1")]);
    assert_eq!(drain(&broker, "end"), ["1"]);
}

#[test]
fn dead_letters_go_on_and_say_where_they_died() {
    let broker = broker();
    create(&broker, "graves", QueueSettings::default());
    let settings = QueueSettings { forward_dead_lettered_to: Some("graves".into()), ..QueueSettings::default() };
    create(&broker, "q", settings);
    send(&broker, "q", [message("1"), message("2")]);
    let got = lock(&broker, "q", 2);
    settle(&broker, "q", &got[0], dead_letter("bad")).unwrap();
    let letter = &lock(&broker, "graves", 1)[0];
    assert_eq!(property(letter, "DeadLetterReason"), Some("bad"));
    assert_eq!(letter.dead_letter_source.as_deref(), Some("q"));
    assert_eq!(letter.to_message().annotation("x-opt-deadletter-source"), Some(&Value::string("q")));
    assert_eq!(broker.queue("q").unwrap().counts.dead_letter, 0);
    broker.delete("graves").unwrap();
    settle(&broker, "q", &got[1], dead_letter("bad")).unwrap();
    assert_eq!(drain(&broker, "q/$DeadLetterQueue"), ["2"], "with nowhere to go it stays");
}

#[test]
fn what_cannot_go_on_is_set_aside() {
    let broker = broker();
    create(&broker, "end", QueueSettings::default());
    create(&broker, "q", to("end"));
    broker
        .update_queue("end", QueueSettings { status: EntityStatus::SendDisabled, ..QueueSettings::default() })
        .unwrap();
    send(&broker, "q", [message("disabled")]);
    broker.delete("end").unwrap();
    send(&broker, "q", [message("missing")]);
    create(&broker, "end", QueueSettings { requires_session: true, ..QueueSettings::default() });
    send(&broker, "q", [message("no session")]);
    assert_eq!(broker.queue("q").unwrap().counts.transfer_dead_letter, 3);
    let letters = lock(&broker, "q/$Transfer/$DeadLetterQueue", 10);
    let reasons: Vec<Option<&str>> = letters.iter().map(|letter| property(letter, "DeadLetterReason")).collect();
    let expected = ["com.microsoft:entity-disabled", "MessagingEntityNotFoundException", "amqp:not-allowed"];
    assert_eq!(reasons, expected.map(Some));
}

#[test]
fn a_ring_ends() {
    let broker = broker();
    create(&broker, "a", QueueSettings::default());
    create(&broker, "b", to("a"));
    broker.update_queue("a", to("b")).unwrap();
    send(&broker, "a", [message("1")]);
    let letters = lock(&broker, "a/$Transfer/$DeadLetterQueue", 10);
    assert_eq!(property(&letters[0], "DeadLetterReason"), Some("MaxTransferHopCountExceeded"));
    assert_eq!(broker.queue("b").unwrap().counts.total(), 0);
}

#[test]
fn what_is_there_goes_on_when_forwarding_begins() {
    let broker = broker();
    create(&broker, "end", QueueSettings::default());
    create(&broker, "q", QueueSettings::default());
    send(&broker, "q", [message("1"), message("2"), message("3")]);
    let got = lock(&broker, "q", 1);
    broker.update_queue("q", to("end")).unwrap();
    assert_eq!(drain(&broker, "end"), ["2", "3"]);
    settle(&broker, "q", &got[0], abandon()).unwrap();
    assert_eq!(drain(&broker, "end"), ["1"], "what was locked follows when it comes back");
}

#[test]
fn forwarding_needs_an_end_that_exists() {
    let broker = broker();
    assert_eq!(condition(broker.create_queue("q", to("nowhere"))), Condition::InvalidField);
    create(&broker, "q", QueueSettings::default());
    assert_eq!(condition(broker.create_queue("r", to("r"))), Condition::InvalidField, "it is not there yet");
}

#[test]
fn forwarding_to_oneself_and_with_sessions_is_taken() {
    let broker = broker();
    create(&broker, "q", QueueSettings::default());
    assert_eq!(broker.update_queue("q", to("Q")).unwrap().settings.forward_to.as_deref(), Some("Q"));
    send(&broker, "q", [message("1")]);
    assert_eq!(broker.queue("q").unwrap().counts.transfer_dead_letter, 1);
    create(&broker, "end", QueueSettings::default());
    create(&broker, "s", QueueSettings { requires_session: true, ..to("end") });
    send(&broker, "s", [in_session("2", "a")]);
    assert_eq!(drain(&broker, "end"), ["2"]);
    broker.create_topic("t", TopicSettings::default()).unwrap();
    let both = SubscriptionSettings {
        requires_session: true,
        forward_to: Some("end".to_owned()),
        ..SubscriptionSettings::default()
    };
    broker.create_subscription("t", "s", both, None).unwrap();
}

#[test]
fn four_times_and_no_more() {
    let broker = broker();
    create(&broker, "5", QueueSettings::default());
    for at in (0..5).rev() {
        create(&broker, &at.to_string(), to(&(at + 1).to_string()));
    }
    send(&broker, "1", [message("arrives")]);
    send(&broker, "0", [message("stops short")]);
    assert_eq!(drain(&broker, "5"), ["arrives"]);
    assert_eq!(drain(&broker, "4/$Transfer/$DeadLetterQueue"), ["stops short"]);
}

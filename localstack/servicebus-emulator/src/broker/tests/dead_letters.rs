use super::*;

const DEAD: &str = "q/$DeadLetterQueue";

#[test]
fn a_dead_letter_tells_why() {
    let broker = with_queue(QueueSettings::default());
    send(&broker, "q", [message("a"), message("b")]);
    let got = lock(&broker, "q", 2);
    let outcome = Outcome::DeadLetter {
        reason: Some("bad".into()),
        description: Some("very bad".into()),
        properties: vec![(Value::string("extra"), Value::string("1"))],
    };
    settle(&broker, "q", &got[1], outcome).unwrap();
    let letter = &lock(&broker, DEAD, 2)[0];
    assert_eq!((id(letter).as_str(), letter.sequence_number), ("b", got[1].sequence_number));
    assert_eq!(property(letter, "DeadLetterReason"), Some("bad"));
    assert_eq!(property(letter, "DeadLetterErrorDescription"), Some("very bad"));
    assert_eq!(property(letter, "extra"), Some("1"));
    assert_eq!(letter.dead_letter_source, None);
    let counts = broker.queue("q").unwrap().counts;
    assert_eq!((counts.active, counts.dead_letter, counts.total()), (1, 1, 2));
}

#[test]
fn a_dead_letter_may_be_returned_for_ever_and_does_not_expire() {
    let broker = with_queue(QueueSettings { max_delivery_count: 1, ..QueueSettings::default() });
    send(&broker, "q", [lasting("a", 1000)]);
    settle(&broker, "q", &lock(&broker, "q", 1)[0], dead_letter("x")).unwrap();
    move_clock(&broker, 10_000);
    for _ in 0..25 {
        let letter = &lock(&broker, DEAD, 1)[0];
        assert_eq!(letter.delivery_count, 0, "what it died with");
        settle(&broker, DEAD, letter, abandon()).unwrap();
    }
    lock(&broker, DEAD, 1);
    move_clock(&broker, 60_000);
    assert_eq!(broker.source(DEAD).unwrap().peek(0, 1, None).unwrap()[0].delivery_count, 0);
    let letter = &lock(&broker, DEAD, 1)[0];
    assert_eq!(condition(settle(&broker, DEAD, letter, dead_letter("again"))), Condition::NotAllowed);
    settle(&broker, DEAD, letter, Outcome::Complete).unwrap();
    assert_eq!(broker.queue("q").unwrap().counts.total(), 0);
}

#[test]
fn too_many_deliveries_make_a_dead_letter() {
    let broker = with_queue(QueueSettings { max_delivery_count: 2, ..QueueSettings::default() });
    send(&broker, "q", [message("a")]);
    settle(&broker, "q", &lock(&broker, "q", 1)[0], abandon()).unwrap();
    assert!(lock(&broker, DEAD, 1).is_empty(), "not one less");
    assert_eq!(lock(&broker, "q", 1)[0].delivery_count, 1);
    move_clock(&broker, 60_000);
    assert!(lock(&broker, "q", 1).is_empty(), "not one more");
    let letter = &lock(&broker, DEAD, 1)[0];
    assert_eq!(letter.delivery_count, 2);
    assert_eq!(property(letter, "DeadLetterReason"), Some("MaxDeliveryCountExceeded"));
    assert_eq!(
        property(letter, "DeadLetterErrorDescription"),
        Some("Message could not be consumed after 2 delivery attempts.")
    );
}

#[test]
fn sessions_end_with_the_main_queue() {
    let broker =
        with_queue(QueueSettings { requires_session: true, max_delivery_count: 1, ..QueueSettings::default() });
    send(&broker, "q", [in_session("a", "s")]);
    let source = broker.source("q").unwrap();
    let session = source.backing.main.accept(Some("s")).unwrap().unwrap();
    let mut receiver = source.receiver(ReceiveMode::PeekLock, Some(session), Arc::new(Notify::new())).unwrap();
    let got = receiver.try_receive(1).unwrap();
    settle(&broker, "q", &got[0], abandon()).unwrap();
    assert!(!broker.source(DEAD).unwrap().requires_session());
    assert_eq!(drain(&broker, DEAD), ["a"]);
}

#[test]
fn dead_letters_are_not_sent_to() {
    let broker = with_queue(QueueSettings::default());
    assert_eq!(condition(broker.target(DEAD).map(drop)), Condition::NotAllowed);
}

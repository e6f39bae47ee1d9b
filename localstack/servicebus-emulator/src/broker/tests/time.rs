use super::*;

#[test]
fn what_has_expired_is_gone() {
    let broker = with_queue(QueueSettings::default());
    send(&broker, "q", [lasting("a", 100), lasting("b", 200), message("c")]);
    move_clock(&broker, 99);
    assert_eq!(broker.queue("q").unwrap().counts.active, 3);
    move_clock(&broker, 1);
    assert_eq!(broker.queue("q").unwrap().counts.active, 2);
    move_clock(&broker, 1_000_000);
    assert_eq!(drain(&broker, "q"), ["c"]);
    assert!(drain(&broker, "q/$DeadLetterQueue").is_empty());
}

#[test]
fn what_has_expired_becomes_a_dead_letter_where_that_is_set() {
    let broker = with_queue(QueueSettings { dead_lettering_on_expiration: true, ..QueueSettings::default() });
    send(&broker, "q", [lasting("a", 100)]);
    move_clock(&broker, 100);
    let letter = &lock(&broker, "q/$DeadLetterQueue", 1)[0];
    assert_eq!(property(letter, "DeadLetterReason"), Some("TTLExpiredException"));
}

#[test]
fn the_queues_time_to_live_is_the_most_a_message_gets() {
    let broker = with_queue(QueueSettings { default_time_to_live_ms: Some(100), ..QueueSettings::default() });
    send(&broker, "q", [message("default"), lasting("longer", 1000), lasting("shorter", 50)]);
    move_clock(&broker, 50);
    assert_eq!(broker.queue("q").unwrap().counts.active, 2);
    move_clock(&broker, 50);
    assert!(drain(&broker, "q").is_empty());
}

#[test]
fn a_locked_message_expires_when_it_comes_back() {
    let broker = with_queue(QueueSettings { dead_lettering_on_expiration: true, ..QueueSettings::default() });
    send(&broker, "q", [lasting("a", 100), lasting("b", 100)]);
    let got = lock(&broker, "q", 2);
    move_clock(&broker, 200);
    settle(&broker, "q", &got[0], Outcome::Complete).unwrap();
    settle(&broker, "q", &got[1], abandon()).unwrap();
    assert!(lock(&broker, "q", 1).is_empty());
    assert_eq!(drain(&broker, "q/$DeadLetterQueue"), ["b"]);
}

#[test]
fn a_deferred_message_expires_when_it_is_asked_for() {
    let broker = with_queue(QueueSettings { dead_lettering_on_expiration: true, ..QueueSettings::default() });
    send(&broker, "q", [lasting("a", 100)]);
    settle(&broker, "q", &lock(&broker, "q", 1)[0], defer()).unwrap();
    move_clock(&broker, 100);
    let source = broker.source("q").unwrap();
    assert_eq!(condition(source.receive_deferred(&[1], ReceiveMode::PeekLock, None)), Condition::MessageNotFound);
    assert_eq!(drain(&broker, "q/$DeadLetterQueue"), ["a"]);
}

#[test]
fn a_scheduled_message_comes_when_it_is_due_and_not_before() {
    let broker = with_queue(QueueSettings { default_time_to_live_ms: Some(500), ..QueueSettings::default() });
    let target = broker.target("q").unwrap();
    let mut annotated = message("b");
    annotated.set_annotation("x-opt-scheduled-enqueue-time", Value::Timestamp(START_MS + 500));
    assert_eq!(target.schedule(vec![(message("a"), START_MS + 1000)]).unwrap(), [1]);
    target.send(vec![annotated, message("now")]).unwrap();
    let counts = broker.queue("q").unwrap().counts;
    assert_eq!((counts.active, counts.scheduled), (1, 2));
    assert_eq!(drain(&broker, "q"), ["now"]);
    move_clock(&broker, 499);
    assert!(drain(&broker, "q").is_empty());
    move_clock(&broker, 1);
    assert_eq!(drain(&broker, "q"), ["b"]);
    move_clock(&broker, 500);
    let got = &lock(&broker, "q", 1)[0];
    assert_eq!((id(got).as_str(), got.enqueued_at), ("a", START_MS + 1000));
    assert!(got.sequence_number > 3, "it is appended under a new number: {}", got.sequence_number);
    assert_eq!(got.enqueued_sequence_number, got.sequence_number);
}

#[test]
fn a_time_that_has_passed_is_now() {
    let broker = with_queue(QueueSettings::default());
    broker.target("q").unwrap().schedule(vec![(message("a"), START_MS)]).unwrap();
    assert_eq!(drain(&broker, "q"), ["a"]);
}

#[test]
fn scheduled_messages_are_taken_back_all_or_none() {
    let broker = with_queue(QueueSettings::default());
    let target = broker.target("q").unwrap();
    let at = START_MS + 1000;
    let numbers = target.schedule(vec![(message("a"), at), (message("b"), at)]).unwrap();
    assert_eq!(condition(target.cancel_scheduled(&[numbers[0], 99])), Condition::MessageNotFound);
    target.cancel_scheduled(&numbers[..1]).unwrap();
    assert_eq!(condition(target.cancel_scheduled(&numbers[..1])), Condition::MessageNotFound);
    move_clock(&broker, 1000);
    assert_eq!(drain(&broker, "q"), ["b"]);
    assert_eq!(condition(target.cancel_scheduled(&numbers[1..])), Condition::MessageNotFound);
}

#[test]
fn messages_due_at_once_come_in_the_order_they_were_scheduled() {
    let broker = with_queue(QueueSettings::default());
    let target = broker.target("q").unwrap();
    target
        .schedule(vec![(message("c"), START_MS + 20), (message("a"), START_MS + 10), (message("b"), START_MS + 10)])
        .unwrap();
    move_clock(&broker, 100);
    assert_eq!(drain(&broker, "q"), ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn timers_run_by_themselves_in_real_time() {
    let broker = Broker::new(Clock::system(), NamespaceLimits::default());
    broker.create_queue("q", QueueSettings::default()).unwrap();
    let runner = broker.clone();
    let timers = tokio::spawn(async move { runner.run_timers().await });
    let wake = Arc::new(Notify::new());
    let mut receiver = broker.source("q").unwrap().receiver(ReceiveMode::PeekLock, None, wake.clone()).unwrap();
    assert!(receiver.try_receive(1).unwrap().is_empty());
    let now = broker.clock().now_ms();
    broker.target("q").unwrap().schedule(vec![(message("late"), now + 60_000), (message("soon"), now + 50)]).unwrap();
    wake.notified().await;
    assert_eq!(ids(&receiver.try_receive(2).unwrap()), ["soon"]);
    let passed = broker.clock().now_ms() - now;
    assert!((50..60).contains(&passed), "{passed}");
    timers.abort();
}

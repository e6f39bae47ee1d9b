use super::*;

#[test]
fn messages_come_in_the_order_they_were_sent() {
    let broker = with_queue(QueueSettings::default());
    send(&broker, "q", (0..5).map(|i| message(&i.to_string())));
    send(&broker, "Q", [message("5")]);
    assert_eq!(ids(&lock(&broker, "q", 2)), ["0", "1"]);
    assert_eq!(drain(&broker, "amqps://host/q"), ["2", "3", "4", "5"]);
    assert!(drain(&broker, "q").is_empty());
}

#[test]
fn what_is_handed_out_carries_what_a_client_expects() {
    let broker = with_queue(QueueSettings::default());
    let mut sent = message("a");
    sent.header.delivery_count = 9;
    sent.set_annotation("x-opt-sequence-number", Value::Long(99));
    sent.set_annotation("x-opt-deadletter-source", Value::string("elsewhere"));
    sent.set_annotation("x-opt-partition-key", Value::string("p"));
    sent.delivery_annotations.push((Value::symbol("x-opt-lock-token"), Value::Uuid([1; 16])));
    sent.delivery_annotations.push((Value::symbol("own"), Value::Int(7)));
    send(&broker, "q", [sent]);
    move_clock(&broker, 5);
    let got = &lock(&broker, "q", 1)[0];
    assert_eq!((got.sequence_number, got.delivery_count, got.state), (1, 0, MessageState::Active));
    let message = got.to_message();
    assert_eq!((message.header.delivery_count, message.header.first_acquirer), (0, false));
    assert_eq!(message.annotation("x-opt-sequence-number"), Some(&Value::Long(1)));
    assert_eq!(message.annotation("x-opt-enqueued-time"), Some(&Value::Timestamp(START_MS)));
    assert_eq!(message.annotation("x-opt-locked-until"), Some(&Value::Timestamp(START_MS + 5 + 60_000)));
    assert_eq!(message.annotations.len(), 4, "and nothing else: {message:?}");
    assert_eq!(message.annotation("x-opt-partition-key"), Some(&Value::string("p")));
    assert_eq!(message.annotation("x-opt-deadletter-source"), None);
    let token = got.lock_token.unwrap();
    let lock_token = (Value::symbol("x-opt-lock-token"), Value::Uuid(*token.as_bytes()));
    assert_eq!(message.delivery_annotations, [(Value::symbol("own"), Value::Int(7)), lock_token]);
    assert_eq!(token_of_tag(&got.delivery_tag()), Some(token));
    assert_eq!(token_of_tag(b"short"), None);
}

#[test]
fn state_and_first_number_are_told_where_they_say_something() {
    let broker = with_queue(QueueSettings::default());
    let told = |delivered: &DeliveredMessage| {
        let message = delivered.to_message();
        ["x-opt-message-state", "x-opt-enqueue-sequence-number"]
            .map(|name| message.annotation(name).and_then(Value::as_i64))
    };
    send(&broker, "q", [message("a")]);
    let source = broker.source("q").unwrap();
    assert_eq!(told(&source.peek(0, 1, None).unwrap()[0]), [Some(0), None]);
    let got = &lock(&broker, "q", 1)[0];
    settle(&broker, "q", got, defer()).unwrap();
    let deferred = &source.receive_deferred(&[1], ReceiveMode::PeekLock, None).unwrap()[0];
    assert_eq!(told(deferred), [Some(1), None]);
    let on = QueueSettings { forward_to: Some("q".into()), ..QueueSettings::default() };
    broker.create_queue("before", on).unwrap();
    send(&broker, "before", [message("b")]);
    assert_eq!(told(&lock(&broker, "q", 1)[0]), [None, Some(1)]);
}

#[test]
fn a_message_without_an_id_gets_one() {
    let broker = with_queue(QueueSettings::default());
    send(&broker, "q", [Message::default(), Message::default()]);
    let ids = drain(&broker, "q");
    assert!(ids.iter().all(|id| id.len() == 32) && ids[0] != ids[1], "{ids:?}");
}

#[test]
fn receive_and_delete_leaves_nothing() {
    let broker = with_queue(QueueSettings::default());
    send(&broker, "q", [message("a")]);
    let got = receive_as(&broker, "q", ReceiveMode::ReceiveAndDelete, 10);
    assert_eq!((got[0].lock_token, got[0].locked_until), (None, None));
    assert_eq!(broker.queue("q").unwrap().counts, MessageCounts::default());
}

#[test]
fn a_send_is_all_or_none() {
    let broker = with_queue(QueueSettings { max_message_size_in_kilobytes: Some(1), ..QueueSettings::default() });
    let target = broker.target("q").unwrap();
    assert_eq!(target.max_message_bytes(), 1024);
    let at_limit = Message { encoded_size: 1024, ..message("a") };
    let above = Message { encoded_size: 1025, ..message("b") };
    assert_eq!(condition(target.send(vec![at_limit.clone(), above])), Condition::MessageSizeExceeded);
    assert!(drain(&broker, "q").is_empty());
    target.send(vec![at_limit]).unwrap();
    assert_eq!(drain(&broker, "q"), ["a"]);
}

#[test]
fn a_full_queue_refuses_until_there_is_room() {
    let broker = with_queue(QueueSettings { max_size_in_megabytes: 1, ..QueueSettings::default() });
    let target = broker.target("q").unwrap();
    let big = |id: &str| Message { encoded_size: 256 * 1024, ..message(id) };
    target.send((0..4).map(|i| big(&i.to_string())).collect()).unwrap();
    let refusal = target.send(vec![Message { encoded_size: 1, ..message("x") }]).unwrap_err();
    assert_eq!(refusal.condition, Condition::QuotaExceeded);
    assert_eq!(broker.queue("q").unwrap().counts.size_bytes, 1024 * 1024);
    // Dead letters count too, so moving one there makes no room.
    let got = &lock(&broker, "q", 1)[0];
    settle(&broker, "q", got, dead_letter("x")).unwrap();
    assert_eq!(condition(target.send(vec![big("x")])), Condition::QuotaExceeded);
    assert_eq!(drain(&broker, "q/$DeadLetterQueue"), ["0"]);
    target.send(vec![big("4")]).unwrap();
}

#[test]
fn a_status_closes_one_direction() {
    let broker = with_queue(QueueSettings::default());
    send(&broker, "q", [message("a")]);
    let set =
        |status| broker.update_queue("q", QueueSettings { status, ..QueueSettings::default() }).map(drop).unwrap();
    let send = || broker.target("q").unwrap().send(vec![message("b")]);
    let mut receiver =
        broker.source("q").unwrap().receiver(ReceiveMode::PeekLock, None, Arc::new(Notify::new())).unwrap();
    set(EntityStatus::SendDisabled);
    assert_eq!(condition(send()), Condition::EntityDisabled);
    assert_eq!(receiver.try_receive(1).unwrap().len(), 1);
    set(EntityStatus::ReceiveDisabled);
    send().unwrap();
    assert_eq!(condition(receiver.try_receive(1)), Condition::EntityDisabled);
    set(EntityStatus::Disabled);
    assert_eq!(condition(send()), Condition::EntityDisabled);
    let source = broker.source("q").unwrap();
    assert_eq!(
        condition(source.receiver(ReceiveMode::PeekLock, None, Arc::new(Notify::new()))),
        Condition::EntityDisabled
    );
}

#[test]
fn peeking_changes_nothing() {
    let broker = with_queue(QueueSettings::default());
    let target = broker.target("q").unwrap();
    send(&broker, "q", [message("a"), message("b"), message("c")]);
    target.schedule(vec![(message("d"), START_MS + 1000)]).unwrap();
    let got = lock(&broker, "q", 2);
    settle(&broker, "q", &got[1], defer()).unwrap();
    let source = broker.source("q").unwrap();
    let seen = source.peek(0, 10, None).unwrap();
    assert_eq!(ids(&seen), ["a", "b", "c", "d"]);
    let states: Vec<MessageState> = seen.iter().map(|seen| seen.state).collect();
    assert_eq!(states, [MessageState::Active, MessageState::Deferred, MessageState::Active, MessageState::Scheduled]);
    assert!(seen.iter().all(|seen| seen.lock_token.is_none()));
    assert_eq!(ids(&source.peek(2, 2, None).unwrap()), ["b", "c"]);
    assert!(source.peek(5, 10, None).unwrap().is_empty());
    assert_eq!(drain(&broker, "q"), ["c"]);
}

#[test]
fn duplicates_within_the_window_are_taken_and_dropped() {
    let broker = with_queue(QueueSettings {
        requires_duplicate_detection: true,
        duplicate_detection_history_ms: 1000,
        ..QueueSettings::default()
    });
    send(&broker, "q", [message("a"), message("a"), message("b")]);
    move_clock(&broker, 999);
    send(&broker, "q", [message("a")]);
    assert_eq!(drain(&broker, "q"), ["a", "b"], "a completed message is a duplicate still");
    move_clock(&broker, 1);
    send(&broker, "q", [message("a")]);
    assert_eq!(drain(&broker, "q"), ["a"]);
}

#[test]
fn a_refused_batch_leaves_no_trace_in_duplicate_detection() {
    let broker = with_queue(QueueSettings { requires_duplicate_detection: true, ..QueueSettings::default() });
    let target = broker.target("q").unwrap();
    let above = Message { encoded_size: 300 * 1024, ..message("b") };
    assert_eq!(condition(target.send(vec![message("a"), above])), Condition::MessageSizeExceeded);
    send(&broker, "q", [message("a")]);
    assert_eq!(drain(&broker, "q"), ["a"]);
}

#[test]
fn purging_takes_what_is_old_and_not_locked() {
    let broker = with_queue(QueueSettings::default());
    send(&broker, "q", (0..4).map(|i| message(&i.to_string())));
    move_clock(&broker, 10);
    send(&broker, "q", [message("new")]);
    let got = lock(&broker, "q", 1);
    let source = broker.source("q").unwrap();
    assert_eq!(source.purge(2, START_MS + 1).unwrap(), 2);
    assert_eq!(source.purge(10, START_MS + 1).unwrap(), 1);
    assert_eq!(drain(&broker, "q"), ["new"]);
    settle(&broker, "q", &got[0], Outcome::Complete).unwrap();
}

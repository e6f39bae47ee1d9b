use super::*;

const LOCK_MS: u64 = 60_000;

#[test]
fn complete_is_final() {
    let broker = with_queue(QueueSettings::default());
    send(&broker, "q", [message("a")]);
    let got = &lock(&broker, "q", 1)[0];
    settle(&broker, "q", got, Outcome::Complete).unwrap();
    assert_eq!(condition(settle(&broker, "q", got, Outcome::Complete)), Condition::MessageLockLost);
    move_clock(&broker, LOCK_MS * 2);
    assert!(drain(&broker, "q").is_empty());
}

#[test]
fn abandon_brings_it_back_in_its_place_and_counts() {
    let broker = with_queue(QueueSettings::default());
    send(&broker, "q", [message("a"), message("b")]);
    let got = &lock(&broker, "q", 1)[0];
    let note = vec![(Value::symbol("note"), Value::string("again"))];
    settle(&broker, "q", got, Outcome::Abandon(note)).unwrap();
    let again = lock(&broker, "q", 2);
    assert_eq!(ids(&again), ["a", "b"]);
    assert_eq!((again[0].delivery_count, again[1].delivery_count), (1, 0));
    assert_eq!(property(&again[0], "note"), Some("again"));
    assert_ne!(again[0].lock_token, got.lock_token);
    assert_eq!(condition(settle(&broker, "q", got, Outcome::Complete)), Condition::MessageLockLost, "the old token");
}

#[test]
fn release_counts_nothing() {
    let broker = with_queue(QueueSettings { max_delivery_count: 1, ..QueueSettings::default() });
    send(&broker, "q", [message("a")]);
    for _ in 0..3 {
        let got = &lock(&broker, "q", 1)[0];
        assert_eq!(got.delivery_count, 0);
        settle(&broker, "q", got, Outcome::Release).unwrap();
    }
}

#[test]
fn a_lock_runs_out_to_the_millisecond() {
    let broker = with_queue(QueueSettings::default());
    send(&broker, "q", [message("a")]);
    let got = &lock(&broker, "q", 1)[0];
    assert_eq!(got.locked_until, Some(START_MS + LOCK_MS as i64));
    move_clock(&broker, LOCK_MS - 1);
    assert!(lock(&broker, "q", 1).is_empty());
    move_clock(&broker, 1);
    assert_eq!(condition(settle(&broker, "q", got, Outcome::Complete)), Condition::MessageLockLost);
    let again = &lock(&broker, "q", 1)[0];
    assert_eq!((id(again).as_str(), again.delivery_count), ("a", 1));
    settle(&broker, "q", again, Outcome::Complete).unwrap();
}

#[test]
fn renewing_moves_the_end() {
    let broker = with_queue(QueueSettings::default());
    send(&broker, "q", [message("a"), message("b")]);
    let got = lock(&broker, "q", 2);
    let source = broker.source("q").unwrap();
    move_clock(&broker, LOCK_MS - 1);
    let token = got[0].lock_token.unwrap();
    assert_eq!(source.renew_locks(&[token]).unwrap(), [START_MS + 2 * LOCK_MS as i64 - 1]);
    move_clock(&broker, 1);
    assert_eq!(drain(&broker, "q"), ["b"], "the other one was not renewed");
    let lost = source.renew_locks(&[token, got[1].lock_token.unwrap()]);
    assert_eq!(condition(lost), Condition::MessageLockLost);
    move_clock(&broker, LOCK_MS - 2);
    settle(&broker, "q", &got[0], Outcome::Complete).unwrap();
}

#[test]
fn settling_several_is_all_or_none() {
    let broker = with_queue(QueueSettings::default());
    send(&broker, "q", [message("a"), message("b")]);
    let tokens: Vec<uuid::Uuid> = lock(&broker, "q", 2).iter().map(|got| got.lock_token.unwrap()).collect();
    let source = broker.source("q").unwrap();
    let with_stranger = [tokens[0], uuid::Uuid::nil(), tokens[1]];
    assert_eq!(condition(source.settle_all(&with_stranger, Outcome::Complete)), Condition::MessageLockLost);
    assert_eq!(broker.queue("q").unwrap().counts.active, 2);
    source.settle_all(&[tokens[0], tokens[0], tokens[1]], abandon()).unwrap();
    let counts: Vec<u32> = lock(&broker, "q", 2).iter().map(|got| got.delivery_count).collect();
    assert_eq!(counts, [1, 1], "a token named twice counts once");
}

#[test]
fn a_dropped_receiver_keeps_its_locks() {
    let broker = with_queue(QueueSettings::default());
    send(&broker, "q", [message("a")]);
    let got = lock(&broker, "q", 1);
    assert!(drain(&broker, "q").is_empty());
    settle(&broker, "q", &got[0], Outcome::Complete).unwrap();
}

#[test]
fn a_deferred_message_is_fetched_by_its_number() {
    let broker = with_queue(QueueSettings::default());
    send(&broker, "q", [message("a"), message("b")]);
    let source = broker.source("q").unwrap();
    for got in lock(&broker, "q", 2) {
        settle(&broker, "q", &got, defer()).unwrap();
    }
    move_clock(&broker, LOCK_MS * 2);
    assert!(lock(&broker, "q", 2).is_empty());
    let fetch = |numbers: &[i64]| source.receive_deferred(numbers, ReceiveMode::PeekLock, None);
    assert_eq!(condition(fetch(&[1, 9])), Condition::MessageNotFound);
    let got = fetch(&[2, 1]).unwrap();
    assert_eq!(ids(&got), ["b", "a"]);
    assert_eq!(condition(fetch(&[1])), Condition::MessageNotFound, "it is locked");
    settle(&broker, "q", &got[0], Outcome::Complete).unwrap();
    settle(&broker, "q", &got[1], abandon()).unwrap();
    assert!(lock(&broker, "q", 1).is_empty(), "an abandoned one stays deferred");
    let again = fetch(&[1]).unwrap();
    assert_eq!((again[0].delivery_count, again[0].state), (1, MessageState::Deferred));
    move_clock(&broker, LOCK_MS);
    assert_eq!(condition(settle(&broker, "q", &again[0], Outcome::Complete)), Condition::MessageLockLost);
    let gone = source.receive_deferred(&[1], ReceiveMode::ReceiveAndDelete, None).unwrap();
    assert_eq!(gone[0].delivery_count, 2);
    assert_eq!(broker.queue("q").unwrap().counts.total(), 0);
}

#[test]
fn what_is_not_deferred_is_not_fetched() {
    let broker = with_queue(QueueSettings::default());
    send(&broker, "q", [message("a")]);
    let source = broker.source("q").unwrap();
    assert_eq!(condition(source.receive_deferred(&[1], ReceiveMode::PeekLock, None)), Condition::MessageNotFound);
}

#[test]
fn locks_and_timers_are_forgotten_with_their_messages() {
    let broker = with_queue(QueueSettings { default_time_to_live_ms: Some(1000), ..QueueSettings::default() });
    let source = broker.source("q").unwrap();
    for round in 0..50 {
        send(&broker, "q", [message("a"), message("b")]);
        let got = lock(&broker, "q", 2);
        source.renew_locks(&[got[0].lock_token.unwrap()]).unwrap();
        settle(&broker, "q", &got[0], Outcome::Complete).unwrap();
        settle(&broker, "q", &got[1], if round % 2 == 0 { dead_letter("x") } else { Outcome::Complete }).unwrap();
    }
    source.backing.main.with(|state, _, _| {
        assert_eq!((state.entries.len(), state.locks.len(), state.due.len(), state.ready.len()), (0, 0, 0, 0));
        assert_eq!(state.tally.bytes, 0);
        assert!(state.waiting.is_empty());
    });
}

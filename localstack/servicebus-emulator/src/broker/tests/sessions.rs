use super::*;

fn sessions() -> Broker {
    with_queue(QueueSettings { requires_session: true, ..QueueSettings::default() })
}

fn accept(broker: &Broker, id: Option<&str>) -> Result<Option<SessionLock>, Refusal> {
    broker.source("q").unwrap().backing.main.accept(id)
}

fn receiver(broker: &Broker, id: Option<&str>) -> Receiver {
    let session = accept(broker, id).unwrap().unwrap();
    broker.source("q").unwrap().receiver(ReceiveMode::PeekLock, Some(session), Arc::new(Notify::new())).unwrap()
}

fn session_of(receiver: &Receiver) -> &str {
    receiver.session().unwrap().id()
}

#[test]
fn each_session_goes_to_one_receiver() {
    let broker = sessions();
    send(&broker, "q", [in_session("a1", "a"), in_session("b1", "b"), in_session("a2", "a")]);
    let (mut first, mut second) = (receiver(&broker, None), receiver(&broker, None));
    assert_eq!((session_of(&first), session_of(&second)), ("a", "b"));
    assert!(accept(&broker, None).unwrap().is_none());
    assert_eq!(condition(accept(&broker, Some("a"))), Condition::SessionCannotBeLocked);
    assert_eq!(ids(&first.try_receive(10).unwrap()), ["a1", "a2"]);
    assert_eq!(ids(&second.try_receive(10).unwrap()), ["b1"]);
    send(&broker, "q", [in_session("a3", "a")]);
    assert!(second.try_receive(10).unwrap().is_empty());
    assert_eq!(ids(&first.try_receive(10).unwrap()), ["a3"]);
}

#[test]
fn a_session_given_back_comes_whole_and_uncounted() {
    let broker = sessions();
    send(&broker, "q", [in_session("1", "a"), in_session("2", "a")]);
    let mut first = receiver(&broker, Some("a"));
    let got = first.try_receive(10).unwrap();
    drop(first);
    assert_eq!(condition(settle(&broker, "q", &got[0], Outcome::Complete)), Condition::SessionLockLost);
    let mut second = receiver(&broker, None);
    let again = second.try_receive(10).unwrap();
    assert_eq!(ids(&again), ["1", "2"]);
    assert_eq!(again[0].delivery_count, 0);
}

#[test]
fn a_session_lock_that_runs_out_counts() {
    let broker = sessions();
    send(&broker, "q", [in_session("1", "a"), in_session("2", "a")]);
    let mut first = receiver(&broker, Some("a"));
    let got = first.try_receive(1).unwrap();
    assert_eq!(got[0].locked_until, Some(START_MS + 60_000));
    assert_eq!(first.session().unwrap().locked_until(), Ok(START_MS + 60_000));
    move_clock(&broker, 60_000);
    assert_eq!(condition(first.try_receive(1)), Condition::SessionLockLost);
    assert_eq!(condition(first.session().unwrap().locked_until()), Condition::SessionLockLost);
    assert_eq!(condition(settle(&broker, "q", &got[0], Outcome::Complete)), Condition::SessionLockLost);
    let mut second = receiver(&broker, None);
    drop(first);
    let again = second.try_receive(10).unwrap();
    assert_eq!(ids(&again), ["1", "2"], "the loser's going takes nothing from the new holder");
    assert_eq!((again[0].delivery_count, again[1].delivery_count), (1, 0));
    settle(&broker, "q", &again[0], Outcome::Complete).unwrap();
}

#[test]
fn renewing_holds_the_session_and_its_messages() {
    let broker = sessions();
    send(&broker, "q", [in_session("1", "a")]);
    let source = broker.source("q").unwrap();
    assert_eq!(condition(source.renew_session("a", None)), Condition::SessionLockLost);
    let mut first = receiver(&broker, None);
    let got = first.try_receive(1).unwrap();
    assert_eq!(condition(source.renew_locks(&[got[0].lock_token.unwrap()])), Condition::NotAllowed);
    move_clock(&broker, 59_999);
    assert_eq!(source.renew_session("a", None), Ok(START_MS + 59_999 + 60_000));
    move_clock(&broker, 59_999);
    settle(&broker, "q", &got[0], Outcome::Complete).unwrap();
    move_clock(&broker, 1);
    assert_eq!(condition(source.renew_session("a", None)), Condition::SessionLockLost);
}

#[test]
fn the_empty_id_is_a_session() {
    let broker = sessions();
    send(&broker, "q", [in_session("1", "")]);
    let held = accept(&broker, None).unwrap().unwrap();
    assert_eq!(held.id(), "");
    drop(held);
    assert_eq!(receiver(&broker, Some("")).try_receive(1).unwrap().len(), 1);
}

#[test]
fn an_empty_state_is_none() {
    let broker = sessions();
    let source = broker.source("q").unwrap();
    let held = accept(&broker, Some("a")).unwrap().unwrap();
    source.set_session_state("a", None, Some(Bytes::from_static(b"state"))).unwrap();
    source.set_session_state("a", None, Some(Bytes::new())).unwrap();
    assert_eq!(source.session_state("a", None), Ok(None));
    drop(held);
    assert!(source.sessions(None).unwrap().is_empty());
}

#[test]
fn sessions_are_listed_by_when_their_state_was_set() {
    let broker = sessions();
    let source = broker.source("q").unwrap();
    send(&broker, "q", [in_session("1", "messages")]);
    for id in ["a", "b"] {
        let _held = accept(&broker, Some(id)).unwrap().unwrap();
        source.set_session_state(id, None, Some(Bytes::from_static(b"state"))).unwrap();
        move_clock(&broker, 1000);
    }
    assert_eq!(source.sessions(None).unwrap(), ["a", "b", "messages"]);
    assert_eq!(source.sessions(Some(START_MS - 1)).unwrap(), ["a", "b"]);
    assert_eq!(source.sessions(Some(START_MS)).unwrap(), ["b"]);
}

#[test]
fn state_outlives_messages_and_holders() {
    let broker = sessions();
    let source = broker.source("q").unwrap();
    assert_eq!(condition(source.set_session_state("a", None, None)), Condition::SessionLockLost);
    let held = accept(&broker, Some("a")).unwrap().unwrap();
    assert_eq!(source.session_state("a", None), Ok(None));
    source.set_session_state("a", None, Some(Bytes::from_static(b"state"))).unwrap();
    drop(held);
    assert_eq!(condition(source.session_state("a", None)), Condition::SessionLockLost);
    assert_eq!(source.sessions(None).unwrap(), ["a"]);
    assert!(accept(&broker, None).unwrap().is_none(), "a state alone makes no session available");
    let held = accept(&broker, Some("a")).unwrap().unwrap();
    assert_eq!(source.session_state("a", None), Ok(Some(Bytes::from_static(b"state"))));
    source.set_session_state("a", None, None).unwrap();
    drop(held);
    source.backing.main.with(|state, _, _| {
        assert!(state.sessions.is_empty() && state.free_sessions.is_empty() && state.due.is_empty());
    });
}

#[test]
fn sessions_and_entities_must_fit() {
    let broker = sessions();
    broker.create_queue("plain", QueueSettings::default()).unwrap();
    let refused = |messages: Vec<Message>| condition(broker.target("q").unwrap().send(messages));
    assert_eq!(refused(vec![message("a")]), Condition::NotAllowed);
    assert_eq!(refused(vec![in_session("a", "s"), message("b")]), Condition::NotAllowed);
    let wake = || Arc::new(Notify::new());
    let source = broker.source("q").unwrap();
    assert_eq!(condition(source.receiver(ReceiveMode::PeekLock, None, wake())), Condition::NotAllowed);
    let session = accept(&broker, Some("s")).unwrap();
    let plain = broker.source("plain").unwrap();
    assert_eq!(condition(plain.receiver(ReceiveMode::PeekLock, session, wake())), Condition::NotAllowed);
    send(&broker, "plain", [in_session("a", "s"), in_session("b", "t")]);
    assert_eq!(drain(&broker, "plain"), ["a", "b"], "elsewhere a session id is a property like any other");
}

#[test]
fn deferred_messages_belong_to_the_session() {
    let broker = sessions();
    send(&broker, "q", [in_session("1", "a"), in_session("2", "b")]);
    let source = broker.source("q").unwrap();
    let mut first = receiver(&broker, Some("a"));
    let got = first.try_receive(1).unwrap();
    settle(&broker, "q", &got[0], defer()).unwrap();
    let fetch = |session| source.receive_deferred(&[1], ReceiveMode::PeekLock, session);
    assert_eq!(condition(fetch(None)), Condition::NotAllowed);
    assert_eq!(condition(fetch(Some("b"))), Condition::SessionLockLost);
    let held = accept(&broker, Some("b")).unwrap();
    assert_eq!(condition(fetch(Some("b"))), Condition::MessageNotFound);
    drop(held);
    assert_eq!(ids(&fetch(Some("a")).unwrap()), ["1"]);
    drop(first);
    let _first = receiver(&broker, Some("a"));
    assert_eq!(ids(&fetch(Some("a")).unwrap()), ["1"], "given back with the session, deferred still");
}

#[test]
fn peeking_at_one_session() {
    let broker = sessions();
    send(&broker, "q", [in_session("1", "a"), in_session("2", "b"), in_session("3", "a")]);
    let source = broker.source("q").unwrap();
    assert_eq!(ids(&source.peek(0, 10, Some("a")).unwrap()), ["1", "3"]);
    assert_eq!(ids(&source.peek(2, 10, Some("a")).unwrap()), ["3"]);
    assert_eq!(ids(&source.peek(0, 10, None).unwrap()), ["1", "2", "3"]);
    assert!(source.peek(0, 10, Some("c")).unwrap().is_empty());
}

#[test]
fn released_sessions_wait_behind_the_others() {
    let broker = sessions();
    send(&broker, "q", [in_session("1", "a"), in_session("2", "b")]);
    drop(receiver(&broker, None));
    assert_eq!(session_of(&receiver(&broker, None)), "b");
}

#[test]
fn expired_messages_leave_no_session_behind() {
    let broker = sessions();
    let mut short = in_session("1", "a");
    short.header.ttl_ms = Some(10);
    send(&broker, "q", [short]);
    move_clock(&broker, 10);
    assert!(accept(&broker, None).unwrap().is_none());
    assert!(broker.source("q").unwrap().sessions(None).unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn accepting_waits_for_a_session_and_no_longer_than_told() {
    let broker = sessions();
    let source = broker.source("q").unwrap();
    let nothing = source.accept_session(None, Duration::from_secs(1)).await;
    assert_eq!(condition(nothing), Condition::Timeout);
    let waiting = tokio::spawn(async move { source.accept_session(None, Duration::from_secs(60)).await });
    tokio::task::yield_now().await;
    send(&broker, "q", [in_session("1", "a")]);
    let held = waiting.await.unwrap().unwrap();
    assert_eq!(held.id(), "a");
    let source = broker.source("q").unwrap();
    let waiting = tokio::spawn(async move { source.accept_session(None, Duration::from_secs(60)).await });
    tokio::task::yield_now().await;
    drop(held);
    let held = waiting.await.unwrap().unwrap();
    assert_eq!(held.id(), "a", "one that is given back is accepted too");
    let source = broker.source("q").unwrap();
    let waiting = tokio::spawn(async move { source.accept_session(None, Duration::from_secs(60)).await });
    tokio::task::yield_now().await;
    broker.delete("q").unwrap();
    assert_eq!(condition(waiting.await.unwrap()), Condition::NotFound);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_named_session_need_not_exist() {
    let broker = sessions();
    let source = broker.source("q").unwrap();
    let held = source.accept_session(Some("new"), Duration::ZERO).await.unwrap();
    assert_eq!(held.id(), "new");
    let plain = with_queue(QueueSettings::default());
    let refused = plain.source("q").unwrap().accept_session(Some("x"), Duration::ZERO).await;
    assert_eq!(condition(refused), Condition::NotAllowed);
}

#[test]
fn only_the_holder_of_that_name_has_its_way() {
    let broker = sessions();
    let source = broker.source("q").unwrap();
    let first = accept(&broker, Some("a")).unwrap().unwrap();
    first.name_holder("one");
    assert_eq!(source.renew_session("a", Some("one")), Ok(START_MS + 60_000));
    move_clock(&broker, 60_000);
    let second = accept(&broker, Some("a")).unwrap().unwrap();
    second.name_holder("two");
    first.name_holder("one");
    for name in ["one", "three"] {
        assert_eq!(condition(source.renew_session("a", Some(name))), Condition::SessionLockLost);
        assert_eq!(condition(source.session_state("a", Some(name))), Condition::SessionLockLost);
        assert_eq!(condition(source.set_session_state("a", Some(name), None)), Condition::SessionLockLost);
    }
    for name in [Some("two"), None] {
        assert_eq!(source.renew_session("a", name), Ok(START_MS + 120_000));
    }
}

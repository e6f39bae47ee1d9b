//! Appending: what is expected, what is repeated, what is refused.

use polybus_core::{Address, Envelope, ErrorKind, HandlerError};
use polybus_patterns::{
    Outbox,
    log::{Aggregate, Append, EventLog, Expect, LoggedEvent, MAX_APPEND_EVENTS, MAX_APPEND_SIZE, STREAM_DELETED},
    store::StreamState,
};

use crate::support::*;

on_both![
    only_what_is_expected_is_appended_to,
    the_same_events_again_are_ok_with_their_old_places,
    ids_that_are_there_otherwise_are_a_conflict,
    what_is_rolled_back_leaves_no_gap_in_the_stream,
    several_streams_are_appended_to_all_or_none,
    a_conflict_leaves_the_transaction_as_it_was,
    what_no_append_can_be_is_refused,
    an_archived_stream_is_read_and_takes_nothing,
    a_deleted_stream_leaves_a_tombstone,
    what_is_published_is_in_the_outbox_of_the_same_transaction,
];

async fn only_what_is_expected_is_appended_to<S: LogDatabase>(store: S) {
    let to = |expect| append(&store, counted("s", [1]).expect(expect));
    assert!(is_conflict(to(Expect::Exists).await), "a stream that is not there");
    assert!(is_conflict(to(Expect::Version(3)).await), "a version of a stream that is not there");
    assert_eq!(to(Expect::NoStream).await.unwrap().version, 1);
    assert!(is_conflict(to(Expect::NoStream).await), "a stream that is there");
    assert!(is_conflict(to(Expect::Version(0)).await), "a stream that is there");
    assert_eq!(to(Expect::Exists).await.unwrap().version, 2);
    assert_eq!(to(Expect::Version(2)).await.unwrap().version, 3);
    assert!(is_conflict(to(Expect::Version(2)).await), "an old version");
    let refused = to(Expect::Version(4)).await.unwrap_err();
    assert_eq!((refused.context("version"), refused.context("stream")), (Some("3"), Some("s")), "{refused}");
    assert_eq!(to(Expect::Any).await.unwrap().version, 4);
    let fresh = append(&store, counted("t", [1, 2, 3])).await.unwrap();
    assert_eq!((fresh.version, fresh.positions.len(), fresh.is_new), (3, 3, true));
    assert!(fresh.positions.windows(2).all(|two| two[0] < two[1]));
    assert_eq!(EventLog::new(&store).stream("s").await.unwrap().unwrap().version, 4);
}

async fn the_same_events_again_are_ok_with_their_old_places<S: LogDatabase>(store: S) {
    let two = |expect| Append::to("s").expect(expect).message(with_id(1, "a")).message(with_id(2, "b"));
    let first = append(&store, two(Expect::NoStream)).await.unwrap();
    for expect in [Expect::NoStream, Expect::Any, Expect::Exists] {
        let again = append(&store, two(expect)).await.unwrap();
        assert_eq!((again.version, again.is_new, &again.positions), (2, false, &first.positions), "{expect:?}");
    }
    append(&store, counted("s", [3])).await.unwrap();
    let again = append(&store, two(Expect::NoStream)).await.unwrap();
    assert_eq!((again.version, again.is_new), (2, false), "behind it more was appended");
    assert!(is_conflict(append(&store, two(Expect::Version(1))).await), "at another place");
    assert_eq!(numbers(&store, "s").await, [1, 2, 3]);
    // The same ids in another stream are other events.
    assert!(append(&store, Append::to("t").message(with_id(9, "a"))).await.unwrap().is_new);
}

async fn ids_that_are_there_otherwise_are_a_conflict<S: LogDatabase>(store: S) {
    append(&store, Append::to("s").message(with_id(1, "a")).message(with_id(2, "b"))).await.unwrap();
    let mixed = Append::to("s").message(with_id(2, "b")).message(with_id(3, "c"));
    assert!(is_conflict(append(&store, mixed).await), "one of them is there");
    let turned = Append::to("s").message(with_id(2, "b")).message(with_id(1, "a"));
    assert!(is_conflict(append(&store, turned).await), "in another order");
    assert!(is_conflict(append(&store, Append::to("s").expect(Expect::Version(2)).message(with_id(1, "a"))).await));
    assert_eq!(numbers(&store, "s").await, [1, 2]);
    assert_eq!(append(&store, counted("s", [3])).await.unwrap().version, 3, "versions have no gap");
}

async fn what_is_rolled_back_leaves_no_gap_in_the_stream<S: LogDatabase>(store: S) {
    let log = EventLog::new(&store);
    for n in 0..6 {
        let mut tx = store.begin().await.unwrap();
        log.append(&mut tx, counted("s", [n]).expect(ANY)).await.unwrap();
        match n % 2 {
            0 => S::commit(tx).await.unwrap(),
            _ => S::rolled_back(tx).await.unwrap(),
        }
    }
    assert_eq!(numbers(&store, "s").await, [0, 2, 4]);
    let versions: Vec<u64> = log.read("s", 0, 10).await.unwrap().iter().map(|event| event.version).collect();
    assert_eq!(versions, [1, 2, 3]);
    // Both of a transaction that appends twice.
    let mut tx = store.begin().await.unwrap();
    log.append(&mut tx, counted("s", [5]).expect(Expect::Version(3))).await.unwrap();
    log.append(&mut tx, counted("s", [6]).expect(Expect::Version(4))).await.unwrap();
    S::commit(tx).await.unwrap();
    assert_eq!(numbers(&store, "s").await, [0, 2, 4, 5, 6]);
}

async fn several_streams_are_appended_to_all_or_none<S: LogDatabase>(store: S) {
    let log = EventLog::new(&store);
    let mut tx = store.begin().await.unwrap();
    let appended = log.append_all(&mut tx, [counted("b", [1, 2]), counted("a", [3])]).await.unwrap();
    S::commit(tx).await.unwrap();
    assert_eq!(appended.iter().map(|a| a.version).collect::<Vec<_>>(), [2, 1]);
    let mut tx = store.begin().await.unwrap();
    let refused = log.append_all(&mut tx, [counted("a", [4]), counted("b", [5]).expect(Expect::Version(1))]).await;
    assert!(is_conflict(refused));
    S::commit(tx).await.unwrap();
    assert_eq!((numbers(&store, "a").await, numbers(&store, "b").await), (vec![3], vec![1, 2]), "nothing is written");
    let mut tx = store.begin().await.unwrap();
    let twice = log.append_all(&mut tx, [counted("a", [4]), counted("a", [5])]).await.unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::InvalidArgument, "{twice}");
}

async fn a_conflict_leaves_the_transaction_as_it_was<S: LogDatabase>(store: S) {
    store.run("CREATE TABLE {effects} (n INT PRIMARY KEY)").await;
    let log = EventLog::new(&store);
    append(&store, counted("s", [1])).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    store.run_on(&mut tx, "INSERT INTO {effects} VALUES (1)").await.unwrap();
    assert!(is_conflict(log.append(&mut tx, counted("s", [2]).expect(Expect::NoStream)).await));
    log.append(&mut tx, counted("s", [3]).expect(Expect::Version(1))).await.unwrap();
    S::commit(tx).await.unwrap();
    assert_eq!((numbers(&store, "s").await, store.number("SELECT count(*) FROM {effects}").await), (vec![1, 3], 1));
}

async fn an_archived_stream_is_read_and_takes_nothing<S: LogDatabase>(store: S) {
    let log = EventLog::new(&store);
    append(&store, counted("s", [1, 2])).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    assert!(log.archive(&mut tx, "s").await.unwrap() && !log.archive(&mut tx, "s").await.unwrap());
    assert!(!log.archive(&mut tx, "nothing").await.unwrap());
    S::commit(tx).await.unwrap();
    let refused = append(&store, counted("s", [3]).expect(Expect::Version(2))).await.unwrap_err();
    assert_eq!((refused.kind(), refused.context("state")), (ErrorKind::Conflict, Some("Archived")), "{refused}");
    assert_eq!(numbers(&store, "s").await, [1, 2]);
    assert_eq!(log.stream("s").await.unwrap().unwrap().state, StreamState::Archived);
    let mut tx = store.begin().await.unwrap();
    assert!(log.reopen(&mut tx, "s").await.unwrap() && !log.reopen(&mut tx, "s").await.unwrap());
    log.append(&mut tx, counted("s", [3])).await.unwrap();
    S::commit(tx).await.unwrap();
    assert_eq!(numbers(&store, "s").await, [1, 2, 3]);
}

#[derive(Default)]
struct Touched(u32);

impl Aggregate for Touched {
    fn apply(&mut self, _: &LoggedEvent) -> Result<(), HandlerError> {
        self.0 += 1;
        Ok(())
    }
}

async fn a_deleted_stream_leaves_a_tombstone<S: LogDatabase>(store: S) {
    let log = EventLog::new(&store);
    append(&store, counted("s", [1, 2])).await.unwrap();
    append(&store, counted("t", [9])).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    assert!(is_conflict(log.delete(&mut tx, "nothing", Expect::Any).await), "it is not there");
    assert!(is_conflict(log.delete(&mut tx, "s", Expect::Version(1)).await), "another version");
    log.delete(&mut tx, "s", Expect::Version(2)).await.unwrap();
    S::rolled_back(tx).await.unwrap();
    assert_eq!(numbers(&store, "s").await, [1, 2], "rolled back");
    let mut tx = store.begin().await.unwrap();
    log.archive(&mut tx, "s").await.unwrap();
    assert!(is_conflict(log.delete(&mut tx, "s", Expect::Version(1)).await), "another version");
    assert!(!log.archive(&mut tx, "s").await.unwrap(), "what is refused leaves it archived");
    assert_eq!(log.delete(&mut tx, "s", Expect::Any).await.unwrap().version, 3, "an archived one as well");
    S::commit(tx).await.unwrap();
    let left = log.read("s", 0, 10).await.unwrap();
    assert_eq!((left.len(), left[0].version, &*left[0].message.event_type), (1, 3, STREAM_DELETED));
    let nothing = log.load::<Touched>("s").await.unwrap();
    assert_eq!((nothing.state.0, nothing.version), (0, 3), "a deleted stream has no state");
    let all = log.read_all(0, 10).await.unwrap().events;
    let all: Vec<(&str, u64)> = all.iter().map(|event| (&*event.stream, event.version)).collect();
    assert_eq!(all, [("t", 1), ("s", 3)]);
    for expect in [Expect::Any, Expect::NoStream, Expect::Exists, Expect::Version(3)] {
        let refused = append(&store, counted("s", [4]).expect(expect)).await.unwrap_err();
        assert_eq!((refused.kind(), refused.context("state")), (ErrorKind::Conflict, Some("Deleted")), "{refused}");
    }
    let mut tx = store.begin().await.unwrap();
    assert!(is_conflict(log.delete(&mut tx, "s", Expect::Any).await) && !log.reopen(&mut tx, "s").await.unwrap());
}

async fn what_is_published_is_in_the_outbox_of_the_same_transaction<S: LogDatabase>(store: S) {
    let plain = EventLog::new(&store);
    let log = plain.clone().outbox(&Outbox::new(&store, "/shop"));
    let publish = || Append::to("s").message(with_id(1, "a")).publish_to(Address::topic("events"));
    let mut tx = store.begin().await.unwrap();
    let refused = plain.append(&mut tx, publish()).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::InvalidArgument && refused.to_string().contains("outbox"), "{refused}");
    log.append(&mut tx, publish()).await.unwrap();
    S::rolled_back(tx).await.unwrap();
    let rows = async || store.number("SELECT count(*) FROM {outbox}").await;
    assert_eq!((numbers(&store, "s").await, rows().await), (vec![], 0), "rolled back");
    for _ in 0..2 {
        let mut tx = store.begin().await.unwrap();
        log.append(&mut tx, publish()).await.unwrap();
        S::commit(tx).await.unwrap();
        assert_eq!((numbers(&store, "s").await, rows().await), (vec![1], 1), "once, also where it is repeated");
    }
    let row = &crate::database::read(&store, "topic:events").await[0];
    let message = &log.read("s", 0, 1).await.unwrap()[0].message;
    assert_eq!(row.key.as_deref(), Some(&b"s"[..]));
    assert!(row.head.contains(&*message.id), "the same id");
}

async fn what_no_append_can_be_is_refused<S: LogDatabase>(store: S) {
    let invalid = async |append: Append, words: &str| {
        let refused = crate::support::append(&store, append).await.unwrap_err();
        assert!(refused.kind() == ErrorKind::InvalidArgument && refused.to_string().contains(words), "{refused}");
    };
    invalid(Append::to("s"), "without an event").await;
    invalid(counted("", [1]), "1 to 256 bytes").await;
    invalid(counted(&"x".repeat(257), [1]), "1 to 256 bytes").await;
    invalid(counted("a\0b", [1]), "U+0000").await;
    invalid(Append::to("s").message(with_id(1, "a")).message(with_id(2, "a")), "two events of one id").await;
    invalid(counted("s", 0..=MAX_APPEND_EVENTS as i64), "1001 events").await;
    invalid(Append::to("s").message(Envelope::new("not a type", "{}")), "event type").await;
    let large = Append::to("s").message(Envelope::new("test.large", vec![b'x'; MAX_APPEND_SIZE]));
    let refused = append(&store, large).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PayloadTooLarge, "{refused}");
    // At the limits it is taken.
    append(&store, counted(&"x".repeat(256), 0..MAX_APPEND_EVENTS as i64)).await.unwrap();
    let large = Append::to("s").message(Envelope::new("test.large", vec![b'x'; MAX_APPEND_SIZE - 2_000]));
    append(&store, large).await.unwrap();
    // Names are bytes.
    for (n, name) in ["A", "a", "a ", "ä"].into_iter().enumerate() {
        append(&store, counted(name, [n as i64]).expect(Expect::NoStream)).await.unwrap();
        assert_eq!(numbers(&store, name).await, [n as i64]);
    }
}

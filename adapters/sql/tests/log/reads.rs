//! Reading streams and the log, and states that are made of them.

use polybus_core::{HandlerError, time::OffsetDateTime};
use polybus_patterns::{
    log::{Aggregate, EventLog, Expect, LoggedEvent, Snapshot},
    store::StoredSnapshot,
};
use serde::{Deserialize, Serialize};

use crate::support::*;

on_both![
    a_stream_is_read_forwards_and_backwards,
    the_log_is_read_in_pages_without_what_was_rolled_back,
    a_state_is_made_of_events_as_of_a_version_or_a_time,
    a_snapshot_is_a_cache,
];

async fn a_stream_is_read_forwards_and_backwards<S: LogDatabase>(store: S) {
    let log = EventLog::new(&store).event_source("/test");
    append(&store, counted("other", [99])).await.unwrap();
    append(&store, counted("s", 1..=5)).await.unwrap();
    let versions = |events: Vec<LoggedEvent>| events.iter().map(|event| event.version).collect::<Vec<_>>();
    assert_eq!(versions(log.read("s", 0, 10).await.unwrap()), [1, 2, 3, 4, 5]);
    assert_eq!(versions(log.read("s", 3, 1).await.unwrap()), [4]);
    assert_eq!(versions(log.read("s", 5, 10).await.unwrap()), [0; 0]);
    assert_eq!(versions(log.read_backwards("s", None, 2).await.unwrap()), [5, 4]);
    assert_eq!(versions(log.read_backwards("s", 4, 10).await.unwrap()), [3, 2, 1]);
    assert_eq!(versions(log.read("nothing", 0, 10).await.unwrap()), [0; 0]);
    assert!(log.stream("nothing").await.unwrap().is_none());
    let first = &log.read("s", 0, 1).await.unwrap()[0];
    assert_eq!((&*first.stream, first.message.key.as_deref()), ("s", Some("s")));
    assert_eq!(first.decode::<Counted>().unwrap(), Counted { n: 1 });
}

async fn the_log_is_read_in_pages_without_what_was_rolled_back<S: LogDatabase>(store: S) {
    let log = EventLog::new(&store);
    assert!(log.read_all(0, 10).await.unwrap().events.is_empty());
    for n in 0..10 {
        let mut tx = store.begin().await.unwrap();
        log.append(&mut tx, counted(&format!("s{}", n % 3), [n])).await.unwrap();
        match n % 5 {
            4 => S::rolled_back(tx).await.unwrap(),
            _ => S::commit(tx).await.unwrap(),
        }
    }
    let (mut behind, mut read, mut pages) = (0, Vec::new(), 0);
    loop {
        let page = log.read_all(behind, 3).await.unwrap();
        let Some(last) = page.events.last() else { break };
        behind = last.position;
        assert_eq!(page.has_more, pages < 2, "after {pages} pages");
        read.extend(page.events.iter().map(|event| event.decode::<Counted>().unwrap().n));
        pages += 1;
    }
    assert_eq!((read, pages), (vec![0, 1, 2, 3, 5, 6, 7, 8], 3));
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Sum(i64);

impl Snapshot for Sum {
    const KIND: &'static str = "sum";
    const SCHEMA: u32 = 3;
    const EVERY: u64 = 10;
}

impl Aggregate for Sum {
    fn apply(&mut self, event: &LoggedEvent) -> Result<(), HandlerError> {
        self.0 += event.decode::<Counted>()?.n;
        Ok(())
    }
}

async fn a_state_is_made_of_events_as_of_a_version_or_a_time<S: LogDatabase>(store: S) {
    let log = EventLog::new(&store);
    let empty = log.load::<Sum>("s").await.unwrap();
    assert_eq!((empty.state, empty.version), (Sum(0), 0));
    append(&store, counted("s", 1..=3).expect(log.load::<Sum>("s").await.unwrap().expect())).await.unwrap();
    store.move_clock(3_600_000_000);
    append(&store, counted("s", [10]).expect(log.load::<Sum>("s").await.unwrap().expect())).await.unwrap();
    let now = log.load::<Sum>("s").await.unwrap();
    assert_eq!((now.state, now.version), (Sum(16), 4));
    let at_two = log.load_at_version::<Sum>("s", 2).await.unwrap();
    assert_eq!((at_two.state, at_two.version), (Sum(3), 2));
    let between = OffsetDateTime::now_utc() + std::time::Duration::from_secs(600);
    assert_eq!(log.load_at_time::<Sum>("s", between).await.unwrap().version, 3);
    // More than a page.
    for chunk in 0..3 {
        append(&store, counted("long", (0..900).map(|n| n + chunk * 900))).await.unwrap();
    }
    let long = log.load::<Sum>("long").await.unwrap();
    assert_eq!((long.state, long.version), (Sum((0..2_700).sum()), 2_700));
    // What cannot be applied ends the load, and says where.
    append(&store, polybus_patterns::log::Append::to("s").message(polybus_core::Envelope::new("other.type", "{}")))
        .await
        .unwrap();
    let refused = log.load::<Sum>("s").await.unwrap_err();
    assert_eq!(refused.context("type"), Some("other.type"), "{refused}");
    assert_eq!(log.load_at_version::<Sum>("s", 4).await.unwrap().state, Sum(16));
}

async fn a_snapshot_is_a_cache<S: LogDatabase>(store: S) {
    let log = EventLog::new(&store);
    let kept = async || store.log().snapshot("s", "sum").await.unwrap();
    let load = async || {
        let loaded = log.load_snapshot::<Sum>("s").await.unwrap();
        (loaded.state.0, loaded.version)
    };
    let put = async |schema, version, data: &'static str| {
        let snapshot = StoredSnapshot { schema, version, data: data.into() };
        store.log().put_snapshot("s", "sum", &snapshot).await.unwrap();
    };
    assert_eq!(load().await, (0, 0));
    put(3, 1, "7").await;
    assert_eq!(kept().await, None, "nothing is kept of a stream that is not there");
    append(&store, counted("s", [1; 9])).await.unwrap();
    assert_eq!((load().await, kept().await), ((9, 9), None), "too few events");
    append(&store, counted("s", [1; 3])).await.unwrap();
    assert_eq!(load().await, (12, 12));
    let twelve = kept().await.unwrap();
    assert_eq!((twelve.schema, twelve.version, &*twelve.data), (3, 12, &b"12"[..]));
    // It is read: this one is wrong.
    append(&store, counted("s", [1])).await.unwrap();
    put(3, 13, "100").await;
    append(&store, counted("s", [1])).await.unwrap();
    assert_eq!(load().await, (101, 14));
    // Of another schema, not to be read, or of events that are not there: passed over, and replaced.
    for (schema, version, data) in [(2, 14, "100"), (3, 14, "null"), (3, 99, "100"), (3, 0, "100"), (3, -5, "100")] {
        put(schema, version, data).await;
        assert_eq!(load().await, (14, 14), "{schema} {version} {data}");
        assert_eq!(kept().await.unwrap().version, 14, "{schema} {version} {data}");
    }
    // Gone with its stream.
    let mut tx = store.begin().await.unwrap();
    log.delete(&mut tx, "s", Expect::Any).await.unwrap();
    S::commit(tx).await.unwrap();
    assert_eq!(kept().await, None);
    put(3, 15, "5").await;
    assert_eq!(kept().await, None, "nothing is kept of a deleted stream");
}

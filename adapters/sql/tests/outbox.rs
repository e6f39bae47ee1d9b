//! The outbox' tables.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod database;

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use database::{ALL, TestDatabase, data, everything, insert, keyed, read, row};
use polybus_patterns::store::{NewRow, ParkedFilter, ReadRows, RowId, SqlValue};

const SECOND: i64 = 1_000_000;

on_both![
    a_paused_address_has_no_rows_to_read,
    ids_rise_in_the_order_of_the_rows,
    keys_and_payloads_are_any_bytes,
    keys_and_addresses_that_look_alike_are_different,
    a_read_is_bounded_by_rows_and_bytes,
    held_keys_and_rows_are_left_out,
    no_slot_is_starved_by_another,
    addresses_are_those_with_rows_that_are_not_paused,
    a_row_with_the_same_id_and_another_time_stays,
    a_parked_row_holds_its_key_until_the_last_one_leaves,
    parked_rows_are_listed_by_pages_and_filters,
    parking_what_is_gone_does_nothing,
    due_rows_come_when_the_clock_says_so,
    failures_are_counted,
    stats_are_capped_and_ages_count_from_when_a_row_was_due,
    a_rolled_back_row_is_not_there,
    an_emptied_table_gives_new_ids,
    the_statement_for_other_clients_writes_the_same_row,
    views_show_times,
];

async fn ids_rise_in_the_order_of_the_rows<S: TestDatabase>(store: S) {
    let rows: Vec<NewRow> = (0..1000).map(|n| row(n % 16, "queue:a", &n.to_string())).collect();
    insert(&store, &rows).await;
    let expected: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
    assert_eq!(data(&read(&store, "queue:a").await), expected);
    insert(&store, &[]).await;
    assert_eq!(store.number("SELECT count(*) FROM {outbox}").await, 1000);
}

async fn keys_and_payloads_are_any_bytes<S: TestDatabase>(store: S) {
    let new = NewRow {
        slot: 15,
        address: "topic:Ärger'\"".to_owned(),
        key: Some(Bytes::from_static(b"\0\xff'")),
        head: r#"{"subject":"\u0000 ü"}"#.to_owned(),
        data: Bytes::from_static(b"\0\x01\xfe"),
        delay: Duration::ZERO,
    };
    insert(&store, &[new.clone(), NewRow { key: None, data: Bytes::new(), ..new.clone() }]).await;
    let rows = read(&store, &new.address).await;
    assert_eq!((rows[0].slot, &rows[0].key, &rows[0].head, &rows[0].data), (15, &new.key, &new.head, &new.data));
    assert_eq!((rows[1].key.clone(), rows[1].data.len(), rows[1].attempts), (None, 0, 0));
    // The key differs in its last byte only.
    let held = [Bytes::from_static(b"\0\xff\"")];
    let request = ReadRows { held_keys: &held, ..everything(&new.address) };
    assert_eq!(store.outbox().read(&request).await.unwrap().len(), 2);
}

async fn keys_and_addresses_that_look_alike_are_different<S: TestDatabase>(store: S) {
    let long = "ä".repeat(128);
    let alike: [&[u8]; 9] = [
        b"a",
        b"A",
        b"a ",
        b"a\0",
        b"\0a",
        "ä".as_bytes(),
        "a\u{308}".as_bytes(),
        long.as_bytes(),
        &long.as_bytes()[..254],
    ];
    let rows: Vec<NewRow> = alike.iter().map(|key| keyed(1, "queue:a", key, "x")).collect();
    insert(&store, &rows).await;
    insert(&store, &[row(1, "queue:A", "y"), row(1, "queue:a ", "z")]).await;
    let all = read(&store, "queue:a").await;
    assert_eq!(all.iter().map(|row| row.key.as_deref().unwrap()).collect::<Vec<_>>(), alike);
    let mut addresses: Vec<String> =
        store.outbox().addresses(&ALL).await.unwrap().into_iter().map(|(_, address)| address).collect();
    addresses.sort();
    assert_eq!(addresses, ["queue:A", "queue:a", "queue:a "]);
    // One of them is held, by the request and then by a parked row.
    for (n, one) in alike.iter().enumerate() {
        let held = [Bytes::copy_from_slice(one)];
        let request = ReadRows { held_keys: &held, ..everything("queue:a") };
        let others = store.outbox().read(&request).await.unwrap();
        assert!(others.len() == 8 && others.iter().all(|row| row.key.as_deref() != Some(one)), "{n}");
    }
    store.outbox().park(all[0].id, "no", true).await.unwrap();
    assert_eq!(read(&store, "queue:a").await.len(), 8);
    store.outbox().set_paused("queue:A", true).await.unwrap();
    assert_eq!(read(&store, "queue:a").await.len(), 8);
    assert!(read(&store, "queue:A").await.is_empty());
}

async fn a_read_is_bounded_by_rows_and_bytes<S: TestDatabase>(store: S) {
    let outbox = store.outbox();
    let rows: Vec<NewRow> = (0..6).map(|n| row(3, "queue:a", &format!("{n}{}", "x".repeat(97)))).collect();
    insert(&store, &rows).await;
    let read = async |slots: &[i16], rows_per_slot, max_bytes| {
        let request = ReadRows { slots, rows_per_slot, max_bytes, ..everything("queue:a") };
        outbox.read(&request).await.unwrap().len()
    };
    // Each has 98 bytes and a head of 2.
    assert_eq!(read(&[3], 10, 300).await, 3);
    assert_eq!(read(&[3], 10, 299).await, 2);
    assert_eq!(read(&[3], 10, 0).await, 1, "the first one comes however large it is");
    assert_eq!(read(&[3], 2, 10_000).await, 2);
    assert_eq!(read(&[4], 10, 10_000).await, 0);
    assert_eq!(read(&[], 10, 10_000).await, 0);
    insert(&store, &[row(4, "queue:a", "y"), row(4, "queue:b", "z")]).await;
    assert_eq!(read(&[3, 4], 2, 10_000).await, 3);
    assert_eq!(read(&ALL, 10, 10_000).await, 7);
}

async fn held_keys_and_rows_are_left_out<S: TestDatabase>(store: S) {
    let rows = [
        keyed(1, "queue:a", b"k1", "0"),
        keyed(1, "queue:a", b"k2", "1"),
        row(1, "queue:a", "2"),
        keyed(1, "queue:a", b"k1", "3"),
        keyed(1, "queue:b", b"k1", "4"),
    ];
    insert(&store, &rows).await;
    let outbox = store.outbox();
    let all = read(&store, "queue:a").await;
    let (keys, ids) = ([Bytes::from_static(b"k1"), Bytes::from_static(b"none")], [all[2].id.id, 999]);
    let request = ReadRows { held_keys: &keys, ..everything("queue:a") };
    assert_eq!(data(&outbox.read(&request).await.unwrap()), ["1", "2"]);
    let request = ReadRows { held_rows: &ids, ..everything("queue:a") };
    assert_eq!(data(&outbox.read(&request).await.unwrap()), ["0", "1", "3"]);
    // The window is one of rows that may go.
    let request = ReadRows { held_keys: &keys, rows_per_slot: 1, ..everything("queue:a") };
    assert_eq!(data(&outbox.read(&request).await.unwrap()), ["1"]);
}

async fn no_slot_is_starved_by_another<S: TestDatabase>(store: S) {
    let large = "x".repeat(1000);
    let rows: Vec<NewRow> = (0..160).map(|n| row(n % 16, "queue:a", &large)).collect();
    insert(&store, &rows).await;
    let outbox = store.outbox();
    let mut slots = BTreeSet::new();
    // What is read is held, as a relay does while it publishes.
    let mut held = Vec::new();
    for _ in 0..16 {
        let request = ReadRows { max_bytes: 2000, held_rows: &held, ..everything("queue:a") };
        let rows = outbox.read(&request).await.unwrap();
        slots.extend(rows.iter().map(|row| row.slot));
        held.extend(rows.iter().map(|row| row.id.id));
    }
    assert!(slots.len() > 12, "{slots:?}");
}

async fn addresses_are_those_with_rows_that_are_not_paused<S: TestDatabase>(store: S) {
    let outbox = store.outbox();
    assert!(outbox.addresses(&ALL).await.unwrap().is_empty());
    let rows = [
        row(1, "queue:b", ""),
        row(1, "queue:a", ""),
        row(1, "queue:a", ""),
        row(2, "queue:a", ""),
        row(3, "queue:c", ""),
        NewRow { delay: Duration::from_secs(60), ..row(3, "queue:later", "") },
    ];
    insert(&store, &rows).await;
    let found = async |slots: &[i16]| {
        let found = outbox.addresses(slots).await.unwrap();
        found.into_iter().map(|(slot, address)| format!("{slot} {address}")).collect::<BTreeSet<_>>()
    };
    let set = |found: &[&str]| found.iter().map(|one| (*one).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(found(&ALL).await, set(&["1 queue:a", "1 queue:b", "2 queue:a", "3 queue:c"]));
    assert_eq!(found(&[2, 3]).await, set(&["2 queue:a", "3 queue:c"]));
    outbox.set_paused("queue:a", true).await.unwrap();
    outbox.set_paused("queue:a", true).await.unwrap();
    assert_eq!(outbox.paused().await.unwrap(), ["queue:a"]);
    assert_eq!(found(&ALL).await, set(&["1 queue:b", "3 queue:c"]));
    outbox.set_paused("queue:a", false).await.unwrap();
    assert!(outbox.paused().await.unwrap().is_empty());
    assert_eq!(found(&ALL).await.len(), 4);
}

async fn a_row_with_the_same_id_and_another_time_stays<S: TestDatabase>(store: S) {
    insert(&store, &[row(0, "queue:a", "0"), row(0, "queue:a", "1"), row(0, "queue:a", "2")]).await;
    let outbox = store.outbox();
    let rows = read(&store, "queue:a").await;
    let other = RowId { created_at: rows[0].id.created_at - 1, ..rows[0].id };
    // Neither does the time of one row go with the id of another.
    let crossed = RowId { created_at: rows[0].id.created_at - 1, ..rows[2].id };
    assert_eq!(outbox.delete(&[other, rows[1].id, crossed]).await.unwrap(), 1);
    assert_eq!(data(&read(&store, "queue:a").await), ["0", "2"]);
    assert_eq!(outbox.delete(&[rows[0].id, rows[1].id, rows[2].id]).await.unwrap(), 2);
    assert_eq!(outbox.delete(&[]).await.unwrap(), 0);
}

async fn a_parked_row_holds_its_key_until_the_last_one_leaves<S: TestDatabase>(store: S) {
    let rows: Vec<NewRow> = (0..4).map(|n| keyed(5, "queue:a", b"k\0", &n.to_string())).collect();
    insert(&store, &rows).await;
    insert(&store, &[keyed(5, "queue:a", b"other", "o"), row(5, "queue:a", "r")]).await;
    let outbox = store.outbox();
    let all = read(&store, "queue:a").await;
    outbox.record_failure(all[0].id, "no").await.unwrap();
    outbox.park(all[0].id, "PayloadTooLarge: too\0large", true).await.unwrap();
    assert_eq!(data(&read(&store, "queue:a").await), ["o", "r"], "the key waits, also for another owner");
    outbox.park(all[1].id, "Malformed: second", true).await.unwrap();

    assert_eq!(outbox.discard_parked(&ParkedFilter::Ids(vec![all[1].id.id])).await.unwrap(), 1);
    assert_eq!(data(&read(&store, "queue:a").await), ["o", "r"], "one still holds it");
    assert_eq!(outbox.retry_parked(&ParkedFilter::Reason("PayloadTooLarge".to_owned())).await.unwrap(), 1);
    let back = read(&store, "queue:a").await;
    assert_eq!(data(&back), ["0", "2", "3", "o", "r"], "under its old id");
    assert_eq!((back[0].id, back[0].slot, back[0].attempts), (all[0].id, 5, 0));
    assert_eq!(store.number("SELECT count(*) FROM {outbox_held}").await, 0);

    // Without the hold, and without a key, nothing waits.
    outbox.park(all[2].id, "expired", false).await.unwrap();
    outbox.park(all[5].id, "expired", true).await.unwrap();
    assert_eq!(data(&read(&store, "queue:a").await), ["0", "3", "o"]);
    assert!(outbox.parked(&ParkedFilter::All, 0, 10).await.unwrap().iter().all(|row| !row.holds_key));
    assert_eq!(outbox.discard_parked(&ParkedFilter::All).await.unwrap(), 2);
    assert_eq!(outbox.discard_parked(&ParkedFilter::All).await.unwrap(), 0);
}

async fn parked_rows_are_listed_by_pages_and_filters<S: TestDatabase>(store: S) {
    let rows: Vec<NewRow> =
        (0..6).map(|n| row(n, if n % 2 == 0 { "queue:a" } else { "queue:b" }, &n.to_string())).collect();
    insert(&store, &rows).await;
    let outbox = store.outbox();
    let mut all = read(&store, "queue:a").await;
    all.extend(read(&store, "queue:b").await);
    for (n, row) in all.iter().enumerate() {
        outbox.park(row.id, if n < 2 { "50%_off" } else { "expired" }, false).await.unwrap();
    }
    let list = async |filter: ParkedFilter, after, limit| outbox.parked(&filter, after, limit).await.unwrap();
    let ids: Vec<i64> = list(ParkedFilter::All, 0, 100).await.iter().map(|row| row.id).collect();
    assert_eq!(ids.len(), 6);
    assert!(ids.is_sorted());
    let page: Vec<i64> = list(ParkedFilter::All, ids[1], 3).await.iter().map(|row| row.id).collect();
    assert_eq!(page, ids[2..5]);
    assert_eq!(list(ParkedFilter::Address("queue:b".to_owned()), 0, 100).await.len(), 3);
    assert_eq!(list(ParkedFilter::Reason("50%_".to_owned()), 0, 100).await.len(), 2, "it is no pattern");
    assert_eq!(list(ParkedFilter::Reason("%".to_owned()), 0, 100).await.len(), 0);
    assert_eq!(list(ParkedFilter::Ids(vec![]), 0, 100).await.len(), 0);
    let one = &list(ParkedFilter::Ids(vec![all[0].id.id]), 0, 100).await[0];
    assert_eq!((one.address.as_str(), one.head.as_str(), &one.data[..]), ("queue:a", "{}", &b"0"[..]));
    assert!(one.parked_at >= all[0].id.created_at);
}

async fn parking_what_is_gone_does_nothing<S: TestDatabase>(store: S) {
    insert(&store, &[keyed(0, "queue:a", b"k", "0")]).await;
    let outbox = store.outbox();
    let id = read(&store, "queue:a").await[0].id;
    outbox.park(RowId { created_at: id.created_at + 1, ..id }, "no", true).await.unwrap();
    outbox.park(RowId { id: id.id + 1, ..id }, "no", true).await.unwrap();
    assert_eq!(read(&store, "queue:a").await.len(), 1);
    assert_eq!(store.number("SELECT count(*) FROM {outbox_held}").await, 0);
    // The same in parallel with a discard of the same key, many times.
    for _ in 0..20 {
        outbox.park(read(&store, "queue:a").await[0].id, "yes", true).await.unwrap();
        insert(&store, &[keyed(0, "queue:b", b"k", "1"), keyed(0, "queue:a", b"k", "2")]).await;
        let (one, other) =
            tokio::join!(outbox.discard_parked(&ParkedFilter::All), outbox.discard_parked(&ParkedFilter::All));
        assert_eq!(one.unwrap() + other.unwrap(), 1);
        assert_eq!(store.number("SELECT count(*) FROM {outbox_held}").await, 0);
        assert_eq!(read(&store, "queue:a").await.len(), 1);
    }
}

async fn due_rows_come_when_the_clock_says_so<S: TestDatabase>(store: S) {
    let outbox = store.outbox();
    assert_eq!(outbox.promote_due(10).await.unwrap().next, None);
    let delayed = |secs, data: &str| NewRow { delay: Duration::from_secs(secs), ..row(7, "queue:a", data) };
    insert(&store, &[delayed(60, "0"), delayed(30, "1"), delayed(60, "2")]).await;
    let due = outbox.promote_due(10).await.unwrap();
    assert_eq!(due.moved, 0);
    let next = due.next.unwrap();
    assert!(next > Duration::from_secs(25) && next <= Duration::from_secs(30), "{next:?}");
    assert!(read(&store, "queue:a").await.is_empty());

    store.move_clock(31 * SECOND);
    let due = outbox.promote_due(10).await.unwrap();
    assert_eq!(due.moved, 1);
    assert!(due.next.unwrap() > Duration::from_secs(20), "{due:?}");
    let rows = read(&store, "queue:a").await;
    assert_eq!((data(&rows), i64::from(rows[0].slot)), (vec!["1".to_owned()], rows[0].id.id % 16));

    // Backwards: nothing becomes due. Forwards: one at a time, and at once again.
    store.move_clock(-3600 * SECOND);
    assert_eq!(outbox.promote_due(10).await.unwrap().moved, 0);
    store.move_clock(7200 * SECOND);
    let due = outbox.promote_due(1).await.unwrap();
    assert_eq!((due.moved, due.next), (1, Some(Duration::ZERO)));
    let due = outbox.promote_due(1).await.unwrap();
    assert_eq!((due.moved, due.next), (1, None));
    assert_eq!(data(&read(&store, "queue:a").await), ["0", "1", "2"]);
}

async fn failures_are_counted<S: TestDatabase>(store: S) {
    insert(&store, &[row(0, "queue:a", "0")]).await;
    let id = read(&store, "queue:a").await[0].id;
    for _ in 0..3 {
        store.outbox().record_failure(id, &format!("a\0{}", "x".repeat(10_000))).await.unwrap();
    }
    store.outbox().record_failure(RowId { created_at: 1, ..id }, "no").await.unwrap();
    assert_eq!(read(&store, "queue:a").await[0].attempts, 3);
}

async fn stats_are_capped_and_ages_count_from_when_a_row_was_due<S: TestDatabase>(store: S) {
    let outbox = store.outbox();
    assert_eq!(outbox.stats(100).await.unwrap().oldest_age, None);
    let rows: Vec<NewRow> = (0..20).map(|n| row(n % 16, "queue:a", "")).collect();
    insert(&store, &rows).await;
    let delayed = NewRow { delay: Duration::from_secs(3600), ..row(0, "queue:b", "") };
    insert(&store, &[delayed.clone(), delayed]).await;
    outbox.park(read(&store, "queue:a").await[19].id, "no", false).await.unwrap();
    let stats = outbox.stats(100).await.unwrap();
    assert_eq!((stats.ready, stats.scheduled, stats.parked), (19, 2, 1));
    assert!(stats.oldest_age.unwrap() < Duration::from_secs(60), "{stats:?}");
    let stats = outbox.stats(1).await.unwrap();
    assert_eq!((stats.ready, stats.scheduled, stats.parked), (1, 1, 1));

    store.move_clock(3700 * SECOND);
    let age = outbox.stats(100).await.unwrap().oldest_age.unwrap();
    assert!(age >= Duration::from_secs(3700) && age < Duration::from_secs(3800), "{age:?}");
    outbox.set_paused("queue:a", true).await.unwrap();
    assert_eq!(outbox.promote_due(10).await.unwrap().moved, 2);
    let age = outbox.stats(100).await.unwrap().oldest_age.unwrap();
    assert!(age >= Duration::from_secs(100) && age < Duration::from_secs(200), "from when it was due: {age:?}");
}

async fn a_rolled_back_row_is_not_there<S: TestDatabase>(store: S) {
    let mut tx = store.begin().await.unwrap();
    assert!(S::in_transaction(&mut tx));
    store.insert(&mut tx, &[row(0, "queue:a", "0")]).await.unwrap();
    drop(tx);
    insert(&store, &[row(0, "queue:a", "1")]).await;
    assert_eq!(data(&read(&store, "queue:a").await), ["1"]);
}

async fn an_emptied_table_gives_new_ids<S: TestDatabase>(store: S) {
    let mut last = 0;
    for _ in 0..3 {
        insert(&store, &[row(0, "queue:a", "0")]).await;
        let rows = read(&store, "queue:a").await;
        assert!(rows[0].id.id > last);
        last = rows[0].id.id;
        assert_eq!(store.outbox().delete(&[rows[0].id]).await.unwrap(), 1);
    }
}

async fn the_statement_for_other_clients_writes_the_same_row<S: TestDatabase>(store: S) {
    let new = NewRow { delay: Duration::from_secs(5), ..row(9, "queue:a", "0") };
    let statement = store.insert_statement(&new).await.unwrap();
    assert_eq!(statement.values.len(), 6);
    assert_eq!((&statement.values[0], &statement.values[2]), (&SqlValue::Integer(-1), &SqlValue::Null));
    assert_eq!(statement.values[5], SqlValue::Integer(5 * SECOND));
    let statement = store.insert_statement(&keyed(9, "queue:a", b"k", "0")).await.unwrap();
    assert_eq!(statement.values[0], SqlValue::Integer(9));
    // Written in, as a client without placeholders would.
    let bytes = if statement.sql.contains('$') { "'\\x6b'" } else { "X'6b'" };
    let mut sql = statement.sql;
    let numbered = sql.contains("$1") || sql.contains("?1");
    for (n, value) in ["9", "'queue:a'", bytes, "'{}'", bytes, "0"].iter().enumerate() {
        sql = match numbered {
            true => sql.replace(&format!("${}", n + 1), value).replace(&format!("?{}", n + 1), value),
            false => sql.replacen('?', value, 1),
        };
    }
    let mut tx = store.begin().await.unwrap();
    // `run_on` would take the head for a table's name.
    store.run_on(&mut tx, &sql.replace("'{}'", "'[]'")).await.unwrap();
    S::commit(tx).await.unwrap();
    let rows = read(&store, "queue:a").await;
    assert_eq!((rows[0].slot, rows[0].key.as_deref(), &rows[0].data[..]), (9, Some(&b"k"[..]), &b"k"[..]));
}

async fn views_show_times<S: TestDatabase>(store: S) {
    insert(&store, &[row(0, "queue:a", "0"), row(0, "queue:a", "1")]).await;
    store.outbox().park(read(&store, "queue:a").await[0].id, "no", false).await.unwrap();
    for view in ["outbox_view", "outbox_parked_view"] {
        let sql = format!("SELECT count(*) FROM {{{view}}} WHERE CAST(created_at AS TEXT) LIKE '20%-%-% %:%:%'");
        assert_eq!(store.number(&sql).await, 1, "{view}");
    }
}

/// A relay that drains an address reads on without asking which addresses there are.
async fn a_paused_address_has_no_rows_to_read<S: TestDatabase>(store: S) {
    insert(&store, &[row(0, "queue:a", "0"), row(0, "queue:b", "1")]).await;
    store.outbox().set_paused("queue:a", true).await.unwrap();
    assert!(read(&store, "queue:a").await.is_empty());
    assert_eq!(read(&store, "queue:b").await.len(), 1);
    store.outbox().set_paused("queue:a", false).await.unwrap();
    assert_eq!(read(&store, "queue:a").await.len(), 1);
}

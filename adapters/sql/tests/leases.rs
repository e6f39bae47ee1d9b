//! Leases and members.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod database;

use std::time::Duration;

use database::TestDatabase;
use polybus_patterns::store::Lease;

const SECOND: i64 = 1_000_000;
const TERM: Duration = Duration::from_secs(10);

on_both![
    a_lease_has_one_holder_until_it_runs_out,
    a_lost_token_renews_and_releases_nothing,
    a_clock_that_was_set_back_frees_a_lease,
    a_released_lease_is_free_at_once,
    of_many_that_ask_one_gets_it,
    members_are_counted_until_they_fall_silent,
];

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn sorted(mut leases: Vec<Lease>) -> Vec<(String, i64)> {
    leases.sort_by(|one, other| one.name.cmp(&other.name));
    leases.into_iter().map(|lease| (lease.name, lease.token)).collect()
}

async fn a_lease_has_one_holder_until_it_runs_out<S: TestDatabase>(store: S) {
    let leases = store.control().leases();
    let mine = leases.acquire(&names(&["outbox/1", "outbox/2"]), "a", TERM).await.unwrap();
    assert_eq!(sorted(mine.clone()), [("outbox/1".to_owned(), 1), ("outbox/2".to_owned(), 1)]);
    assert!(leases.acquire(&names(&["outbox/1"]), "a", TERM).await.unwrap().is_empty(), "nor by its holder");
    let others = leases.acquire(&names(&["outbox/1", "outbox/3", "outbox/2"]), "b", TERM).await.unwrap();
    assert_eq!(sorted(others), [("outbox/3".to_owned(), 1)]);
    assert!(leases.acquire(&[], "a", TERM).await.unwrap().is_empty());

    store.move_clock(8 * SECOND);
    assert_eq!(leases.renew(&mine[..1], "a", TERM).await.unwrap(), mine[..1]);
    store.move_clock(8 * SECOND);
    let free = leases.acquire(&names(&["outbox/1", "outbox/2"]), "b", TERM).await.unwrap();
    let name = if mine[0].name == "outbox/1" { "outbox/2" } else { "outbox/1" };
    assert_eq!(sorted(free), [(name.to_owned(), 2)], "the one that was not renewed");
}

async fn a_lost_token_renews_and_releases_nothing<S: TestDatabase>(store: S) {
    let leases = store.control().leases();
    let first = leases.acquire(&names(&["l"]), "a", TERM).await.unwrap();
    store.move_clock(11 * SECOND);
    // Run out, and nobody took it: it is still this owner's.
    assert_eq!(leases.renew(&first, "a", TERM).await.unwrap(), first);
    assert!(leases.renew(&first, "b", TERM).await.unwrap().is_empty());
    store.move_clock(11 * SECOND);
    // The same owner takes it again, as a restarted loop would: the old token is lost.
    let second = leases.acquire(&names(&["l"]), "a", TERM).await.unwrap();
    assert_eq!(second[0].token, first[0].token + 1);
    assert!(leases.renew(&first, "a", TERM).await.unwrap().is_empty());
    leases.release(&first, "a").await.unwrap();
    leases.release(&second, "b").await.unwrap();
    assert!(leases.acquire(&names(&["l"]), "b", TERM).await.unwrap().is_empty());
    assert_eq!(leases.renew(&second, "a", TERM).await.unwrap(), second);
    assert!(leases.renew(&[], "a", TERM).await.unwrap().is_empty());
}

async fn a_clock_that_was_set_back_frees_a_lease<S: TestDatabase>(store: S) {
    let leases = store.control().leases();
    leases.acquire(&names(&["l"]), "dead", TERM).await.unwrap();
    store.move_clock(-5 * SECOND);
    assert!(!leases.acquire(&names(&["l"]), "b", TERM).await.unwrap().is_empty(), "15 s ahead is more than a term");
    store.move_clock(-3600 * SECOND);
    let taken = leases.acquire(&names(&["l"]), "c", TERM).await.unwrap();
    assert_eq!(taken[0].token, 3);
    assert!(leases.acquire(&names(&["l"]), "d", TERM).await.unwrap().is_empty());
}

async fn a_released_lease_is_free_at_once<S: TestDatabase>(store: S) {
    let leases = store.control().leases();
    let mine = leases.acquire(&names(&["l", "m"]), "a", TERM).await.unwrap();
    leases.release(&mine, "a").await.unwrap();
    assert!(leases.renew(&mine, "a", TERM).await.unwrap().is_empty(), "a late renewal does not bring it back");
    let taken = leases.acquire(&names(&["l", "m"]), "b", TERM).await.unwrap();
    assert_eq!(sorted(taken), [("l".to_owned(), 2), ("m".to_owned(), 2)]);
}

async fn of_many_that_ask_one_gets_it<S: TestDatabase>(store: S) {
    let leases = store.control().leases();
    let all: Vec<String> = (0..16).map(|n| format!("outbox/{n}")).collect();
    let owners: Vec<String> = (0..8).map(|n| format!("owner-{n}")).collect();
    for round in 1..6 {
        let asked = owners.iter().enumerate().map(|(n, owner)| {
            // In different orders.
            let mut wanted = all.clone();
            wanted.rotate_left(n * 2);
            let leases = leases.clone();
            async move { leases.acquire(&wanted, owner, TERM).await.unwrap() }
        });
        let taken: Vec<Lease> = futures_util::future::join_all(asked).await.concat();
        assert_eq!(taken.len(), 16);
        assert!(taken.iter().all(|lease| lease.token == round));
        store.move_clock(11 * SECOND);
    }
}

async fn members_are_counted_until_they_fall_silent<S: TestDatabase>(store: S) {
    let leases = store.control().leases();
    assert_eq!(leases.join("g", "a", TERM).await.unwrap(), 1);
    assert_eq!(leases.join("g", "b", TERM).await.unwrap(), 2);
    assert_eq!(leases.join("other", "c", TERM).await.unwrap(), 1);
    assert_eq!(leases.join("g", "a", TERM).await.unwrap(), 2);
    store.move_clock(6 * SECOND);
    assert_eq!(leases.join("g", "b", TERM).await.unwrap(), 2);
    store.move_clock(6 * SECOND);
    assert_eq!(leases.join("g", "b", TERM).await.unwrap(), 1, "a said nothing for 12 s");
    assert_eq!(store.number("SELECT count(*) FROM {member} WHERE grp = 'g'").await, 1);
    leases.leave("g", "b").await.unwrap();
    leases.leave("g", "b").await.unwrap();
    assert_eq!(leases.join("g", "a", TERM).await.unwrap(), 1);
    // The clock is set back: who is silent does not stay for an hour.
    leases.join("g", "dead", TERM).await.unwrap();
    store.move_clock(-3600 * SECOND);
    assert_eq!(leases.join("g", "a", TERM).await.unwrap(), 1);
}

/// The statements that lock the outbox for all others, until they are undone.
async fn leases_wait_for_no_row<S: TestDatabase>(store: &S, lock: &str, unlock: &str) {
    let leases = store.control().leases();
    let mine = leases.acquire(&names(&["l"]), "a", TERM).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    store.run_on(&mut tx, lock).await.unwrap();
    let reads: Vec<_> = (0..8)
        .map(|_| {
            let table = store.outbox();
            tokio::spawn(async move { table.addresses(&database::ALL).await.map(drop) })
        })
        .collect();
    // They have all the places that they may have.
    database::eventually("reads wait for a place", async || reads.iter().any(|read| read.is_finished())).await;
    for _ in 0..20 {
        assert_eq!(leases.renew(&mine, "a", TERM).await.unwrap().len(), 1);
    }
    assert_eq!(leases.acquire(&names(&["other"]), "a", TERM).await.unwrap().len(), 1);
    leases.join("group", "a", TERM).await.unwrap();
    leases.release(&mine, "a").await.unwrap();
    assert!(reads.iter().any(|read| !read.is_finished()), "nothing waited for a row, so this proves nothing");
    store.run_on(&mut tx, unlock).await.unwrap();
    drop(tx);
    for read in reads {
        // Those that found no place in time say so.
        let _ = read.await.unwrap();
    }
    assert!(store.outbox().addresses(&database::ALL).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_wait_for_no_row_on_postgres() {
    let Some(store) = database::postgres().await else { return };
    store.migrate().await.unwrap();
    leases_wait_for_no_row(&store, "LOCK TABLE {outbox} IN ACCESS EXCLUSIVE MODE", "SELECT 1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_wait_for_no_row_on_mariadb() {
    let Some(store) = database::mysql().await else { return };
    store.migrate().await.unwrap();
    leases_wait_for_no_row(&store, "LOCK TABLES {outbox} WRITE", "UNLOCK TABLES").await;
}

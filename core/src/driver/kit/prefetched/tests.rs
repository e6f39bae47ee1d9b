//! Tests of the receive buffer under a paused clock.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::ErrorKind;

const LOCK: Duration = Duration::from_secs(16);

type Named = ReceiveBuffer<&'static str, ()>;

/// A buffer whose locks are renewed as `answer` says, the number of renewals, and what puts messages in.
fn buffer(answer: fn(usize) -> Result<()>) -> (Arc<Named>, Arc<AtomicUsize>, impl Fn(&'static str)) {
    let (buffer, calls) = (Arc::new(Named::new(LOCK, LOCK / 16, true)), Arc::new(AtomicUsize::new(0)));
    let put = {
        let (buffer, calls) = (buffer.clone(), calls.clone());
        move |message| {
            if buffer.put(message, (), Instant::now()).unwrap() {
                let calls = calls.clone();
                tokio::spawn(keep(Arc::downgrade(&buffer), move |locks| {
                    let answered = answer(calls.fetch_add(1, Ordering::SeqCst));
                    async move { locks.iter().map(|()| answered.clone().map(|()| Instant::now())).collect() }
                }));
            }
        }
    };
    (buffer, calls, put)
}

fn named(taken: &TakenMessages<&'static str>) -> Vec<&'static str> {
    taken.messages.iter().map(|(message, _)| *message).collect()
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_renewed_and_what_comes_later_with_it() {
    let (buffer, calls, put) = buffer(|_| Ok(()));
    put("a");
    tokio::time::sleep(LOCK / 16).await;
    put("b");
    tokio::time::sleep(LOCK * 3).await;
    assert_eq!(calls.load(Ordering::SeqCst), 6, "both at once, at half their time");
    let taken = buffer.take(9);
    assert_eq!((named(&taken), taken.lost), (vec!["a", "b"], vec![]));
    assert!(taken.messages.iter().all(|(_, from)| from.elapsed() <= LOCK / 2));
    tokio::time::sleep(LOCK * 3).await;
    assert_eq!(calls.load(Ordering::SeqCst), 6, "nothing waits any more");
}

#[tokio::test(start_paused = true)]
async fn locks_that_turn_out_to_be_shorter_are_renewed_in_time() {
    let (buffer, calls, put) = buffer(|_| Ok(()));
    put("a");
    tokio::time::sleep(LOCK / 16).await;
    buffer.shorten(LOCK / 4, LOCK / 16);
    tokio::time::sleep(LOCK).await;
    assert!((8..=9).contains(&calls.load(Ordering::SeqCst)), "{calls:?}");
    assert_eq!(named(&buffer.take(9)), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_failed_is_tried_again() {
    let busy = |n| if n % 4 == 3 { Ok(()) } else { Err(Error::new(ErrorKind::Throttled, "busy")) };
    let (buffer, _, put) = buffer(busy);
    put("a");
    tokio::time::sleep(LOCK * 3).await;
    assert_eq!(named(&buffer.take(9)), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_lost_is_not_handed_out() {
    let (buffer, calls, put) = buffer(|_| Err(Error::new(ErrorKind::LockLost, "gone")));
    put("a");
    tokio::time::sleep(LOCK * 5 / 8).await;
    put("b");
    buffer.end(Error::new(ErrorKind::Unavailable, "detached"));
    let taken = buffer.take(1);
    assert_eq!((named(&taken), &*taken.lost, buffer.gone()), (vec!["b"], &["a"][..], 2));
    assert_eq!((taken.end.map(|e| e.kind()), calls.load(Ordering::SeqCst)), (Some(ErrorKind::Unavailable), 1));
    assert!(buffer.take(1).end.is_none(), "told twice");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_panics_or_says_too_little_is_tried_again() {
    let (buffer, calls) = (Arc::new(Named::new(LOCK, LOCK / 16, true)), Arc::new(AtomicUsize::new(0)));
    buffer.put("a", (), Instant::now()).unwrap();
    buffer.put("b", (), Instant::now()).unwrap();
    let counted = calls.clone();
    let renew = move |_| {
        let n = counted.fetch_add(1, Ordering::SeqCst);
        async move {
            assert!(n != 0, "a driver's bug");
            vec![Ok(Instant::now()); n]
        }
    };
    let keeping = tokio::spawn(keep(Arc::downgrade(&buffer), renew));
    tokio::time::sleep(LOCK).await;
    assert_eq!(named(&buffer.take(9)), ["a", "b"]);
    assert!((3..=5).contains(&calls.load(Ordering::SeqCst)), "{calls:?}");
    keeping.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_ran_out_is_told_apart_at_the_close_and_nothing_is_renewed_where_that_is_not_wanted() {
    let buffer = Named::new(LOCK, LOCK / 16, false);
    assert!(!buffer.put("a", (), Instant::now()).unwrap(), "a task that renews");
    tokio::time::sleep(LOCK / 2).await;
    buffer.put("b", (), Instant::now()).unwrap();
    tokio::time::sleep(LOCK / 2).await;
    let closed = buffer.close();
    assert_eq!((named(&closed), closed.lost), (vec!["b"], vec!["a"]));
    assert!(buffer.is_empty() && buffer.close().lost.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_takes_those_behind_it_of_its_key_along_and_no_others() {
    let buffer = ReceiveBuffer::new(LOCK, LOCK / 16, true).keyed(|message: &&'static str| message.get(..1));
    let buffer = Arc::new(buffer);
    let put = |message| buffer.put(message, message, Instant::now()).unwrap();
    assert!(put("a1"));
    for message in ["a2", "b1", "c", "a3", "b2"] {
        assert!(!put(message), "a second task");
    }
    tokio::spawn(keep(Arc::downgrade(&buffer), |messages| async move {
        let lost = |message| matches!(message, "a2" | "c");
        let gone = |_| Error::new(ErrorKind::LockLost, "gone");
        messages.into_iter().map(|m| (!lost(m)).then(Instant::now).ok_or(m).map_err(gone)).collect()
    }));
    tokio::time::sleep(LOCK * 5 / 8).await;
    // The broker has given them out again.
    assert!(!put("a2") && !put("a3"));
    let taken = buffer.take(4);
    assert_eq!((named(&taken), taken.lost), (vec!["a1", "b1", "b2", "a2"], vec!["a2", "c", "a3"]));
    // One that was handed out is lost.
    put("d");
    buffer.lose("a");
    let taken = buffer.take(9);
    assert_eq!((named(&taken), taken.lost), (vec!["d"], vec!["a3"]));
}

#[tokio::test(start_paused = true)]
async fn what_ran_out_takes_those_behind_it_of_its_key_along() {
    let buffer = ReceiveBuffer::new(LOCK, LOCK / 16, false).keyed(|message: &&'static str| message.get(..1));
    buffer.put("a1", (), Instant::now()).unwrap();
    tokio::time::sleep(LOCK / 2).await;
    buffer.put("b", (), Instant::now()).unwrap();
    buffer.put("a2", (), Instant::now()).unwrap();
    tokio::time::sleep(LOCK / 2).await;
    let taken = buffer.take(9);
    assert_eq!((named(&taken), taken.lost), (vec!["b"], vec!["a1", "a2"]));
}

#[tokio::test(start_paused = true)]
async fn it_gives_out_no_more_than_was_asked_for_and_takes_nothing_once_closed() {
    let (buffer, _, put) = buffer(|_| Ok(()));
    ["a", "b", "c"].into_iter().for_each(&put);
    buffer.end(Error::new(ErrorKind::Unavailable, "detached"));
    let taken = buffer.take(2);
    assert!(named(&taken) == ["a", "b"] && taken.end.is_none(), "the end comes after the messages");
    assert_eq!((buffer.gone(), named(&buffer.close()), buffer.gone()), (2, vec!["c"], 3));
    assert_eq!(buffer.put("d", (), Instant::now()), Err("d"));
}

//! What the guard finds, and that everything is handled all the same.

use std::sync::Arc;

use polybus_core::Source;
use polybus_patterns::{Inbox, Mark, SequenceGuard, sequence::SequenceFinding, store::Store};

use super::{Found, Handled, gap, guarded, guarded_inbox, handle, handle_all, late, numbered, numbers::near_keys};
use crate::{
    Outcome, ensure, ensure_eq, expect_kind,
    scenarios::shared::GoalCounter,
    stores::{
        cx::{StoreCx, StoreOf},
        scenario::{StoreScenario, store_scenario},
        scenarios::inbox::message,
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario("sequence/in-order", "Of numbers in order nothing is found.", in_order),
        store_scenario(
            "sequence/gap-and-late",
            "What is missing is found once, and so is what comes late; all of it is handled, and what is missing is listed.",
            gap_and_late,
        ),
        store_scenario("sequence/first-expected", "Where the first is expected, its loss is found.", first_expected),
        store_scenario("sequence/copies", "A copy is found, and not handled.", copies),
        store_scenario(
            "sequence/restarted",
            "Numbers that begin anew are found, handled, and followed from there.",
            restarted,
        ),
        store_scenario(
            "sequence/counter-back",
            "Where a producer's counter went back, every message is handled, it is found, and followed from there.",
            counter_back,
        ),
        store_scenario(
            "sequence/failed-handler",
            "A handler that fails takes no number in, and nothing is found of it.",
            failed_handler,
        ),
        store_scenario(
            "sequence/other-process",
            "A key's numbers are followed by all processes together.",
            other_process,
        ),
        store_scenario("sequence/apart", "Keys, their sources and consumers are followed apart, byte for byte.", apart),
        store_scenario("sequence/unnumbered", "Messages without a key, or without a number, pass.", unnumbered),
        store_scenario(
            "sequence/caught-up",
            "A number that a process without the guard handled is taken in with a copy of its message.",
            caught_up,
        ),
        store_scenario("sequence/gaps-in-pages", "What is missing is listed page by page.", gaps_in_pages),
        store_scenario(
            "sequence/own-transaction",
            "In a transaction of one's own the findings come as an answer, and go with a rollback.",
            own_transaction,
        ),
    ]
}

async fn in_order<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let handler = Arc::new(guarded::<T>(&store, found.of(SequenceGuard::new()), &handled));
    handle_all(&handler, "a", 1..=20).await?;
    handle_all(&handler, "of an older producer", 77..=90).await?;
    handle_all(&handler, "that counts from zero", 0..=5).await?;
    ensure_eq!(found.all(), [], "findings");
    ensure_eq!(handled.all().len(), 20 + 14 + 6, "handled messages");
    Ok(())
}

async fn gap_and_late<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let inbox = Inbox::new(&store, "billing").sequence_guard(found.of(SequenceGuard::new()));
    let handler = Arc::new(guarded_inbox::<T>(&inbox, &handled));
    handle_all(&handler, "k", [1, 2, 5, 6, 3, 8]).await?;
    ensure_eq!(found.findings(), [gap(3, 4), late(3), gap(7, 7)], "findings");
    ensure_eq!(handled.all().len(), 6, "handled messages");
    let open = inbox.open(Source::queue("q")).await?;
    let gaps = open.gaps(None, 10).await?;
    ensure_eq!(gaps.len(), 1, "keys with gaps");
    ensure_eq!((&*gaps[0].key, &*gaps[0].source, gaps[0].next), ("k", "/shop", 9), "the key");
    ensure_eq!(gaps[0].missing, [(4, 4), (7, 7)], "missing");
    handle_all(&handler, "k", [4, 7, 9]).await?;
    ensure_eq!(open.gaps(None, 10).await?.len(), 0, "keys with gaps at the end");
    ensure_eq!(found.findings()[3..], [late(4), late(7)], "findings at the end");
    Ok(())
}

async fn first_expected<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let handler = Arc::new(guarded::<T>(&store, found.of(SequenceGuard::new().expect_first()), &handled));
    handle_all(&handler, "whole", [1, 2]).await?;
    ensure_eq!(found.all(), [], "findings of a whole key");
    handle_all(&handler, "k", [3, 4, 1]).await?;
    ensure_eq!(found.findings(), [gap(1, 2), late(1)], "findings");
    Ok(())
}

async fn copies<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let handler = Arc::new(guarded::<T>(&store, found.of(SequenceGuard::new()), &handled));
    let (one, two) = (numbered("k", 1), numbered("k", 2));
    for m in [&one, &one, &two, &one, &two] {
        handle(&handler, m).await??;
    }
    let copy = |number| SequenceFinding::Copy { number };
    ensure_eq!(found.findings(), [copy(1), copy(1), copy(2)], "findings");
    ensure_eq!(handled.all(), ["1", "2"], "handled messages");
    Ok(())
}

async fn restarted<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let handler = Arc::new(guarded::<T>(&store, found.of(SequenceGuard::new()), &handled));
    handle_all(&handler, "k", [1, 2, 3, 5, 1, 2, 3, 4]).await?;
    let back = [SequenceFinding::Repeated { number: 1 }, SequenceFinding::Restarted { number: 2, expected: 6 }];
    ensure_eq!(found.findings(), [&[gap(4, 4)][..], &back[..]].concat(), "findings");
    ensure_eq!(handled.all().len(), 8, "handled messages");
    Ok(())
}

async fn counter_back<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let handler = Arc::new(guarded::<T>(&store, found.of(SequenceGuard::new()), &handled));
    handle_all(&handler, "k", 1..=10).await?;
    handle_all(&handler, "k", 6..=12).await?;
    let wanted = [SequenceFinding::Repeated { number: 6 }, SequenceFinding::Restarted { number: 7, expected: 11 }];
    ensure_eq!(found.findings(), wanted, "findings");
    ensure_eq!(handled.all().len(), 17, "handled messages");
    let effects = cx.effects(&store).await?;
    ensure_eq!((effects.get("7"), effects.get("11")), (Some(&2), Some(&1)), "effects");
    Ok(())
}

async fn failed_handler<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let handler = Arc::new(guarded::<T>(&store, found.of(SequenceGuard::new()), &handled));
    // A fault writes in tasks: each step ends when those have.
    let fails = async |n| {
        ensure!(handle(&handler, &message("fails").key("k").sequence(n)).await?.is_err(), "it did not fail");
        store.state.inserted().await;
        Ok(())
    };
    let goes_well = async |n| {
        handle_all(&handler, "k", [n]).await?;
        store.state.inserted().await;
        Outcome::Ok(())
    };
    fails(1).await?;
    goes_well(1).await?;
    fails(2).await?;
    fails(3).await?;
    ensure_eq!(found.all(), [], "findings of what failed");
    goes_well(3).await?;
    goes_well(2).await?;
    ensure_eq!(found.findings(), [gap(2, 2), late(2)], "findings");
    Ok(())
}

async fn other_process<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let other = cx.second(&store).await?;
    let here = Arc::new(guarded::<T>(&store, found.of(SequenceGuard::new()), &handled));
    let there = Arc::new(guarded::<T>(&other, found.of(SequenceGuard::new()), &handled));
    handle_all(&here, "k", [1]).await?;
    handle_all(&there, "k", [2, 3]).await?;
    handle_all(&here, "k", [4, 6]).await?;
    handle_all(&there, "k", [5, 7]).await?;
    ensure_eq!(found.findings(), [gap(5, 5), late(5)], "findings");
    Ok(())
}

async fn apart<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let handler = Arc::new(guarded::<T>(&store, found.of(SequenceGuard::new()), &handled));
    let keys = near_keys();
    for n in 1..=3 {
        for key in &keys {
            handle(&handler, &numbered(key, n)).await??;
        }
    }
    handle(&handler, &numbered("A", 7).source("/other")).await??;
    let second = Inbox::new(&store, "mail").sequence_guard(found.of(SequenceGuard::new()));
    let second = Arc::new(guarded_inbox::<T>(&second, &handled));
    handle_all(&second, "A", [1, 2, 3]).await?;
    handle_all(&handler, "A", [4]).await?;
    ensure_eq!(found.all(), [], "findings");
    ensure_eq!(handled.all().len(), keys.len() * 3 + 5, "handled messages");
    Ok(())
}

async fn unnumbered<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let handler = Arc::new(guarded::<T>(&store, found.of(SequenceGuard::new().expect_first()), &handled));
    for m in [message("no key"), message("no number").key("k"), message("no key").sequence(7)] {
        handle(&handler, &m).await??;
    }
    handle(&handler, &message("no such number").key("k").sequence(u64::MAX)).await??;
    ensure_eq!(found.all(), [], "findings");
    ensure_eq!(handled.all().len(), 4, "handled messages");
    Ok(())
}

async fn caught_up<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let handler = Arc::new(guarded::<T>(&store, found.of(SequenceGuard::new()), &handled));
    let older = Arc::new(guarded_inbox::<T>(&Inbox::new(&store, "billing"), &handled));
    let (two, four) = (numbered("k", 2), numbered("k", 4));
    handle_all(&handler, "k", [1]).await?;
    handle(&older, &two).await??;
    handle(&handler, &two).await??;
    handle_all(&handler, "k", [3]).await?;
    handle(&older, &four).await??;
    handle_all(&handler, "k", [5]).await?;
    handle(&handler, &four).await??;
    let copy = |number| SequenceFinding::Copy { number };
    ensure_eq!(found.findings(), [copy(2), gap(4, 4), copy(4)], "findings");
    let open = Inbox::new(&store, "billing").sequence_guard(SequenceGuard::new()).open(Source::queue("q")).await?;
    ensure_eq!(open.gaps(None, 10).await?.len(), 0, "keys with gaps");
    ensure_eq!(handled.all(), ["1", "2", "3", "4", "5"], "handled messages");
    Ok(())
}

async fn gaps_in_pages<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let inbox = Inbox::new(&store, "billing").sequence_guard(found.of(SequenceGuard::new()));
    let handler = Arc::new(guarded_inbox::<T>(&inbox, &handled));
    for key in 0..7 {
        handle_all(&handler, &format!("k{key}"), [1, 3]).await?;
    }
    handle_all(&handler, "whole", [1, 2]).await?;
    let open = inbox.open(Source::queue("q")).await?;
    let (mut keys, mut after) = (Vec::new(), None);
    for page in 0..4 {
        let gaps = open.gaps(after, 2).await?;
        ensure_eq!(gaps.len(), if page < 3 { 2 } else { 1 }, "keys of page {page}");
        after = gaps.last().map(|gap| gap.place());
        keys.extend(gaps.into_iter().map(|gap| gap.key));
    }
    ensure_eq!(open.gaps(after, 2).await?.len(), 0, "keys behind the last page");
    keys.sort();
    ensure_eq!(keys, (0..7).map(|key| format!("k{key}")).collect::<Vec<_>>(), "keys with gaps");
    Ok(())
}

async fn own_transaction<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, runs) = (cx.store().await?, GoalCounter::default());
    let plain = Inbox::new(&store, "billing").open(Source::queue("q")).await?;
    let mut tx = store.begin().await?;
    expect_kind!(plain.follow(&mut tx, &numbered("k", 1)).await.map(drop), polybus_core::ErrorKind::InvalidArgument);
    drop(tx);
    let inbox = Inbox::new(&store, "billing").sequence_guard(SequenceGuard::new());
    let open = inbox.open(Source::queue("q")).await?;
    for (n, commits, wanted) in
        [(1, true, vec![]), (4, false, vec![gap(2, 3)]), (4, true, vec![gap(2, 3)]), (3, true, vec![late(3)])]
    {
        let m = numbered("k", n);
        let mut tx = store.begin().await?;
        ensure_eq!(open.once(&mut tx, &m).await?, Mark::First, "the mark of {n}");
        ensure_eq!(open.follow(&mut tx, &m).await?, wanted, "findings of {n}");
        runs.add();
        match commits {
            true => open.commit(tx, &m).await?,
            false => drop(tx),
        }
    }
    let mut tx = store.begin().await?;
    ensure_eq!(open.follow(&mut tx, &numbered("k", 5)).await?, [], "findings of 5");
    StoreOf::<T>::commit(tx).await?;
    Ok(())
}

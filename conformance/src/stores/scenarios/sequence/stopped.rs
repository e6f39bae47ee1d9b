//! Guards that make dead letters of what is out of order.

use std::sync::Arc;

use polybus_core::{Handler, HandlerError, Source};
use polybus_patterns::{
    Inbox, SequenceGuard,
    sequence::{GAP_REASON, LATE_REASON, SequenceFinding, SequencePolicy},
};

use super::{Found, Handled, gap, guarded, guarded_inbox, handle, handle_all, late, numbered};
use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        cx::StoreCx,
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "sequence/stopped",
            "A key whose messages become dead letters at a gap goes on when the missing one has come; all processes \
             together tell it once.",
            stopped,
        ),
        store_scenario(
            "sequence/skipped",
            "A key that stands still goes on behind the numbers that are skipped.",
            skipped,
        ),
        store_scenario(
            "sequence/late-letters",
            "Late messages become dead letters where the guard says so.",
            late_letters,
        ),
    ]
}

/// A message becomes a dead letter with this reason.
pub(super) async fn dead(handler: &Arc<impl Handler>, key: &str, n: u64, reason: &str) -> Outcome {
    let failed: Result<(), HandlerError> = handle(handler, &numbered(key, n)).await?;
    let text = failed.err().map(|e| format!("{e:?}")).unwrap_or_default();
    ensure!(text.contains(reason), "{key} {n}: {text}");
    Ok(())
}

async fn stopped<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let other = cx.second(&store).await?;
    let guard = || found.of(SequenceGuard::new().expect_first().on_gap(SequencePolicy::DeadLetter));
    let here = Arc::new(guarded::<T>(&store, guard(), &handled));
    let there = Arc::new(guarded::<T>(&other, guard(), &handled));
    handle_all(&here, "k", [1]).await?;
    for (handler, n) in [(&here, 3), (&there, 4), (&here, 5)] {
        dead(handler, "k", n, GAP_REASON).await?;
    }
    dead(&there, "without its first", 2, GAP_REASON).await?;
    dead(&here, "without its first", 3, GAP_REASON).await?;
    let told = [("k", gap(2, 2)), ("without its first", gap(1, 1))].map(|(key, gap)| (key.to_owned(), gap));
    ensure_eq!(found.all(), told, "findings");
    ensure_eq!(handled.all(), ["1"], "handled messages");
    // What is missing comes, and the dead letters are redriven.
    handle_all(&there, "k", [2, 3, 4, 5]).await?;
    ensure_eq!(handled.all(), ["1", "2", "3", "4", "5"], "handled messages at the end");
    dead(&here, "k", 7, GAP_REASON).await?;
    ensure_eq!(found.findings()[2..], [gap(6, 6)], "findings of another gap");
    Ok(())
}

async fn skipped<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let guard = found.of(SequenceGuard::new().expect_first().on_gap(SequencePolicy::DeadLetter));
    let inbox = Inbox::new(&store, "billing").sequence_guard(guard);
    let handler = Arc::new(guarded_inbox::<T>(&inbox, &handled));
    handle_all(&handler, "k", [1]).await?;
    dead(&handler, "k", 4, GAP_REASON).await?;
    dead(&handler, "new", 2, GAP_REASON).await?;
    let open = inbox.open(Source::queue("q")).await?;
    open.skip("/shop", "k", 3).await?;
    open.skip("/shop", "new", 1).await?;
    handle_all(&handler, "k", [4, 5]).await?;
    handle_all(&handler, "new", [2]).await?;
    ensure_eq!(found.findings(), [gap(2, 3), gap(1, 1)], "findings");
    ensure_eq!(open.gaps(None, 10).await?.len(), 0, "keys with gaps");
    Ok(())
}

async fn late_letters<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, found, handled) = (cx.store().await?, Found::default(), Handled::default());
    let guard = found.of(SequenceGuard::new().on_late(SequencePolicy::DeadLetter));
    let handler = Arc::new(guarded::<T>(&store, guard, &handled));
    handle_all(&handler, "k", [1, 3]).await?;
    dead(&handler, "k", 2, LATE_REASON).await?;
    dead(&handler, "k", 3, LATE_REASON).await?;
    handle_all(&handler, "k", [4]).await?;
    ensure_eq!(found.findings(), [gap(2, 2), late(2), SequenceFinding::Repeated { number: 3 }], "findings");
    ensure_eq!(handled.all(), ["1", "3", "4"], "handled messages");
    Ok(())
}

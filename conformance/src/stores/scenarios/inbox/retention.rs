//! For how long marks are kept.

use std::{sync::Arc, time::Duration};

use polybus_core::time;
use polybus_patterns::{
    Inbox,
    store::{InboxStore, MarkKey, Store},
};

use super::{effect, handle, message};
use crate::{
    Outcome, ensure_eq,
    scenarios::shared::GoalCounter,
    stores::{
        cx::{StoreCx, StoreOf},
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "inbox/retention",
            "A mark lives for its window, whatever the time of its message, and is swept after it.",
            retention,
        )
        .needs_clock(),
        store_scenario("inbox/sweeper", "An inbox sweeps its old marks by itself.", sweeper).needs_clock(),
        store_scenario(
            "inbox/sweep-limit",
            "A sweep deletes as many marks as it may, of its own consumer, and marks are counted up to the cap.",
            sweep_limit,
        )
        .needs_clock(),
    ]
}

const HOUR: i64 = 3_600;
const DAY: Duration = Duration::from_secs(24 * 3_600);

async fn retention<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let runs = GoalCounter::default();
    let inbox = Inbox::new(&store, "billing");
    let handler = Arc::new(effect::<T>(&inbox, &runs));
    let now = time::OffsetDateTime::now_utc();
    let mut messages = vec![
        message("now"),
        message("an hour ago").time(now - time::Duration::hours(1)),
        message("a month ago").time(now - time::Duration::days(30)),
        message("before 1970").time(time::OffsetDateTime::UNIX_EPOCH - time::Duration::days(30)),
        message("in an hour").time(now + time::Duration::hours(1)),
        message("in a century").time(now + time::Duration::days(36_500)),
    ];
    messages.push(message("no time").edit(|fields| fields.time = None));
    let count = messages.len();
    for m in &messages {
        handle(&handler, m).await??;
    }
    let table = store.inbox();
    let consumer = table.register("billing", "queue:q").await?;
    for hours in [0, 1, 12, 23] {
        cx.move_clock(&store, hours * HOUR);
        ensure_eq!(table.sweep(consumer, DAY, 1_000).await?, 0, "marks swept after {hours} h of a day");
    }
    for m in &messages {
        handle(&handler, m).await??;
    }
    ensure_eq!(runs.get(), count, "runs of the handler within the window");
    // A young one that must stay, and is as old as the others by its message.
    let young = message("young").time(now - time::Duration::days(30));
    cx.move_clock(&store, 40 * HOUR);
    handle(&handler, &young).await??;
    // By then the hours of all messages are behind the window, too.
    cx.move_clock(&store, 60 * HOUR);
    ensure_eq!(table.sweep(consumer, DAY, 1_000).await?, count as u64, "marks swept after 60 h");
    ensure_eq!(table.marks(consumer, 100).await?, 1, "marks that are left");
    handle(&handler, &young).await??;
    ensure_eq!(runs.get(), count + 1, "runs of the handler, with the young one");
    Ok(())
}

async fn sweeper<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let runs = GoalCounter::default();
    let inbox = Inbox::new(&store, "billing").retention(DAY * 2).sweep_every(Duration::from_millis(50));
    let handler = Arc::new(effect::<T>(&inbox, &runs));
    for n in 0..20 {
        handle(&handler, &message(n.to_string())).await??;
    }
    let table = store.inbox();
    let consumer = table.register("billing", "queue:q").await?;
    ensure_eq!(table.marks(consumer, 100).await?, 20, "marks");
    cx.move_clock(&store, 72 * HOUR);
    handle(&handler, &message("young")).await??;
    cx.eventually("the old marks are swept", async || Ok((table.marks(consumer, 100).await? <= 1).then_some(())))
        .await?;
    ensure_eq!(table.marks(consumer, 100).await?, 1, "marks that are left");
    Ok(())
}

async fn sweep_limit<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let table = store.inbox();
    let consumer = table.register("billing", "queue:q").await?;
    let other = table.register("mail", "queue:q").await?;
    let hour = i32::try_from(time::OffsetDateTime::now_utc().unix_timestamp() / HOUR).unwrap_or_default();
    let mut tx = store.begin().await?;
    for n in 0..30_u8 {
        for consumer in [consumer, other] {
            let _ = store.mark(&mut tx, &MarkKey { consumer, hour, key: [n; 16] }).await?;
        }
    }
    StoreOf::<T>::commit(tx).await?;
    ensure_eq!(table.marks(consumer, 10).await?, 10, "marks up to a cap of 10");
    cx.move_clock(&store, 72 * HOUR);
    let mut swept = Vec::new();
    for _ in 0..4 {
        swept.push(table.sweep(consumer, DAY, 12).await?);
    }
    ensure_eq!(swept, [12, 12, 6, 0], "marks swept by each call");
    ensure_eq!(table.marks(other, 100).await?, 30, "marks of another consumer");
    Ok(())
}

//! A verdict for each dead letter, and a report that adds up.

use std::time::Duration;

use polybus_core::{
    Envelope, ErrorKind, QueueSpec, SubscriptionSpec, TopicSpec, Topology,
    redrive::{RedriveEnd, RedriveGuard, RedriveLetter, RedriveOptions, RedriveVerdict},
};

use super::{adds_up, take_live_and_dead};
use crate::{
    Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, message, messages, number, numbers, scenario,
    scenarios::shared::{dead_letter_all, lifetime, wait_past},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "redrive/verdicts",
            "Each verdict is carried out on its letter alone: kept, redriven, redriven as another, dropped; the answer adds up.",
            verdicts,
        )
        .needs(|_, c| Need::redrive(c)),
        scenario("redrive/stop", "Stop ends it: the letter and those behind it stay.", stop).needs(|_, c| Need::redrive(c)),
        scenario(
            "redrive/expired",
            "A letter that has expired is refused and stays, unless moving it was asked for.",
            expired,
        )
        .needs(|_, c| Need::redrive(c)),
        scenario(
            "redrive/unwanted-type",
            "A letter of a type that no filter wants is refused and stays, as a copy edited to such a type; asked for, it is moved.",
            unwanted_type,
        )
        .needs(|_, c| Need::redrive(c).and(Need::topics(c))),
        scenario(
            "redrive/too-large",
            "What is too large to be moved is refused, and costs its neighbours nothing.",
            too_large,
        )
        .needs(|_, c| Need::redrive(c).and(Need::queue_limit(c))),
        scenario(
            "redrive/edited",
            "An edited letter goes back once, as the new message: other data, type and headers, id, and the letter's as its cause.",
            edited,
        )
        .needs(|_, c| Need::redrive(c)),
        scenario(
            "redrive/edited-siblings",
            "On a subscription an edited letter goes back to it alone.",
            edited_siblings,
        )
        .needs(|_, c| Need::redrive(c).and(Need::topics(c))),
        scenario(
            "redrive/edited-key",
            "On an ordered source an edited letter goes back under its new key; one without a key fails and stays.",
            edited_key,
        )
        .needs(|_, c| Need::redrive(c).and(Need::ordered(c))),
    ]
}

fn n(letter: &RedriveLetter) -> usize {
    number(letter.envelope()).unwrap_or(usize::MAX)
}

async fn verdicts(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    dead_letter_all(&cx, &q, messages(0..12)).await?;
    let decide = |letter: &RedriveLetter| match n(letter) % 4 {
        0 => RedriveVerdict::Keep,
        1 => RedriveVerdict::Drop,
        2 => RedriveVerdict::RedriveAs(letter.edited().header("edited", "yes")),
        _ => RedriveVerdict::Redrive,
    };
    let report = q.bus.redrive_each(&q.source, RedriveOptions::new(), decide).await.during("redrive")?;
    adds_up(&report)?;
    ensure_eq!((report.read, report.kept, report.moved, report.dropped), (12, 3, 6, 3), "counts: {report}");
    ensure!(report.is_complete() || report.ended == RedriveEnd::Silence, "it ended early: {report}");
    let mut sub = q.subscribe(6).await?;
    let mut back = Vec::new();
    for e in cx.drain(&mut sub, 6).await? {
        let n = number(&e)?;
        ensure_eq!(e.headers.get("edited").is_some(), n % 4 == 2, "whether {n} was edited");
        back.push(n);
    }
    sub.close().await?;
    back.sort_unstable();
    ensure_eq!(back, [2, 3, 6, 7, 10, 11], "what is back");
    let (_, dead) = take_live_and_dead(&cx, &q, 0, 3).await?;
    ensure_eq!(dead, [0, 4, 8], "what stays");
    Ok(())
}

async fn stop(cx: Cx) -> Outcome {
    const N: usize = 10;
    let q = cx.queue(QueueSpec::new()).await?;
    dead_letter_all(&cx, &q, messages(0..N)).await?;
    let mut asked = 0;
    let decide = |_: &RedriveLetter| {
        asked += 1;
        if asked == 4 { RedriveVerdict::Stop } else { RedriveVerdict::Redrive }
    };
    let report = q.bus.redrive_each(&q.source, RedriveOptions::new(), decide).await.during("redrive")?;
    adds_up(&report)?;
    ensure_eq!((report.moved, report.kept, report.ended), (3, 1, RedriveEnd::Stopped), "{report}");
    ensure_eq!(asked, 4, "how many were asked about");
    let (mut live, dead) = take_live_and_dead(&cx, &q, 3, N - 3).await?;
    live.extend(dead);
    live.sort_unstable();
    ensure_eq!(live, (0..N).collect::<Vec<_>>(), "all messages");
    Ok(())
}

async fn expired(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.bus.publisher(&q.address).await.during("open the sender")?;
    let expires = q.bus.now() + lifetime(&cx, Duration::from_secs(4));
    let mut sent = messages(0..3);
    sent[1] = sent[1].clone().expires_at(expires);
    dead_letter_all(&cx, &q, sent).await.during("before it expires")?;
    wait_past(&q.bus, expires).await;
    let report = q.bus.redrive(&q.source, |_| true, usize::MAX).await.during("redrive")?;
    adds_up(&report)?;
    ensure_eq!((report.moved, report.refused.get("expired")), (2, Some(&1)), "{report}");
    let mut sub = q.subscribe(2).await?;
    let mut live = numbers(&cx.drain(&mut sub, 2).await?)?;
    live.sort_unstable();
    ensure_eq!(live, [0, 2], "what is back");
    let all = RedriveOptions::new().expired(RedriveGuard::Move);
    let report =
        q.bus.redrive_each(&q.source, all, |_| RedriveVerdict::Redrive).await.during("redrive of expired ones")?;
    ensure_eq!((report.moved, report.refusals()), (1, 0), "asked for: {report}");
    cx.expect_none(&mut sub).await.during("what has expired is handed to nobody")
}

async fn unwanted_type(cx: Cx) -> Outcome {
    let topic = |types: &[&str]| {
        let spec = SubscriptionSpec::new().types(types.iter().copied());
        TopicSpec::new().subscription("a", spec)
    };
    let wide = cx.topic(topic(&["test.*", "other.*"])).await?;
    let sent =
        (0..6).map(|n| if n % 2 == 0 { message(n) } else { message(n).edit(|p| p.event_type = "other.one".into()) });
    dead_letter_all(&cx, &wide, sent.collect()).await?;
    // A version of the program that does not know the other types.
    let narrow = cx.setup(Topology::new().topic("t", topic(&["test.*"]))).undeclared().open().await?;
    let decide = |letter: &RedriveLetter| match n(letter) {
        0 => RedriveVerdict::RedriveAs(letter.edited().edit(|p| p.event_type = "third.one".into())),
        _ => RedriveVerdict::Redrive,
    };
    let report = narrow.redrive_each(&wide.source, RedriveOptions::new(), decide).await.during("redrive")?;
    adds_up(&report)?;
    ensure_eq!((report.moved, report.refused.get("unwanted-type")), (2, Some(&4)), "{report}");
    let mut sub = wide.subscribe(4).await?;
    let mut live = numbers(&cx.drain(&mut sub, 2).await?)?;
    live.sort_unstable();
    ensure_eq!(live, [2, 4], "what is back");
    let report = narrow
        .redrive_each(&wide.source, RedriveOptions::new().unwanted(RedriveGuard::Move), |_| RedriveVerdict::Redrive)
        .await
        .during("all")?;
    ensure_eq!((report.moved, report.refusals()), (4, 0), "asked for: {report}");
    let mut live = numbers(&cx.drain(&mut sub, 4).await?)?;
    live.sort_unstable();
    ensure_eq!(live, [0, 1, 3, 5], "what was asked for");
    cx.expect_none(&mut sub).await
}

async fn too_large(cx: Cx) -> Outcome {
    let Some(limit) = cx.capabilities().max_queue_payload.filter(|l| *l <= 4 << 20) else {
        let limited = cx.setup(Topology::new().queue("q", QueueSpec::new())).parameter("max_message_size", "64KiB");
        return too_large_at(&cx, Fixture::queue(limited.open().await?), 64 << 10).await;
    };
    too_large_at(&cx, cx.queue(QueueSpec::new()).await?, limit).await
}

async fn too_large_at(cx: &Cx, q: Fixture, limit: usize) -> Outcome {
    const N: usize = 8;
    dead_letter_all(cx, &q, messages(0..N)).await?;
    let decide = |letter: &RedriveLetter| match n(letter) {
        3 => RedriveVerdict::RedriveAs(letter.edited().edit(|p| p.data = vec![b'x'; limit + 1].into())),
        _ => RedriveVerdict::Redrive,
    };
    let report = q.bus.redrive_each(&q.source, RedriveOptions::new(), decide).await.during("redrive")?;
    adds_up(&report)?;
    ensure_eq!((report.moved, report.refused.get("too-large")), (N as u64 - 1, Some(&1)), "{report}");
    let (live, dead) = take_live_and_dead(cx, &q, N - 1, 1).await?;
    ensure_eq!((live, dead), ((0..N).filter(|n| *n != 3).collect(), vec![3]), "what is back, and what stays");
    Ok(())
}

/// Redrives letters as edited messages, and checks what comes back.
async fn edited(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let original = message(1).source("/suite").subject("before").header("tenant", "acme").header("old", "yes");
    dead_letter_all(&cx, &q, vec![original.clone(), message(2)]).await?;
    let new = Envelope::new("test.mended", "7").source("/mender").subject("after").header("tenant", "acme");
    let decide = |letter: &RedriveLetter| match n(letter) {
        1 => RedriveVerdict::RedriveAs(new.clone()),
        _ => RedriveVerdict::RedriveAs(letter.envelope().clone().header("same-id", "yes")),
    };
    let report = q.bus.redrive_each(&q.source, RedriveOptions::new(), decide).await.during("redrive")?;
    ensure_eq!((report.moved, report.read), (2, 2), "{report}");
    let mut sub = q.subscribe(4).await?;
    for delivery in cx.collect(&mut sub, 2).await? {
        ensure_eq!(delivery.attempt(), 1, "attempt after the redrive");
        ensure_eq!(delivery.dead_letter_info(), None, "what it tells of having been a dead letter");
        let e = delivery.envelope();
        if e.headers.get("same-id").is_none() {
            ensure_eq!(e, &new.clone().causation_id(original.id.clone()), "what went back in its place");
        }
        delivery.ack().await?;
    }
    cx.expect_none(&mut sub).await?;
    sub.close().await?;
    take_live_and_dead(&cx, &q, 0, 0).await.map(|_| ())
}

async fn edited_siblings(cx: Cx) -> Outcome {
    let spec = TopicSpec::new()
        .subscription("a", SubscriptionSpec::new().types(["test.*"]))
        .subscription("b", SubscriptionSpec::new());
    let t = cx.topic(spec).await?;
    let mut other = t.bus.subscribe(t.subscription("b")).prefetch(10).open().await?;
    dead_letter_all(&cx, &t, messages(0..3)).await?;
    cx.drain(&mut other, 3).await?;
    let decide = |letter: &RedriveLetter| {
        RedriveVerdict::RedriveAs(letter.edited().edit(|p| p.event_type = "test.edited".into()))
    };
    let report = t.bus.redrive_each(&t.source, RedriveOptions::new(), decide).await.during("redrive")?;
    ensure_eq!(report.moved, 3, "{report}");
    let mut sub = t.subscribe(10).await?;
    for e in cx.drain(&mut sub, 3).await? {
        ensure_eq!(&*e.event_type, "test.edited", "type of what is back");
    }
    cx.expect_none(&mut sub).await?;
    cx.expect_none(&mut other).await.during("the sibling")
}

async fn edited_key(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().ordered(true)).await?;
    dead_letter_all(&cx, &q, (0..4).map(|n| message(n).key("old")).collect()).await?;
    let decide = |letter: &RedriveLetter| match n(letter) {
        3 => RedriveVerdict::RedriveAs(letter.edited().edit(|p| p.key = None)),
        n => RedriveVerdict::RedriveAs(letter.edited().key(format!("new-{n}"))),
    };
    let report = q.bus.redrive_each(&q.source, RedriveOptions::new(), decide).await.during("redrive")?;
    adds_up(&report)?;
    let failed: Vec<ErrorKind> = report.failed.iter().map(|(_, e)| e.kind()).collect();
    ensure_eq!((report.moved, failed), (3, vec![ErrorKind::InvalidArgument]), "{report}");
    // There are three keys, and the first does not hold the others up.
    let mut sub = q.subscribe(30).await?;
    for delivery in cx.collect(&mut sub, 3).await? {
        let wanted = format!("new-{}", number(delivery.envelope())?);
        ensure_eq!(delivery.envelope().key.as_deref(), Some(&*wanted), "key of what is back");
        delivery.ack().await?;
    }
    sub.close().await?;
    let (_, dead) = take_live_and_dead(&cx, &q, 0, 1).await?;
    ensure_eq!(dead, [3], "what stays");
    Ok(())
}

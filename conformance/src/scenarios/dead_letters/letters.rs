//! Reason and metadata of dead letters, and consuming them.

use std::{collections::BTreeSet, time::Duration};

use polybus_core::{
    Delivery, Envelope, ErrorKind, QueueSpec, SettleError, Source, SubscriptionSpec, TopicSpec, Topology,
};

use crate::{
    CallCounter, Cx, During, Fixture, Need, Outcome, RawMessage, Scenario, ensure, ensure_eq, expect_kind, fail,
    message, messages, number, numbers, scenario,
    scenarios::shared::{ExpectedDelay, dead_letter_all, full_envelope, lifetime, long_lock, short_lock, wait_past},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "dead_letters/told",
            "A dead letter tells reason, detail, attempt, origin and time of its move.",
            told,
        )
        .needs(|_, c| Need::dead_letters(c)),
        scenario(
            "dead_letters/unchanged",
            "A dead letter's envelope is what was published: every field, 40 headers, all bytes.",
            unchanged,
        )
        .needs(|_, c| Need::dead_letters(c)),
        scenario(
            "dead_letters/by-the-hundred",
            "300 moves at once: each message is in the dead letters once, and none is left.",
            hundreds,
        )
        .needs(|_, c| Need::dead_letters(c)),
        scenario("dead_letters/settled", "Dead letters are released, dropped and acked like any message.", settled)
            .needs(|_, c| Need::dead_letters(c)),
        scenario(
            "dead_letters/refused",
            "On dead letters retry_after and dead_letter are Unsupported, without I/O, and give the delivery back.",
            refused,
        )
        .needs(|_, c| Need::dead_letters(c)),
        scenario("dead_letters/extended", "A dead letter's lock is renewed and can be extended.", extended)
            .needs(|_, c| Need::dead_letters(c).and(Need::locks(c))),
        scenario(
            "dead_letters/shared",
            "Two consumers on two connections share the dead letters: each goes to one.",
            shared,
        )
        .needs(|_, c| Need::dead_letters(c)),
        scenario(
            "dead_letters/siblings",
            "A subscription's dead letters are its own: its sibling gets no letter, and loses no message.",
            siblings,
        )
        .needs(|_, c| Need::dead_letters(c).and(Need::topics(c))),
        scenario("dead_letters/missing", "The dead letters of a missing queue are NotFound.", missing)
            .needs(|_, c| Need::dead_letters(c)),
        scenario(
            "dead_letters/malformed",
            "A message that cannot be decoded becomes a dead letter as malformed, and is handed out raw there.",
            malformed,
        )
        .needs(|t, c| Need::dead_letters(c).and(Need::raw(t))),
        scenario("dead_letters/purge", "Purging dead letters deletes them, and leaves the live messages.", purge)
            .needs(|_, c| Need::dead_letters(c).and(Need::purge(c))),
        scenario(
            "dead_letters/25-releases",
            "A dead letter released 25 times is still there, with what it told: max_deliveries does not apply.",
            releases,
        )
        .needs(|_, c| Need::dead_letters(c)),
        scenario(
            "dead_letters/outlives-expiry",
            "A dead letter outlives the expiry of its message, which is still told.",
            outlives_expiry,
        )
        .needs(|_, c| Need::dead_letters(c)),
    ]
}

async fn told(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish(message(1)).await?;
    let mut sub = q.subscribe(5).await?;
    cx.recv(&mut sub).await?.release().await?;
    let delivery = cx.recv(&mut sub).await?;
    ensure_eq!(delivery.dead_letter_info(), None, "what a live message tells");
    let detail = format!("größer als erlaubt\n{}", "x".repeat(1000));
    // The clocks of the client and of a broker on another machine may differ.
    let skew = Duration::from_secs(5);
    let earliest = q.bus.now() - skew;
    delivery.dead_letter("payment-refused", detail.as_str()).await?;
    let latest = q.bus.now() + skew;

    let mut dead = q.subscribe_dead(5).await?;
    let letter = cx.recv(&mut dead).await?;
    ensure_eq!(letter.source(), &Source::queue("q").dead_letters(), "source");
    let Some(info) = letter.dead_letter_info() else { fail!("nothing is told") };
    ensure_eq!(info.reason.as_deref(), Some("payment-refused"), "reason");
    ensure_eq!(info.detail.as_deref(), Some(&*detail), "detail");
    ensure_eq!(info.attempt, Some(2), "attempt at which it was given up");
    ensure_eq!(info.origin.as_deref(), Some("queue:q"), "origin");
    ensure!(
        info.time.is_some_and(|t| earliest <= t && t <= latest),
        "time {:?}, not {earliest} to {latest}",
        info.time
    );
    ensure_eq!(letter.attempt(), 1, "attempt on the dead letters");
    letter.ack().await?;

    // An empty detail is kept as well.
    q.publish(message(2)).await?;
    cx.recv(&mut sub).await?.dead_letter("no-detail", "").await?;
    let letter = cx.recv(&mut dead).await?;
    let info = letter.dead_letter_info().cloned().unwrap_or_default();
    ensure_eq!(info.reason.as_deref(), Some("no-detail"), "second reason");
    ensure!(info.detail.is_none_or(|d| d.is_empty()), "second detail is not empty");
    letter.ack().await?;
    cx.expect_none(&mut dead).await?;
    cx.expect_none(&mut sub).await
}

async fn unchanged(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let sent =
        vec![full_envelope(&cx, &q), Envelope::new("test.empty", "").source("suite"), message(3).source("suite")];
    dead_letter_all(&cx, &q, sent.clone()).await?;
    let mut dead = q.subscribe_dead(5).await?;
    let got = cx.drain(&mut dead, sent.len()).await?;
    for sent in &sent {
        let Some(got) = got.iter().find(|e| e.id == sent.id) else { fail!("no dead letter with id {}", sent.id) };
        ensure_eq!(got, sent, "dead letter");
    }
    cx.expect_none(&mut dead).await
}

async fn hundreds(cx: Cx) -> Outcome {
    const N: usize = 300;
    let q = cx.queue(QueueSpec::new()).await?;
    dead_letter_all(&cx, &q, messages(0..N)).await?;
    let mut dead = q.subscribe_dead(N).await?;
    let mut got = numbers(&cx.drain(&mut dead, N).await?)?;
    got.sort_unstable();
    ensure_eq!(got, (0..N).collect::<Vec<_>>(), "dead letters");
    cx.expect_none(&mut dead).await?;
    let mut sub = q.subscribe(5).await?;
    cx.expect_none(&mut sub).await
}

async fn settled(cx: Cx) -> Outcome {
    let lock = long_lock(&cx);
    let q = cx.queue(QueueSpec::new().lock(lock)).await?;
    dead_letter_all(&cx, &q, messages(0..4)).await?;
    let mut dead = q.subscribe_dead(4).await?;
    let at_once = ExpectedDelay::of(Duration::ZERO, async {
        for (i, letter) in cx.collect(&mut dead, 4).await?.into_iter().enumerate() {
            match i {
                0 | 1 => letter.release().await?,
                2 => drop(letter),
                _ => letter.ack().await?,
            }
        }
        Ok(())
    })
    .await?;
    let again = cx.collect(&mut dead, 3).await?;
    at_once.check_at_once(&cx, lock)?;
    for letter in &again {
        let reason = letter.dead_letter_info().and_then(|d| d.reason.as_deref());
        ensure_eq!(reason, Some("unwanted"), "reason after a release");
        // The broker decides whether a release of a dead letter counts: Service Bus counts none.
        ensure!(letter.attempt() >= 1, "attempt {} after a release", letter.attempt());
    }
    let mut left: BTreeSet<usize> = numbers(again.iter().map(Delivery::envelope))?.into_iter().collect();
    dead.close().await?;
    drop(again);

    let mut dead = q.subscribe_dead(4).await?;
    for letter in cx.drain(&mut dead, 3).await.during("what the closed consumer gave back")? {
        ensure!(left.remove(&number(&letter)?), "not one of those left: {letter:?}");
    }
    cx.expect_none(&mut dead).await?;
    let mut sub = q.subscribe(4).await?;
    cx.expect_none(&mut sub).await
}

async fn refused(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).counting(&calls).open().await?;
    let q = Fixture::queue(bus);
    dead_letter_all(&cx, &q, messages(0..1)).await?;
    let mut dead = q.subscribe_dead(1).await?;
    let letter = cx.recv(&mut dead).await?;
    let before = calls.settles();
    let letter = given_back(letter.retry_after(Duration::from_secs(1)).await).during("retry_after")?;
    let letter = given_back(letter.retry_after(Duration::ZERO).await).during("retry_after without delay")?;
    let letter = given_back(letter.dead_letter("twice", "").await).during("dead_letter")?;
    ensure_eq!(calls.settles(), before, "calls that reached the driver");
    letter.ack().await.during("ack of the delivery that was given back")?;
    cx.expect_none(&mut dead).await
}

fn given_back(result: Result<(), SettleError>) -> Outcome<Delivery> {
    match result {
        Ok(()) => fail!("it was taken"),
        Err(e) if e.error().kind() != ErrorKind::Unsupported => fail!("expected Unsupported, got {e:?}"),
        Err(e) => match e.into_parts() {
            (_, Some(delivery)) => Ok(delivery),
            (e, None) => fail!("the delivery was not given back: {e:?}"),
        },
    }
}

async fn extended(cx: Cx) -> Outcome {
    let lock = short_lock(&cx);
    let q = cx.queue(QueueSpec::new().lock(lock)).await?;
    dead_letter_all(&cx, &q, messages(0..1)).await?;
    let mut renewing = q.subscribe_dead(2).await?;
    let letter = cx.recv(&mut renewing).await?;
    cx.expect_none_for(&mut renewing, lock * 2).await.during("while the lock is renewed")?;
    ensure!(letter.is_held(), "the lock was not renewed");
    renewing.close().await?;
    drop(letter);

    let sub = q.bus.subscribe(q.source.dead_letters()).prefetch(2).renew_locks(false).open().await;
    let mut sub = sub.during("subscribe without renewal")?;
    let mut letter = cx.recv(&mut sub).await?;
    for i in 0..5 {
        letter.extend(lock).await.during(format!("extend {i}"))?;
        cx.expect_none_for(&mut sub, lock / 3).await?;
    }
    letter.ack().await?;
    cx.expect_none_for(&mut sub, lock).await
}

async fn shared(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    let (mut one, mut two) = (q.subscribe_dead(3).await?, other.subscribe_dead(3).await?);
    dead_letter_all(&cx, &q, messages(0..6)).await?;
    let mut held = cx.collect(&mut one, 3).await?;
    held.extend(cx.collect(&mut two, 3).await?);
    let mut seen = BTreeSet::new();
    for letter in held {
        ensure!(seen.insert(number(letter.envelope())?), "handed out twice: {letter:?}");
        letter.ack().await?;
    }
    cx.expect_none(&mut one).await?;
    cx.expect_none(&mut two).await
}

async fn siblings(cx: Cx) -> Outcome {
    let spec = SubscriptionSpec::new;
    let t = cx.topic(TopicSpec::new().subscription("a", spec()).subscription("b", spec())).await?;
    dead_letter_all(&cx, &t, messages(0..3)).await?;
    let b = t.subscription("b");
    let mut dead_b = t.bus.subscribe(b.dead_letters()).prefetch(5).open().await?;
    let mut dead_a = t.subscribe_dead(5).await?;
    let letters = cx.collect(&mut dead_a, 3).await?;
    for letter in letters {
        let origin = letter.dead_letter_info().and_then(|d| d.origin.clone());
        ensure_eq!(origin.as_deref(), Some("subscription:t/a"), "origin");
        letter.ack().await?;
    }
    cx.expect_none(&mut dead_b).await?;
    let mut live_b = t.bus.subscribe(b).prefetch(5).open().await?;
    let mut got = numbers(&cx.drain(&mut live_b, 3).await?)?;
    got.sort_unstable();
    ensure_eq!(got, [0, 1, 2], "what the sibling got");
    cx.expect_none(&mut live_b).await?;
    cx.expect_none(&mut dead_a).await
}

async fn missing(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    match q.bus.subscribe(Source::queue("not-there").dead_letters()).open().await {
        Ok(mut dead) => cx.expect_end(&mut dead, ErrorKind::NotFound).await,
        opened => {
            expect_kind!(opened.map(drop), ErrorKind::NotFound, "subscribe to the dead letters of a missing queue");
            Ok(())
        }
    }
}

async fn malformed(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    cx.inject(&q.bus, &q.address, RawMessage::undecodable()).await?;
    q.publish(message(1)).await?;
    let mut sub = q.subscribe(1).await?;
    ensure_eq!(numbers(&cx.drain(&mut sub, 1).await?)?, [1], "what a handler sees");
    let mut dead = q.subscribe_dead(1).await?;
    // The dead letter is not lost by being looked at: it comes again after each release.
    for _ in 0..2 {
        let letter = cx.recv(&mut dead).await?;
        let reason = letter.dead_letter_info().and_then(|d| d.reason.as_deref());
        ensure_eq!(reason, Some("malformed"), "reason");
        ensure!(letter.malformed().is_some_and(|why| !why.is_empty()), "it does not tell why it cannot be decoded");
        ensure_eq!(letter.envelope().data, RawMessage::undecodable().body, "body");
        letter.release().await?;
    }
    cx.drain(&mut dead, 1).await?;
    cx.expect_none(&mut dead).await?;
    cx.expect_none(&mut sub).await
}

async fn purge(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    dead_letter_all(&cx, &q, messages(0..5)).await?;
    q.publish_all(messages(5..8)).await?;
    let purged = q.bus.purge(&q.source.dead_letters()).await.during("purge")?;
    if cx.target().counts == crate::CountAccuracy::Exact {
        ensure_eq!(purged, 5, "how many were purged");
    }
    let mut dead = q.subscribe_dead(5).await?;
    cx.expect_none(&mut dead).await?;
    let mut sub = q.subscribe(5).await?;
    let mut live = numbers(&cx.drain(&mut sub, 3).await?)?;
    live.sort_unstable();
    ensure_eq!(live, [5, 6, 7], "live messages");
    cx.expect_none(&mut sub).await
}

async fn releases(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(2)).await?;
    dead_letter_all(&cx, &q, messages(0..1)).await?;
    let mut dead = q.subscribe_dead(1).await?;
    for i in 0..25 {
        let letter = cx.recv(&mut dead).await.during(format!("before release {i}"))?;
        let Some(info) = letter.dead_letter_info() else { fail!("nothing is told before release {i}") };
        ensure_eq!(info.reason.as_deref(), Some("unwanted"), "reason before release {i}");
        ensure_eq!(info.attempt, Some(1), "attempt at which it was given up, before release {i}");
        if i % 5 == 4 {
            drop(letter);
        } else {
            letter.release().await.during(format!("release {i}"))?;
        }
    }
    ensure_eq!(numbers(&cx.drain(&mut dead, 1).await?)?, [0], "dead letter in the end");
    cx.expect_none(&mut dead).await?;
    let mut sub = q.subscribe(1).await?;
    cx.expect_none(&mut sub).await
}

async fn outlives_expiry(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.bus.publisher(&q.address).await.during("open the sender")?;
    let expires = q.bus.now() + lifetime(&cx, Duration::from_secs(2));
    let sent = vec![message(1).source("suite").expires_at(expires)];
    dead_letter_all(&cx, &q, sent.clone()).await.during("before it expires")?;
    wait_past(&q.bus, expires).await;
    let mut dead = q.subscribe_dead(1).await?;
    let letter = cx.recv(&mut dead).await.during("after it has expired")?;
    ensure_eq!(letter.envelope(), &sent[0], "dead letter");
    Ok(letter.ack().await?)
}

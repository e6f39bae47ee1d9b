//! What several groups need.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use polybus_core::{Address, Bus, Envelope, Error, ErrorKind, Receipt, Subscription};
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};

use crate::{Cx, During, Failure, Fixture, Outcome, ensure, fail};

/// Each message that was sent has come, once, and nothing else.
pub(super) fn same(sent: &[Envelope], got: &[Envelope], what: &str) -> Outcome {
    let mut counts: BTreeMap<&str, i32> = sent.iter().map(|e| (&*e.id, 0)).collect();
    let mut strange = 0;
    for envelope in got {
        match counts.get_mut(&*envelope.id) {
            Some(n) => *n += 1,
            None => strange += 1,
        }
    }
    let lost = counts.values().filter(|n| **n == 0).count();
    let twice = counts.values().filter(|n| **n > 1).count();
    ensure!(
        lost + twice + strange == 0,
        "{what}: of {} messages {lost} were lost and {twice} came more than once; {strange} were never sent",
        sent.len()
    );
    Ok(())
}

/// Takes and acks what is left: `least` messages with patience, however slow the broker is, then until nothing comes
/// for the quiet window. What came is returned, also if it is less: the caller judges it. 0 where nothing has to come.
pub(super) async fn rest(cx: &Cx, sub: &mut Subscription, least: usize) -> Outcome<Vec<Envelope>> {
    rest_while(cx, sub, |all| all.len() < least).await
}

/// The same until each of these has come, where some of them may come twice.
pub(super) async fn rest_with(cx: &Cx, sub: &mut Subscription, wanted: &[Envelope]) -> Outcome<Vec<Envelope>> {
    let mut missing: BTreeSet<&str> = wanted.iter().map(|e| &*e.id).collect();
    let lacks = move |all: &[Envelope]| {
        if let Some(last) = all.last() {
            missing.remove(&*last.id);
        }
        !missing.is_empty()
    };
    rest_while(cx, sub, lacks).await
}

/// The same while something is lacking; asked after each message. Where the clock is ours nothing is late, and the
/// window is enough.
pub(super) async fn rest_while(
    cx: &Cx,
    sub: &mut Subscription,
    mut lacks: impl FnMut(&[Envelope]) -> bool,
) -> Outcome<Vec<Envelope>> {
    let mut all = Vec::new();
    loop {
        let wait = if lacks(&all) && !cx.time_is_free() { cx.patience() } else { cx.quiet() };
        match timeout(wait, sub.next()).await {
            Err(_) => return Ok(all),
            Ok(Some(delivery)) => {
                let delivery = delivery?;
                all.push(delivery.envelope().clone());
                delivery.ack().await.during("ack of what is left")?;
            }
            Ok(None) => return Err(Failure::new(format!("{} ended", sub.source()))),
        }
    }
}

/// Publishes each in a task of its own, all at once; the results in order.
pub(super) fn publish_each<'a>(
    bus: &Bus,
    messages: impl IntoIterator<Item = (&'a Address, &'a Envelope)>,
) -> impl Future<Output = Outcome<Vec<Result<Receipt, Error>>>> + Send + 'static {
    let tasks: Vec<_> = messages.into_iter().map(|(to, message)| tokio::spawn(bus.publish(to, message))).collect();
    async move {
        let mut results = Vec::with_capacity(tasks.len());
        for task in tasks {
            results.push(task.await?);
        }
        Ok(results)
    }
}

/// Publishes this message until it is Ok, or fails in this way.
pub(super) async fn publish_until(cx: &Cx, f: &Fixture, message: &Envelope, wanted: Option<ErrorKind>) -> Outcome {
    let deadline = cx.deadline() + cx.patience();
    loop {
        let result = f.bus.publish(&f.address, message).await;
        let kind = result.as_ref().err().map(Error::kind);
        if kind == wanted {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "a publish should end as {wanted:?} by now: {result:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The messages whose result is Ok; every error must be of this kind.
pub(super) fn stored<'a>(
    messages: impl IntoIterator<Item = &'a Envelope>,
    results: &[Result<Receipt, Error>],
    kind: ErrorKind,
) -> Outcome<Vec<Envelope>> {
    let mut stored = Vec::new();
    for (i, (message, result)) in messages.into_iter().zip(results).enumerate() {
        match result {
            Ok(_) => stored.push(message.clone()),
            Err(e) if e.kind() == kind => {}
            Err(e) => fail!("result {i}: expected Ok or {kind}, got {e:?}"),
        }
    }
    Ok(stored)
}

/// How long a lock to ask for where one is meant to be renewed or to run out; the same all through a scenario.
pub(super) fn short_lock(cx: &Cx) -> Duration {
    cx.short_lock()
}

/// The same where the end of many such locks is waited for, and a renewal that is late costs no promise.
pub(super) fn shorter_lock(cx: &Cx) -> Duration {
    let least = cx.capabilities().lock_range.map_or(Duration::ZERO, |(least, _)| least);
    short_lock(cx).min(Duration::from_secs(10)).max(least)
}

/// A lock so long that what comes at its end is not taken for what comes at once, on however slow a machine.
pub(super) fn long_lock(cx: &Cx) -> Duration {
    let (least, most) = cx.capabilities().lock_range.unwrap_or((Duration::ZERO, Duration::MAX));
    Duration::from_secs(60).max(least).min(most)
}

/// How long a message lives that must be published, or seen, before it expires: as this machine is just now.
pub(super) fn lifetime(cx: &Cx, usual: Duration) -> Duration {
    if cx.time_is_free() { usual } else { cx.lateness(usual.max(Duration::from_secs(8))) }
}

/// Waits until this time is over by the clock of this bus, and half a second more.
pub(super) async fn past(bus: &Bus, time: OffsetDateTime) {
    while bus.now() <= time + Duration::from_millis(500) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A retry's delay in which some messages are surely received and acked: a second where the clock is ours.
pub(super) fn roomy_delay(cx: &Cx) -> Duration {
    let delay = cx.lateness(Duration::from_secs(5)).as_secs() + 1;
    Duration::from_secs(if cx.time_is_free() { 1 } else { delay })
}

/// Fails with the fields in which what came differs from what was sent.
pub(super) fn difference(sent: &Envelope, got: &Envelope) -> Outcome {
    let mut fields = Vec::new();
    macro_rules! compare {
        ($($field:ident),*) => {$(
            if sent.$field != got.$field {
                fields.push(format!("{}: sent {:?}, got {:?}", stringify!($field), sent.$field, got.$field));
            }
        )*};
    }
    compare!(id, event_type, source, time, subject, schema_version, data_schema, content_type, correlation_id);
    compare!(causation_id, key, sequence, expires_at, traceparent, tracestate, extensions, headers);
    if sent.data != got.data {
        let at = sent.data.iter().zip(&got.data).position(|(a, b)| a != b);
        fields.push(format!("data: sent {} bytes, got {}, first other one at {at:?}", sent.data.len(), got.data.len()));
    }
    ensure!(fields.is_empty() && sent == got, "not as it was sent: {}", fields.join("; "));
    Ok(())
}

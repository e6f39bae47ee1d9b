//! Taking what a source holds, and comparing it with what was sent.

use std::collections::{BTreeMap, BTreeSet};

use polybus_core::{Envelope, Subscription};
use tokio::time::timeout;

use crate::{Cx, During, Failure, Outcome, ensure};

/// Fails unless each message that was sent came exactly once, and nothing else came.
pub(crate) fn expect_same(sent: &[Envelope], got: &[Envelope], what: &str) -> Outcome {
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

/// Acks what is left in a source and returns it: waits for `least` messages with patience, then until nothing comes for
/// the quiet window. Fewer messages are no failure here: the caller judges.
pub(crate) async fn take_rest(cx: &Cx, sub: &mut Subscription, least: usize) -> Outcome<Vec<Envelope>> {
    take_rest_while(cx, sub, |all| all.len() < least).await
}

/// Like [`take_rest`], but waits with patience until each of `wanted` has come. Some of them may come twice.
pub(crate) async fn take_rest_with(cx: &Cx, sub: &mut Subscription, wanted: &[Envelope]) -> Outcome<Vec<Envelope>> {
    let mut missing: BTreeSet<&str> = wanted.iter().map(|e| &*e.id).collect();
    let lacks = move |all: &[Envelope]| {
        if let Some(last) = all.last() {
            missing.remove(&*last.id);
        }
        !missing.is_empty()
    };
    take_rest_while(cx, sub, lacks).await
}

/// Like [`take_rest`], but waits with patience while `lacks` says that something is missing. On the paused clock
/// nothing is late, and the quiet window is enough.
pub(crate) async fn take_rest_while(
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

/// Fails unless what came is what was sent, and names the fields that differ.
pub(crate) fn expect_equal(sent: &Envelope, got: &Envelope) -> Outcome {
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

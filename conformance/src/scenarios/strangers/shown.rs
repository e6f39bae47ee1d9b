//! What other producers set is shown: in a field of the envelope where there is one, else in a header `native.<name>`.

use std::time::Duration;

use polybus_core::{Delivery, QueueSpec};

use super::{group, redrive};
use crate::{Cx, During, Need, Outcome, RawMessage, RawValue, Scenario, ensure, ensure_eq, scenario};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "strangers/shown",
            "Correlation id, subject, reply address, type, app and encoding of others are shown at every hand-over.",
            shown,
        )
        .needs(|t, c| {
            Need::raw(t).and(Need::redrive(c)).and(Need::when(shows_any(t), "its messages have no properties"))
        }),
        scenario(
            "strangers/unshown-is-named",
            "A header that is no text is named, so that a handler knows that it is there.",
            unshown,
        )
        .needs(|t, _| Need::carries(t, &RawMessage::body("0").header("signature", RawValue::Binary(vec![0, 255])))),
    ]
}

/// How to set a property of a raw message, where to find it in the delivery, and the value.
type ShownProperty = (fn(RawMessage) -> RawMessage, fn(&Delivery) -> Option<&str>, &'static str);

fn header<'a>(delivery: &'a Delivery, name: &str) -> Option<&'a str> {
    delivery.envelope().headers.get(name)
}

const PROPERTIES: &[ShownProperty] = &[
    (|raw| raw.correlation_id("call-1"), |d| d.envelope().correlation_id.as_deref(), "call-1"),
    (|raw| raw.subject("a subject"), |d| d.envelope().subject.as_deref(), "a subject"),
    (|raw| raw.reply_to("answers"), |d| header(d, "native.reply-to"), "answers"),
    (|raw| raw.kind("order placed"), |d| header(d, "native.type"), "order placed"),
    (|raw| raw.app_id("billing 2.1"), |d| header(d, "native.app-id"), "billing 2.1"),
    (|raw| raw.content_encoding("gzip"), |d| header(d, "native.content-encoding"), "gzip"),
];

fn shows_any(target: &crate::Target) -> bool {
    PROPERTIES.iter().any(|(set, ..)| target.raw.as_ref().is_some_and(|raw| raw.carries(&set(RawMessage::body("0")))))
}

async fn shown(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(20)).await?;
    let (mut raw, mut carried) = (RawMessage::body("0"), Vec::new());
    for property in PROPERTIES {
        let more = property.0(raw.clone());
        if cx.carries(&more) {
            raw = more;
            carried.push(property);
        }
    }
    let grouped = raw.clone().group("group-1");
    let grouped = (cx.carries(&grouped) && !cx.carries(&raw.clone().routing_key("k"))).then_some(grouped);
    let with_group = grouped.is_some();
    cx.inject(&q.bus, &q.address, grouped.unwrap_or(raw)).await?;
    let check = |delivery: &Delivery, when: &str| -> Outcome {
        for (_, find, wanted) in &carried {
            ensure_eq!(find(delivery), Some(*wanted), "a property of {:?} {when}", delivery.envelope());
        }
        ensure!(!with_group || group(delivery.envelope()) == Some("group-1"), "the group is not shown {when}");
        Ok(())
    };
    let mut sub = q.subscribe(1).await?;
    let delivery = cx.recv(&mut sub).await?;
    check(&delivery, "as it came")?;
    delivery.release().await?;
    let mut delivery = cx.recv(&mut sub).await?;
    check(&delivery, "after a release")?;
    if cx.capabilities().max_retry_delay.is_some() {
        delivery.retry_after(Duration::from_millis(200)).await?;
        delivery = cx.recv(&mut sub).await?;
        check(&delivery, "after a retry")?;
    }
    delivery.dead_letter("unfit", "").await?;
    let mut dead = q.subscribe_dead(1).await?;
    let letter = cx.recv(&mut dead).await?;
    check(&letter, "on the dead letters")?;
    letter.release().await?;
    dead.close().await?;
    redrive(&q, 1).await?;
    let delivery = cx.recv(&mut sub).await?;
    check(&delivery, "after a redrive")?;
    Ok(delivery.ack().await?)
}

async fn unshown(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let raw = RawMessage::body("0")
        .header("signature", RawValue::Binary(vec![0, 159, 146, 150, 255]))
        .header("tenant", RawValue::Text("acme".into()));
    cx.inject(&q.bus, &q.address, raw).await?;
    let (_sub, got) = q.one(&cx).await.during("a message with bytes in a header")?;
    ensure_eq!(header(&got, "tenant"), Some("acme"), "the readable header");
    let named = header(&got, "native.unshown").unwrap_or_default();
    let shown = named.split(',').any(|name| name.trim() == "signature") || header(&got, "signature").is_some();
    ensure!(shown, "the bytes are neither shown nor named: {:?}", got.envelope().headers);
    Ok(got.ack().await?)
}

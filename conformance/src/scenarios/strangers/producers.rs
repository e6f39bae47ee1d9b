//! What other producers leave out and what they set, through everything that can happen to a message.

use std::time::Duration;

use polybus_core::{Envelope, Headers, QueueSpec, SubscriptionSpec, TopicSpec};

use super::{collect_each, redrive};
use crate::{
    Cx, During, Fixture, Need, Outcome, RawMessage, RawValue, Scenario, ensure_eq, scenario,
    scenarios::shared::expect_equal,
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "strangers/every-fate",
            "Whatever others set or leave out: handled, released, retried, dead-lettered, redriven, it is there and the same.",
            every_fate,
        )
        .needs(|t, c| Need::raw(t).and(Need::redrive(c)))
        .timeout(Duration::from_secs(120)),
        scenario(
            "strangers/own-routing",
            "A message that others route by their own key is handed out, and stays with its subscription whatever its fate.",
            own_routing,
        )
        .needs(|t, c| {
            Need::carries(t, &RawMessage::body("0").routing_key("order.placed")).and(Need::topics(c)).and(Need::redrive(c))
        }),
    ]
}

/// The envelope without what a broker sets anew for each copy: its time, and headers about the way it took.
fn without_copy_fields(envelope: &Envelope) -> Envelope {
    envelope.clone().edit(|parts| {
        parts.time = None;
        // The copy of a message with a time to live may tell when that ends.
        parts.expires_at = None;
        let mut headers = Headers::new();
        for (name, value) in parts.headers.iter() {
            if !name.starts_with("native.") && !name.starts_with("x-") {
                headers.push(name, value);
            }
        }
        parts.headers = headers;
    })
}

/// Odd messages of other producers, those that the broker can carry. The body of each is its number.
fn odd_messages(cx: &Cx) -> Vec<RawMessage> {
    let text = |text: &str| RawValue::Text(text.into());
    let make: Vec<fn(RawMessage) -> RawMessage> = vec![
        |raw| raw,
        |raw| raw.message_id("an id of theirs: ümläut"),
        |raw| raw.correlation_id("call-1").reply_to("answers"),
        |raw| raw.subject("a subject"),
        |raw| raw.kind("order placed"),
        |raw| raw.app_id("billing 2.1"),
        |raw| raw.content_type("text/plain; charset=latin1").content_encoding("gzip"),
        |raw| raw.content_type("no media type at all"),
        |raw| raw.ttl(Duration::from_secs(3600)),
        |raw| raw.header("signature", RawValue::Binary(vec![0, 159, 146, 150, 255])),
        |raw| raw.header("count", RawValue::Int(-7)).header("table", RawValue::Nested),
        // Half a CloudEvent, and attributes without a meaning.
        |raw| raw.attribute("type", "order.placed").attribute("source", "/x"),
        |raw| raw.attribute("time", "yesterday").attribute("subject", "half"),
    ];
    let mut all: Vec<RawMessage> = make.into_iter().map(|f| f(RawMessage::body(""))).collect();
    all.push(RawMessage::body("").header("tenant", text("acme")).header("X-Request-Id", text("r-1")));
    all.retain(|raw| cx.carries(&RawMessage { body: "0".into(), ..raw.clone() }));
    for (n, raw) in all.iter_mut().enumerate() {
        raw.body = n.to_string().into();
    }
    all
}

async fn every_fate(cx: Cx) -> Outcome {
    let spec = QueueSpec::new().max_deliveries(20);
    let q = cx.queue(spec).await?;
    let all = odd_messages(&cx);
    for raw in &all {
        cx.inject(&q.bus, &q.address, raw.clone()).await?;
    }
    fates(&cx, &q, all.len()).await
}

/// Takes `n` messages through release, retry, dead letters and redrive, and checks that they stay as they were.
async fn fates(cx: &Cx, f: &Fixture, n: usize) -> Outcome {
    let mut sub = f.subscribe(n).await?;
    let first = collect_each(cx, &mut sub, n).await.during("as they were sent")?;
    let sent: Vec<_> = first.iter().map(|d| without_copy_fields(d.envelope())).collect();
    for delivery in first {
        ensure_eq!(delivery.attempt(), 1, "attempt of {:?}", delivery.envelope());
        delivery.release().await?;
    }
    let mut attempt = 2;
    if cx.capabilities().max_retry_delay.is_some() {
        for (sent, delivery) in sent.iter().zip(collect_each(cx, &mut sub, n).await.during("released")?) {
            expect_equal(sent, &without_copy_fields(delivery.envelope())).during("released")?;
            ensure_eq!(delivery.attempt(), attempt, "attempt of what was released");
            delivery.retry_after(Duration::from_secs(1)).await.during("retry")?;
        }
        attempt += 1;
    }
    for (sent, delivery) in sent.iter().zip(collect_each(cx, &mut sub, n).await.during("retried")?) {
        expect_equal(sent, &without_copy_fields(delivery.envelope())).during("retried")?;
        ensure_eq!(delivery.attempt(), attempt, "attempt of what was retried");
        delivery.dead_letter("odd", "as others made it").await.during("dead_letter")?;
    }
    let mut dead = f.subscribe_dead(n).await?;
    for (sent, letter) in sent.iter().zip(collect_each(cx, &mut dead, n).await.during("dead-lettered")?) {
        expect_equal(sent, &without_copy_fields(letter.envelope())).during("dead-lettered")?;
        letter.release().await?;
    }
    dead.close().await?;
    redrive(f, n).await?;
    for (sent, delivery) in sent.iter().zip(collect_each(cx, &mut sub, n).await.during("redriven")?) {
        expect_equal(sent, &without_copy_fields(delivery.envelope())).during("redriven")?;
        ensure_eq!(delivery.attempt(), 1, "attempt after the redrive");
        delivery.ack().await?;
    }
    cx.expect_none(&mut sub).await?;
    sub.close().await?;
    let mut dead = f.subscribe_dead(1).await?;
    cx.expect_none(&mut dead).await
}

async fn own_routing(cx: Cx) -> Outcome {
    let types = |filter: &'static str| SubscriptionSpec::new().types([filter]);
    let t = cx.topic(TopicSpec::new().subscription("a", types("order.*")).subscription("b", types("stock.*"))).await?;
    for (n, key) in ["order.placed", "order.a.b", "stock.low"].into_iter().enumerate() {
        cx.inject(&t.bus, &t.address, RawMessage::body(n.to_string()).routing_key(key)).await?;
    }
    fates(&cx, &t, 2).await?;
    let mut sub = t.bus.subscribe(t.subscription("b")).prefetch(5).open().await?;
    ensure_eq!(crate::numbers(&cx.drain(&mut sub, 1).await?)?, [2], "what the other subscription gets");
    cx.expect_none(&mut sub).await
}

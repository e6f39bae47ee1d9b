//! Messages that polybus did not write: CloudEvents in both modes, others, and ones that cannot be decoded.

use polybus_core::{Envelope, QueueSpec, SubscriptionSpec, TopicSpec};

use crate::{
    Cx, During, Failure, Fixture, Need, Outcome, RawMessage, RawValue, Scenario, ensure, ensure_eq, fail, message,
    scenario,
    scenarios::shared::{expect_equal, take_rest},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario("data/binary-mode", "A CloudEvent in binary mode from elsewhere is read in full.", binary_mode)
            .needs(|t, _| Need::raw(t)),
        scenario("data/structured-mode", "A CloudEvent in structured mode from elsewhere is read in full.", structured)
            .needs(|t, _| Need::raw(t)),
        scenario("data/foreign", "A message that is no CloudEvent is handed out with its body and headers.", foreign)
            .needs(|t, _| Need::raw(t)),
        scenario(
            "data/foreign-settled",
            "A foreign message can be released, dead-lettered and read again, its body unchanged.",
            foreign_settled,
        )
        .needs(|t, c| Need::raw(t).and(Need::dead_letters(c))),
        scenario(
            "data/foreign-headers",
            "Numbers, tables and brokers' own counters in a message's headers break nothing.",
            foreign_headers,
        )
        .needs(|t, _| Need::raw(t)),
        scenario(
            "data/undecodable",
            "A message that cannot be decoded is dead-lettered as malformed, unseen by handlers; the others go on.",
            undecodable,
        )
        .needs(|t, c| Need::raw(t).and(Need::dead_letters(c))),
        scenario(
            "data/undecodable-on-a-topic",
            "A message that cannot be decoded goes to the dead letters of the subscription that got it.",
            undecodable_on_a_topic,
        )
        .needs(|t, c| Need::raw(t).and(Need::topics(c)).and(Need::dead_letters(c))),
    ]
}

async fn binary_mode(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let raw = RawMessage::body(vec![1, 2, 255])
        .content_type("image/png")
        .attribute("specversion", "1.0")
        .attribute("id", "a-1")
        .attribute("type", "order.placed")
        .attribute("source", "/elsewhere")
        .attribute("time", "2024-02-29T12:34:56.5+05:30")
        .attribute("subject", "s")
        .attribute("dataschema", "urn:schema")
        .attribute("partitionkey", "k")
        .attribute("sequence", "12")
        .attribute("schemaversion", "3")
        .attribute("correlationid", "c1")
        .attribute("causationid", "c2")
        .attribute("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .attribute("comexampleextra", "kept")
        .header("tenant", RawValue::Text("acme".into()));
    if !cx.carries(&raw) {
        return small_binary_mode(cx, q).await;
    }
    cx.inject(&q.bus, &q.address, raw).await?;
    let time = time::OffsetDateTime::from_unix_timestamp(1_709_190_296).map_err(|e| Failure::new(e.to_string()))?;
    let wanted = Envelope::bare("order.placed", vec![1, 2, 255])
        .id("a-1")
        .source("/elsewhere")
        .time(time + time::Duration::milliseconds(500))
        .subject("s")
        .data_schema("urn:schema")
        .content_type("image/png")
        .key("k")
        .sequence(12)
        .schema_version(3)
        .correlation_id("c1")
        .causation_id("c2")
        .traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .header("tenant", "acme")
        .edit(|p| p.extensions.push("comexampleextra", "kept"));
    let (_sub, got) = q.one(&cx).await?;
    expect_equal(&wanted, got.envelope())?;
    ensure_eq!(got.attempt(), 1, "attempt");
    got.ack().await?;
    Ok(())
}

/// A smaller message for brokers whose bodies are text and whose headers are few.
async fn small_binary_mode(cx: Cx, q: Fixture) -> Outcome {
    let raw = RawMessage::body("<a/>")
        .content_type("text/xml")
        .attribute("specversion", "1.0")
        .attribute("id", "a-1")
        .attribute("type", "order.placed")
        .attribute("source", "/elsewhere")
        .attribute("subject", "s")
        .attribute("partitionkey", "k")
        .attribute("comexampleextra", "kept")
        .header("tenant", RawValue::Text("acme".into()));
    cx.inject(&q.bus, &q.address, raw).await?;
    let wanted = Envelope::bare("order.placed", "<a/>")
        .id("a-1")
        .source("/elsewhere")
        .subject("s")
        .content_type("text/xml")
        .key("k")
        .header("tenant", "acme")
        .edit(|p| p.extensions.push("comexampleextra", "kept"));
    let (_sub, got) = q.one(&cx).await?;
    expect_equal(&wanted, got.envelope())?;
    ensure_eq!(got.attempt(), 1, "attempt");
    got.ack().await?;
    Ok(())
}

async fn structured(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let documents = [
        r#"{"specversion":"1.0","id":"1","type":"order.placed","source":"/x","datacontenttype":"application/json","data":{"n":[1,2]}}"#,
        r#"{"data_base64":"AAEC/w==","source":"/x","subject":"s","type":"order.placed","id":"2","specversion":"1.0","partitionkey":"k"}"#,
        r#"{"specversion":"1.0","id":"3","type":"order.placed","source":"/x","datacontenttype":"text/plain","data":"gr\u00fc\u00df","schemaversion":"4"}"#,
        r#"{"specversion":"1.0","id":"4","type":"order.placed","source":"/x"}"#,
    ];
    for document in documents {
        cx.inject(&q.bus, &q.address, RawMessage::structured(document)).await?;
    }
    let mut sub = q.subscribe(10).await?;
    let got = cx.drain(&mut sub, documents.len()).await?;
    let find = |id: &str| got.iter().find(|e| &*e.id == id).ok_or_else(|| Failure::new(format!("no message {id}")));
    for envelope in &got {
        ensure_eq!((&*envelope.event_type, &*envelope.source), ("order.placed", "/x"), "type and source");
    }
    let json: serde_json::Value = serde_json::from_slice(&find("1")?.data).map_err(|e| Failure::new(e.to_string()))?;
    ensure_eq!(json, serde_json::json!({ "n": [1, 2] }), "JSON data");
    ensure_eq!(&*find("2")?.data, &[0, 1, 2, 255], "base64 data");
    ensure_eq!((find("2")?.subject.as_deref(), find("2")?.key.as_deref()), (Some("s"), Some("k")), "attributes");
    ensure_eq!(&*find("3")?.data, "grüß".as_bytes(), "text data");
    ensure_eq!(find("3")?.schema_version, Some(4), "schema version");
    ensure!(find("4")?.data.is_empty(), "a document without data");
    Ok(())
}

fn not_ours(body: &str) -> RawMessage {
    RawMessage::body(body.to_owned()).content_type("text/csv").header("tenant", RawValue::Text("acme".into()))
}

async fn foreign(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    for body in ["one,two", "", "{\"id\":1,\"type\":\"t\",\"source\":\"s\"}"] {
        if !cx.carries(&not_ours(body)) {
            continue;
        }
        cx.inject(&q.bus, &q.address, not_ours(body)).await?;
        let mut sub = q.subscribe(1).await?;
        let got = cx.recv(&mut sub).await?;
        let envelope = got.envelope();
        ensure_eq!(&*envelope.event_type, Envelope::FOREIGN_TYPE, "type");
        ensure_eq!(&*envelope.data, body.as_bytes(), "body");
        ensure_eq!(envelope.content_type.as_deref(), Some("text/csv"), "content type");
        ensure_eq!(envelope.headers.get("tenant"), Some("acme"), "header");
        ensure!(!envelope.id.is_empty(), "a foreign message needs an id too");
        ensure!(envelope.source.ends_with('q'), "source {:?} is not the address", envelope.source);
        ensure_eq!(got.attempt(), 1, "attempt");
        got.ack().await?;
        sub.close().await?;
    }
    let mut sub = q.subscribe(5).await?;
    cx.expect_none(&mut sub).await
}

async fn foreign_settled(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    cx.inject(&q.bus, &q.address, not_ours("one,two")).await?;
    let mut sub = q.subscribe(1).await?;
    let first = cx.recv(&mut sub).await?;
    let sent = first.envelope().clone();
    first.release().await?;
    let second = cx.recv(&mut sub).await?;
    ensure_eq!(second.attempt(), 2, "attempt after a release");
    expect_equal(&sent, second.envelope()).during("after a release")?;
    second.dead_letter("unfit", "no use").await?;
    let mut dead = q.subscribe_dead(1).await?;
    let third = cx.recv(&mut dead).await?;
    expect_equal(&sent, third.envelope()).during("on the dead letters")?;
    ensure_eq!(third.dead_letter_info().and_then(|d| d.reason.as_deref()), Some("unfit"), "reason");
    third.ack().await?;
    Ok(())
}

async fn foreign_headers(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let odd = |raw: RawMessage| {
        raw.header("count", RawValue::Int(-7))
            .header("table", RawValue::Nested)
            .header("x-death", RawValue::Nested)
            .header("x-tries", RawValue::Int(i64::MAX))
            .header("tenant", RawValue::Text("acme".into()))
    };
    let event = RawMessage::body("1")
        .attribute("specversion", "1.0")
        .attribute("id", "event")
        .attribute("type", "test.message")
        .attribute("source", "/x");
    cx.inject(&q.bus, &q.address, odd(RawMessage::body("0"))).await?;
    cx.inject(&q.bus, &q.address, odd(event)).await?;
    q.publish(message(2)).await?;
    let mut sub = q.subscribe(5).await?;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let got = cx.recv(&mut sub).await?;
        let n = crate::number(got.envelope())?;
        ensure_eq!(got.attempt(), 1, "attempt of message {n}");
        if n < 2 {
            ensure_eq!(got.envelope().headers.get("tenant"), Some("acme"), "the readable header of message {n}");
        }
        seen.push(n);
        got.ack().await?;
    }
    seen.sort_unstable();
    ensure_eq!(seen, [0, 1, 2], "what came");
    cx.expect_none(&mut sub).await
}

async fn undecodable(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let mut good = Vec::new();
    for n in 0..10 {
        q.publish(message(n)).await?;
        good.push(n);
        cx.inject(&q.bus, &q.address, RawMessage::undecodable()).await?;
    }
    // A CloudEvent of another spec version cannot be decoded either.
    let newer = RawMessage::body("x").attribute("specversion", "9.0").attribute("id", "1").attribute("type", "t");
    cx.inject(&q.bus, &q.address, newer.attribute("source", "/x")).await?;
    let mut sub = q.subscribe(3).await?;
    let mut got = crate::numbers(&take_rest(&cx, &mut sub, good.len()).await?)?;
    got.sort_unstable();
    ensure_eq!(got, good, "what handlers see");
    let mut dead = q.subscribe_dead(20).await?;
    let dead_letters = cx.collect(&mut dead, 11).await.during("the dead letters")?;
    for delivery in dead_letters {
        let Some(info) = delivery.dead_letter_info() else { fail!("a dead letter without info: {delivery:?}") };
        ensure_eq!(info.reason.as_deref(), Some("malformed"), "reason");
        ensure!(delivery.malformed().is_some_and(|why| !why.is_empty()), "it is not handed out as malformed");
        let body = &delivery.envelope().data;
        ensure!(*body == RawMessage::undecodable().body || **body == *b"x", "the raw body is not as it was: {body:?}");
        delivery.ack().await.during("ack of an undecodable dead letter")?;
    }
    cx.expect_none(&mut dead).await?;
    cx.expect_none(&mut sub).await
}

async fn undecodable_on_a_topic(cx: Cx) -> Outcome {
    let spec = TopicSpec::new().subscription("a", SubscriptionSpec::new()).subscription("b", SubscriptionSpec::new());
    let t = cx.topic(spec).await?;
    cx.inject(&t.bus, &t.address, RawMessage::undecodable()).await?;
    t.publish(message(1)).await?;
    for name in ["a", "b"] {
        let source = t.subscription(name);
        let mut sub = t.bus.subscribe(source.clone()).prefetch(5).open().await?;
        ensure_eq!(crate::numbers(&take_rest(&cx, &mut sub, 1).await?)?, [1], "what {name} sees");
        let mut dead = t.bus.subscribe(source.dead_letters()).prefetch(5).open().await?;
        let got = cx.recv(&mut dead).await.during(format!("the dead letter of {name}"))?;
        ensure_eq!(got.dead_letter_info().and_then(|d| d.reason.as_deref()), Some("malformed"), "reason");
        got.ack().await?;
        cx.expect_none(&mut dead).await?;
    }
    Ok(())
}

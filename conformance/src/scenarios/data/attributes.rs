//! Every field of the envelope arrives as it was sent.

use polybus_core::{Address, Envelope, QueueSpec, Source, SubscriptionSpec, TopicSpec, Topology};
use time::OffsetDateTime;

use super::{on_a_queue, round_trip};
use crate::{Cx, Failure, Fixture, Need, Outcome, Scenario, ensure_eq, message, scenario};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario("data/every-field", "Every field of the envelope arrives on a queue.", every_field),
        scenario(
            "data/every-field-on-a-topic",
            "Every field of the envelope arrives on a subscription.",
            every_field_t,
        )
        .needs(|_, c| Need::topics(c)),
        scenario("data/few-fields", "Fields that were not set are not set on arrival.", few_fields),
        scenario("data/long-attributes", "Attributes longer than a broker's native fields are kept.", long_attributes),
        scenario("data/unicode", "Attributes of any text are kept.", unicode),
        scenario("data/odd-values", "The least and largest numbers and times are kept.", odd_values),
        scenario("data/source-filled-in", "An envelope without a source gets that of its bus.", source_filled_in),
        scenario(
            "data/same-id",
            "The id is the publisher's: two messages of one id and two sources both come.",
            same_id,
        ),
    ]
}

fn moment(seconds: i64, nanos: i64) -> Outcome<OffsetDateTime> {
    let at = OffsetDateTime::from_unix_timestamp(seconds).map_err(|e| Failure::new(e.to_string()))?;
    Ok(at + time::Duration::nanoseconds(nanos))
}

/// An envelope with every field set to a value that is no default.
fn full(cx: &Cx, f: &Fixture) -> Outcome<Envelope> {
    let expires_at = f.bus.now() + cx.patience() * 100;
    let time = moment(1_709_210_096, 789_012_345)?;
    let offset = time::UtcOffset::from_hms(5, 30, 0).map_err(|e| Failure::new(e.to_string()))?;
    Ok(Envelope::new("order.placed.v2", vec![0, 1, 2, 255])
        .id("01890a5d-ac96-774b-bcce-b302099a8057 / 7")
        .source("urn:shop:orders?region=eu#fragment")
        .time(time.to_offset(offset))
        .subject("order/4711")
        .schema_version(7)
        .data_schema("https://example.com/schemas/order.json?v=7")
        .content_type("application/vnd.shop.order")
        .correlation_id("correlation 1")
        .causation_id("cause/2")
        .key("customer-42")
        .sequence(1_234_567_890_123)
        .expires_at(expires_at)
        .traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .header("tenant", "acme")
        .header("Z-last", "1")
        .header("a-first", "2")
        .edit(|p| {
            p.tracestate = Some("vendor=a,other=b:c".into());
            p.extensions.push("zone", "eu 1");
            p.extensions.push("comexample1", "any");
        }))
}

async fn every_field(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let full = full(&cx, &q)?;
    round_trip(&cx, &q, vec![full]).await
}

async fn every_field_t(cx: Cx) -> Outcome {
    let t = cx.topic(TopicSpec::new().subscription("a", SubscriptionSpec::new().types(["order.*"]))).await?;
    let full = full(&cx, &t)?;
    round_trip(&cx, &t, vec![full]).await
}

async fn few_fields(cx: Cx) -> Outcome {
    on_a_queue(cx, vec![Envelope::bare("bare", "x").id("bare-1"), Envelope::bare("bare", "").id("bare-2")]).await
}

async fn long_attributes(cx: Cx) -> Outcome {
    let long = |n: usize| "long-".repeat(n / 5 + 1)[..n].to_owned();
    let sent = vec![
        message(0).id(long(255)),
        message(0).id(long(256)),
        message(0).id(long(2000)),
        message(0).source(format!("urn:{}", long(2000))),
        message(0).subject(long(2000)),
        message(0).correlation_id(long(255)).causation_id(long(255)),
        message(0).correlation_id(long(1000)).causation_id(long(1000)),
        message(0).content_type(format!("text/plain; x={}", long(400))),
        message(0).data_schema(format!("urn:{}", long(1000))),
        message(0).key(long(256)),
        message(0).edit(|p| p.event_type = format!("t.{}", long(126)).into()),
        message(0).edit(|p| p.extensions.push("x".repeat(200), long(1000))),
        message(0).edit(|p| p.tracestate = Some(long(512).into())).traceparent("00-not-checked"),
    ];
    on_a_queue(cx, sent).await
}

async fn unicode(cx: Cx) -> Outcome {
    let text = "größe/漢字 🦀 e\u{301} \u{202e}x \" \\ % &<>'\t\u{1}";
    let all = message(0)
        .id(text)
        .source(text)
        .subject(text)
        .correlation_id(text)
        .causation_id(text)
        .key(text)
        .data_schema(text)
        .header("h", text)
        .edit(|p| p.extensions.push("ext", text));
    on_a_queue(cx, vec![all]).await
}

async fn odd_values(cx: Cx) -> Outcome {
    let offset = time::UtcOffset::from_hms(-11, -30, 0).map_err(|e| Failure::new(e.to_string()))?;
    let times = [
        moment(0, 0)?,
        moment(0, 1)?,
        moment(-1, 999_999_999)?,
        moment(253_402_300_799, 999_999_999)?,
        moment(-62_167_219_200, 0)?,
        moment(1_700_000_000, 500_000_000)?.to_offset(offset),
    ];
    let mut sent: Vec<Envelope> = times.into_iter().map(|t| message(0).time(t)).collect();
    for (sequence, version) in [(0, 0), (1, 1), (u64::MAX, u32::MAX)] {
        sent.push(message(1).sequence(sequence).schema_version(version));
    }
    on_a_queue(cx, sent).await
}

async fn source_filled_in(cx: Cx) -> Outcome {
    let setup = cx.setup(Topology::new().queue("q", QueueSpec::new()));
    let bus = setup.options(|o| o.event_source = "urn:shop:7".into()).open().await?;
    let q = Fixture { bus, address: Address::queue("q"), source: Source::queue("q") };
    q.publish(message(1)).await?;
    q.publish(message(2).source("urn:its-own")).await?;
    let mut sub = q.subscribe(5).await?;
    for envelope in cx.drain(&mut sub, 2).await? {
        let wanted = if crate::number(&envelope)? == 1 { "urn:shop:7" } else { "urn:its-own" };
        ensure_eq!(&*envelope.source, wanted, "source");
    }
    Ok(())
}

async fn same_id(cx: Cx) -> Outcome {
    let (one, other) = (message(1).id("7").source("urn:one"), message(2).id("7").source("urn:other"));
    on_a_queue(cx, vec![one, other]).await
}

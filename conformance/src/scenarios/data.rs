//! What is published is what arrives, byte for byte and header for header.

use bytes::Bytes;
use polybus_core::{
    Address, Envelope, ErrorKind, Outgoing, QueueSpec, RetrySafety, Source, SubscriptionSpec, TopicSpec, Topology,
};
use time::OffsetDateTime;

use super::tools::difference;
use crate::{
    Calls, Cx, During, Failure, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, fail, message,
    scenario,
};

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        scenario("data/payloads", "Payloads of none, one, all and many bytes arrive as they were sent.", payloads),
        scenario(
            "data/text-payloads",
            "Text payloads are not touched: control characters, line ends, BOM, NUL.",
            texts,
        ),
        scenario("data/content-types", "Any content type is kept, also none and the one of structured mode.", types),
        scenario("data/exact-limit", "The largest message that fits arrives; one byte more is PayloadTooLarge.", limit)
            .needs(|_, c| Need::queue_limit(c)),
        scenario("data/exact-limit-on-a-topic", "The same limit is exact on topics.", limit_on_a_topic)
            .needs(|_, c| Need::topics(c).and(Need::when(c.max_topic_payload.is_some(), "no known size limit"))),
        scenario("data/headers-40", "40 headers arrive in their order, with keys and values as they were.", headers_40),
        scenario(
            "data/headers-most",
            "64 headers that fill 32 KiB with the attributes arrive; one header or one byte more is refused.",
            headers_most,
        ),
        scenario("data/header-values", "Header values are any text: empty, Unicode, control characters.", values),
        scenario("data/header-keys", "Every legal header key arrives in its own spelling.", keys),
        scenario(
            "data/refused-headers",
            "Reserved, illegal and case-colliding header keys are refused before any I/O.",
            refused_headers,
        ),
        scenario("data/refused-attributes", "Illegal attributes are refused before any I/O.", refused_attributes),
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
    .into_iter()
    .chain(super::foreign::all())
    .collect()
}

/// Publishes all, takes all, and compares each with what was sent.
async fn round_trip(cx: &Cx, f: &Fixture, sent: Vec<Envelope>) -> Outcome {
    let sent: Vec<Envelope> =
        sent.into_iter().map(|e| if e.source.is_empty() { e.source("suite") } else { e }).collect();
    f.publish_all(sent.clone()).await?;
    let mut sub = f.subscribe(sent.len()).await?;
    let got = cx.drain(&mut sub, sent.len()).await?;
    for (i, envelope) in sent.iter().enumerate() {
        let same_id = |e: &&Envelope| e.id == envelope.id && e.source == envelope.source;
        let Some(arrived) = got.iter().find(same_id) else { fail!("message {i} did not come: {envelope:?}") };
        difference(envelope, arrived).during(format!("message {i}"))?;
    }
    cx.expect_none(&mut sub).await
}

async fn on_a_queue(cx: Cx, sent: Vec<Envelope>) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    round_trip(&cx, &q, sent).await
}

fn binary(data: impl Into<Bytes>) -> Envelope {
    Envelope::new("test.data", data).content_type("application/octet-stream")
}

async fn payloads(cx: Cx) -> Outcome {
    let all: Vec<u8> = (0..=255).collect();
    let mut sent = vec![
        binary(Bytes::new()),
        binary("x"),
        binary(vec![0]),
        binary(vec![255]),
        binary(all.clone()),
        binary(all.iter().copied().cycle().take(100_000).collect::<Vec<_>>()),
        // Not UTF-8, under content types that promise it.
        Envelope::new("test.data", vec![0xff, 0xfe, b'{', 0xc3, 0x28]),
        Envelope::new("test.data", vec![0xed, 0xa0, 0x80]).content_type("text/plain; charset=utf-8"),
        Envelope::new("test.data", Bytes::new()),
    ];
    sent.extend((0..=255_u8).map(|b| binary(vec![b])));
    on_a_queue(cx, sent).await
}

async fn texts(cx: Cx) -> Outcome {
    let control: String =
        (0..32).map(char::from).chain(['\u{7f}', '\u{85}', '\u{2028}', '\u{fffe}', '\u{ffff}']).collect();
    let texts = [
        control.as_str(),
        "line\nline\r\nline\r",
        "\u{feff}{\"bom\":true}",
        "\0",
        " padded ",
        "\"quoted\" \\ & <b> %20 + =",
        "0042",
        "{\"n\": 1.0, \"n\": 1e2, \"deep\": [[[]]]}",
        "null",
        "emoji 🦀, حروف, 漢字, e\u{301}",
    ];
    let kinds = ["application/json", "text/plain", "application/octet-stream", "application/xml"];
    let each = |text: &&str| kinds.map(|kind| Envelope::new("test.data", text.to_string()).content_type(kind));
    on_a_queue(cx, texts.iter().flat_map(each).collect()).await
}

async fn types(cx: Cx) -> Outcome {
    let kinds = [
        "text/plain",
        "text/plain; charset=iso-8859-1",
        "Application/JSON",
        "application/vnd.shop.order+json;version=2",
        "application/cloudevents+json",
        "application/cloudevents+json; charset=utf-8",
        "application/cloudevents-batch+json",
        "application/x-protobuf",
        "image/png",
        "nonsense",
    ];
    let bodies = [Bytes::from_static(b"{\"a\": 1}"), Bytes::from_static(&[1, 0, 254]), Bytes::new()];
    let mut sent = Vec::new();
    for body in bodies {
        sent.extend(kinds.map(|kind| Envelope::new("test.data", body.clone()).content_type(kind)));
        sent.push(Envelope::new("test.data", body).edit(|p| p.content_type = None));
    }
    on_a_queue(cx, sent).await
}

const LIMIT: usize = 64 * 1024;

/// Finds the largest payload that is taken, by halving: whatever the encoding adds, there must be one limit.
async fn exact(cx: Cx, f: Fixture, calls: Calls) -> Outcome {
    let of = |n: usize| {
        // Compresses badly, needs no escapes.
        let data: Vec<u8> = (0..n).map(|i| b'a' + u8::try_from((i * i / 7) % 26).unwrap_or(0)).collect();
        Envelope::new("test.big", data)
            .source("suite")
            .content_type("text/plain")
            .edit(|p| p.time = None)
            // Of one length, and different: a broker may drop a message whose id it has seen.
            .id(format!("the-id-{n:08}"))
    };
    let (mut fits, mut too_large) = (0, LIMIT + 1);
    let mut stored = 0;
    f.publish(of(0)).await?;
    stored += 1;
    while too_large - fits > 1 {
        let size = fits.midpoint(too_large);
        match f.bus.publish(&f.address, of(size)).await {
            Ok(_) => {
                fits = size;
                stored += 1;
            }
            Err(e) if e.kind() == ErrorKind::PayloadTooLarge => too_large = size,
            Err(e) => return Err(Failure::from(e).during(format!("payload of {size} bytes"))),
        }
    }
    ensure!(fits > LIMIT / 2, "with a limit of {LIMIT} bytes the largest payload is {fits}");
    let before = calls.total();
    for more in [1, 2, 100] {
        let result = f.bus.publish(&f.address, of(fits + more)).await;
        let e = expect_kind!(result, ErrorKind::PayloadTooLarge, "{more} more bytes than fit");
        ensure_eq!(e.retry(), RetrySafety::Never, "retry");
    }
    // A header counts as well.
    let result = f.bus.publish(&f.address, of(fits).header("k", "v")).await;
    expect_kind!(result, ErrorKind::PayloadTooLarge, "a header more than fits");
    ensure_eq!(calls.total(), before, "calls that reached the driver");

    let mut sub = f.subscribe(50).await?;
    let got = cx.drain(&mut sub, stored).await?;
    let largest = got.iter().max_by_key(|e| e.data.len());
    let largest = largest.ok_or_else(|| Failure::new("nothing came"))?;
    difference(&of(fits), largest).during("the largest that fits")?;
    cx.expect_none(&mut sub).await
}

async fn limit(cx: Cx) -> Outcome {
    let calls = Calls::new();
    let setup = cx.setup(Topology::new().queue("q", QueueSpec::new()));
    let bus = setup.parameter("max_message_size", "64KiB").counting(&calls).open().await?;
    let f = Fixture { bus, address: Address::queue("q"), source: Source::queue("q") };
    exact(cx, f, calls).await
}

async fn limit_on_a_topic(cx: Cx) -> Outcome {
    let calls = Calls::new();
    let setup = cx.setup(Topology::new().topic("t", TopicSpec::new().subscription("a", SubscriptionSpec::new())));
    let bus = setup.parameter("max_message_size", "64KiB").counting(&calls).open().await?;
    let f = Fixture { bus, address: Address::topic("t"), source: Source::subscription("t", "a") };
    exact(cx, f, calls).await
}

async fn headers_40(cx: Cx) -> Outcome {
    let mut sent = Vec::new();
    // Neither sorted nor reversed, so that a map on the way shows.
    for step in [7, 13, 39] {
        sent.push(
            (0..40).fold(message(step), |m, i| m.header(format!("h-{:02}", i * step % 41), format!("value {i}"))),
        );
    }
    on_a_queue(cx, sent).await
}

const MOST: usize = 32 * 1024;

async fn headers_most(cx: Cx) -> Outcome {
    let calls = Calls::new();
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).counting(&calls).open().await?;
    let q = Fixture { bus, address: Address::queue("q"), source: Source::queue("q") };
    let with = |headers: usize, size: usize| {
        let m = (1..headers).fold(message(headers).source("suite"), |m, i| m.header(format!("h{i}"), "x".repeat(400)));
        let used = m.metadata_size() + "last".len();
        m.header("last", "y".repeat(size - used))
    };
    let (full, fewer) = (with(64, MOST), with(2, MOST));
    ensure_eq!((full.metadata_size(), fewer.metadata_size()), (MOST, MOST), "the size of what is sent");
    round_trip(&cx, &q, vec![full, fewer]).await?;
    let before = calls.total();
    for headers in [64, 2] {
        expect_kind!(q.bus.publish(&q.address, with(headers, MOST + 1)).await, ErrorKind::PayloadTooLarge);
    }
    let e = q.bus.publish(&q.address, with(64, MOST - 100).header("sixty-fifth", "")).await;
    expect_kind!(e, ErrorKind::InvalidArgument, "65 headers");
    ensure_eq!(calls.total(), before, "calls that reached the driver");
    Ok(())
}

async fn values(cx: Cx) -> Outcome {
    let control: String = (0..32).map(char::from).chain(['\u{7f}', '\u{85}', '\u{fffd}', '\u{ffff}']).collect();
    let values = [
        "",
        " ",
        " padded\t",
        "0",
        "true",
        "null",
        "a,b;c=d",
        "a%20b+c%",
        "quote \" apostrophe ' backslash \\",
        "line\r\nfolded",
        "حروف, 漢字, 🦀, e\u{301}, \u{202e}turned",
        &control,
        &"long ".repeat(1000),
    ];
    let all = values.iter().enumerate().take(12);
    let together = all.fold(message(0), |m, (i, value)| m.header(format!("h{i}"), *value));
    let mut sent = vec![together];
    sent.extend(values.iter().enumerate().map(|(i, value)| message(i + 1).header("value", *value)));
    on_a_queue(cx, sent).await
}

async fn keys(cx: Cx) -> Outcome {
    let long = "k".repeat(64);
    let keys = [
        "a",
        "A1",
        "Tenant",
        "X-Request-Id",
        "x_under_score",
        "dot.ted.key",
        "-",
        "_",
        "...",
        "0",
        "content-type",
        "message-id",
        "id",
        "type",
        "source",
        "subject",
        "data",
        "time",
        "traceparent",
        "partitionkey",
        "user-agent",
        "xdeath",
        "x-delivery-note",
        "x-opt-tenant",
        "AWS.trace",
        "CC",
        "Host",
        "__proto__",
        "null",
        &long,
    ];
    let together = keys.iter().fold(message(0), |m, key| m.header(*key, format!("value of {key}")));
    let mut sent = vec![together];
    sent.extend(keys.iter().enumerate().map(|(i, key)| message(i + 1).header(*key, "v")));
    on_a_queue(cx, sent).await
}

async fn refuse(cx: Cx, bad: Vec<(String, Outgoing)>) -> Outcome {
    let calls = Calls::new();
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).counting(&calls).open().await?;
    let q = Fixture { bus, address: Address::queue("q"), source: Source::queue("q") };
    q.publish(message(1)).await?;
    let before = calls.total();
    for (what, message) in bad {
        let e = expect_kind!(q.bus.publish(&q.address, message.clone()).await, ErrorKind::InvalidArgument, "{what}");
        ensure_eq!(e.retry(), RetrySafety::Never, "retry of {what}");
        let all = q.bus.publish_all(&q.address, vec![message]).await;
        for result in all {
            expect_kind!(result, ErrorKind::InvalidArgument, "{what}, in a batch");
        }
    }
    ensure_eq!(calls.total(), before, "calls that reached the driver");
    let mut sub = q.subscribe(5).await?;
    ensure_eq!(crate::number(&cx.drain(&mut sub, 1).await?[0])?, 1, "what was stored");
    cx.expect_none(&mut sub).await
}

async fn refused_headers(cx: Cx) -> Outcome {
    let long = "k".repeat(65);
    let mut bad: Vec<(String, Outgoing)> = [
        "cloudEvents:id",
        "cloudevents_type",
        "CE-id",
        "ce_type",
        "polybus-hop",
        "Polybus-Target",
        "x-death",
        "X-First-Death-Queue",
        "x-delivery-count",
        "x-acquired-count",
        "Native.reply-to",
        "",
        "a b",
        "a:b",
        "a/b",
        "é",
        "a\n",
        "a\0",
        &long,
    ]
    .iter()
    .map(|key| (format!("header key {key:?}"), message(0).header(*key, "v").into()))
    .collect();
    for (one, other) in [("tenant", "tenant"), ("tenant", "Tenant"), ("X-A", "x-a")] {
        let twice = message(0).header(one, "1").header("between", "2").header(other, "3");
        bad.push((format!("headers {one:?} and {other:?}"), twice.into()));
    }
    refuse(cx, bad).await
}

async fn refused_attributes(cx: Cx) -> Outcome {
    let mut bad: Vec<(String, Outgoing)> =
        ["", ".", "a..b", ".a", "a.", "a b", "order.*", "#", "é", "a\n", &"x".repeat(129)]
            .iter()
            .map(|t| (format!("event type {t:?}"), Envelope::new(*t, "0").into()))
            .collect();
    bad.push(("an empty id".into(), message(0).id("").into()));
    bad.push(("an empty key".into(), message(0).key("").into()));
    bad.push(("a key of 257 bytes".into(), message(0).key("k".repeat(257)).into()));
    for name in ["Upper", "with-dash", "", "id", "specversion", "partitionkey", "polybustarget"] {
        let envelope = message(0).edit(|p| p.extensions.push(name, "v"));
        bad.push((format!("extension {name:?}"), envelope.into()));
    }
    let twice = message(0).edit(|p| {
        p.extensions.push("same", "1");
        p.extensions.push("same", "2");
    });
    bad.push(("an extension twice".into(), twice.into()));
    refuse(cx, bad).await
}

fn moment(seconds: i64, nanos: i64) -> Outcome<OffsetDateTime> {
    let at = OffsetDateTime::from_unix_timestamp(seconds).map_err(|e| Failure::new(e.to_string()))?;
    Ok(at + time::Duration::nanoseconds(nanos))
}

/// Every field set, and to something else than any default.
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

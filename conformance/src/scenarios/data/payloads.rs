//! Payloads, content types, and the exact size limit.

use bytes::Bytes;
use polybus_core::{
    Address, Envelope, ErrorKind, QueueSpec, RetrySafety, Source, SubscriptionSpec, TopicSpec, Topology,
};

use super::on_a_queue;
use crate::{
    CallCounter, Cx, During, Failure, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, scenario,
    scenarios::shared::expect_equal,
};

pub(super) fn all() -> Vec<Scenario> {
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
    ]
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
        // Data that is not UTF-8 under content types that promise it.
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

/// Finds the largest payload that is accepted by halving, and checks that one byte more is refused.
async fn find_exact_limit(cx: Cx, f: Fixture, calls: CallCounter) -> Outcome {
    let of = |n: usize| {
        // Data that hardly compresses and needs no escapes.
        let data: Vec<u8> = (0..n).map(|i| b'a' + u8::try_from((i * i / 7) % 26).unwrap_or(0)).collect();
        Envelope::new("test.big", data)
            .source("suite")
            .content_type("text/plain")
            .edit(|p| p.time = None)
            // The ids are of one length, and different: a broker may drop a message whose id it has seen.
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
    // A header counts towards the limit as well.
    let result = f.bus.publish(&f.address, of(fits).header("k", "v")).await;
    expect_kind!(result, ErrorKind::PayloadTooLarge, "a header more than fits");
    ensure_eq!(calls.total(), before, "calls that reached the driver");

    let mut sub = f.subscribe(50).await?;
    let got = cx.drain(&mut sub, stored).await?;
    let largest = got.iter().max_by_key(|e| e.data.len());
    let largest = largest.ok_or_else(|| Failure::new("nothing came"))?;
    expect_equal(&of(fits), largest).during("the largest that fits")?;
    cx.expect_none(&mut sub).await
}

async fn limit(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
    let setup = cx.setup(Topology::new().queue("q", QueueSpec::new()));
    let bus = setup.parameter("max_message_size", "64KiB").counting(&calls).open().await?;
    let f = Fixture { bus, address: Address::queue("q"), source: Source::queue("q") };
    find_exact_limit(cx, f, calls).await
}

async fn limit_on_a_topic(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
    let setup = cx.setup(Topology::new().topic("t", TopicSpec::new().subscription("a", SubscriptionSpec::new())));
    let bus = setup.parameter("max_message_size", "64KiB").counting(&calls).open().await?;
    let f = Fixture { bus, address: Address::topic("t"), source: Source::subscription("t", "a") };
    find_exact_limit(cx, f, calls).await
}

//! Application headers: their order, values and keys, and which are refused.

use polybus_core::{Address, Envelope, ErrorKind, Outgoing, QueueSpec, RetrySafety, Source, Topology};

use super::{on_a_queue, round_trip};
use crate::{CallCounter, Cx, Fixture, Outcome, Scenario, ensure_eq, expect_kind, message, scenario};

pub(super) fn all() -> Vec<Scenario> {
    vec![
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
    ]
}

async fn headers_40(cx: Cx) -> Outcome {
    let mut sent = Vec::new();
    // The order is neither sorted nor reversed, so that a map on the way would change it.
    for step in [7, 13, 39] {
        sent.push(
            (0..40).fold(message(step), |m, i| m.header(format!("h-{:02}", i * step % 41), format!("value {i}"))),
        );
    }
    on_a_queue(cx, sent).await
}

const MOST: usize = 32 * 1024;

async fn headers_most(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
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
    let calls = CallCounter::new();
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

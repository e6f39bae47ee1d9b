//! Application headers whose names are instructions to some broker.

use polybus_core::{ErrorKind, QueueSpec};

use crate::{Cx, During, Failure, Outcome, Scenario, ensure, message, scenario, scenarios::shared::expect_equal};

pub(super) fn all() -> Vec<Scenario> {
    vec![scenario(
        "data/instructions",
        "An application header whose name is an instruction to some broker is kept as it is, or refused; it commands nothing.",
        instructions,
    )]
}

/// Headers that brokers, their clients and protocols take for instructions, each with a value that would do something.
const NAMES: &[(&str, &str)] = &[
    ("CC", "elsewhere"),
    ("BCC", "elsewhere"),
    ("x-delay", "3600000"),
    ("x-death", "7"),
    ("x-delivery-count", "7"),
    ("x-match", "all"),
    ("x-opt-scheduled-enqueue-time", "253402300799000"),
    ("ScheduledEnqueueTimeUtc", "9999-12-31"),
    ("TimeToLive", "1"),
    ("DelaySeconds", "900"),
    ("MessageDeduplicationId", "one"),
    ("JMSXGroupID", "one"),
    ("Nats-Rollup", "all"),
    ("Nats-Msg-Id", "one"),
    ("Nats-Expected-Last-Sequence", "1"),
    ("Nats-TTL", "1s"),
    ("expiration", "1"),
    ("content-type", "text/xml"),
    ("content-length", "3"),
    ("content-encoding", "gzip"),
    ("transfer-encoding", "chunked"),
    ("authorization", "none"),
    ("host", "elsewhere"),
    ("BrokerProperties", "{\"SessionId\":\"x\"}"),
    ("AWSTraceHeader", "Root=1"),
    ("ce-id", "other"),
    ("ce_type", "other"),
    ("id", "other"),
    ("traceparent", "none"),
];

async fn instructions(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let mut sent = Vec::new();
    for (n, (name, value)) in NAMES.iter().enumerate() {
        // The message after it, without the header, shows what the header would do to a neighbour.
        let instructed = message(2 * n).source("suite").header(*name, *value);
        match q.bus.publish(&q.address, instructed.clone()).await {
            Ok(_) => sent.push(instructed),
            Err(e) if matches!(e.kind(), ErrorKind::InvalidArgument | ErrorKind::Unsupported) => {}
            Err(e) => return Err(Failure::from(e).during(format!("a message with a header {name}"))),
        }
        let plain = message(2 * n + 1).source("suite");
        q.publish(plain.clone()).await.during(format!("a message after one with a header {name}"))?;
        sent.push(plain);
    }
    ensure!(sent.len() > NAMES.len(), "every one of these headers is refused");
    let mut sub = q.subscribe(10).await?;
    let got = cx.drain(&mut sub, sent.len()).await?;
    for sent in &sent {
        let got = got.iter().find(|got| got.id == sent.id);
        let got = got.ok_or_else(|| Failure::new(format!("lost, or another came twice: {sent:?}")))?;
        expect_equal(sent, got).during(format!("with headers {:?}", sent.headers))?;
    }
    cx.expect_none(&mut sub).await
}

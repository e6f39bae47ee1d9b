//! CloudEvents as other libraries write them.

use polybus_core::QueueSpec;

use crate::{Cx, During, Failure, Need, Outcome, RawMessage, RawValue, Scenario, ensure, ensure_eq, scenario};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "strangers/four-prefixes",
            "A CloudEvent in headers is read under each prefix that libraries write, in any case.",
            prefixes,
        )
        .needs(|t, _| Need::raw(t)),
        scenario(
            "strangers/structured-by-look",
            "A body that is a CloudEvent is read as one where nothing says otherwise.",
            by_look,
        )
        .needs(|t, _| Need::raw(t)),
        scenario("strangers/odd-times", "A time that cannot be read costs the time, never the event.", odd_times)
            .needs(|t, _| Need::raw(t)),
    ]
}

const ATTRIBUTES: [(&str, &str); 5] =
    [("specversion", "1.0"), ("id", "e-1"), ("type", "order.placed"), ("source", "/others"), ("subject", "s")];

/// The prefixes of CloudEvents attributes in the bindings. A broker that cannot carry such names skips them.
async fn prefixes(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let mut sub = q.subscribe(1).await?;
    let mut read = 0;
    for prefix in ["cloudEvents:", "cloudEvents_", "ce-", "ce_"] {
        for spell in [str::to_owned as fn(&str) -> String, str::to_ascii_lowercase, str::to_ascii_uppercase] {
            let mut raw = RawMessage::body("{}").content_type("application/json");
            for (name, value) in ATTRIBUTES {
                raw = raw.header(&spell(&format!("{prefix}{name}")), RawValue::Text(value.into()));
            }
            let first = spell(&format!("{prefix}id"));
            if !cx.carries(&raw) {
                continue;
            }
            // Not every broker carries such names: HTTP has no colons in header names.
            cx.inject(&q.bus, &q.address, raw).await.during(&first)?;
            read += 1;
            let got = cx.recv(&mut sub).await.during(&first)?;
            let e = got.envelope();
            let attributes = (&*e.id, &*e.event_type, &*e.source, e.subject.as_deref());
            ensure_eq!(attributes, ("e-1", "order.placed", "/others", Some("s")), "attributes under {first}");
            ensure!(
                e.headers.is_empty() || e.headers.iter().all(|(n, _)| n.starts_with("native.")),
                "left over: {e:?}"
            );
            got.ack().await?;
        }
    }
    ensure!(read > 0, "no prefix could be carried");
    Ok(())
}

async fn by_look(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let event = r#"{"specversion":"1.0","id":"e-1","type":"order.placed","source":"/others","data":{"n":1}}"#;
    let mut sub = q.subscribe(1).await?;
    for raw in [RawMessage::body(event), RawMessage::body(event).content_type("text/plain")] {
        let content_type = raw.content_type.clone();
        cx.inject(&q.bus, &q.address, raw).await?;
        let got = cx.recv(&mut sub).await?;
        let e = got.envelope();
        ensure_eq!((&*e.id, &*e.event_type), ("e-1", "order.placed"), "an event under {content_type:?}");
        let json: serde_json::Value = serde_json::from_slice(&e.data).map_err(|e| Failure::new(e.to_string()))?;
        ensure_eq!(json, serde_json::json!({ "n": 1 }), "its data");
        got.ack().await?;
    }
    // A message that polybus wrote in binary mode is not read as structured, whatever its payload looks like.
    let own = polybus_core::Envelope::new("own.type", event).content_type("application/json");
    q.publish(own.clone()).await?;
    let got = cx.recv(&mut sub).await?;
    ensure_eq!((&*got.envelope().id, &*got.envelope().event_type), (&*own.id, "own.type"), "an event within our own");
    ensure_eq!(&*got.envelope().data, event.as_bytes(), "its payload");
    Ok(got.ack().await?)
}

async fn odd_times(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let times = ["2024-02-29T12:34:56", "2024-02-29 12:34Z", "2024-02-29T12:34Z", "yesterday", "1709190296", ""];
    let mut sub = q.subscribe(1).await?;
    for time in times {
        let document = serde_json::json!({
            "specversion": "1.0", "id": "e-1", "type": "order.placed", "source": "/others", "time": time, "data": "x",
        });
        let mut binary = RawMessage::body("x").content_type("text/plain");
        for (name, value) in [ATTRIBUTES[0], ATTRIBUTES[1], ATTRIBUTES[2], ATTRIBUTES[3], ("time", time)] {
            binary = binary.attribute(name, value);
        }
        for (mode, raw) in [("structured", RawMessage::structured(document.to_string())), ("binary", binary)] {
            // Some brokers take no empty values.
            if !cx.carries(&raw) || (time.is_empty() && mode == "binary") {
                continue;
            }
            cx.inject(&q.bus, &q.address, raw).await.during(format!("{mode}, {time:?}"))?;
            let got = cx.recv(&mut sub).await.during(format!("{mode}, {time:?}"))?;
            let e = got.envelope();
            ensure_eq!((&*e.id, &*e.event_type), ("e-1", "order.placed"), "{mode} with time {time:?}");
            got.ack().await?;
        }
    }
    Ok(())
}

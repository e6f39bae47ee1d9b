//! Data: what is published is what arrives, byte for byte and header for header.
//!
//! A message is encoded by the driver, stored by the broker, decoded by the driver, and compared with what was sent.

mod attributes;
mod foreign;
mod headers;
mod instructions;
mod payloads;

use polybus_core::{Envelope, QueueSpec};

use crate::{Cx, During, Fixture, Outcome, Scenario, fail, scenarios::shared::expect_equal};

/// The scenarios of this group.
pub fn all() -> Vec<Scenario> {
    [payloads::all(), headers::all(), attributes::all(), foreign::all(), instructions::all()].concat()
}

/// Publishes these messages, receives them, and compares each with what was sent.
async fn round_trip(cx: &Cx, f: &Fixture, sent: Vec<Envelope>) -> Outcome {
    let sent: Vec<Envelope> =
        sent.into_iter().map(|e| if e.source.is_empty() { e.source("suite") } else { e }).collect();
    f.publish_all(sent.clone()).await?;
    let mut sub = f.subscribe(sent.len()).await?;
    let got = cx.drain(&mut sub, sent.len()).await?;
    for (i, envelope) in sent.iter().enumerate() {
        let same_id = |e: &&Envelope| e.id == envelope.id && e.source == envelope.source;
        let Some(arrived) = got.iter().find(same_id) else { fail!("message {i} did not come: {envelope:?}") };
        expect_equal(envelope, arrived).during(format!("message {i}"))?;
    }
    cx.expect_none(&mut sub).await
}

async fn on_a_queue(cx: Cx, sent: Vec<Envelope>) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    round_trip(&cx, &q, sent).await
}

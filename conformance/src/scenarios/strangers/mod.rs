//! A world that polybus did not make: messages of other producers, entities that others declared, other versions of the program, clocks
//! that differ, brokers in trouble for a while. Nothing is lost, and everything can be seen.

mod clocks;
mod entities;
mod events;
mod groups;
mod lifetimes;
mod producers;
mod same_ids;
mod shown;
mod trouble;
mod versions;

use polybus_core::{Delivery, Envelope, Headers};

use crate::{Cx, Fixture, Outcome, Scenario, ensure, number};

/// All of them.
pub fn all() -> Vec<Scenario> {
    [
        producers::all(),
        same_ids::all(),
        lifetimes::all(),
        groups::all(),
        shown::all(),
        events::all(),
        entities::all(),
        versions::all(),
        clocks::all(),
        trouble::all(),
    ]
    .concat()
}

/// A message without what a broker tells anew of every copy: its time, and what it says of the way it took.
fn lasting(envelope: &Envelope) -> Envelope {
    envelope.clone().edit(|parts| {
        parts.time = None;
        // A copy of what has a time to live of its own may say when that ends.
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

/// The next `n`, unsettled, each of another number below `n`; in the order of their numbers.
async fn each(cx: &Cx, sub: &mut polybus_core::Subscription, n: usize) -> Outcome<Vec<Delivery>> {
    let mut all: Vec<(usize, Delivery)> = Vec::new();
    for delivery in cx.collect(sub, n).await? {
        let number = number(delivery.envelope())?;
        ensure!(number < n && all.iter().all(|(seen, _)| *seen != number), "came twice: {delivery:?}");
        all.push((number, delivery));
    }
    all.sort_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, delivery)| delivery).collect())
}

/// Moves everything back from the dead letters, which must be `n`.
async fn redrive(f: &Fixture, n: usize) -> Outcome {
    let sifted = f.bus.redrive(&f.source, |_| true, usize::MAX).await?;
    ensure!(sifted.moved == n as u64, "of {n} dead letters {} were moved: {sifted:?}", sifted.moved);
    Ok(())
}

//! A world that polybus did not make.
//!
//! Messages of other producers, entities that other tools declared, other versions of the program, clocks that differ,
//! brokers in trouble for a while. Nothing is lost, and everything can be seen.

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

use polybus_core::{Delivery, Envelope};

use crate::{Cx, Fixture, Outcome, Scenario, ensure, number};

/// The scenarios of this group.
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

/// The session or message group of a delivery, by the name that its broker has for it.
fn group(envelope: &Envelope) -> Option<&str> {
    let names = ["native.session-id", "native.message-group-id", "native.routing-key"];
    envelope.key.as_deref().or_else(|| names.into_iter().find_map(|name| envelope.headers.get(name)))
}

/// The next `n` deliveries, unsettled, in the order of their numbers. Fails if a number comes twice.
async fn collect_each(cx: &Cx, sub: &mut polybus_core::Subscription, n: usize) -> Outcome<Vec<Delivery>> {
    let mut all: Vec<(usize, Delivery)> = Vec::new();
    for delivery in cx.collect(sub, n).await? {
        let number = number(delivery.envelope())?;
        ensure!(number < n && all.iter().all(|(seen, _)| *seen != number), "came twice: {delivery:?}");
        all.push((number, delivery));
    }
    all.sort_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, delivery)| delivery).collect())
}

/// Redrives all dead letters, which must be `n`.
async fn redrive(f: &Fixture, n: usize) -> Outcome {
    let report = f.bus.redrive(&f.source, |_| true, usize::MAX).await?;
    ensure!(report.moved == n as u64, "of {n} dead letters {} were moved: {report:?}", report.moved);
    Ok(())
}

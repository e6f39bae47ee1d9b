//! Entities: declaring, verifying and deleting them, their names, and what happens when they are gone.

mod declare;
mod deleted;
mod names;
mod rights;

use std::collections::BTreeSet;

use polybus_core::{Address, Bus, QueueSpec, SubscriptionSpec, TopicSpec, Topology, topology::DeclareReport};

use crate::{Cx, During, Outcome, Scenario};

/// The scenarios of this group.
pub fn all() -> Vec<Scenario> {
    [declare::all(), names::all(), deleted::all(), rights::all()].concat()
}

fn q() -> Address {
    Address::queue("q")
}

/// Declares this topology with a new bus, and returns the bus and the report.
async fn declared(cx: &Cx, topology: Topology) -> Outcome<(Bus, DeclareReport)> {
    let bus = cx.setup(topology).make().await?.during("Bus::new")?;
    let report = bus.declare().await.during("declare")?;
    Ok((bus, report))
}

fn created(report: &DeclareReport) -> BTreeSet<&str> {
    report.created.iter().map(String::as_str).collect()
}

/// A topology with a queue and, where there are topics, a topic with two subscriptions.
fn shop(cx: &Cx) -> Topology {
    let queue = Topology::new().queue("q", QueueSpec::new());
    if !cx.capabilities().topics {
        return queue;
    }
    let sub = SubscriptionSpec::new;
    queue.topic("t", TopicSpec::new().subscription("a", sub().types(["a.*", "x"])).subscription("b", sub()))
}

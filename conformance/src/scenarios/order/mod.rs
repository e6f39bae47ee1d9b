//! Order per key: messages of one key are handed out one at a time, in the order in which they were published.
//!
//! Messages with keys are published to an ordered queue or topic. The consumers note what each key's messages were.

mod blocked_keys;
mod consumer_changes;
mod failed_publishes;
mod keys;
mod next_of_a_key;

use polybus_core::{Envelope, QueueSpec, SubscriptionSpec, TopicSpec, driver::KeyHolder};

use crate::{Cx, Scenario, scenarios::shared::keyed};

/// The scenarios of this group.
pub fn all() -> Vec<Scenario> {
    [keys::all(), next_of_a_key::all(), blocked_keys::all(), failed_publishes::all(), consumer_changes::all()].concat()
}

fn ordered_queue() -> QueueSpec {
    QueueSpec::new().ordered(true).max_deliveries(50)
}

fn two_subscriptions() -> TopicSpec {
    TopicSpec::new()
        .ordered(true)
        .subscription("all", SubscriptionSpec::new().max_deliveries(50))
        .subscription("odd", SubscriptionSpec::new().max_deliveries(50).types(["n.odd.*"]))
}

fn typed(key: &str, n: usize) -> Envelope {
    keyed(key, n).edit(|p| p.event_type = ["n.even.x", "n.odd.x"][n % 2].into())
}

fn three_keys(n: usize) -> impl Iterator<Item = Envelope> {
    (0..n).map(|i| keyed(&format!("k{}", i % 3), i / 3))
}

fn holds_at_the_broker(cx: &Cx) -> bool {
    cx.capabilities().ordered.as_ref().is_some_and(|o| o.hold == KeyHolder::Broker)
}

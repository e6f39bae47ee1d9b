//! Consuming: competing consumers, prefetch, and what ends a consumer.
//!
//! A message is published to a queue, and its [`Subscription`](polybus_core::Subscription) is judged by which
//! deliveries it hands out, when, and what becomes of the others.

mod outages;
mod prefetched;
mod receive;
mod stream_errors;

use crate::Scenario;

/// The scenarios of this group.
pub fn all() -> Vec<Scenario> {
    [receive::all(), prefetched::all(), outages::all(), stream_errors::all()].concat()
}

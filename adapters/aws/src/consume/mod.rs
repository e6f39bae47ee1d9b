//! Consuming one queue.
//!
//! The receiver starts long polls in tasks of their own. What a poll brings is decoded and put into the prefetch
//! buffer, where its visibility timeout is renewed until `receive` takes it. A message is registered with the consumer
//! from its arrival until it is settled: deleted (ack), made visible again (release, retry), or copied and then deleted
//! (dead letter, redrive, retries on a crowded queue).

pub(crate) mod consumer;
pub(crate) mod copies;
pub(crate) mod in_flight_limit;
pub(crate) mod lost_receives;
pub(crate) mod prefetched;
pub(crate) mod receiver;
pub(crate) mod retry_placement;
pub(crate) mod settler;
pub(crate) mod timed_visibility;

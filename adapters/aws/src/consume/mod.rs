//! Consuming one queue: long polls bring messages, which wait here until they are taken and are known here until they are settled.

pub(crate) mod consumer;
pub(crate) mod copies;
pub(crate) mod crowding;
pub(crate) mod fifo_attempts;
pub(crate) mod in_flight_limit;
pub(crate) mod prefetched;
pub(crate) mod receiver;
pub(crate) mod settler;
pub(crate) mod timed_visibility;

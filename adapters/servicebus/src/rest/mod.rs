//! The driver over HTTPS alone, with a request for each message that is received or settled.
//!
//! Out: [`message_out`] makes a request or a batch entry of an envelope, and [`sender`] posts it. In: [`receiver`]
//! makes rounds of requests, [`message_in`] reads their answers, and [`consumer`] keeps the deliveries. [`settler`]
//! settles each with one request; for retries, dead letters and redrives it posts a copy first. All requests go through
//! [`client`], and below it through `transport::http`.

pub(crate) mod client;
pub(crate) mod consumer;
pub(crate) mod driver;
pub(crate) mod message_in;
pub(crate) mod message_out;
pub(crate) mod receiver;
pub(crate) mod sender;
pub(crate) mod settler;

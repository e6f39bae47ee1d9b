//! Parts to build adapters from.
//!
//! | part | for |
//! |---|---|
//! | [`reconnect`] | a connection that all callers share, made anew at one pace |
//! | [`prefetched`] | messages that were fetched and not handed out yet |
//! | [`pending_request`] | a request whose answer outlives the future that waits for it |
//! | [`pending_replies`] | requests over one connection, with answers in any order |
//! | [`held_deliveries`] | the deliveries that a consumer holds, by number |
//! | [`lease`] | a lock that the driver itself renews |
//! | [`url_parameters`] | the parameters of a bus URL |
//! | [`names`] | names and ids that fit a broker |
//! | [`duration`], [`size`] | durations and sizes as people write them |
//! | [`CopyState::copied`](crate::message::cloudevents::CopyState::copied) | what a copy of a message carries |

mod copies;
pub mod crc32c;
pub mod held_deliveries;
pub mod lease;
pub mod names;
pub mod pending_replies;
pub mod pending_request;
pub mod prefetched;
pub mod reconnect;
pub(crate) mod renewal;
pub mod size;
pub mod url_parameters;

pub use crate::runtime::{backoff, duration};

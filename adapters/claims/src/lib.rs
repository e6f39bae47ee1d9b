//! The claim check: a payload that is too large for a broker waits in an object store, and the message says where.
//!
//! [`Claims::check_in`] uploads a large payload and answers with the message that refers to it: three attributes, and
//! no payload. [`Claims::handler`] downloads it again, checks size and SHA-256, and calls the handler with the message
//! as it was. An outbox with [`claims`](polybus_patterns::Outbox::claims) uploads before it writes the row.
//!
//! ```no_run
//! # use polybus_core::{Address, Bus, Envelope, Result, Source, stateful};
//! # async fn example(bus: Bus) -> Result<()> {
//! use polybus_claims::Claims;
//!
//! let claims = Claims::folder("/var/lib/shop", "claims")?.threshold_of(&bus);
//! let report = Envelope::new("report.made", vec![0; 5_000_000]).content_type("application/pdf");
//! bus.publish(Address::queue("reports"), claims.check_in(report).await?).await?;
//!
//! let print = stateful((), async |(), _cx, msg| {
//!     println!("{} bytes", msg.data.len());
//!     Ok(())
//! });
//! bus.worker(Source::queue("reports")).run(claims.handler(print)).await?;
//! # Ok(()) }
//! ```
//!
//! In an application, what examples take from `polybus_core` is in `polybus`.
//!
//! | file | what lives there |
//! |---|---|
//! | `claims.rs` | [`Claims`]: where payloads are, and the limits |
//! | `check_in.rs`, `upload.rs` | what is uploaded, and how |
//! | `redeem.rs`, `download.rs` | what is checked, and how |
//! | `foreign.rs` | claims of the AWS extended client libraries |
//! | `handler.rs`, `layer.rs` | redeeming before a handler, or a tower service |
//! | `sweep.rs`, `folder.rs` | deletes what is too old |
//! | `lifecycle.rs` | the rules by which clouds do that themselves |
//! | `error.rs` | the one place that maps errors of the store |
//!
//! Payloads are never deleted when a message is acknowledged: copies for other subscriptions, retries, dead letters and
//! redrives need them. They go by age.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod check_in;
mod claims;
mod download;
mod error;
mod folder;
mod foreign;
mod handler;
#[cfg(feature = "tower")]
mod layer;
mod lifecycle;
mod redeem;
mod sweep;
mod telemetry;
mod upload;

pub use object_store;
pub use polybus_patterns::claim::{ClaimError, ClaimReference};

#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use self::layer::{ClaimsLayer, ClaimsService};
pub use self::{
    claims::{Claims, DEFAULT_MAX_SIZE, DEFAULT_RETENTION, DEFAULT_THRESHOLD},
    lifecycle::Cloud,
    sweep::SweepReport,
};

//! The claim check: a payload that is too large for a broker waits in an object store, and the message says where.
//!
//! This chapter has what must be known without an object store. The crate `polybus-claims` uploads and redeems.
//!
//! | file | what lives there |
//! |---|---|
//! | `reference.rs` | [`ClaimReference`]: the three attributes of a message whose payload is elsewhere |
//! | `prefix.rs` | [`ClaimPrefix`]: where claims may lie, and how they are named |
//! | `error.rs` | [`ClaimError`]: why a claim is not redeemed, and what becomes of its message |
//! | `start_check.rs` | [`check_claim_retention`]: what a worker is refused at its start |
//!
//! This file has [`ClaimCheck`], by which an [`Outbox`](crate::Outbox) uploads before it writes the row.

mod error;
mod prefix;
mod reference;
mod start_check;

use std::time::Duration;

use polybus_core::{Envelope, Result, driver::async_trait};

pub use self::{error::ClaimError, prefix::ClaimPrefix, reference::ClaimReference, start_check::check_claim_retention};

/// The extension attribute with the name of the payload: `<prefix>/<yyyy-mm-dd>/<uuid>`.
pub const CLAIM_REF: &str = "claimref";
/// The extension attribute with the size of the payload in bytes, in decimal digits.
pub const CLAIM_SIZE: &str = "claimsize";
/// The extension attribute with the SHA-256 of the payload, in 64 lower-case hexadecimal digits.
pub const CLAIM_SHA256: &str = "claimsha256";

/// Whatever can put a payload elsewhere. `polybus_claims::Claims` does.
///
/// ```
/// use std::time::Duration;
/// use polybus_core::{Envelope, Result, driver::async_trait};
/// use polybus_patterns::claim::ClaimCheck;
///
/// /// Keeps everything in the message.
/// struct Never;
///
/// #[async_trait]
/// impl ClaimCheck for Never {
///     async fn check_in_within(&self, envelope: Envelope, _delay: Duration, _room: usize) -> Result<Envelope> {
///         Ok(envelope)
///     }
/// }
/// ```
#[async_trait]
pub trait ClaimCheck: Send + Sync + 'static {
    /// Uploads the payload if it is larger than the threshold of its own or than `room` bytes, and answers with the
    /// message that refers to it. Other messages come back as they are, and so do those that refer already.
    ///
    /// `delay` is how long after now the message is due.
    ///
    /// # Errors
    /// `InvalidArgument`: the payload would be gone before the message is due. `PayloadTooLarge`: no consumer would
    /// redeem it. Those of the object store. Nothing was published in any case.
    ///
    /// # Cancel safety
    /// Dropping the future leaves at most a payload that no message refers to.
    async fn check_in_within(&self, envelope: Envelope, delay: Duration, room: usize) -> Result<Envelope>;
}

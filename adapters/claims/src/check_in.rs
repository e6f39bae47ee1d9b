//! What is uploaded before a message is published.

use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use polybus_core::{
    Envelope, Error, ErrorKind, Result,
    driver::async_trait,
    time::{self, Date, OffsetDateTime},
};
use polybus_patterns::claim::{CLAIM_SHA256, CLAIM_SIZE, ClaimCheck, ClaimReference};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{Claims, telemetry};

/// From this size on a payload is hashed beside the runtime's threads.
const LONG_HASH: usize = 1 << 20;

impl Claims {
    /// Uploads the payload if it is larger than the [threshold](Self::threshold), and answers with the message to
    /// publish: the same, with the attributes `claimref`, `claimsize` and `claimsha256` in place of its payload.
    /// Smaller ones come back as they are, and so does a message that is checked in already.
    ///
    /// # Errors
    /// - `PayloadTooLarge`: the payload is larger than [`max_size`](Self::max_size).
    /// - `InvalidArgument`: the message breaks a [limit](Envelope#limits). Nothing was uploaded.
    /// - Those of the store: `Unavailable`, `Timeout`, `PermissionDenied` and others. All are safe to do again.
    ///
    /// # Cancel safety
    /// Dropping the future ends the upload. It leaves at most a payload that no message refers to, which goes when its
    /// retention ends.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use polybus_claims::{Claims, object_store::memory::InMemory};
    /// use polybus_core::Envelope;
    ///
    /// let claims = Claims::new(std::sync::Arc::new(InMemory::new()), "claims")?.threshold(10);
    /// let message = claims.check_in(Envelope::new("report.made", "a large report")).await?;
    /// assert!(message.data.is_empty() && message.extensions.get("claimref").is_some());
    /// # Ok(()) }
    /// ```
    pub async fn check_in(&self, envelope: Envelope) -> Result<Envelope> {
        self.check_in_within(envelope, Duration::ZERO, usize::MAX).await
    }

    /// [`check_in`](Self::check_in), for a message that is published with a delay. Its retention begins when the delay
    /// is over.
    ///
    /// # Errors
    /// Those of [`check_in`](Self::check_in). `InvalidArgument` as well for a delay above the retention or
    /// [`max_delay`](Self::max_delay), and for a message that was checked in for an earlier day. Nothing was uploaded.
    ///
    /// # Cancel safety
    /// That of [`check_in`](Self::check_in).
    ///
    /// ```no_run
    /// # async fn example(bus: polybus_core::Bus, claims: polybus_claims::Claims) -> polybus_core::Result<()> {
    /// use polybus_core::{Address, Envelope, Outgoing};
    /// use std::time::Duration;
    ///
    /// let delay = Duration::from_secs(3600);
    /// let message = claims.check_in_for(Envelope::new("report.made", vec![0; 5_000_000]), delay).await?;
    /// bus.publish(Address::queue("reports"), Outgoing::from(message).delay(delay)).await?;
    /// # Ok(()) }
    /// ```
    pub async fn check_in_for(&self, envelope: Envelope, delay: Duration) -> Result<Envelope> {
        self.check_in_within(envelope, delay, usize::MAX).await
    }

    async fn checked_in(&self, envelope: Envelope, delay: Duration, room: usize) -> Result<Envelope> {
        if ClaimReference::is_claim(&envelope) {
            return self.checked_in_before(envelope, delay);
        }
        if [CLAIM_SIZE, CLAIM_SHA256].iter().any(|name| envelope.extensions.get(name).is_some()) {
            let text = "claims: the message has an attribute claimsize or claimsha256 of its own, which would be lost";
            return Err(Error::invalid(text));
        }
        let data = envelope.data.clone();
        if data.is_empty() || data.len() <= self.threshold.min(room) {
            return Ok(envelope);
        }
        let size = data.len() as u64;
        if size > self.max_size {
            let text = format!("a payload of {size} bytes, and claims take {}: raise Claims::max_size", self.max_size);
            return Err(Error::new(ErrorKind::PayloadTooLarge, text));
        }
        let due = self.due(delay)?;
        let key = self.prefix.key(due.date(), Uuid::now_v7().hyphenated());
        let path = Path::parse(&key).map_err(|_| Error::invalid("claims: the store cannot have this name"))?;
        let message = ClaimReference::new(key, size, sha256(&data).await?).attach(envelope);
        // What cannot be published is not uploaded either.
        message.check()?;
        self.upload(&path, data).await?;
        telemetry::claim("checked_in", size);
        tracing::debug!(target: "polybus", id = %message.id, payload = %path, size, "a payload was checked in");
        Ok(message)
    }

    /// A message that refers to a payload already. With a delay that payload must be there as long as for one that is
    /// checked in now.
    fn checked_in_before(&self, envelope: Envelope, delay: Duration) -> Result<Envelope> {
        let reference = ClaimReference::of(&envelope).map_err(|e| Error::invalid(e.to_string()))?;
        let day = reference.and_then(|reference| self.day_of(reference.name()).ok());
        if delay.is_zero() {
            return Ok(envelope);
        }
        let due = self.due(delay)?;
        // A day of slack: midnight may have passed since. The retention counts from the end of the day.
        if day.and_then(Date::next_day).is_some_and(|next| next < due.date()) {
            let text = "claims: the payload was checked in for an earlier day, and may be gone when the message is \
                        due: give check_in_for the delay";
            return Err(Error::invalid(text));
        }
        Ok(envelope)
    }

    /// When a message is due, in UTC.
    fn due(&self, delay: Duration) -> Result<OffsetDateTime> {
        let longest = self.longest_delay();
        if delay > longest {
            let text = format!(
                "claims: a delay of {delay:?} is above {longest:?}: the payload would be gone before the message is \
                 due. Raise Claims::retention (and max_delay), or send the payload some other way"
            );
            return Err(Error::invalid(text));
        }
        let delay = time::Duration::try_from(delay).ok();
        let due = delay.and_then(|delay| self.clock.now().to_offset(time::UtcOffset::UTC).checked_add(delay));
        // Names have years of four digits.
        due.filter(|due| (0..=9999).contains(&due.year()))
            .ok_or_else(|| Error::invalid("claims: the time is too far ahead"))
    }
}

#[async_trait]
impl ClaimCheck for Claims {
    async fn check_in_within(&self, envelope: Envelope, delay: Duration, room: usize) -> Result<Envelope> {
        let id = envelope.id.clone();
        let checked = self.checked_in(envelope, delay, room).await;
        checked.map_err(|e| e.with_operation("check_in").with_context("id", id))
    }
}

/// Hashes without holding up the runtime.
async fn sha256(data: &Bytes) -> Result<[u8; 32]> {
    if data.len() < LONG_HASH {
        return Ok(Sha256::digest(data).into());
    }
    let data = data.clone();
    let hashed = tokio::task::spawn_blocking(move || Sha256::digest(&data).into()).await;
    hashed.map_err(|e| Error::new(ErrorKind::Unexpected, "the payload could not be hashed").safe().with_source(e))
}

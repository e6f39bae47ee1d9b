//! What is checked before a payload is handed on.

use object_store::path::Path;
use polybus_core::{Envelope, time::Date};
use polybus_patterns::claim::{ClaimError, ClaimReference};

use crate::{Claims, download::Expected, foreign, telemetry};

impl Claims {
    /// Answers with the message as it was before it was [checked in](Self::check_in). Others come back as they are.
    ///
    /// # Errors
    /// A [`ClaimError`]. In a handler, turn it into [its ending](ClaimError::ending): a plain `?` would try again what
    /// no attempt can repair.
    ///
    /// # Cancel safety
    /// Dropping the future ends the download.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use polybus_claims::{Claims, object_store::memory::InMemory};
    /// use polybus_core::Envelope;
    ///
    /// let claims = Claims::new(std::sync::Arc::new(InMemory::new()), "claims")?.threshold(10);
    /// let report = Envelope::new("report.made", "a large report");
    /// let message = claims.check_in(report.clone()).await?;
    /// assert_eq!(claims.redeem(message).await?, report);
    /// # Ok(()) }
    /// ```
    pub async fn redeem(&self, envelope: Envelope) -> Result<Envelope, ClaimError> {
        let id = envelope.id.clone();
        let redeemed = self.redeemed(envelope).await;
        if let Err(error) = &redeemed {
            telemetry::claim(error.reason(), 0);
            tracing::debug!(target: "polybus", %id, %error, reason = error.reason(), "a claim was not redeemed");
        }
        redeemed
    }

    async fn redeemed(&self, envelope: Envelope) -> Result<Envelope, ClaimError> {
        let Some(reference) = ClaimReference::of(&envelope)? else {
            return match foreign::pointer(&envelope).filter(|_| !self.foreign.is_empty()) {
                Some(pointer) => self.redeem_pointer(envelope, &pointer).await,
                None => Ok(envelope),
            };
        };
        let name = reference.name();
        self.day_of(name)?;
        let path = Path::parse(name).map_err(|_| ClaimError::outside(name))?;
        if reference.size() > self.max_size {
            let (size, most) = (reference.size(), self.max_size);
            return Err(ClaimError::TooLarge { reference: name.into(), size, most });
        }
        let expected = Expected { name, size: Some(reference.size()), sha256: Some(reference.sha256()) };
        let data = self.download(&*self.store, &path, &expected).await?;
        telemetry::claim("redeemed", reference.size());
        Ok(ClaimReference::detach(envelope, data))
    }

    /// The day of a name under one of the prefixes.
    pub(crate) fn day_of(&self, name: &str) -> Result<Date, ClaimError> {
        let others = self.also.iter().find_map(|prefix| prefix.day_of(name).ok());
        self.prefix.day_of(name).or_else(|outside| others.ok_or(outside))
    }
}

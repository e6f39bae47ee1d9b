//! Redeems before a handler.

use std::time::Duration;

use polybus_core::{Envelope, Handler, HandlerContext, HandlerError, Result, worker::WorkerInfo};
use polybus_patterns::claim::{ClaimError, check_claim_retention};

use crate::Claims;

/// How long a missing payload is waited for at the last attempt: the ones before may have met something else.
const SECOND_LOOK: Duration = Duration::from_secs(1);

impl Claims {
    /// A handler that gets each message as it was before it was [checked in](Self::check_in). Around an inbox it
    /// redeems before the transaction begins: `claims.handler(inbox.handler(…))`.
    ///
    /// A claim that is not redeemed ends as [`ClaimError`] says, without the inner handler. A missing payload is looked
    /// for at least twice before its message becomes a dead letter.
    ///
    /// A worker refuses to start with a [retention](Self::retention) that is shorter than its retries and a day.
    ///
    /// ```no_run
    /// # async fn example(bus: polybus_core::Bus, claims: polybus_claims::Claims) -> polybus_core::Result<()> {
    /// use polybus_core::{Source, stateful};
    ///
    /// let handler = stateful((), async |(), _cx, msg| {
    ///     println!("{} bytes", msg.data.len());
    ///     Ok(())
    /// });
    /// bus.worker(Source::queue("reports")).run(claims.handler(handler)).await?;
    /// # Ok(()) }
    /// ```
    pub fn handler<H: Handler>(&self, inner: H) -> impl Handler + use<H> {
        ClaimsHandler { claims: self.clone(), inner }
    }

    /// Redeems for a handler, with the ending that the error has there.
    pub(crate) async fn redeem_for(
        &self,
        context: &HandlerContext,
        message: Envelope,
    ) -> Result<Envelope, HandlerError> {
        let mut redeemed = self.redeem(message.clone()).await;
        if matches!(redeemed, Err(ClaimError::Missing { .. })) && context.is_last_attempt() {
            tokio::time::sleep(SECOND_LOOK).await;
            redeemed = self.redeem(message.clone()).await;
        }
        redeemed.map_err(|error| {
            if !error.is_transient() {
                let (id, source, reason) = (&message.id, context.source(), error.reason());
                tracing::warn!(target: "polybus", %id, %source, reason, %error, "a claim cannot be redeemed");
            }
            error.ending(context)
        })
    }

    pub(crate) fn check_start(&self, worker: &WorkerInfo) -> Result<()> {
        check_claim_retention(self.retention, worker)
    }
}

struct ClaimsHandler<H> {
    claims: Claims,
    inner: H,
}

impl<H: Handler> Handler for ClaimsHandler<H> {
    async fn handle(&self, cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
        let message = self.claims.redeem_for(&cx, msg).await?;
        self.inner.handle(cx, message).await
    }

    async fn starting(&self, worker: &WorkerInfo) -> Result<()> {
        self.claims.check_start(worker)?;
        self.inner.starting(worker).await
    }
}

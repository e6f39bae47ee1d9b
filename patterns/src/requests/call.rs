//! One call: publishes the request, and waits for the reply.

use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    time::Duration,
};

use polybus_core::{
    Address, Envelope, Error, Result, RetrySafety,
    telemetry::with_current,
    time::{Duration as TimeSpan, OffsetDateTime},
};
use tokio::time::{Instant, sleep_until};

use super::{RequestError, Requests, Sent, reply};
use crate::telemetry;

/// A call that is being described. Nothing happens before it is awaited. [`Requests::call`] makes it.
///
/// # Cancel safety
/// Dropping its future ends the call: it keeps no place, a request that was not sent yet is not sent, and an answer that
/// comes later is counted as late.
#[must_use = "nothing is sent before it is awaited"]
pub struct Call<R> {
    requests: Requests,
    to: Address,
    request: Result<Envelope>,
    timeout: Duration,
    read: fn(Envelope) -> Result<R>,
}

impl<R> fmt::Debug for Call<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("to", &self.to).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl<R> Call<R> {
    pub(super) fn new(
        requests: Requests,
        to: Address,
        request: Result<Envelope>,
        read: fn(Envelope) -> Result<R>,
    ) -> Self {
        let timeout = requests.0.timeout;
        Self { requests, to, request, timeout, read }
    }

    /// Sets how long to wait for the answer, the time to send the request included. Default: that of the
    /// [`RequestsBuilder`](super::RequestsBuilder::timeout), 30 s unless it was set.
    ///
    /// The request expires then, so nobody handles it for a caller who has left.
    ///
    /// ```no_run
    /// # use polybus_core::{Address, Envelope};
    /// # use polybus_patterns::requests::{RequestError, Requests};
    /// # use std::time::Duration;
    /// # async fn example(requests: Requests) -> Result<(), RequestError> {
    /// let ask = Envelope::new("quote.wanted", "{}");
    /// let answer = requests.call_with(Address::queue("quotes"), ask).timeout(Duration::from_secs(2)).await?;
    /// # Ok(()) }
    /// ```
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Sets the ordering key of the request, which an ordered queue needs.
    ///
    /// ```no_run
    /// # use polybus_core::{Address, Envelope};
    /// # use polybus_patterns::requests::{RequestError, Requests};
    /// # async fn example(requests: Requests) -> Result<(), RequestError> {
    /// let ask = Envelope::new("quote.wanted", "{}");
    /// let answer = requests.call_with(Address::queue("quotes"), ask).key("customer-3").await?;
    /// # Ok(()) }
    /// ```
    pub fn key(self, key: impl Into<Box<str>>) -> Self {
        self.edit(|request| request.key(key))
    }

    /// Adds a header to the request.
    ///
    /// ```no_run
    /// # use polybus_core::{Address, Envelope};
    /// # use polybus_patterns::requests::{RequestError, Requests};
    /// # async fn example(requests: Requests) -> Result<(), RequestError> {
    /// let ask = Envelope::new("quote.wanted", "{}");
    /// let answer = requests.call_with(Address::queue("quotes"), ask).header("tenant", "acme").await?;
    /// # Ok(()) }
    /// ```
    pub fn header(self, name: impl Into<Box<str>>, value: impl Into<Box<str>>) -> Self {
        self.edit(|request| request.header(name, value))
    }

    fn edit(mut self, change: impl FnOnce(Envelope) -> Envelope) -> Self {
        self.request = self.request.map(change);
        self
    }

    async fn run(self) -> Result<R, RequestError> {
        let address = self.to.clone();
        let result = self.answer().await;
        let outcome = match &result {
            Ok(_) => "ok",
            Err(RequestError::Timeout { .. }) => "timeout",
            Err(RequestError::Remote { .. }) => "remote",
            Err(RequestError::Publish(_)) => "publish",
            Err(RequestError::Decode(_)) => "decode",
            Err(RequestError::TooManyWaiting { .. }) => "too-many-waiting",
            Err(RequestError::Closed { .. }) => "closed",
        };
        telemetry::request_ended(&address, outcome);
        result
    }

    async fn answer(self) -> Result<R, RequestError> {
        let deadline = Instant::now().checked_add(self.timeout);
        let open = &*self.requests.0;
        let mut call = open.shared.waiting.begin()?;
        let request = self.request.map_err(RequestError::Publish)?;
        let expires_at = earliest(open.bus.now(), self.timeout, request.expires_at).map_err(RequestError::Publish)?;
        let request = with_current(request.id(open.shared.instance.request(call.number)))
            .reply_to(&*open.reply_queue)
            .expires_at(expires_at);
        // Every request has a conversation: its own id, where it begins one.
        let request = match request.correlation_id {
            Some(_) => request,
            None => request.clone().correlation_id(request.id.clone()),
        };
        let mut publishing = Some(open.bus.publish(self.to, request));
        let mut sent = Sent::Maybe;
        let answer = {
            let timer = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let mut timer = std::pin::pin!(timer);
            loop {
                let publish = async {
                    match &mut publishing {
                        Some(publishing) => publishing.await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    answer = &mut call.answer => break answer.map_err(|_| None),
                    published = publish => {
                        publishing = None;
                        match published {
                            Ok(_) => sent = Sent::Yes,
                            // It may have been stored, so its answer may come.
                            Err(e) if e.retry() == RetrySafety::MayDuplicate => sent = Sent::Maybe,
                            Err(e) => return Err(RequestError::Publish(e)),
                        }
                    }
                    () = &mut timer => break Err(Some(RequestError::Timeout { sent, after: self.timeout })),
                }
            }
        };
        match answer {
            Ok(reply) => match reply::remote_error(&reply) {
                Some(remote) => Err(remote),
                None => (self.read)(reply).map_err(RequestError::Decode),
            },
            Err(Some(timeout)) => Err(timeout),
            Err(None) => {
                let cause = open.shared.waiting.cause();
                let gone = || Error::new(polybus_core::ErrorKind::Closed, "the reply queue is no longer consumed");
                Err(RequestError::Closed { sent, cause: cause.unwrap_or_else(gone) })
            }
        }
    }
}

/// When the request expires: at the call's timeout, or earlier where the message itself says so.
fn earliest(now: OffsetDateTime, timeout: Duration, own: Option<OffsetDateTime>) -> Result<OffsetDateTime> {
    if timeout.is_zero() {
        return Err(Error::invalid("a call's timeout must be more than 0"));
    }
    // A timeout without an end is as good as one of many years.
    let at = TimeSpan::try_from(timeout).ok().and_then(|span| now.checked_add(span));
    let at = at.unwrap_or_else(|| now.saturating_add(TimeSpan::days(365)));
    Ok(own.map_or(at, |own| own.min(at)))
}

impl<R: Send + 'static> IntoFuture for Call<R> {
    type Output = Result<R, RequestError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

//! The other side: handles requests, and publishes the answers.

use std::{fmt, future::Future, sync::Arc};

use polybus_core::{
    Bus, Envelope, Error, ErrorKind, Event, Handler, HandlerContext, HandlerError, Result, RetrySafety, Source,
    message::ReplyTo,
};

use super::{
    Refusal, Reply,
    handling::{Handled, run_caught},
    reply,
};
use crate::telemetry;

/// A handler that answers requests: [`Responder::handler`] with the defaults of [`Responder::new`].
///
/// ```no_run
/// # use polybus_core::{Bus, Event, Source};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct GetQuote { sku: String }
/// # impl Event for GetQuote { const TYPE: &'static str = "quote.wanted"; const VERSION: u32 = 1; }
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Quote { cents: u64 }
/// # impl Event for Quote { const TYPE: &'static str = "quote.made"; const VERSION: u32 = 1; }
/// # async fn example(bus: Bus) -> polybus_core::Result<()> {
/// use polybus_patterns::requests::respond;
///
/// let prices = 1250;
/// bus.worker(Source::queue("quotes"))
///     .run(respond(&bus, prices, async |cents, _cx, _ask: GetQuote| Ok(Quote { cents })))
///     .await?;
/// # Ok(()) }
/// ```
pub fn respond<S, Q, R, F, Fut>(bus: &Bus, state: S, f: F) -> impl Handler + use<S, Q, R, F, Fut>
where
    S: Clone + Send + Sync + 'static,
    Q: Event + 'static,
    R: Event + 'static,
    F: Fn(S, HandlerContext, Q) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
{
    Responder::new(bus).handler(state, f)
}

/// Makes handlers that answer requests.
///
/// | the handler ends with | the caller gets | the request |
/// |---|---|---|
/// | `Ok` | the answer | is acknowledged |
/// | a [`Refusal`] | its kind and message | is acknowledged |
/// | an error that is retried | nothing yet; at the last attempt `failed` | comes again; at last a dead letter |
/// | a permanent error | its reason (the detail stays here) | becomes a dead letter |
/// | a panic | nothing yet; at the last attempt `panic` | as for an error |
///
/// - A request whose caller has left has expired, and is not handled. An answer that would come too late is not sent, and
///   counted.
/// - One that names no reply queue becomes a dead letter, `no-reply-queue`, before the handler runs. So does one whose
///   reply queue cannot be answered, `reply-queue-refused`: the queue of the requests itself, or an ordered one.
/// - A handler that the worker's `handler_timeout` ends tells its caller nothing: give the handler a limit of its own.
/// - A reply queue that is gone says that the caller has left: the request is acknowledged, and the log says so.
/// - While the reply cannot be published, the request is retried, so the handler may run again.
///
/// Requests of other programs are answered too: RabbitMQ's `reply_to` and `correlation_id` (also
/// `amq.rabbitmq.reply-to`), Service Bus' `ReplyTo` and `ReplyToSessionId`. Their body is read as JSON.
///
/// **A request says where its answer goes, so whoever may send one makes this program publish into any queue that it may
/// publish to.** Use [`only_to`](Self::only_to) where strangers send requests.
#[derive(Clone)]
pub struct Responder {
    bus: Bus,
    allowed: Option<Arc<AllowedQueue>>,
}

type AllowedQueue = dyn Fn(&ReplyTo) -> bool + Send + Sync;

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").finish_non_exhaustive()
    }
}

impl Responder {
    /// A responder that publishes its answers on this bus, which is that of the worker.
    ///
    /// ```no_run
    /// # fn example(bus: polybus_core::Bus) {
    /// let responder = polybus_patterns::requests::Responder::new(&bus);
    /// # }
    /// ```
    pub fn new(bus: &Bus) -> Self {
        Self { bus: bus.clone(), allowed: None }
    }

    /// Answers into these reply queues alone. A request that names another one becomes a dead letter,
    /// `reply-queue-refused`, before its handler runs.
    ///
    /// ```no_run
    /// # fn example(bus: polybus_core::Bus) {
    /// # use polybus_patterns::requests::Responder;
    /// // The name at the broker, with the prefix of the callers' topology.
    /// let responder = Responder::new(&bus).only_to(|to| to.queue().starts_with("shop_replies-"));
    /// # }
    /// ```
    pub fn only_to(mut self, allowed: impl Fn(&ReplyTo) -> bool + Send + Sync + 'static) -> Self {
        self.allowed = Some(Arc::new(allowed));
        self
    }

    /// A handler for a worker: `f` takes the request as a `Q`, and answers with an `R`. Each request gets a clone of the
    /// state.
    ///
    /// A request that cannot be read becomes a dead letter, and its caller gets `malformed`.
    ///
    /// ```no_run
    /// # use polybus_core::{Bus, Event, Source};
    /// # use polybus_patterns::requests::{Refusal, Responder};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct GetQuote { sku: String }
    /// # impl Event for GetQuote { const TYPE: &'static str = "quote.wanted"; const VERSION: u32 = 1; }
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Quote { cents: u64 }
    /// # impl Event for Quote { const TYPE: &'static str = "quote.made"; const VERSION: u32 = 1; }
    /// # async fn example(bus: Bus) -> polybus_core::Result<()> {
    /// let handler = Responder::new(&bus).handler((), async |(), _cx, ask: GetQuote| match &*ask.sku {
    ///     "A-7" => Ok(Quote { cents: 1250 }),
    ///     other => Err(Refusal::new("unknown-sku", format!("there is no {other}")).into()),
    /// });
    /// bus.worker(Source::queue("quotes")).run(handler).await?;
    /// # Ok(()) }
    /// ```
    pub fn handler<S, Q, R, F, Fut>(&self, state: S, f: F) -> impl Handler + use<S, Q, R, F, Fut>
    where
        S: Clone + Send + Sync + 'static,
        Q: Event + 'static,
        R: Event + 'static,
        F: Fn(S, HandlerContext, Q) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    {
        let answer = move |cx: HandlerContext, request: Envelope| {
            let answering = reply::decode::<Q>(request).map(|ask| f(state.clone(), cx, ask));
            async move {
                let answering = answering.map_err(|e| HandlerError::dead_letter("malformed", e.to_string()))?;
                Envelope::event(&answering.await?).map_err(HandlerError::permanent)
            }
        };
        RequestHandler { responder: self.clone(), answer }
    }

    /// A handler that takes the whole message, and answers with one.
    ///
    /// ```no_run
    /// # use polybus_core::{Bus, Envelope, Source};
    /// # use polybus_patterns::requests::Responder;
    /// # async fn example(bus: Bus) -> polybus_core::Result<()> {
    /// let echo = Responder::new(&bus).message_handler((), async |(), _cx, ask| Ok(Envelope::new("echo", ask.data.clone())));
    /// bus.worker(Source::queue("echo")).run(echo).await?;
    /// # Ok(()) }
    /// ```
    pub fn message_handler<S, F, Fut>(&self, state: S, f: F) -> impl Handler + use<S, F, Fut>
    where
        S: Clone + Send + Sync + 'static,
        F: Fn(S, HandlerContext, Envelope) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Envelope, HandlerError>> + Send + 'static,
    {
        let answer = move |cx: HandlerContext, request: Envelope| f(state.clone(), cx, request);
        RequestHandler { responder: self.clone(), answer }
    }
}

/// The handler that a worker runs.
struct RequestHandler<F> {
    responder: Responder,
    answer: F,
}

impl<F, Fut> Handler for RequestHandler<F>
where
    F: Fn(HandlerContext, Envelope) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Envelope, HandlerError>> + Send,
{
    async fn handle(&self, cx: HandlerContext, request: Envelope) -> Result<(), HandlerError> {
        let source = cx.source().clone();
        self.responder.check(&request, &source)?;
        let is_last = cx.is_last_attempt();
        let handled = run_caught(|| (self.answer)(cx, request.clone())).await;
        let (reply, ending) = match handled {
            Handled::Answer(answer) => (Reply::with(&request, answer), Ending::Answered),
            Handled::Error(e) => (refusal_of(&e, is_last).and_then(|r| Reply::refusal(&request, &r)), Ending::of(e)),
            Handled::Panic(panic) => {
                let refusal = is_last.then(|| Refusal::new("panic", "the responder failed: its log says why"));
                (refusal.and_then(|r| Reply::refusal(&request, &r)), Ending::Panicked(panic))
            }
        };
        let sent = match reply {
            Some(reply) => self.responder.send(reply, &request).await,
            None => Ok("retried"),
        };
        match (ending, sent) {
            (Ending::Answered | Ending::Refused, Ok(outcome)) => {
                telemetry::responses(&source, outcome);
                Ok(())
            }
            (Ending::Answered | Ending::Refused, Err(e)) => {
                telemetry::responses(&source, if is_last { "failed" } else { "retried" });
                Err(e)
            }
            // The request fails in any case. That its caller is not told is not worth another attempt.
            (Ending::Failed(error), sent) => {
                note_failure(&source, sent);
                Err(error)
            }
            (Ending::Panicked(panic), sent) => {
                note_failure(&source, sent);
                std::panic::resume_unwind(panic)
            }
        }
    }
}

fn note_failure(source: &Source, sent: Result<&'static str, HandlerError>) {
    match sent {
        Ok(outcome) => telemetry::responses(source, if outcome == "answered" { "failed" } else { outcome }),
        Err(e) => {
            telemetry::responses(source, "failed");
            tracing::warn!(target: "polybus", %source, error = %e, "the caller cannot be told that its request failed");
        }
    }
}

/// What becomes of the request once its caller is told.
enum Ending {
    Answered,
    Refused,
    Failed(HandlerError),
    Panicked(Box<dyn std::any::Any + Send>),
}

impl Ending {
    fn of(error: HandlerError) -> Self {
        match error.error().is::<Refusal>() && !error.is_permanent() {
            true => Self::Refused,
            false => Self::Failed(error),
        }
    }
}

/// What the caller is told of an error; `None` if the request comes again.
fn refusal_of(error: &HandlerError, is_last: bool) -> Option<Refusal> {
    if let Some(refusal) = error.error().downcast_ref::<Refusal>() {
        return Some(refusal.clone());
    }
    // The detail may hold what is not for the caller. It stays in the dead letter.
    if let Some(reason) = error.dead_letter_reason() {
        return Some(Refusal::new(reason, "the request was refused: the responder's dead letters say why"));
    }
    is_last.then(|| Refusal::new("failed", "all attempts failed: the responder's dead letters say why"))
}

impl Responder {
    /// Refuses a request that cannot be answered, before it is handled.
    fn check(&self, request: &Envelope, source: &Source) -> Result<(), HandlerError> {
        let Some(to) = ReplyTo::of(request) else {
            let text = "a request without a reply queue: send it with Requests, or with a native reply_to";
            return Err(HandlerError::dead_letter("no-reply-queue", text));
        };
        let refused = |why: &str| {
            let text = format!("the reply queue {:?} {why}", to.queue());
            Err(HandlerError::dead_letter("reply-queue-refused", text))
        };
        let topology = self.bus.topology();
        if *topology.source(source).physical == *to.queue() {
            return refused("is the queue of the requests");
        }
        let address = to.address_in(topology);
        match (to.session(), address.map(|address| topology.address(&address).settings.ordered)) {
            (Some(_), _) if self.bus.capabilities().ordered.is_none() => {
                refused("has sessions, which are not possible here")
            }
            (None, Some(true)) => refused("is ordered, and the request names no session"),
            _ if self.allowed.as_ref().is_some_and(|allowed| !allowed(&to)) => {
                refused("is none that this responder answers to")
            }
            _ => Ok(()),
        }
    }

    /// Publishes a reply, and answers what became of it. An error says that the request is to come again.
    async fn send(&self, reply: Reply, request: &Envelope) -> Result<&'static str, HandlerError> {
        if request.expires_at.is_some_and(|at| at <= self.bus.now()) {
            return Ok("too-late");
        }
        let queue = reply.reply_to().queue().to_owned();
        let error = match reply.publish(&self.bus).await {
            Ok(_) => return Ok("answered"),
            Err(e) => e,
        };
        match error.kind() {
            ErrorKind::NotFound => {
                tracing::warn!(target: "polybus", queue, id = %request.id, "the reply queue is gone, and with it the caller");
                Ok("no-caller")
            }
            // The request comes again, to another process or after a new login.
            ErrorKind::Closed | ErrorKind::Unauthenticated => Err(error.into()),
            _ if error.retry() == RetrySafety::Never => {
                self.tell_unpublishable(request, &error).await;
                Err(HandlerError::dead_letter("reply-refused", error.to_string()))
            }
            _ => Err(error.into()),
        }
    }

    /// Tells the caller that its answer cannot be published, so that it need not wait for its timeout.
    async fn tell_unpublishable(&self, request: &Envelope, error: &Error) {
        let text = format!("the answer cannot be published: {}", error.kind().as_str());
        let Some(reply) = Reply::refusal(request, &Refusal::new("reply-refused", text)) else { return };
        if let Err(e) = reply.publish(&self.bus).await {
            tracing::debug!(target: "polybus", id = %request.id, error = %e, "the caller cannot be told either");
        }
    }
}

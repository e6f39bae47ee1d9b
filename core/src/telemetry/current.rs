//! The message that code is about: what it publishes inherits the conversation and the trace.

use std::{
    cell::RefCell,
    sync::{Arc, OnceLock},
};

use tracing::Span;

use super::trace::{TraceContext, propagated_trace, tell_propagator};
use crate::Envelope;

/// The conversation and the trace that code runs in. Messages that it publishes, or writes into an outbox, inherit them.
///
/// A worker sets it around each handler: what the handler publishes has the correlation id of the message that it
/// handles (or its id, where it has none), that message's id as its causation id, and its trace. So one correlation id
/// goes from the first message to the last effect, and the causation ids make a tree. A field that a message sets
/// itself stays, and a message that is published again under its own id is not changed.
///
/// Elsewhere the program sets it: for the start of a conversation ([`Current::correlated`]), in a consumer without a
/// worker ([`Current::of`]), and for a task that a handler spawns, which is outside otherwise ([`Current::capture`]).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> polybus_core::Result<()> {
/// # use polybus_core::{Address, Bus, BusOptions, QueueSpec, Topology, memory::MemoryDriver};
/// # let topology = Topology::new().queue("payments", QueueSpec::new());
/// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
/// # bus.declare().await?;
/// use polybus_core::{Envelope, telemetry::Current};
///
/// // In a web server: all that this request publishes belongs together.
/// Current::correlated("request-7")
///     .scope(async {
///         let task = Current::capture().scope(async { /* publishes here inherit as well */ });
///         tokio::spawn(task);
///         bus.publish(Address::queue("payments"), Envelope::new("payment.made", "{}")).await
///     })
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Current {
    correlation_id: Option<Box<str>>,
    causation_id: Option<Box<str>>,
    trace: Option<TraceContext>,
}

impl Current {
    /// A conversation that begins here, under this correlation id.
    ///
    /// ```
    /// use polybus_core::telemetry::Current;
    ///
    /// assert_eq!(Current::correlated("request-7").correlation_id(), Some("request-7"));
    /// ```
    pub fn correlated(id: impl Into<Box<str>>) -> Self {
        Self { correlation_id: Some(id.into()), ..Self::default() }
    }

    /// What the effects of this message inherit.
    ///
    /// ```
    /// use polybus_core::{Envelope, telemetry::Current};
    ///
    /// let order = Envelope::new("order.placed", "{}").id("42").correlation_id("basket-3");
    /// let current = Current::of(&order);
    /// assert_eq!((current.correlation_id(), current.causation_id()), (Some("basket-3"), Some("42")));
    /// ```
    pub fn of(message: &Envelope) -> Self {
        Self {
            correlation_id: Some(conversation(message).into()),
            causation_id: Some(message.id.clone()),
            trace: TraceContext::of(message).map(|parent| parent.child()),
        }
    }

    /// What messages that are published here would inherit. Empty outside of any scope.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use polybus_core::telemetry::Current;
    ///
    /// assert_eq!(Current::capture().correlation_id(), None);
    /// Current::correlated("request-7")
    ///     .scope(async { assert_eq!(Current::capture().correlation_id(), Some("request-7")) })
    ///     .await;
    /// # }
    /// ```
    pub fn capture() -> Self {
        let Some(scope) = Scope::current() else { return Self::default() };
        Self {
            correlation_id: scope.correlation_id().map(Into::into),
            causation_id: scope.causation_id().map(Into::into),
            trace: scope.trace().cloned(),
        }
    }

    /// The same with this trace.
    ///
    /// ```
    /// # use polybus_core::telemetry::{Current, TraceContext};
    /// let trace = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None)?;
    /// assert!(Current::correlated("request-7").trace(trace).trace_context().is_some());
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn trace(mut self, trace: TraceContext) -> Self {
        self.trace = Some(trace);
        self
    }

    /// The correlation id, which all messages of one conversation share.
    ///
    /// ```
    /// assert_eq!(polybus_core::telemetry::Current::default().correlation_id(), None);
    /// ```
    pub fn correlation_id(&self) -> Option<&str> {
        self.correlation_id.as_deref()
    }

    /// The id of the message that causes what happens here.
    ///
    /// ```
    /// assert_eq!(polybus_core::telemetry::Current::default().causation_id(), None);
    /// ```
    pub fn causation_id(&self) -> Option<&str> {
        self.causation_id.as_deref()
    }

    /// The trace that messages inherit.
    ///
    /// ```
    /// assert!(polybus_core::telemetry::Current::default().trace_context().is_none());
    /// ```
    pub fn trace_context(&self) -> Option<&TraceContext> {
        self.trace.as_ref()
    }

    /// Runs `future` in it, in place of what is around it. It follows the future from thread to thread.
    ///
    /// # Cancel safety
    /// That of `future`.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use polybus_core::telemetry::Current;
    ///
    /// let id = Current::correlated("request-7").scope(async { Current::capture().correlation_id().map(str::to_owned) });
    /// assert_eq!(id.await.as_deref(), Some("request-7"));
    /// # }
    /// ```
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        Scope::new(ScopeState { given: self, ..ScopeState::default() }).run(future).await
    }
}

/// The correlation id of what a message causes.
fn conversation(message: &Envelope) -> &str {
    message.correlation_id.as_deref().unwrap_or(&message.id)
}

thread_local! {
    static CURRENT: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// What code runs in. It is set around each poll, so that it follows a future from thread to thread.
#[derive(Clone)]
pub(crate) struct Scope(Arc<ScopeState>);

#[derive(Default)]
struct ScopeState {
    /// The message that is handled; `None` in a scope that the program set.
    incoming: Option<Envelope>,
    given: Current,
    /// The trace of what is published. Made of `incoming` when it is first needed, and the same for the whole handling.
    outgoing: OnceLock<Option<TraceContext>>,
}

impl Scope {
    fn new(state: ScopeState) -> Self {
        Self(Arc::new(state))
    }

    /// The scope of a handling.
    pub(crate) fn of(message: &Envelope) -> Self {
        Self::new(ScopeState { incoming: Some(message.clone()), ..ScopeState::default() })
    }

    /// The scope that code runs in now; the conversation of that one, with another trace.
    pub(crate) fn with_trace(trace: TraceContext) -> Self {
        Self::new(ScopeState { given: Current { trace: Some(trace), ..Current::capture() }, ..ScopeState::default() })
    }

    pub(crate) fn current() -> Option<Self> {
        CURRENT.try_with(|scope| scope.borrow().clone()).ok().flatten()
    }

    /// Tells the propagator that the handled message is the remote parent of this span.
    pub(crate) fn adopt(&self, span: &Span) {
        if let Some(incoming) = &self.0.incoming {
            tell_propagator(span, incoming);
        }
    }

    /// Runs `f` in this scope, and brings the one before back, also if `f` panics.
    pub(crate) fn enter<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Restore(Option<Scope>);
        impl Drop for Restore {
            fn drop(&mut self) {
                let _ = CURRENT.try_with(|c| std::mem::swap(&mut *c.borrow_mut(), &mut self.0));
            }
        }
        let before = CURRENT.try_with(|c| c.borrow_mut().replace(self.clone())).ok().flatten();
        let _restore = Restore(before);
        f()
    }

    pub(crate) async fn run<F: Future>(self, future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| self.enter(|| future.as_mut().poll(cx))).await
    }

    /// The trace of what is published here.
    pub(crate) fn trace(&self) -> Option<&TraceContext> {
        let make = || match &self.0.incoming {
            Some(incoming) => TraceContext::of(incoming).map(|parent| parent.child()),
            None => self.0.given.trace.clone(),
        };
        self.0.outgoing.get_or_init(make).as_ref()
    }

    fn correlation_id(&self) -> Option<&str> {
        self.0.incoming.as_ref().map(conversation).or(self.0.given.correlation_id.as_deref())
    }

    fn causation_id(&self) -> Option<&str> {
        self.0.incoming.as_ref().map(|incoming| &*incoming.id).or(self.0.given.causation_id.as_deref())
    }
}

/// Puts the conversation and the trace that code runs in into a message, where it has none itself, as a publish does. It
/// is for messages that are kept and published later, by somebody else.
///
/// ```
/// use polybus_core::{Envelope, telemetry::with_current};
///
/// // Outside of any scope nothing changes.
/// assert!(with_current(Envelope::new("order.placed", "{}")).correlation_id.is_none());
/// ```
pub fn with_current(message: Envelope) -> Envelope {
    let scope = Scope::current();
    let trace = match message.traceparent {
        Some(_) => None,
        None => propagated_trace().or_else(|| scope.as_ref()?.trace().cloned()),
    };
    let message = match trace {
        None => message,
        Some(trace) => message.edit(|fields| (fields.traceparent, fields.tracestate) = trace.into_texts()),
    };
    let Some(scope) = scope else { return message };
    // A bridge publishes the message that it handles, and nothing is its own cause.
    if scope.causation_id() == Some(&message.id) || message.correlation_id.is_some() && message.causation_id.is_some() {
        return message;
    }
    message.edit(|fields| {
        if fields.correlation_id.is_none() {
            fields.correlation_id = scope.correlation_id().map(Into::into);
        }
        if fields.causation_id.is_none() {
            fields.causation_id = scope.causation_id().map(Into::into);
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn ids(message: &Envelope) -> (Option<&str>, Option<&str>) {
        (message.correlation_id.as_deref(), message.causation_id.as_deref())
    }

    #[test]
    fn messages_published_in_a_scope_inherit_its_trace() {
        let incoming = Envelope::new("a", "").traceparent(PARENT);
        let scope = Scope::of(&incoming);
        let (one, two) = scope.enter(|| (with_current(Envelope::new("b", "")), with_current(Envelope::new("c", ""))));
        let trace = TraceContext::of(&one).unwrap();
        assert_eq!(trace.trace_id(), TraceContext::of(&incoming).unwrap().trace_id());
        assert_ne!(trace.parent_id(), "b7ad6b7169203331");
        assert_eq!(one.traceparent, two.traceparent);
        let own = scope.enter(|| with_current(Envelope::new("b", "").traceparent("x")));
        assert_eq!(own.traceparent.as_deref(), Some("x"));
        assert!(with_current(Envelope::new("b", "")).traceparent.is_none());
        assert!(TraceContext::current().is_none());
    }

    #[test]
    fn effects_know_their_conversation_and_their_cause() {
        let first = Envelope::new("a", "").id("1");
        let second = Scope::of(&first).enter(|| with_current(Envelope::new("b", "").id("2")));
        assert_eq!(ids(&second), (Some("1"), Some("1")));
        let third = Scope::of(&second).enter(|| with_current(Envelope::new("c", "").id("3")));
        assert_eq!(ids(&third), (Some("1"), Some("2")));
        // What a message says itself stays.
        let own = Scope::of(&second).enter(|| with_current(Envelope::new("c", "").correlation_id("x")));
        assert_eq!(ids(&own), (Some("x"), Some("2")));
        let own = Scope::of(&second).enter(|| with_current(Envelope::new("c", "").causation_id("y")));
        assert_eq!(ids(&own), (Some("1"), Some("y")));
    }

    #[test]
    fn a_message_that_is_published_again_is_not_changed() {
        let message = Envelope::new("a", "").id("1");
        assert_eq!(Scope::of(&message).enter(|| with_current(message.clone())), message);
    }

    #[tokio::test]
    async fn a_trace_of_its_own_leaves_the_conversation() {
        let trace = TraceContext::new(PARENT, None).unwrap();
        let message = Current::correlated("c").scope(trace.scope(async { with_current(Envelope::new("a", "")) })).await;
        assert_eq!((ids(&message), message.traceparent.as_deref()), ((Some("c"), None), Some(PARENT)));
    }

    #[tokio::test]
    async fn a_spawned_task_inherits_what_it_was_given() {
        let incoming = Envelope::new("a", "").id("1").traceparent(PARENT);
        let task =
            Scope::of(&incoming).enter(|| Current::capture().scope(async { with_current(Envelope::new("b", "")) }));
        let message = tokio::spawn(task).await.unwrap();
        assert_eq!(ids(&message), (Some("1"), Some("1")));
        assert!(TraceContext::of(&message).is_some_and(|trace| trace.trace_id() == &PARENT[3..35]));
    }
}

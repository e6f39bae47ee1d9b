//! The trace context, which goes from the message that is handled to the messages that its handler publishes.

use std::{collections::hash_map::RandomState, hash::BuildHasher, sync::OnceLock};

use tracing::Span;

use super::current::Scope;
use crate::{Envelope, Error, Result};

/// A W3C trace context: the texts `traceparent` and `tracestate`.
///
/// ```
/// use polybus_core::telemetry::TraceContext;
///
/// let context = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None)?;
/// assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
/// # Ok::<(), polybus_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    traceparent: Box<str>,
    tracestate: Option<Box<str>>,
}

impl TraceContext {
    /// A context from its two texts.
    ///
    /// # Errors
    /// `InvalidArgument` if `traceparent` is not `00-<32 hex>-<16 hex>-<2 hex>` in lower case, with ids that are not
    /// all zero. A later version than 00 may be longer.
    ///
    /// ```
    /// use polybus_core::telemetry::TraceContext;
    ///
    /// let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    /// assert!(TraceContext::new(traceparent, Some("vendor=1".into())).is_ok());
    /// assert!(TraceContext::new("00-1-2-01", None).is_err());
    /// ```
    pub fn new(traceparent: impl Into<Box<str>>, tracestate: Option<Box<str>>) -> Result<Self> {
        let traceparent = traceparent.into();
        match is_traceparent(&traceparent) {
            true => Ok(Self { traceparent, tracestate }),
            false => Err(Error::invalid(format!(
                "traceparent {traceparent:?}: expected VERSION-TRACE_ID-PARENT_ID-FLAGS in lower-case hex"
            ))),
        }
    }

    /// The context that publishes inherit here: that of the handler, or of the innermost [`TraceContext::scope`].
    ///
    /// A task that a handler spawns is outside; carry the context there.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use polybus_core::telemetry::TraceContext;
    ///
    /// let work = async { /* publishes */ };
    /// match TraceContext::current() {
    ///     Some(context) => tokio::spawn(context.scope(work)),
    ///     None => tokio::spawn(work),
    /// };
    /// # }
    /// ```
    pub fn current() -> Option<Self> {
        Scope::current()?.trace().cloned()
    }

    /// The context that a message carries; `None` if it carries none, or an invalid one.
    ///
    /// ```
    /// use polybus_core::{Envelope, telemetry::TraceContext};
    ///
    /// let traced = Envelope::new("order.placed", "{}")
    ///     .traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    /// assert!(TraceContext::of(&traced).is_some());
    /// assert!(TraceContext::of(&Envelope::new("order.placed", "{}")).is_none());
    /// ```
    pub fn of(message: &Envelope) -> Option<Self> {
        let traceparent = message.traceparent.as_deref()?;
        Self::new(traceparent, message.tracestate.clone()).ok()
    }

    /// The text `traceparent`.
    ///
    /// ```
    /// # use polybus_core::telemetry::TraceContext;
    /// # let context = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None)?;
    /// assert!(context.traceparent().starts_with("00-"));
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn traceparent(&self) -> &str {
        &self.traceparent
    }

    /// The text `tracestate`.
    ///
    /// ```
    /// # use polybus_core::telemetry::TraceContext;
    /// # let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    /// let context = TraceContext::new(traceparent, Some("vendor=1".into()))?;
    /// assert_eq!(context.tracestate(), Some("vendor=1"));
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn tracestate(&self) -> Option<&str> {
        self.tracestate.as_deref()
    }

    /// The trace id: 32 hex digits.
    ///
    /// ```
    /// # use polybus_core::telemetry::TraceContext;
    /// # let context = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None)?;
    /// assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn trace_id(&self) -> &str {
        &self.traceparent[3..35]
    }

    /// The parent id: 16 hex digits.
    ///
    /// ```
    /// # use polybus_core::telemetry::TraceContext;
    /// # let context = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None)?;
    /// assert_eq!(context.parent_id(), "b7ad6b7169203331");
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn parent_id(&self) -> &str {
        &self.traceparent[36..52]
    }

    /// A child context: the same trace, flags and state, and a new parent id.
    ///
    /// ```
    /// # use polybus_core::telemetry::TraceContext;
    /// # let context = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None)?;
    /// let child = context.child();
    /// assert_eq!(child.trace_id(), context.trace_id());
    /// assert_ne!(child.parent_id(), context.parent_id());
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn child(&self) -> Self {
        let flags = &self.traceparent[53..55];
        let traceparent = format!("00-{}-{:016x}-{flags}", self.trace_id(), fresh_id());
        Self { traceparent: traceparent.into(), tracestate: self.tracestate.clone() }
    }

    /// Runs `future` in this context: messages that it publishes without a `traceparent` get this one. They inherit the
    /// conversation that is around it: see [`Current`](super::Current), which carries both into a task.
    ///
    /// # Cancel safety
    /// That of `future`.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::telemetry::TraceContext;
    /// # let context = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None)?;
    /// let inside = context.clone().scope(async { TraceContext::current() }).await;
    /// assert_eq!(inside, Some(context));
    /// # Ok(()) }
    /// ```
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        Scope::with_trace(self).run(future).await
    }

    pub(super) fn into_texts(self) -> (Option<Box<str>>, Option<Box<str>>) {
        (Some(self.traceparent), self.tracestate)
    }
}

fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let Some(fixed) = text.get(..55) else { return false };
    let parts: Vec<&str> = fixed.split('-').collect();
    let [version, trace, parent, flags] = parts[..] else { return false };
    let lengths = (version.len(), trace.len(), parent.len(), flags.len()) == (2, 32, 16, 2);
    let whole = text.len() == 55 || (version != "00" && text.as_bytes()[55] == b'-');
    let zero = |part: &str| part.bytes().all(|b| b == b'0');
    lengths && whole && version != "ff" && parts.iter().all(|p| hex(p)) && !zero(trace) && !zero(parent)
}

/// A new parent id: random and never zero. It need not be hard to guess.
fn fresh_id() -> u64 {
    RandomState::new().hash_one(0u8).max(1)
}

/// Connects polybus to a tracing system with contexts of its own, such as OpenTelemetry. [`set_propagator`] installs it
/// once for the process.
///
/// ```
/// use polybus_core::telemetry::{TraceContext, TracePropagator, set_propagator};
///
/// struct Otel;
///
/// impl TracePropagator for Otel {
///     fn current(&self) -> Option<TraceContext> {
///         None // the context of the current span, as W3C texts
///     }
///
///     fn continue_from(&self, span: &tracing::Span, parent: &TraceContext) {
///         let _ = (span, parent); // sets the span's remote parent
///     }
/// }
///
/// set_propagator(Otel);
/// ```
pub trait TracePropagator: Send + Sync + 'static {
    /// The current context. Asked at each publish of a message without a `traceparent`; on `None` the message gets the
    /// handler's.
    fn current(&self) -> Option<TraceContext>;

    /// Makes `parent` the remote parent of a handler's span. Called before the handler runs.
    fn continue_from(&self, span: &Span, parent: &TraceContext);
}

static PROPAGATOR: OnceLock<Box<dyn TracePropagator>> = OnceLock::new();

/// Installs the propagator of this process. Answers false if there was one already, which stays.
///
/// ```
/// use polybus_core::telemetry::{TraceContext, TracePropagator, set_propagator};
///
/// # struct Otel;
/// # impl TracePropagator for Otel {
/// #     fn current(&self) -> Option<TraceContext> { None }
/// #     fn continue_from(&self, _: &tracing::Span, _: &TraceContext) {}
/// # }
/// if !set_propagator(Otel) {
///     eprintln!("another propagator is installed");
/// }
/// ```
pub fn set_propagator(propagator: impl TracePropagator) -> bool {
    PROPAGATOR.set(Box::new(propagator)).is_ok()
}

/// The context of the program's own tracing system, where one is installed.
pub(crate) fn propagated_trace() -> Option<TraceContext> {
    PROPAGATOR.get().and_then(|propagator| propagator.current())
}

/// Tells the propagator that this message is the remote parent of a span.
pub(crate) fn tell_propagator(span: &Span, incoming: &Envelope) {
    if let Some(propagator) = PROPAGATOR.get()
        && let Some(parent) = TraceContext::of(incoming)
    {
        propagator.continue_from(span, &parent);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_valid_traceparents_pass() {
        assert!(TraceContext::new(PARENT, None).is_ok());
        assert!(TraceContext::new(format!("01{}-more", &PARENT[2..]), None).is_ok());
        let zero = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
        let long = format!("{PARENT}-more");
        let multibyte = format!("{}é", &PARENT[..54]);
        for bad in
            ["", "00", &PARENT[..54], &PARENT.to_uppercase(), zero, &long, &multibyte, &PARENT.replace("00-", "ff-")]
        {
            assert!(TraceContext::new(bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_child_stays_in_its_trace() {
        let parent = TraceContext::new(PARENT, Some("a=b".into())).unwrap();
        let child = parent.child();
        assert!(is_traceparent(child.traceparent()));
        assert_eq!(child.trace_id(), parent.trace_id());
        assert_ne!(child.parent_id(), parent.parent_id());
        assert_eq!((&child.traceparent()[53..], child.tracestate()), ("01", Some("a=b")));
    }
}

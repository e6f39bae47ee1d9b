//! Trace context: from the message that is handled to the messages that are published.

use std::{
    cell::RefCell,
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::{Arc, OnceLock},
};

use tracing::Span;

use crate::{
    error::{Error, Result},
    message::Envelope,
};

/// A W3C trace context: what `traceparent` and `tracestate` say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    traceparent: Box<str>,
    tracestate: Option<Box<str>>,
}

impl TraceContext {
    /// A context from its two texts. `InvalidArgument` if `traceparent` is not `00-<32 hex>-<16 hex>-<2 hex>` with ids that
    /// are not all zero; a later version than 00 may be longer.
    pub fn new(traceparent: impl Into<Box<str>>, tracestate: Option<Box<str>>) -> Result<Self> {
        let traceparent = traceparent.into();
        match is_traceparent(&traceparent) {
            true => Ok(Self { traceparent, tracestate }),
            false => Err(Error::invalid(format!(
                "traceparent {traceparent:?}: expected VERSION-TRACE_ID-PARENT_ID-FLAGS in lower-case hex"
            ))),
        }
    }

    /// The context that publishes in this task inherit: that of the handler, or of the innermost [`TraceContext::scope`].
    pub fn current() -> Option<Self> {
        CURRENT.try_with(|scope| scope.borrow().clone()).ok().flatten()?.outgoing().cloned()
    }

    /// The context a message carries, if it has a valid one.
    pub fn of(message: &Envelope) -> Option<Self> {
        let traceparent = message.traceparent.as_deref()?;
        Self::new(traceparent, message.tracestate.clone()).ok()
    }

    /// The `traceparent` text.
    pub fn traceparent(&self) -> &str {
        &self.traceparent
    }

    /// The `tracestate` text.
    pub fn tracestate(&self) -> Option<&str> {
        self.tracestate.as_deref()
    }

    /// The trace id: 32 hex digits.
    pub fn trace_id(&self) -> &str {
        &self.traceparent[3..35]
    }

    /// The parent id: 16 hex digits.
    pub fn parent_id(&self) -> &str {
        &self.traceparent[36..52]
    }

    /// A child: the same trace, flags and state, and a fresh parent id.
    pub fn child(&self) -> Self {
        let flags = &self.traceparent[53..55];
        let traceparent = format!("00-{}-{:016x}-{flags}", self.trace_id(), fresh_id());
        Self { traceparent: traceparent.into(), tracestate: self.tracestate.clone() }
    }

    /// Runs `future` in this context: what it publishes without a `traceparent` gets this one.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        let scope = TraceScope(Arc::new(Inner { incoming: None, outgoing: OnceLock::from(Some(self)) }));
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| scope.enter(|| future.as_mut().poll(cx))).await
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

/// Random and never zero; a span id need not be unguessable.
fn fresh_id() -> u64 {
    RandomState::new().hash_one(0u8).max(1)
}

/// Joins polybus to a tracing system with contexts of its own, such as OpenTelemetry. Installed once for the process.
pub trait TracePropagator: Send + Sync + 'static {
    /// The context of now, asked at each publish of a message without a `traceparent`. `None`: the handler's is taken.
    fn current(&self) -> Option<TraceContext>;

    /// Makes `parent` the remote parent of a handling's span, before the handler runs.
    fn continue_from(&self, span: &Span, parent: &TraceContext);
}

static PROPAGATOR: OnceLock<Box<dyn TracePropagator>> = OnceLock::new();

/// Installs the process's propagator. False if there was one already, which stays.
pub fn set_propagator(propagator: impl TracePropagator) -> bool {
    PROPAGATOR.set(Box::new(propagator)).is_ok()
}

thread_local! {
    static CURRENT: RefCell<Option<TraceScope>> = const { RefCell::new(None) };
}

/// The trace a piece of code runs in. Set around each poll, so that it follows its future from thread to thread.
#[derive(Clone)]
pub(crate) struct TraceScope(Arc<Inner>);

struct Inner {
    incoming: Option<Envelope>,
    outgoing: OnceLock<Option<TraceContext>>,
}

impl TraceScope {
    /// The scope of a handling; `None` if the message carries no trace.
    pub(crate) fn of(message: &Envelope) -> Option<Self> {
        message.traceparent.as_ref()?;
        Some(Self(Arc::new(Inner { incoming: Some(message.clone()), outgoing: OnceLock::new() })))
    }

    /// Tells the propagator whose child this span is.
    pub(crate) fn adopt(&self, span: &Span) {
        if let (Some(propagator), Some(incoming)) = (PROPAGATOR.get(), &self.0.incoming)
            && let Some(parent) = TraceContext::of(incoming)
        {
            propagator.continue_from(span, &parent);
        }
    }

    /// Runs `f` with this as the current trace.
    pub(crate) fn enter<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Restore(Option<TraceScope>);
        impl Drop for Restore {
            fn drop(&mut self) {
                let _ = CURRENT.try_with(|c| std::mem::swap(&mut *c.borrow_mut(), &mut self.0));
            }
        }
        let before = CURRENT.try_with(|c| c.borrow_mut().replace(self.clone())).ok().flatten();
        let _restore = Restore(before);
        f()
    }

    fn outgoing(&self) -> Option<&TraceContext> {
        let make = || self.0.incoming.as_ref().and_then(TraceContext::of).map(|parent| parent.child());
        self.0.outgoing.get_or_init(make).as_ref()
    }
}

/// Puts the current trace into a message that has none.
pub(crate) fn trace_outgoing(message: Envelope) -> Envelope {
    if message.traceparent.is_some() {
        return message;
    }
    let context = PROPAGATOR.get().and_then(|p| p.current()).or_else(TraceContext::current);
    match context {
        None => message,
        Some(TraceContext { traceparent, tracestate }) => message.edit(|p| {
            p.traceparent = Some(traceparent);
            p.tracestate = tracestate;
        }),
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

    #[test]
    fn messages_published_in_a_scope_inherit_it() {
        let incoming = Envelope::new("a", "").traceparent(PARENT);
        let scope = TraceScope::of(&incoming).unwrap();
        let (one, two) =
            scope.enter(|| (trace_outgoing(Envelope::new("b", "")), trace_outgoing(Envelope::new("c", ""))));
        let trace = TraceContext::of(&one).unwrap();
        assert_eq!(trace.trace_id(), TraceContext::of(&incoming).unwrap().trace_id());
        assert_ne!(trace.parent_id(), "b7ad6b7169203331");
        assert_eq!(one.traceparent, two.traceparent);
        let own = scope.enter(|| trace_outgoing(Envelope::new("b", "").traceparent("x")));
        assert_eq!(own.traceparent.as_deref(), Some("x"));
        assert!(trace_outgoing(Envelope::new("b", "")).traceparent.is_none());
        assert!(TraceContext::current().is_none());
    }
}

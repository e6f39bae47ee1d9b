//! Finds the handler of a message, and decides what becomes of one that no handler gets.

use std::{future::Future, pin::Pin, sync::Arc};

use polybus_core::{Envelope, Event, HandlerContext, HandlerError, Result, message::Codec};

use super::{
    DecodeFailure, Types, Unknown,
    failure::{UNKNOWN_TYPE_REASON, UNKNOWN_VERSION_REASON, shown},
    refuse,
    registry::short,
    skip_log::{SkipLog, SkippedMessage},
};
use crate::telemetry;

pub(super) type BoxedRun<X> = Pin<Box<dyn Future<Output = Result<X, HandlerError>> + Send>>;

/// What a handler is called with. `tx` is a transaction behind an inbox, else nothing.
pub(super) struct Call<T, X> {
    pub(super) state: T,
    pub(super) tx: X,
    pub(super) context: HandlerContext,
    pub(super) message: Envelope,
}

/// Reads the event and calls the handler. Where it is none, the call comes back.
type Route<T, X, C> =
    Box<dyn Fn(&Types<C>, Call<T, X>) -> Result<BoxedRun<X>, (DecodeFailure, Call<T, X>)> + Send + Sync>;

type Fallback<T, X> = Box<dyn Fn(Call<T, X>) -> BoxedRun<X> + Send + Sync>;

/// The handlers by type.
pub(super) struct Routes<T, X, C> {
    types: Types<C>,
    /// At the place that its type has in the registry.
    routes: Vec<Option<Route<T, X, C>>>,
    otherwise: Option<Fallback<T, X>>,
    problems: Vec<String>,
    skipped: Arc<SkipLog>,
}

/// A message that no handler gets.
struct Refusal {
    reason: &'static str,
    detail: String,
    policy: Unknown,
}

impl<T: 'static, X: 'static, C: Codec> Routes<T, X, C> {
    pub(super) fn new(types: Types<C>) -> Self {
        let routes = types.registry.entries.iter().map(|_| None).collect();
        Self { types, routes, otherwise: None, problems: Vec::new(), skipped: Arc::default() }
    }

    pub(super) fn on<E: Event + 'static>(
        &mut self,
        handler: impl Fn(E, Call<T, X>) -> BoxedRun<X> + Send + Sync + 'static,
    ) {
        let name = std::any::type_name::<E>();
        let found = self.types.registry.find(E::TYPE).filter(|(_, entry)| entry.name == E::TYPE);
        let problem = match found.map(|(index, entry)| (index, entry, entry.rust_type)) {
            Some((index, entry, Some(_))) if entry.is_of::<E>() && self.routes[index].is_none() => {
                self.routes[index] = Some(Box::new(move |types, call| match types.decode::<E>(&call.message) {
                    Ok(event) => Ok(handler(event, call)),
                    Err(failure) => Err((failure, call)),
                }));
                return;
            }
            Some((_, entry, Some(_))) if entry.is_of::<E>() => "two handlers: keep one".to_owned(),
            Some((_, _, Some(other))) => format!("a handler of {name}, and the type is registered as {}", other.name),
            _ => format!("a handler of a type that is not registered: add .event::<{}>()", short(name)),
        };
        self.problems.push(format!("{}: {problem}", E::TYPE));
    }

    pub(super) fn otherwise(&mut self, handler: impl Fn(Call<T, X>) -> BoxedRun<X> + Send + Sync + 'static) {
        if self.otherwise.replace(Box::new(handler)).is_some() {
            self.problems.push("two handlers for everything else: keep one".into());
        }
    }

    /// Looks for mistakes in the types and in the handlers.
    pub(super) fn check(&self) -> Result<()> {
        let mut problems = self.types.problems();
        problems.extend(self.problems.iter().cloned());
        if self.otherwise.is_none() && self.routes.iter().all(Option::is_none) && self.problems.is_empty() {
            problems.push("the router has no handler: add one with .on(…)".into());
        }
        refuse("router", problems)
    }

    pub(super) async fn run(&self, call: Call<T, X>) -> Result<X, HandlerError> {
        let found = self.types.registry.find(&call.message.event_type);
        let started = match (found.and_then(|(index, _)| self.routes[index].as_ref()), &self.otherwise) {
            (Some(route), _) => route(&self.types, call).map_err(|(failure, call)| (self.refusal(&failure), call)),
            (None, Some(otherwise)) => Ok(otherwise(call)),
            (None, None) => {
                let why = if found.is_some() { "has no handler here" } else { "is not known here" };
                let detail = format!("event type {} {why}", shown(&call.message.event_type));
                Err((Refusal { reason: UNKNOWN_TYPE_REASON, detail, policy: self.types.unknown_type }, call))
            }
        };
        match started {
            Ok(run) => run.await,
            Err((refusal, call)) => self.end(refusal, &call.context, &call.message).map(|()| call.tx),
        }
    }

    fn refusal(&self, failure: &DecodeFailure) -> Refusal {
        let reason = failure.reason();
        let policy = match reason {
            UNKNOWN_TYPE_REASON => self.types.unknown_type,
            UNKNOWN_VERSION_REASON => self.types.unknown_version,
            _ => Unknown::DeadLetter,
        };
        Refusal { reason, detail: failure.to_string(), policy }
    }

    fn end(&self, refusal: Refusal, context: &HandlerContext, message: &Envelope) -> Result<(), HandlerError> {
        let Refusal { reason, detail, policy } = refusal;
        let outcome = match policy {
            Unknown::Skip => "skipped",
            Unknown::RetryAfter(_) if !context.is_last_attempt() => "retried",
            Unknown::RetryAfter(_) | Unknown::DeadLetter => "dead-letter",
        };
        telemetry::types_refused(context.source(), reason, outcome);
        match policy {
            Unknown::Skip => {
                let (source, id) = (context.source().clone(), message.id.clone());
                self.skipped.skipped(reason, SkippedMessage { source, id, detail });
                Ok(())
            }
            Unknown::RetryAfter(delay) if !context.is_last_attempt() => Err(HandlerError::retry_after(delay, detail)),
            // The worker's own dead letter would have the reason of all retries that were in vain.
            Unknown::RetryAfter(_) | Unknown::DeadLetter => Err(HandlerError::dead_letter(reason, detail)),
        }
    }
}

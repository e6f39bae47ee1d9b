//! Keeps lapin's own error lines out of the log where an error is an answer.
//!
//! In AMQP a client asks whether a queue exists by a method that closes the channel if it does not, and lapin logs
//! every closed channel as an error. So a healthy `declare` would look like a failure. lapin logs on the thread that
//! reads the connection's socket, so a filter on that thread is enough.

use tracing::{
    Dispatch, Event, Level, Metadata, Subscriber, dispatcher,
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
    subscriber::Interest,
};

/// Drops lapin's error lines on this thread from now on. Everything else is logged as before.
pub(crate) fn mute_lapin_errors() {
    let filter = LapinErrorFilter(dispatcher::get_default(Clone::clone));
    // The guard is never dropped, so the filter lasts as long as the thread.
    std::mem::forget(dispatcher::set_default(&Dispatch::new(filter)));
}

/// Passes everything to another subscriber, except for lapin's errors.
struct LapinErrorFilter(Dispatch);

impl Subscriber for LapinErrorFilter {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match metadata.target().starts_with("lapin") {
            // Other threads log the same lines, so the answer must not be cached for all of them.
            true => Interest::sometimes(),
            false => self.0.register_callsite(metadata),
        }
    }

    /// The level of the process as it is. Without a hint the process would count as one that wants every level.
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::current())
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let own = *metadata.level() == Level::ERROR && metadata.is_event() && metadata.target().starts_with("lapin");
        !own && self.0.enabled(metadata)
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.0.new_span(span)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        self.0.record(span, values);
    }

    fn record_follows_from(&self, span: &Id, follows: &Id) {
        self.0.record_follows_from(span, follows);
    }

    fn event(&self, event: &Event<'_>) {
        self.0.event(event);
    }

    fn enter(&self, span: &Id) {
        self.0.enter(span);
    }

    fn exit(&self, span: &Id) {
        self.0.exit(span);
    }

    fn clone_span(&self, id: &Id) -> Id {
        self.0.clone_span(id)
    }

    fn try_close(&self, id: Id) -> bool {
        self.0.try_close(id)
    }
}

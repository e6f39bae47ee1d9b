//! Keeps lapin's own error lines out of the log where an error is an answer.
//!
//! Whether a queue is there can be asked in AMQP only by a method that closes the channel if it is not, and lapin logs every closed channel
//! as an error. So a healthy `declare` would look like a failure. lapin logs on the thread that reads the connection's socket.

use tracing::{
    Dispatch, Event, Level, Metadata, Subscriber, dispatcher,
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
    subscriber::Interest,
};

/// From now on lapin's errors are not logged on this thread. All else is, as before.
pub(crate) fn this_thread() {
    let quiet = Quiet(dispatcher::get_default(Clone::clone));
    // It lasts as long as the thread.
    std::mem::forget(dispatcher::set_default(&Dispatch::new(quiet)));
}

struct Quiet(Dispatch);

impl Subscriber for Quiet {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match metadata.target().starts_with("lapin") {
            // Other threads log the same lines.
            true => Interest::sometimes(),
            false => self.0.register_callsite(metadata),
        }
    }

    /// No more than was wanted before: without a hint the whole process would count as wanting all.
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

//! What the log says of messages that are skipped: for each reason something at once, and at most once a second.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use polybus_core::Source;
use tokio::{runtime::Handle, time::Instant};

/// How long nothing is said of a further message that was skipped for the same reason.
const SILENCE: Duration = Duration::from_secs(1);

/// A message that was skipped.
pub(super) struct SkippedMessage {
    pub(super) source: Source,
    pub(super) id: Box<str>,
    pub(super) detail: String,
}

/// Counts skipped messages, and tells of them. Each reason has its own silence, so that many messages of unknown types
/// do not hide one of an unknown version. What came in a silence is told at its end, or when the router is dropped.
#[derive(Default)]
pub(super) struct SkipLog(Mutex<BTreeMap<&'static str, Burst>>);

/// What was skipped for one reason since the log said so.
#[derive(Default)]
struct Burst {
    said: Option<Instant>,
    messages: u64,
    last: Option<SkippedMessage>,
    /// Whether somebody waits for the end of the silence.
    awaited: bool,
}

impl Burst {
    /// When the silence ends, if there is one.
    fn silent_until(&self) -> Option<Instant> {
        self.said.map(|said| said + SILENCE).filter(|until| *until > Instant::now())
    }

    fn tell(&mut self, reason: &str) {
        let Some(SkippedMessage { source, id, detail }) = self.last.take() else { return };
        let messages = std::mem::take(&mut self.messages);
        self.said = Some(Instant::now());
        tracing::warn!(
            target: "polybus", source = %source, id = %id, reason, detail, messages,
            "messages that this program does not know were skipped (said once a second at most)"
        );
    }
}

impl SkipLog {
    pub(super) fn skipped(self: &Arc<Self>, reason: &'static str, message: SkippedMessage) {
        let mut bursts = self.0.lock();
        let burst = bursts.entry(reason).or_default();
        burst.messages += 1;
        burst.last = Some(message);
        if burst.silent_until().is_none() {
            burst.tell(reason);
        } else if !burst.awaited
            && let Ok(runtime) = Handle::try_current()
        {
            burst.awaited = true;
            runtime.spawn(tell_later(Arc::downgrade(self), reason));
        }
    }

    /// Tells what was kept back, if its time has come. Else answers when it comes.
    fn tell_due(&self, reason: &'static str) -> Option<Instant> {
        let mut bursts = self.0.lock();
        let burst = bursts.get_mut(reason)?;
        let until = burst.silent_until().filter(|_| burst.messages > 0);
        if until.is_none() {
            burst.tell(reason);
            burst.awaited = false;
        }
        until
    }
}

impl Drop for SkipLog {
    fn drop(&mut self) {
        for (reason, burst) in self.0.get_mut() {
            burst.tell(reason);
        }
    }
}

/// Keeps no router alive.
async fn tell_later(log: Weak<SkipLog>, reason: &'static str) {
    while let Some(until) = log.upgrade().and_then(|log| log.tell_due(reason)) {
        tokio::time::sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use tracing::{
        Event, Metadata, Subscriber,
        field::{Field, Visit},
        span,
    };

    use super::*;

    /// A place in the code that logs for the first time just when another thread's subscriber comes is taken for one
    /// that nobody listens to.
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    /// What was told: reasons and numbers.
    #[derive(Clone, Default)]
    struct Told(Arc<Mutex<Vec<(String, u64)>>>);

    impl Told {
        fn take(&self) -> Vec<(String, u64)> {
            std::mem::take(&mut *self.0.lock())
        }
    }

    #[derive(Default)]
    struct Line {
        reason: String,
        messages: u64,
    }

    impl Visit for Line {
        fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}

        fn record_str(&mut self, field: &Field, text: &str) {
            if field.name() == "reason" {
                self.reason = text.into();
            }
        }

        fn record_u64(&mut self, field: &Field, number: u64) {
            if field.name() == "messages" {
                self.messages = number;
            }
        }
    }

    impl Subscriber for Told {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target() == "polybus"
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &Event<'_>) {
            let mut line = Line::default();
            event.record(&mut line);
            self.0.lock().push((line.reason, line.messages));
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    fn skip(log: &Arc<SkipLog>, reason: &'static str) {
        let message = SkippedMessage { source: Source::queue("orders"), id: "7".into(), detail: "unknown".into() };
        log.skipped(reason, message);
    }

    fn lines<const N: usize>(lines: [(&str, u64); N]) -> Vec<(String, u64)> {
        lines.into_iter().map(|(reason, messages)| (reason.to_owned(), messages)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn each_reason_is_told_at_once_and_the_rest_of_its_burst_a_second_later() {
        let (told, _one) = (Told::default(), ONE_AT_A_TIME.lock().await);
        let _telling = tracing::subscriber::set_default(told.clone());
        let log = Arc::new(SkipLog::default());
        for _ in 0..100 {
            skip(&log, "type");
        }
        skip(&log, "version");
        assert_eq!(told.take(), lines([("type", 1), ("version", 1)]));
        tokio::time::sleep(SILENCE - Duration::from_millis(1)).await;
        assert_eq!(told.take(), []);
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(told.take(), lines([("type", 99)]), "nothing came after the burst, and it is told");
        skip(&log, "type");
        assert_eq!(told.take(), [], "a new silence began");
        tokio::time::sleep(2 * SILENCE).await;
        assert_eq!(told.take(), lines([("type", 1)]));
        tokio::time::sleep(60 * SILENCE).await;
        assert_eq!(told.take(), []);
        skip(&log, "type");
        assert_eq!(told.take(), lines([("type", 1)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_router_that_is_dropped_tells_what_it_kept_back() {
        let (told, _one) = (Told::default(), ONE_AT_A_TIME.lock().await);
        let _telling = tracing::subscriber::set_default(told.clone());
        let log = Arc::new(SkipLog::default());
        for _ in 0..3 {
            skip(&log, "type");
        }
        drop(log);
        assert_eq!(told.take(), lines([("type", 1), ("type", 2)]));
        tokio::time::sleep(2 * SILENCE).await;
        assert_eq!(told.take(), []);
    }
}

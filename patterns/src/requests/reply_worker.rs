//! The worker on the reply queue: gives each reply to the call that waits for it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use polybus_core::{Bus, Envelope, Error, ErrorKind, Handler, HandlerContext, HandlerError};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use super::{RequestsShared, probes::PROBE_TYPE, request_id::RequestId};
use crate::telemetry;

/// How many replies are handled at once.
const CONCURRENCY: usize = 64;
/// How soon a reply that belongs to another process comes again, so that the other one may get it.
const PASS_ON: Duration = Duration::from_millis(50);
/// How often the log says that another process shares the queue.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Runs until the requests are closed, or until the reply queue ends. No call waits after that.
pub(super) async fn run_reply_worker(
    bus: Bus,
    shared: Arc<RequestsShared>,
    handler: ReplyHandler,
    stopped: oneshot::Receiver<()>,
    ended: watch::Sender<bool>,
) {
    let source = shared.source.clone();
    let stop = async {
        // The sender is never used: its drop is the signal.
        let _ = stopped.await;
    };
    // Closed already where Requests::close was called.
    let closed = shared.waiting.until_closed();
    let stop = async {
        tokio::select! {
            () = stop => {}
            () = closed => {}
        }
    };
    let result = bus.worker(&source).concurrency(CONCURRENCY).with_graceful_shutdown(stop).run(handler).await;
    let cause = match result {
        Ok(_) => Error::new(ErrorKind::Closed, "the requests were closed"),
        Err(e) if e.kind() == ErrorKind::Closed => e,
        Err(e) => {
            tracing::error!(target: "polybus", %source, error = %e, "the reply queue is no longer consumed: all calls end");
            e
        }
    };
    shared.waiting.close(cause);
    ended.send_replace(true);
}

/// Handles one message of the reply queue.
pub(super) struct ReplyHandler {
    shared: Arc<RequestsShared>,
    /// When the log said last that another process shares the queue.
    warned: Mutex<Option<Instant>>,
}

impl ReplyHandler {
    pub(super) fn new(shared: Arc<RequestsShared>) -> Self {
        Self { shared, warned: Mutex::default() }
    }

    fn count(&self, found: FoundReply) {
        let counts = &self.shared.waiting.counts;
        let (count, name) = match found {
            FoundReply::Answered => (&counts.answered, "answered"),
            FoundReply::Late => (&counts.late, "late"),
            FoundReply::LeftOver => (&counts.left_over, "left-over"),
            FoundReply::Stray => (&counts.stray, "stray"),
            FoundReply::NoReply => (&counts.not_replies, "no-reply"),
        };
        count.fetch_add(1, Ordering::Relaxed);
        telemetry::replies(&self.shared.source, name);
    }

    /// Says now and then that somebody else uses the queue.
    fn warn_of_sharing(&self) {
        let mut warned = self.warned.lock();
        if warned.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL) {
            *warned = Some(Instant::now());
            tracing::warn!(
                target: "polybus", source = %self.shared.source,
                "another process waits for replies on this queue too, so calls of both are slow or time out: give each \
                 process a reply queue of its own"
            );
        }
    }
}

/// What a message of the reply queue is.
#[derive(Clone, Copy)]
enum FoundReply {
    Answered,
    Late,
    LeftOver,
    Stray,
    NoReply,
}

impl Handler for ReplyHandler {
    async fn handle(&self, cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
        let shared = &*self.shared;
        if &*msg.event_type == PROBE_TYPE {
            if !shared.probes.take(&shared.instance, &msg) {
                shared.probes.not_alone();
                self.warn_of_sharing();
            }
            return Ok(());
        }
        let Some(request) = RequestId::answered_by(&msg) else {
            self.count(FoundReply::NoReply);
            let text = "a message on a reply queue that answers no request of polybus: it names none as its cause, and \
                        its correlation id is none";
            return Err(HandlerError::dead_letter("not-a-reply", text));
        };
        if request.instance == shared.instance {
            let answered = shared.waiting.answer(request.number, msg);
            self.count(if answered { FoundReply::Answered } else { FoundReply::Late });
            return Ok(());
        }
        if request.instance < shared.instance && shared.probes.is_alone() {
            // The process that asked has ended: nobody else was here.
            self.count(FoundReply::LeftOver);
            return Ok(());
        }
        shared.probes.not_alone();
        self.count(FoundReply::Stray);
        self.warn_of_sharing();
        match cx.is_last_attempt() {
            true => Ok(()),
            false => {
                Err(HandlerError::retry_after(PASS_ON, "the reply belongs to another process, which may get it now"))
            }
        }
    }
}

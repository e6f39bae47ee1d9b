//! The context that a handler gets beside the message: attempt, source, lock, shutdown.

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};

use tokio::{sync::watch, time::Instant};
use tracing::Span;

use crate::{
    Delivery, Source,
    driver::{DeadLetter, DriverToken},
};

/// How often [`HandlerContext::lock_lost`] checks the lock.
const LOCK_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The context of one handling. Cheap to clone, and it may outlive the handler.
///
/// ```
/// use polybus_core::{Envelope, HandlerContext, HandlerError};
///
/// async fn handle(cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
///     println!("{} from {} at attempt {}", msg.id, cx.source(), cx.attempt());
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct HandlerContext(Arc<ContextInner>);

struct ContextInner {
    worker: Arc<WorkerState>,
    attempt: u32,
    max_deliveries: Option<u32>,
    native: Option<DriverToken>,
    dead_letter: Option<DeadLetter>,
    malformed: Option<Box<str>>,
    span: Span,
    delivery: Mutex<Option<Delivery>>,
}

/// The part of the context that all deliveries of a worker share.
pub(crate) struct WorkerState {
    pub(crate) source: Source,
    /// `None` until the shutdown begins; then the time at which handlers that still run are dropped.
    pub(crate) stopping: watch::Sender<Option<Instant>>,
}

impl HandlerContext {
    /// The context holds the delivery while the handler runs, to ask it about its lock.
    pub(crate) fn new(worker: &Arc<WorkerState>, delivery: Delivery, span: Span) -> Self {
        Self(Arc::new(ContextInner {
            worker: worker.clone(),
            attempt: delivery.attempt(),
            max_deliveries: delivery.max_deliveries(),
            native: delivery.native_token().cloned(),
            dead_letter: delivery.dead_letter_info().cloned(),
            malformed: delivery.malformed().map(Into::into),
            span,
            delivery: Mutex::new(Some(delivery)),
        }))
    }

    /// A context without a worker and a broker, for tests of handlers and for programs that call a handler themselves.
    ///
    /// The message counts as held for ever, there is no limit on the attempts, and nothing shuts down.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), polybus_core::HandlerError> {
    /// use polybus_core::{Envelope, Handler, HandlerContext, Source, stateful};
    ///
    /// let handler = stateful((), async |(), cx, _msg| match cx.attempt() {
    ///     1 => Err("the bank does not answer".into()),
    ///     _ => Ok(()),
    /// });
    /// let source = Source::queue("payments");
    /// let message = Envelope::new("payment.made", "{}");
    /// assert!(handler.handle(HandlerContext::detached(&source, 1), message.clone()).await.is_err());
    /// handler.handle(HandlerContext::detached(&source, 2), message).await?;
    /// # Ok(()) }
    /// ```
    pub fn detached(source: &Source, attempt: u32) -> Self {
        let worker = WorkerState { source: source.clone(), stopping: watch::Sender::new(None) };
        Self(Arc::new(ContextInner {
            worker: Arc::new(worker),
            attempt,
            max_deliveries: None,
            native: None,
            dead_letter: None,
            malformed: None,
            span: Span::current(),
            delivery: Mutex::new(None),
        }))
    }

    /// Takes the delivery to settle it.
    pub(crate) fn take_delivery(&self) -> Option<Delivery> {
        self.delivery().take()
    }

    fn delivery(&self) -> MutexGuard<'_, Option<Delivery>> {
        self.0.delivery.lock()
    }

    /// How often the message was delivered from this source, this time included. The first attempt is 1.
    ///
    /// ```
    /// use polybus_core::{Envelope, HandlerContext, HandlerError};
    ///
    /// async fn handle(cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
    ///     if cx.attempt() > 1 {
    ///         println!("{} failed before", msg.id);
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn attempt(&self) -> u32 {
        self.0.attempt
    }

    /// The source that the message came from.
    ///
    /// ```
    /// use polybus_core::{Envelope, HandlerContext, HandlerError};
    ///
    /// async fn handle(cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
    ///     println!("{} from {}", msg.id, cx.source()); // such as queue:payments
    ///     Ok(())
    /// }
    /// ```
    pub fn source(&self) -> &Source {
        &self.0.worker.source
    }

    /// How often the message is delivered at most: by the topology of its source, or by a limit of its own. `None` on
    /// dead letters, which have none.
    ///
    /// ```
    /// use polybus_core::{Envelope, HandlerContext, HandlerError};
    ///
    /// async fn handle(cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
    ///     let left = cx.max_deliveries().map(|most| most.saturating_sub(cx.attempt()));
    ///     println!("{}: {left:?} attempts left", msg.id);
    ///     Ok(())
    /// }
    /// ```
    pub fn max_deliveries(&self) -> Option<u32> {
        self.0.max_deliveries
    }

    /// Whether this is the last attempt: a failure now sends the message to the dead letters.
    ///
    /// ```
    /// use polybus_core::{Envelope, HandlerContext, HandlerError};
    ///
    /// async fn handle(cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
    ///     if cx.is_last_attempt() {
    ///         println!("{} becomes a dead letter if this fails", msg.id);
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn is_last_attempt(&self) -> bool {
        self.max_deliveries().is_some_and(|n| self.attempt() >= n)
    }

    /// On dead letters: how the message became one. `None` on other sources, and where the broker tells nothing.
    ///
    /// ```
    /// use polybus_core::{Envelope, HandlerContext, HandlerError};
    ///
    /// async fn handle(cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
    ///     let reason = cx.dead_letter_info().and_then(|info| info.reason.as_deref());
    ///     println!("{} is dead: {}", msg.id, reason.unwrap_or("nobody knows why"));
    ///     Ok(())
    /// }
    /// ```
    pub fn dead_letter_info(&self) -> Option<&DeadLetter> {
        self.0.dead_letter.as_ref()
    }

    /// On dead letters: why the message could not be decoded; its envelope then holds the raw payload. `None` for a
    /// message that could.
    ///
    /// ```
    /// use polybus_core::{Envelope, HandlerContext, HandlerError};
    ///
    /// async fn handle(cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
    ///     if let Some(why) = cx.malformed() {
    ///         println!("{} bytes cannot be decoded: {why}", msg.data.len());
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn malformed(&self) -> Option<&str> {
        self.0.malformed.as_deref()
    }

    /// The adapter's own view of the message as it came: see [`Delivery::native`].
    ///
    /// ```
    /// use polybus_core::{Envelope, HandlerContext, HandlerError};
    ///
    /// async fn handle(cx: HandlerContext, _msg: Envelope) -> Result<(), HandlerError> {
    ///     assert!(cx.native::<String>().is_none()); // each adapter's README names its type
    ///     Ok(())
    /// }
    /// ```
    pub fn native<T: 'static>(&self) -> Option<&T> {
        self.0.native.as_ref()?.get().ok()
    }

    /// Whether the message is no longer held, because its lock or the connection was lost. The broker hands it out
    /// again, or has, and the handler's result settles nothing.
    ///
    /// Known without I/O. False once the handler has ended.
    ///
    /// ```
    /// use polybus_core::{Envelope, HandlerContext, HandlerError};
    ///
    /// async fn handle(cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
    ///     for chunk in msg.data.chunks(1024) {
    ///         if cx.is_lock_lost() {
    ///             return Err("another consumer has the message".into());
    ///         }
    ///         println!("{} bytes", chunk.len());
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn is_lock_lost(&self) -> bool {
        self.delivery().as_ref().is_some_and(|delivery| !delivery.is_held())
    }

    /// Waits until [`is_lock_lost`](Self::is_lock_lost), which it checks each second. Once the handler has ended, it
    /// waits for ever.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```
    /// use polybus_core::{Envelope, HandlerContext, HandlerError};
    ///
    /// async fn handle(cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
    ///     # let work = async { println!("{}", msg.id) };
    ///     tokio::select! {
    ///         () = work => {}
    ///         () = cx.lock_lost() => return Err("another consumer has the message".into()),
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub async fn lock_lost(&self) {
        while !self.is_lock_lost() {
            if self.delivery().is_none() {
                return std::future::pending().await;
            }
            tokio::time::sleep(LOCK_CHECK_INTERVAL).await;
        }
    }

    /// Waits until the worker begins to shut down. The handler may then go on until [`deadline`](Self::deadline).
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```
    /// use polybus_core::{Envelope, HandlerContext, HandlerError};
    ///
    /// async fn handle(cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
    ///     # let long_work = async { println!("{}", msg.id) };
    ///     tokio::select! {
    ///         () = long_work => {}
    ///         () = cx.cancelled() => return Err("the worker shuts down".into()), // the message comes again
    ///     }
    ///     Ok(())
    /// }
    /// ```
    #[doc(alias = "shutdown")]
    pub async fn cancelled(&self) {
        let mut stopping = self.0.worker.stopping.subscribe();
        // It fails only if the worker is gone, and then the handler is gone as well.
        let _ = stopping.wait_for(Option::is_some).await;
    }

    /// Whether the worker has begun to shut down.
    ///
    /// ```
    /// use polybus_core::{Envelope, HandlerContext, HandlerError};
    ///
    /// async fn handle(cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
    ///     for page in 0..100 {
    ///         if cx.is_cancelled() {
    ///             return Err("the worker shuts down".into()); // the message comes again
    ///         }
    ///         println!("{} page {page}", msg.id);
    ///     }
    ///     Ok(())
    /// }
    /// ```
    #[doc(alias = "shutdown")]
    pub fn is_cancelled(&self) -> bool {
        self.0.worker.stopping.borrow().is_some()
    }

    /// When handlers that still run are dropped and their messages released. `None` until the shutdown begins.
    ///
    /// ```
    /// use polybus_core::{Envelope, HandlerContext, HandlerError};
    ///
    /// async fn handle(cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
    ///     if let Some(deadline) = cx.deadline() {
    ///         println!("{}: {:?} left", msg.id, deadline - tokio::time::Instant::now());
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn deadline(&self) -> Option<Instant> {
        *self.0.worker.stopping.borrow()
    }

    /// The `process` span of this handling, to add fields to it or to enter it elsewhere: see
    /// [`telemetry`](crate::telemetry#spans).
    ///
    /// ```
    /// use polybus_core::{Envelope, HandlerContext, HandlerError};
    ///
    /// async fn handle(cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
    ///     let span = cx.span().clone();
    ///     std::thread::spawn(move || span.in_scope(|| println!("{}", msg.id)));
    ///     Ok(())
    /// }
    /// ```
    pub fn span(&self) -> &Span {
        &self.0.span
    }
}

impl fmt::Debug for HandlerContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerContext")
            .field("source", &format_args!("{}", self.source()))
            .field("attempt", &self.attempt())
            .field("max_deliveries", &self.max_deliveries())
            .finish_non_exhaustive()
    }
}

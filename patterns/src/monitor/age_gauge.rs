//! What a worker tells of the age of messages: the gauge, and the handler around a handler that feeds it.

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use polybus_core::{Bus, Envelope, Handler, HandlerContext, HandlerError, Result, Source, worker::WorkerInfo};
use tokio::time::Instant;

use super::age_estimate::HandedOver;

/// The age of the messages of one source at hand-over, in this process: what [`Rule::age`](super::Rule::age) needs.
///
/// The worker's handler is wrapped by [`watch`](Self::watch), and the monitor gets the gauge by
/// [`Monitor::age_gauge`](super::Monitor::age_gauge). It hears of nothing that other processes handle. So where workers
/// run in several, each should have a monitor, and where one process polls for all of them it must be one of those that
/// have a worker.
///
/// A message is as old as its `time` says. One without it is not counted, nor is one that comes again for a retry: that
/// is old on purpose.
///
/// ```no_run
/// # use polybus_core::{Bus, Result, Source, stateful};
/// use polybus_patterns::monitor::{AgeGauge, Monitor, Rule};
/// use std::time::Duration;
///
/// # async fn example(bus: Bus) -> Result<()> {
/// let payments = Source::queue("payments");
/// let gauge = AgeGauge::new(&bus, &payments);
/// let monitor = Monitor::new(&bus)
///     .rule(Rule::age(&payments).above(Duration::from_secs(300)))
///     .age_gauge(&gauge);
/// tokio::spawn(monitor.run(std::future::pending()));
///
/// let handler = stateful((), async |(), _cx, msg| {
///     println!("{}", msg.id);
///     Ok(())
/// });
/// bus.worker(&payments).run(gauge.watch(handler)).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct AgeGauge(Arc<GaugeShared>);

struct GaugeShared {
    bus: Bus,
    source: Source,
    last: Mutex<Option<(Instant, Duration)>>,
}

impl AgeGauge {
    /// A gauge that nothing was told yet.
    ///
    /// ```
    /// # use polybus_core::{Bus, Source};
    /// # use polybus_patterns::monitor::AgeGauge;
    /// # fn example(bus: Bus) {
    /// let gauge = AgeGauge::new(&bus, Source::queue("payments"));
    /// assert_eq!(gauge.last_age(), None);
    /// # }
    /// ```
    pub fn new(bus: &Bus, source: impl Into<Source>) -> Self {
        Self(Arc::new(GaugeShared { bus: bus.clone(), source: source.into(), last: Mutex::default() }))
    }

    /// A handler that tells this gauge of each message, and then runs `handler`.
    ///
    /// ```
    /// # use polybus_core::{Bus, Handler};
    /// # use polybus_patterns::monitor::AgeGauge;
    /// # async fn example(bus: Bus, gauge: AgeGauge, handler: impl Handler) -> polybus_core::Result<()> {
    /// bus.worker("queue:payments".parse::<polybus_core::Source>()?).run(gauge.watch(handler)).await?;
    /// # Ok(()) }
    /// ```
    pub fn watch<H: Handler>(&self, handler: H) -> AgedHandler<H> {
        AgedHandler { gauge: self.clone(), handler }
    }

    /// Tells the gauge of a message that is handed over now, for the `attempt`-th time. For applications without a
    /// worker, and for tower services.
    ///
    /// ```
    /// # use polybus_core::Delivery;
    /// # use polybus_patterns::monitor::AgeGauge;
    /// # fn example(gauge: AgeGauge, delivery: &Delivery) {
    /// gauge.handed_over(delivery.envelope(), delivery.attempt());
    /// # }
    /// ```
    pub fn handed_over(&self, message: &Envelope, attempt: u32) {
        if let Some(published) = message.time.filter(|_| attempt <= 1) {
            // A producer's clock that is ahead makes no negative age.
            let age = Duration::try_from(self.0.bus.now() - published).unwrap_or_default();
            *self.0.last.lock() = Some((Instant::now(), age));
        }
    }

    /// The age of the last message, when it was handed over. `None` if there was none yet.
    ///
    /// ```
    /// # use polybus_patterns::monitor::AgeGauge;
    /// # fn example(gauge: AgeGauge) {
    /// println!("{:?}", gauge.last_age());
    /// # }
    /// ```
    pub fn last_age(&self) -> Option<Duration> {
        self.0.last.lock().map(|(_, age)| age)
    }

    pub(super) fn source(&self) -> &Source {
        &self.0.source
    }

    /// The last message, by seconds since `start`.
    pub(super) fn last(&self, start: Instant) -> Option<HandedOver> {
        let (at, age) = (*self.0.last.lock())?;
        let since = at.saturating_duration_since(start).as_secs_f64();
        let before = start.saturating_duration_since(at).as_secs_f64();
        Some(HandedOver { at: since - before, age: age.as_secs_f64() })
    }
}

impl fmt::Debug for AgeGauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgeGauge").field("source", &self.0.source).field("last_age", &self.last_age()).finish()
    }
}

/// A handler that tells a gauge of each message before it runs another one. [`AgeGauge::watch`] makes it.
#[derive(Debug)]
pub struct AgedHandler<H> {
    gauge: AgeGauge,
    handler: H,
}

impl<H: Handler> Handler for AgedHandler<H> {
    async fn handle(&self, cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
        self.gauge.handed_over(&msg, cx.attempt());
        self.handler.handle(cx, msg).await
    }

    async fn starting(&self, worker: &WorkerInfo) -> Result<()> {
        self.handler.starting(worker).await
    }
}

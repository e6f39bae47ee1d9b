//! What a worker tells of the age of messages: the gauge, and the handler around a handler that feeds it.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use polybus_core::{Bus, Envelope, Handler, HandlerContext, HandlerError, Result, Source, worker::WorkerInfo};
use tokio::time::Instant;

use super::age_estimate::{HandedOver, Seen};

/// The age of the messages of one source at hand-over, in this process: what [`Rule::age`](super::Rule::age) needs.
///
/// The worker's handler is wrapped by [`watch`](Self::watch), and the monitor gets the gauge by
/// [`Monitor::age_gauge`](super::Monitor::age_gauge). It hears of nothing that other processes handle. So where workers
/// run in several, each should have a monitor, and where one process polls for all of them it must be one of those that
/// have a worker.
///
/// A message is as old as its `time` says, and grows older until its handler has ended: handlers that hang show too.
/// One without a time, and one that comes again for a retry, which is old on purpose, counts from its hand-over, and
/// only while its handler runs.
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
///
/// let handler = stateful((), async |(), _cx, msg| {
///     println!("{}", msg.id);
///     Ok(())
/// });
/// let worker = bus.worker(&payments).run(gauge.watch(handler));
/// // An error of either ends both: a monitor that has ended tells nobody anything.
/// tokio::try_join!(monitor.run(std::future::pending()), worker)?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct AgeGauge(Arc<GaugeShared>);

struct GaugeShared {
    bus: Bus,
    source: Source,
    told: Mutex<GaugeTold>,
}

#[derive(Default)]
struct GaugeTold {
    /// The last message, when it was handed over and how old it was.
    last: Option<(Instant, Duration)>,
    /// The same of those whose handler runs, by a number of their own.
    under_way: HashMap<u64, (Instant, Duration)>,
    next: u64,
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
        Self(Arc::new(GaugeShared { bus: bus.clone(), source: source.into(), told: Mutex::default() }))
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
    /// worker, and for tower services. It is not told when the message is done: what hangs shows by what waits behind
    /// it alone.
    ///
    /// ```
    /// # use polybus_core::Delivery;
    /// # use polybus_patterns::monitor::AgeGauge;
    /// # fn example(gauge: AgeGauge, delivery: &Delivery) {
    /// gauge.handed_over(delivery.envelope(), delivery.attempt());
    /// # }
    /// ```
    pub fn handed_over(&self, message: &Envelope, attempt: u32) {
        if let Some(age) = self.age(message, attempt) {
            self.0.told.lock().last = Some((Instant::now(), age));
        }
    }

    /// The same, for as long as the answer lives.
    fn begin(&self, message: &Envelope, attempt: u32) -> UnderWay {
        let (now, age) = (Instant::now(), self.age(message, attempt));
        let mut told = self.0.told.lock();
        if let Some(age) = age {
            told.last = Some((now, age));
        }
        let number = told.next;
        told.next += 1;
        told.under_way.insert(number, (now, age.unwrap_or_default()));
        UnderWay { gauge: self.0.clone(), number }
    }

    /// The age of a message that is handed over for the first time, if it says when it was published.
    fn age(&self, message: &Envelope, attempt: u32) -> Option<Duration> {
        let published = message.time.filter(|_| attempt <= 1)?;
        // A producer's clock that is ahead makes no negative age.
        Some(Duration::try_from(self.0.bus.now() - published).unwrap_or_default())
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
        self.0.told.lock().last.map(|(_, age)| age)
    }

    pub(super) fn source(&self) -> &Source {
        &self.0.source
    }

    /// What was told until now, by seconds since `start`.
    pub(super) fn seen(&self, start: Instant) -> Seen {
        let told = self.0.told.lock();
        let last = told.last.map(|(at, age)| {
            let since = at.saturating_duration_since(start).as_secs_f64();
            let before = start.saturating_duration_since(at).as_secs_f64();
            HandedOver { at: since - before, age: age.as_secs_f64() }
        });
        let under_way = told.under_way.values().map(|(at, age)| age.saturating_add(at.elapsed()).as_secs_f64());
        Seen { last, under_way: under_way.reduce(f64::max) }
    }
}

/// A message whose handler runs. It goes with the handler's future, so that one that panics, is dropped or takes too
/// long does not stay.
struct UnderWay {
    gauge: Arc<GaugeShared>,
    number: u64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.gauge.told.lock().under_way.remove(&self.number);
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
        let _under_way = self.gauge.begin(&msg, cx.attempt());
        self.handler.handle(cx, msg).await
    }

    async fn starting(&self, worker: &WorkerInfo) -> Result<()> {
        self.handler.starting(worker).await
    }
}

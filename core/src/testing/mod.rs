//! For the tests of code that uses polybus: a [`TestBus`] needs no broker, and remembers what was published.

mod recording_driver;

use std::{fmt::Write, ops::Deref, sync::Arc, time::Duration};

use crate::{
    Address, Bus, BusOptions, Error, ErrorKind, Outgoing, Result, Topology,
    registry::Registry,
    testing::recording_driver::{PublishLog, RecordingDriver},
    topology::DeclareMode,
};

/// How long [`TestBus::run_until_idle`] waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// A [`Bus`] on a private in-process broker that remembers what was published.
///
/// All of the topology is declared. It dereferences to [`Bus`]: hand `bus.clone()` to the code under test. Under
/// tokio's paused clock (`#[tokio::test(start_paused = true)]`) delays and retries pass at once.
///
/// ```
/// use polybus_core::{Address, Envelope, QueueSpec, Source, Topology, testing::TestBus};
///
/// /// The code under test: ships what is paid.
/// async fn ship(bus: &polybus_core::Bus, order: &str) -> polybus_core::Result<()> {
///     bus.publish(Address::queue("parcels"), Envelope::new("parcel.sent", order.to_owned()).key("eu")).await?;
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> polybus_core::Result<()> {
/// let bus = TestBus::new(Topology::new().queue("parcels", QueueSpec::new())).await?;
/// ship(&bus, "order 7").await?;
///
/// let sent = bus.published(&Address::queue("parcels"));
/// assert_eq!(sent.len(), 1);
/// assert_eq!(sent[0].envelope.key.as_deref(), Some("eu"));
///
/// let mut parcels = bus.subscribe(Source::queue("parcels")).open().await?;
/// tokio::spawn(async move {
///     while let Some(Ok(parcel)) = parcels.next().await {
///         let _ = parcel.ack().await;
///     }
/// });
/// bus.run_until_idle().await?; // every parcel has been acknowledged
/// # Ok(()) }
/// ```
pub struct TestBus {
    bus: Bus,
    log: Arc<PublishLog>,
}

impl TestBus {
    /// A bus with these queues and topics.
    ///
    /// # Errors
    /// `ConfigInvalid` for a topology that cannot be.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> polybus_core::Result<()> {
    /// use polybus_core::{QueueSpec, Topology, testing::TestBus};
    ///
    /// let bus = TestBus::new(Topology::new().queue("payments", QueueSpec::new())).await?;
    /// # Ok(()) }
    /// ```
    pub async fn new(topology: Topology) -> Result<Self> {
        Self::with_options(BusOptions::topology(topology)).await
    }

    /// A bus with these options. All of the topology is declared, whatever [`BusOptions::declare`] says.
    ///
    /// # Errors
    /// Those of [`TestBus::new`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> polybus_core::Result<()> {
    /// use polybus_core::{BusOptions, QueueSpec, Topology, testing::TestBus};
    ///
    /// let options = BusOptions::topology(Topology::new().queue("payments", QueueSpec::new()));
    /// let bus = TestBus::with_options(options).await?;
    /// # Ok(()) }
    /// ```
    pub async fn with_options(mut options: BusOptions) -> Result<Self> {
        options.declare = DeclareMode::Create;
        let log = Arc::new(PublishLog::default());
        let inner = Registry::new().connect("memory://").await?;
        let bus = Bus::new(Arc::new(RecordingDriver { inner, log: log.clone() }), options)?;
        bus.declare().await?;
        Ok(Self { bus, log })
    }

    /// Everything that was published to this address since the start or the last [`TestBus::forget_published`], in the
    /// order in which it was stored. It is listed whether it was consumed or not; retries, dead letters and redriven
    /// messages are not listed again.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Envelope, QueueSpec, Topology, testing::TestBus};
    /// # let bus = TestBus::new(Topology::new().queue("payments", QueueSpec::new())).await?;
    /// let payments = Address::queue("payments");
    /// bus.publish(&payments, Envelope::new("payment.made", "{}")).await?;
    /// assert_eq!(&*bus.published(&payments)[0].envelope.event_type, "payment.made");
    /// # Ok(()) }
    /// ```
    pub fn published(&self, to: &Address) -> Vec<Outgoing> {
        self.log.published(to)
    }

    /// Empties the list of [`TestBus::published`]. The messages themselves stay.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Envelope, QueueSpec, Topology, testing::TestBus};
    /// # let bus = TestBus::new(Topology::new().queue("payments", QueueSpec::new())).await?;
    /// let payments = Address::queue("payments");
    /// bus.publish(&payments, Envelope::new("payment.made", "{}")).await?;
    /// bus.forget_published();
    /// assert!(bus.published(&payments).is_empty());
    /// # Ok(()) }
    /// ```
    pub fn forget_published(&self) {
        self.log.clear();
    }

    /// Waits until no message of the topology is ready, in flight, or delayed by a retry or its publisher.
    ///
    /// Dead letters do not count. Under a paused clock, delays pass at once.
    ///
    /// # Errors
    /// `Timeout` after ten seconds of real time. It names the sources that still hold messages: most likely nobody
    /// consumes them, or their handler does not end.
    ///
    /// # Cancel safety
    /// Dropping the future only ends the wait.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{QueueSpec, Topology, testing::TestBus};
    /// # let bus = TestBus::new(Topology::new().queue("payments", QueueSpec::new())).await?;
    /// // The code under test consumes and publishes here.
    /// bus.run_until_idle().await?;
    /// # Ok(()) }
    /// ```
    pub async fn run_until_idle(&self) -> Result<()> {
        self.idle_within(PATIENCE).await
    }

    async fn idle_within(&self, patience: Duration) -> Result<()> {
        // Patience is real time. Under a paused clock tokio's time would run out while one long delay is skipped.
        let since = std::time::Instant::now();
        let began = tokio::time::Instant::now();
        loop {
            let busy = self.busy().await?;
            if busy.is_empty() {
                return Ok(());
            }
            if since.elapsed() > patience {
                return Err(Error::new(ErrorKind::Timeout, format!("not idle after {patience:?}:{busy}")));
            }
            tokio::time::sleep((began.elapsed() / 10).clamp(Duration::from_millis(1), Duration::from_secs(1))).await;
        }
    }

    /// The sources that hold messages, and how many, in words.
    async fn busy(&self) -> Result<String> {
        let mut busy = String::new();
        for source in self.topology().plan().sources {
            let stats = self.stats(&source.name).await?;
            let counts = [("ready", stats.ready), ("in flight", stats.in_flight), ("delayed", stats.delayed)];
            for (what, count) in counts.into_iter().filter_map(|(what, n)| Some((what, n.filter(|n| *n > 0)?))) {
                let _ = write!(busy, " {} has {count} {what};", source.name);
            }
        }
        Ok(busy)
    }
}

impl Deref for TestBus {
    type Target = Bus;

    fn deref(&self) -> &Bus {
        &self.bus
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Envelope, QueueSpec, Source, SubscriptionSpec, TopicSpec};

    fn topology() -> Topology {
        let subscription = SubscriptionSpec::new().types(["a.*"]);
        Topology::new().queue("q", QueueSpec::new()).topic("t", TopicSpec::new().subscription("s", subscription))
    }

    #[tokio::test(start_paused = true)]
    async fn published_lists_what_was_stored() {
        let bus = TestBus::new(topology()).await.unwrap();
        let (queue, topic) = (Address::queue("q"), Address::topic("t"));
        assert!(bus.published(&queue).is_empty());
        let delayed = Outgoing::from(Envelope::new("a.b", "1")).delay(Duration::from_secs(5));
        bus.publish(&queue, delayed).await.unwrap();
        bus.publish(&topic, Envelope::new("nobody.wants", "2")).await.unwrap();
        bus.publish(&queue, Envelope::new("not legal", "")).await.unwrap_err();
        bus.publish(Address::queue("missing"), Envelope::new("a.b", "")).await.unwrap_err();

        let sent = bus.published(&queue);
        assert_eq!((sent.len(), sent[0].delay), (1, Some(Duration::from_secs(5))));
        assert_eq!(&*sent[0].envelope.source, "polybus");
        assert_eq!(&*bus.published(&topic)[0].envelope.event_type, "nobody.wants");
        assert!(bus.published(&Address::queue("missing")).is_empty());
        bus.forget_published();
        assert!(bus.published(&queue).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn idle_comes_after_delays_and_retries_have_passed() {
        let bus = TestBus::new(topology()).await.unwrap();
        bus.run_until_idle().await.unwrap();
        let began = tokio::time::Instant::now();
        let delay = Duration::from_secs(600);
        bus.publish(Address::queue("q"), Outgoing::from(Envelope::new("a.b", "1")).delay(delay)).await.unwrap();
        bus.publish(Address::topic("t"), Envelope::new("a.b", "2")).await.unwrap();
        for source in [Source::queue("q"), Source::subscription("t", "s")] {
            let mut sub = bus.subscribe(source).open().await.unwrap();
            tokio::spawn(async move {
                while let Some(Ok(delivery)) = sub.next().await {
                    match delivery.attempt() {
                        1 => delivery.retry_after(Duration::from_secs(300)).await.unwrap(),
                        _ => delivery.dead_letter("enough", "").await.unwrap(),
                    }
                }
            });
        }
        bus.run_until_idle().await.unwrap();
        assert!(began.elapsed() >= Duration::from_secs(900), "{:?}", began.elapsed());
        assert_eq!(bus.stats(Source::queue("q")).await.unwrap().dead_lettered, Some(1));
        assert_eq!(bus.published(&Address::queue("q")).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn never_idle_names_who_holds_messages() {
        let bus = TestBus::new(topology()).await.unwrap();
        bus.publish(Address::topic("t"), Envelope::new("a.b", "")).await.unwrap();
        let e = bus.idle_within(Duration::from_millis(100)).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Timeout);
        assert!(e.to_string().contains("subscription:t/s has 1 ready"), "{e}");
    }
}

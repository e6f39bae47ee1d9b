//! Looking after the broker's entities: declaring and deleting them, counting and purging messages.

use tokio::time::Instant;

use crate::{
    Bus, Error, ErrorKind, Result, RetrySafety, Source,
    topology::{DeclareMode, DeclareReport, SourceStats},
};

impl Bus {
    /// Creates the queues, topics and subscriptions of the topology at the broker, or compares them with it, as
    /// [`BusOptions::declare`](crate::bus::BusOptions::declare) says.
    ///
    /// It changes and deletes nothing. Entities that differ from the topology are no error: they are in the report and
    /// in the log. Many processes may declare the same topology at once.
    ///
    /// While the broker is not ready it is asked again with a backoff, up to the publish timeout: after errors that are
    /// [`Unavailable`](ErrorKind::Unavailable) or [`Throttled`](ErrorKind::Throttled), and [`Safe`](RetrySafety::Safe).
    /// An attempt that is under way is not cut short, since a large topology may take longer.
    ///
    /// # Errors
    /// `Unsupported` if entities of this broker cannot be declared; `Closed`; else the broker's error.
    ///
    /// # Cancel safety
    /// If the future is dropped, what was created stays. Declaring again creates the rest.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// let report = bus.declare().await?;
    /// assert_eq!(report.created, ["queue:payments"]);
    /// # Ok(()) }
    /// ```
    pub async fn declare(&self) -> Result<DeclareReport> {
        self.declare_as(self.shared.declare).await
    }

    /// Compares the topology with the broker. It creates nothing, and waits for the broker as
    /// [`declare`](Self::declare) does.
    ///
    /// # Errors
    /// Those of [`declare`](Self::declare). An entity that is missing is no error but a difference in the report.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// let report = bus.verify().await?;
    /// assert_eq!(report.differences[0].to_string(), "queue:payments: exists should be true, found false");
    /// # Ok(()) }
    /// ```
    pub async fn verify(&self) -> Result<DeclareReport> {
        self.declare_as(DeclareMode::Verify).await
    }

    async fn declare_as(&self, mode: DeclareMode) -> Result<DeclareReport> {
        let connection = self.connection();
        connection.ensure_open("declare")?;
        if mode == DeclareMode::Off {
            return Ok(DeclareReport::default());
        }
        if !connection.driver.capabilities().declare {
            return Err(connection.located(Error::unsupported("this broker's entities cannot be declared"), "declare"));
        }
        let plan = connection.topology.plan();
        let may_retry = |e: &Error| {
            matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Throttled) && e.retry() == RetrySafety::Safe
        };
        let deadline = connection.deadline(Instant::now());
        let report =
            connection.retry_until(deadline, "declare", may_retry, || connection.driver.declare(&plan, mode)).await;
        let report = report.map_err(|e| connection.located(e, "declare"))?;
        for difference in &report.differences {
            tracing::warn!(backend = connection.driver.backend(), %difference, "topology differs");
        }
        Ok(report)
    }

    /// How many messages a source holds, as far as the broker tells. For dead letters it answers the counts of their
    /// live source, whose `dead_lettered` counts them.
    ///
    /// # Errors
    /// `Unsupported` if this broker tells no counts; `NotFound`; `Closed`; else the broker's error. It is not retried.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// # bus.publish(Address::queue("payments"), Envelope::new("payment.made", "{}")).await?;
    /// let stats = bus.stats(Source::queue("payments")).await?;
    /// assert_eq!((stats.ready, stats.dead_lettered), (Some(1), Some(0)));
    /// # Ok(()) }
    /// ```
    pub async fn stats(&self, source: impl Into<Source>) -> Result<SourceStats> {
        let source = &source.into();
        let connection = self.connection();
        connection.ensure_open("stats")?;
        if !connection.driver.capabilities().stats {
            return Err(connection.located(Error::unsupported("this broker tells no counts"), "stats"));
        }
        let stats = connection.driver.stats(&connection.topology.source(source.live())).await;
        stats.map_err(|e| connection.located(e, "stats").with_place("source", source))
    }

    /// Deletes the ready messages of a source, and answers how many, as far as the broker tells. Messages that
    /// consumers hold stay.
    ///
    /// # Errors
    /// `Unsupported` if this broker cannot purge; `NotFound`; `Closed`; else the broker's error. After an error in the
    /// middle, its context `deleted_at_least` says how many messages are gone. It is not retried.
    ///
    /// # Cancel safety
    /// If the future is dropped, some of the messages may be deleted.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// # bus.publish(Address::queue("payments"), Envelope::new("payment.made", "{}")).await?;
    /// assert_eq!(bus.purge(Source::queue("payments")).await?, 1);
    /// # Ok(()) }
    /// ```
    pub async fn purge(&self, source: impl Into<Source>) -> Result<u64> {
        let source = &source.into();
        let connection = self.connection();
        connection.ensure_open("purge")?;
        if !connection.driver.capabilities().purge {
            return Err(connection.located(Error::unsupported("this broker cannot purge"), "purge"));
        }
        let purged = connection.driver.purge(&connection.topology.source(source)).await;
        purged.map_err(|e| connection.located(e, "purge").with_place("source", source))
    }

    /// Deletes the entities of the topology at the broker, dead letters and all messages included. Entities that are
    /// missing are no error.
    ///
    /// # Errors
    /// `Unsupported` if entities of this broker cannot be deleted; `Closed`; else the broker's error. It is not
    /// retried.
    ///
    /// # Cancel safety
    /// If the future is dropped, some of the entities may be deleted.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// use polybus_core::ErrorKind;
    ///
    /// bus.delete().await?;
    /// let e = bus.stats(Source::queue("payments")).await.unwrap_err();
    /// assert_eq!(e.kind(), ErrorKind::NotFound);
    /// # Ok(()) }
    /// ```
    pub async fn delete(&self) -> Result<()> {
        let connection = self.connection();
        connection.ensure_open("delete")?;
        if !connection.driver.capabilities().declare {
            return Err(connection.located(Error::unsupported("this broker's entities cannot be deleted"), "delete"));
        }
        connection.driver.delete(&connection.topology.plan()).await.map_err(|e| connection.located(e, "delete"))
    }
}

//! The error of a settlement, which gives the delivery back.

use std::fmt;

use crate::{Delivery, Error};

/// A settlement that failed: the error, and the delivery to settle again. After `LockLost` there is no delivery.
///
/// It converts into [`Error`] with `?`; the delivery is dropped then, and so released.
pub struct SettleError(Box<(Error, Option<Delivery>)>);

impl SettleError {
    pub(crate) fn new(e: Error, delivery: Option<Delivery>) -> Self {
        Self(Box::new((e, delivery)))
    }

    /// The error.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// # let source = Source::queue("payments");
    /// # bus.publish(source.address(), Envelope::new("payment.made", "{}")).await?;
    /// # let mut payments = bus.subscribe(&source).open().await?;
    /// # let delivery = payments.next().await.expect("one was published")?;
    /// payments.close().await?;
    /// if let Err(e) = delivery.ack().await {
    ///     assert_eq!(e.error().kind(), polybus_core::ErrorKind::LockLost);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn error(&self) -> &Error {
        &self.0.0
    }

    /// The error, and the delivery to settle again; `None` after `LockLost`.
    ///
    /// ```
    /// # async fn run(delivery: polybus_core::Delivery) -> polybus_core::Result<()> {
    /// if let Err(failed) = delivery.dead_letter("poison", "").await {
    ///     let (e, delivery) = failed.into_parts();
    ///     eprintln!("not dead-lettered: {e}");
    ///     if let Some(delivery) = delivery {
    ///         delivery.release().await?;
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub fn into_parts(self) -> (Error, Option<Delivery>) {
        *self.0
    }
}

impl From<SettleError> for Error {
    fn from(e: SettleError) -> Self {
        e.0.0
    }
}

impl fmt::Display for SettleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.0.fmt(f)
    }
}

impl fmt::Debug for SettleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0.0, f)
    }
}

impl std::error::Error for SettleError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.0.0)
    }
}

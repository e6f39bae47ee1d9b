//! A driver around another one. What a layer does not override goes through unchanged.

use std::{any::Any, sync::Arc};

use async_trait::async_trait;

use crate::{
    Address, Result, Source,
    driver::{Capabilities, Driver, MessagingSystem, Receiver, Sender, Settler},
    runtime::clock::Clock,
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, SourceStats},
};

/// Wraps a driver, to watch it, to change what it declares, or to break it in a test.
///
/// Whatever implements it is a [`Driver`] whose methods are the inner driver's, except those that are overridden here.
/// The contract of each method is that of [`Driver`].
///
/// ```
/// use std::sync::{Arc, atomic::{AtomicUsize, Ordering}};
/// use polybus_core::{
///     Address, Result,
///     driver::{Driver, DriverLayer, Sender, async_trait},
///     memory::MemoryDriver,
///     topology::Entity,
/// };
///
/// /// Counts the senders that are opened.
/// struct CountSenders {
///     inner: MemoryDriver,
///     opened: AtomicUsize,
/// }
///
/// #[async_trait]
/// impl DriverLayer for CountSenders {
///     fn inner(&self) -> &dyn Driver {
///         &self.inner
///     }
///
///     async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
///         self.opened.fetch_add(1, Ordering::Relaxed);
///         self.inner.open_sender(to).await
///     }
/// }
///
/// let driver: Arc<dyn Driver> = Arc::new(CountSenders { inner: MemoryDriver::new(), opened: AtomicUsize::new(0) });
/// assert_eq!(driver.backend(), "memory");
/// ```
#[async_trait]
#[allow(missing_docs)] // The methods are those of `Driver`, and documented there.
pub trait DriverLayer: Send + Sync + 'static {
    /// The driver that does the work.
    fn inner(&self) -> &dyn Driver;

    fn capabilities(&self) -> &Capabilities {
        self.inner().capabilities()
    }

    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        self.inner().declare(plan, mode).await
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.inner().open_sender(to).await
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        self.inner().open_receiver(from).await
    }

    async fn stats(&self, of: &Entity<Source>) -> Result<SourceStats> {
        self.inner().stats(of).await
    }

    async fn purge(&self, from: &Entity<Source>) -> Result<u64> {
        self.inner().purge(from).await
    }

    async fn delete(&self, plan: &DeclarePlan) -> Result<()> {
        self.inner().delete(plan).await
    }

    async fn close(&self) -> Result<()> {
        self.inner().close().await
    }
}

#[async_trait]
impl<L: DriverLayer> Driver for L {
    fn backend(&self) -> &'static str {
        self.inner().backend()
    }

    fn capabilities(&self) -> &Capabilities {
        DriverLayer::capabilities(self)
    }

    async fn version(&self) -> Option<String> {
        self.inner().version().await
    }

    fn physical_names(&self, plan: &DeclarePlan) -> Vec<(String, String)> {
        self.inner().physical_names(plan)
    }

    fn check(&self, plan: &DeclarePlan) -> Result<()> {
        self.inner().check(plan)
    }

    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        DriverLayer::declare(self, plan, mode).await
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        DriverLayer::open_sender(self, to).await
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        DriverLayer::open_receiver(self, from).await
    }

    async fn stats(&self, of: &Entity<Source>) -> Result<SourceStats> {
        DriverLayer::stats(self, of).await
    }

    async fn purge(&self, from: &Entity<Source>) -> Result<u64> {
        DriverLayer::purge(self, from).await
    }

    async fn delete(&self, plan: &DeclarePlan) -> Result<()> {
        DriverLayer::delete(self, plan).await
    }

    async fn close(&self) -> Result<()> {
        DriverLayer::close(self).await
    }

    fn messaging_systems(&self) -> (MessagingSystem, MessagingSystem) {
        self.inner().messaging_systems()
    }

    fn clock(&self) -> Option<Arc<dyn Clock>> {
        self.inner().clock()
    }

    fn native(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.inner().native()
    }
}

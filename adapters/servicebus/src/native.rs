//! Access to fe2o3-amqp, for what polybus does not do.

use std::sync::Arc;

use fe2o3_amqp::session::SessionHandle;
use polybus_core::Result;

use crate::transport::namespace::Namespace;

/// What `bus.native::<Native>()` gives over AMQP: sessions of fe2o3-amqp on the connection of polybus.
///
/// ```no_run
/// use polybus_core::{Bus, Error, Result};
/// use polybus_servicebus::Native;
///
/// # async fn f(bus: &Bus) -> Result<()> {
/// let native = bus.native::<Native>().ok_or_else(|| Error::unsupported("no AMQP connection"))?;
/// let session = native.session("orders").await?;
/// # Ok(())
/// # }
/// ```
pub struct Native(Arc<Namespace>);

impl Native {
    pub(crate) fn new(namespace: Arc<Namespace>) -> Self {
        Self(namespace)
    }

    /// Begins a session, on which links to `path` may be attached: a queue, a topic, or `topic/Subscriptions/name`. The
    /// session ends when it is dropped.
    ///
    /// # Errors
    ///
    /// Those of connecting, and `PermissionDenied` or `Unauthenticated` if the broker refuses a token for `path`.
    pub async fn session(&self, path: &str) -> Result<SessionHandle<()>> {
        let connection = self.0.connection().await?;
        connection.authorize(path).await?;
        connection.begin_session().await
    }
}

//! The escape hatch to fe2o3-amqp.

use std::sync::Arc;

use fe2o3_amqp::session::SessionHandle;
use polybus_core::Result;

use crate::amqp::connection::Wires;

/// What `bus.native::<Native>()` gives: a session of fe2o3-amqp on polybus' own connection, for what polybus does not do.
pub struct Native(Arc<Wires>);

impl Native {
    pub(crate) fn new(wires: Arc<Wires>) -> Self {
        Self(wires)
    }

    /// A new session, on which links to `path` may be attached: a queue, a topic, `topic/Subscriptions/name`. It ends when it is
    /// dropped. Errors are those of connecting.
    pub async fn session(&self, path: &str) -> Result<SessionHandle<()>> {
        let wire = self.0.get().await?;
        wire.authorize(path).await?;
        wire.session().await
    }
}

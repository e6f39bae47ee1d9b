//! Access to lapin's connection, for what polybus does not do.

use std::{ops::Deref, sync::Arc};

use polybus_core::Result;

use crate::transport::connection::{BrokerConnection, ConnectionRole, DriverConnections};

/// lapin's connection, for what polybus does not do. `bus.native::<Native>()` gives it.
pub struct Native(Arc<DriverConnections>);

impl Native {
    pub(crate) fn new(connections: Arc<DriverConnections>) -> Self {
        Self(connections)
    }

    /// The connection on which polybus declares entities and counts messages, or a new one if the last is gone.
    ///
    /// Open a channel of your own on it. Do not publish on it: a broker that runs out of memory or disk blocks a
    /// connection that publishes, and with it the checks of polybus. Use a connection of your own for that.
    ///
    /// lapin's error lines about closed channels on this connection are kept out of the log. There they are answers: a
    /// channel is closed when polybus asks for a queue that does not exist.
    ///
    /// ```no_run
    /// use polybus_rabbitmq::{Native, lapin};
    ///
    /// # async fn example(bus: polybus_core::Bus) -> Result<(), Box<dyn std::error::Error>> {
    /// let native = bus.native::<Native>().expect("the bus URL is amqp:// or amqps://");
    /// let channel = native.connection().await?.create_channel().await?;
    /// let options = lapin::options::BasicGetOptions { no_ack: true };
    /// let message = channel.basic_get("my-queue".into(), options).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of connecting: `Unavailable` if the broker cannot be reached, `Unauthenticated` if it refuses the login,
    /// `Closed` after the bus was closed.
    ///
    /// # Cancel safety
    /// A dropped future counts as no attempt: the next call connects.
    pub async fn connection(&self) -> Result<impl Deref<Target = lapin::Connection> + Send + Sync + 'static> {
        Ok(NativeConnection(self.0.get(ConnectionRole::Manage).await?))
    }
}

/// Keeps the connection of the driver as long as the caller uses it.
struct NativeConnection(Arc<BrokerConnection>);

impl Deref for NativeConnection {
    type Target = lapin::Connection;

    fn deref(&self) -> &lapin::Connection {
        &self.0.connection
    }
}

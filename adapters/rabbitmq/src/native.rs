//! The escape hatch to lapin.

use std::{ops::Deref, sync::Arc};

use polybus_core::Result;

use crate::transport::connection::{Link, Links, Role};

/// What `bus.native::<Native>()` gives: lapin itself, for what polybus does not do.
pub struct Native(Arc<Links>);

impl Native {
    pub(crate) fn new(links: Arc<Links>) -> Self {
        Self(links)
    }

    /// The connection that polybus declares and counts on; a new one if the last is gone. Open a channel of your own on it.
    ///
    /// Publishing on it may get it blocked, and with it polybus' own checks: use a connection of your own for that.
    /// Errors are those of connecting.
    pub async fn connection(&self) -> Result<impl Deref<Target = lapin::Connection> + Send + Sync + 'static> {
        Ok(Connection(self.0.get(Role::Manage).await?))
    }
}

struct Connection(Arc<Link>);

impl Deref for Connection {
    type Target = lapin::Connection;

    fn deref(&self) -> &lapin::Connection {
        &self.0.connection
    }
}

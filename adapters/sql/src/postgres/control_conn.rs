//! One of the store's own connections, for one call.

use std::ops::{Deref, DerefMut};

use polybus_core::{Error, Result};
use sqlx::{PgConnection, Postgres as Client, pool::PoolConnection};
use tokio::{runtime::Handle, sync::OwnedSemaphorePermit};

use super::{Postgres, committing, give_back, reading};

const HELD: &str = "the connection is here until the call ends";

/// A connection of the store's own pool. It sees how its statements end, and goes back only where it is of use.
pub(super) struct ControlConn {
    conn: Option<PoolConnection<Client>>,
    /// Its place among those that are not for leases.
    place: Option<OwnedSemaphorePermit>,
    store: Postgres,
    operation: &'static str,
    /// A statement was begun, and nobody has said how it ended.
    cut_off: bool,
    /// It leads to a server that cannot be written to.
    misled: bool,
}

impl Postgres {
    /// A connection of the store's own pool. It is made at the first use, with the hooks of the application's pool, as
    /// one may set the role.
    pub(super) async fn control_conn(&self, operation: &'static str) -> Result<ControlConn> {
        let place = self.control_place().await.map_err(reading(operation))?;
        let mut conn = self.lease_conn(operation).await?;
        conn.place = Some(place);
        Ok(conn)
    }

    /// The same for a lease, which waits for nothing but leases.
    pub(super) async fn lease_conn(&self, operation: &'static str) -> Result<ControlConn> {
        let conn = self.control_pool().map_err(reading(operation))?.acquire().await.map_err(reading(operation))?;
        let (conn, store) = (Some(conn), self.clone());
        Ok(ControlConn { conn, place: None, store, operation, cut_off: false, misled: false })
    }
}

impl ControlConn {
    /// How the error of a statement is told that cannot have had an effect. Ask for it when the statement has ended.
    pub(super) fn reading(&mut self) -> impl FnOnce(sqlx::Error) -> Error + use<'_> {
        self.cut_off = false;
        move |error| {
            self.misled |= give_back::is_misled(&error);
            reading(self.operation)(error)
        }
    }

    /// The same for a statement that commits by itself.
    pub(super) fn committing(&mut self) -> impl FnOnce(sqlx::Error) -> Error + use<'_> {
        self.cut_off = false;
        move |error| {
            self.misled |= give_back::is_misled(&error);
            committing(self.operation)(error)
        }
    }
}

impl Deref for ControlConn {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.conn.as_deref().expect(HELD)
    }
}

impl DerefMut for ControlConn {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.cut_off = true;
        self.conn.as_deref_mut().expect(HELD)
    }
}

impl Drop for ControlConn {
    fn drop(&mut self) {
        if !self.cut_off && !self.misled {
            return;
        }
        // What was cut off may be a call whose answer is lost in silence: it must not keep its place in the pool.
        if let (Some(conn), Ok(runtime)) = (self.conn.take(), Handle::try_current()) {
            let (store, place) = (self.store.clone(), self.place.take());
            runtime.spawn(async move {
                give_back::roll_back(store, conn, true, give_back::NOTHING).await;
                drop(place);
            });
        }
    }
}

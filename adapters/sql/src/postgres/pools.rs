//! The connections that the application's pool does not give away.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use polybus_core::Result;
use sqlx::{PgPool, postgres::PgConnectOptions};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{Postgres, PostgresTx, reading};

/// One for leases, and the others for all else.
const CONNECTIONS: u32 = 4;

/// A lease must not wait longer.
const ACQUIRE: Duration = Duration::from_secs(5);

pub(super) struct ControlPool {
    pool: PgPool,
    /// The places of all but leases: whatever waits for a lock of the application's must not keep a lease waiting.
    places: Arc<Semaphore>,
    /// The application's options that it connects with.
    options: Mutex<Arc<PgConnectOptions>>,
}

impl Postgres {
    /// A transaction on the store's own pool, and its place there.
    pub(super) async fn control_begin(&self, operation: &'static str) -> Result<(PostgresTx, OwnedSemaphorePermit)> {
        let place = self.control_place().await.map_err(reading(operation))?;
        let conn = self.control_pool().map_err(reading(operation))?.acquire().await.map_err(reading(operation))?;
        Ok((PostgresTx::begin(self, conn, None).await.map_err(reading(operation))?, place))
    }

    fn control_pools(&self) -> Result<&ControlPool, sqlx::Error> {
        let app = &self.0.pool;
        if app.is_closed() {
            return Err(sqlx::Error::PoolClosed);
        }
        let options = app.connect_options();
        let control = self.0.control.get_or_init(|| ControlPool {
            pool: self.own_pool(CONNECTIONS),
            places: Arc::new(Semaphore::new(CONNECTIONS as usize - 1)),
            options: Mutex::new(options.clone()),
        });
        // The application may have changed a password that runs out.
        let mut known = control.options.lock();
        if !Arc::ptr_eq(&known, &options) {
            control.pool.set_connect_options((*options).clone());
            *known = options;
        }
        Ok(control)
    }

    pub(super) fn control_pool(&self) -> Result<&PgPool, sqlx::Error> {
        Ok(&self.control_pools()?.pool)
    }

    /// A place among those that are not for leases.
    pub(super) async fn control_place(&self) -> Result<OwnedSemaphorePermit, sqlx::Error> {
        let places = self.control_pools()?.places.clone();
        let place = timeout(ACQUIRE, places.acquire_owned()).await.map_err(|_| sqlx::Error::PoolTimedOut)?;
        place.map_err(|_| sqlx::Error::PoolClosed)
    }

    /// A new pool that connects like the application's. It connects when it is used.
    pub(super) fn own_pool(&self, connections: u32) -> PgPool {
        let app = &self.0.pool;
        let options = app.options().clone().max_connections(connections).min_connections(0).acquire_timeout(ACQUIRE);
        options.connect_lazy_with((*app.connect_options()).clone())
    }
}

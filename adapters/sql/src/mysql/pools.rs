//! The connections that the application's pool does not give away.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use sqlx::{MySqlPool, mysql::MySqlConnectOptions};

use super::MySql;

/// Enough for a renewal beside a slow read and a slow delete.
const CONNECTIONS: u32 = 3;

/// A lease must not wait longer.
const ACQUIRE: Duration = Duration::from_secs(5);

pub(super) struct ControlPool {
    pool: MySqlPool,
    /// The application's options that it connects with.
    options: Mutex<Arc<MySqlConnectOptions>>,
}

impl MySql {
    /// The store's own pool. It is made at the first use, with the hooks of the application's pool, as one may set the
    /// role.
    pub(super) fn control_pool(&self) -> Result<&MySqlPool, sqlx::Error> {
        let app = &self.0.pool;
        if app.is_closed() {
            return Err(sqlx::Error::PoolClosed);
        }
        let options = app.connect_options();
        let control = self
            .0
            .control
            .get_or_init(|| ControlPool { pool: self.own_pool(CONNECTIONS), options: Mutex::new(options.clone()) });
        // The application may have changed a password that runs out.
        let mut known = control.options.lock();
        if !Arc::ptr_eq(&known, &options) {
            control.pool.set_connect_options((*options).clone());
            *known = options;
        }
        Ok(&control.pool)
    }

    /// A new pool that connects like the application's. It connects when it is used.
    pub(super) fn own_pool(&self, connections: u32) -> MySqlPool {
        let app = &self.0.pool;
        let options = app.options().clone().max_connections(connections).min_connections(0).acquire_timeout(ACQUIRE);
        options.connect_lazy_with((*app.connect_options()).clone())
    }
}

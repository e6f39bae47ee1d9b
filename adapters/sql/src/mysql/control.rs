//! The database as loops see it.

use std::sync::Arc;

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{ChangeSignal, LeaseTable, Outage, StoreControl};
use sqlx::{ConnectOptions, Connection, raw_sql};

use super::{MySql, SYSTEM, lease::Leases};
use crate::{error::Effect, probe::either};

/// A replica answers, and cannot be written to: it refuses this where the user may not write there.
const IS_WRITABLE: &str = "START TRANSACTION READ WRITE; ROLLBACK";

pub(super) struct Control(pub(super) MySql);

#[async_trait]
impl StoreControl for Control {
    async fn is_away(&self) -> bool {
        let store = &self.0;
        !store.0.probe.is_there(|| store.clone().answers()).await
    }

    async fn verify(&self, components: &[&str]) -> Result<()> {
        self.0.verify_components(components).await
    }

    fn leases(&self) -> Arc<dyn LeaseTable> {
        Arc::new(Leases(self.0.clone()))
    }

    fn changes(&self) -> &ChangeSignal {
        &self.0.0.changes
    }

    fn outage(&self) -> &Outage {
        &self.0.0.outage
    }

    fn max_connections(&self) -> Option<u32> {
        Some(self.0.0.pool.options().get_max_connections())
    }

    fn single_writer(&self) -> bool {
        false
    }

    fn system(&self) -> &'static str {
        SYSTEM
    }
}

impl MySql {
    /// Whether it can be written to, on one of the own pool's connections or on a new one. That pool may be away while
    /// the database is not: its connections may be busy, or lead to where it was.
    async fn answers(self) -> bool {
        let pooled = async { self.control_conn("is_away").await?.run(IS_WRITABLE, Effect::None).await };
        let fresh = async {
            let mut conn = self.0.pool.connect_options().connect().await?;
            raw_sql(IS_WRITABLE).execute(&mut conn).await?;
            conn.close().await
        };
        either(async { pooled.await.is_ok() }, async { fresh.await.is_ok() }).await
    }
}

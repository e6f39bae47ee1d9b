//! The database as loops see it.

use std::sync::Arc;

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{ChangeSignal, LeaseTable, Outage, StoreControl};
use sqlx::{ConnectOptions as _, Connection as _};

use super::{Postgres, SYSTEM, give_back::is_writable, lease::Leases};
use crate::probe::either;

pub(super) struct Control(pub(super) Postgres);

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

    async fn notify(&self) -> Result<()> {
        self.0.notify().await
    }

    async fn listen(&self) -> Result<()> {
        self.0.listen().await
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

impl Postgres {
    /// Whether it can be written to, on one of the own pool's connections or on a new one. That pool may be away while
    /// the database is not: its connections may be busy, or lead to where it was.
    async fn answers(self) -> bool {
        let pooled = async {
            let mut conn = self.control_conn("is_away").await?;
            is_writable(&mut conn).await.map_err(conn.reading())
        };
        let fresh = async {
            let mut conn = self.0.pool.connect_options().connect().await?;
            let writable = is_writable(&mut conn).await?;
            conn.close().await?;
            Ok::<_, sqlx::Error>(writable)
        };
        either(async { matches!(pooled.await, Ok(true)) }, async { matches!(fresh.await, Ok(true)) }).await
    }
}

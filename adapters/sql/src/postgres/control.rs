//! The database as loops see it.

use std::{sync::Arc, time::Duration};

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{ChangeSignal, LeaseTable, Outage, StoreControl};
use sqlx::{ConnectOptions, Connection, PgConnection};

use super::{Postgres, SYSTEM, lease::Leases, reading};

/// How long one way of asking may take. There are two.
const ANSWER: Duration = Duration::from_millis(500);

pub(super) struct Control(pub(super) Postgres);

#[async_trait]
impl StoreControl for Control {
    async fn is_away(&self) -> bool {
        // The pool may be away while the database is not: its three connections may be busy.
        let pooled = tokio::time::timeout(ANSWER, self.pooled_answer()).await;
        if matches!(pooled, Ok(Ok(true))) {
            return false;
        }
        !matches!(tokio::time::timeout(ANSWER, self.fresh_answer()).await, Ok(Ok(true)))
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

impl Control {
    async fn pooled_answer(&self) -> Result<bool> {
        let mut conn = self.0.control_conn("is_away").await?;
        is_writable(&mut conn).await.map_err(reading("is_away"))
    }

    async fn fresh_answer(&self) -> Result<bool, sqlx::Error> {
        let mut conn = self.0.0.pool.connect_options().connect().await?;
        let writable = is_writable(&mut conn).await?;
        conn.close().await?;
        Ok(writable)
    }
}

/// A standby answers, and cannot be written to: the primary is away, or the switch to it is not over. Likewise a server
/// that was made read-only, as providers do where the disk is full.
async fn is_writable(conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT NOT pg_is_in_recovery() AND NOT current_setting('transaction_read_only')::bool")
        .fetch_one(conn)
        .await
}

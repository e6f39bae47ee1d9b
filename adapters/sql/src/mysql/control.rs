//! The database as loops see it.

use std::{sync::Arc, time::Duration};

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{ChangeSignal, LeaseTable, Outage, StoreControl};
use sqlx::{ConnectOptions, Connection, raw_sql};

use super::{MySql, SYSTEM, lease::Leases};
use crate::error::Effect;

/// How long one way of asking may take. There are two.
const ANSWER: Duration = Duration::from_millis(500);

/// A replica answers, and cannot be written to: it refuses this where the user may not write there.
const IS_WRITABLE: &str = "START TRANSACTION READ WRITE; ROLLBACK";

pub(super) struct Control(pub(super) MySql);

#[async_trait]
impl StoreControl for Control {
    async fn is_away(&self) -> bool {
        // The pool may be away while the database is not: its three connections may be busy.
        let pooled = tokio::time::timeout(ANSWER, self.pooled_answer()).await;
        if matches!(pooled, Ok(Ok(()))) {
            return false;
        }
        !matches!(tokio::time::timeout(ANSWER, self.fresh_answer()).await, Ok(Ok(())))
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

impl Control {
    async fn pooled_answer(&self) -> Result<()> {
        self.0.control_conn("is_away").await?.run(IS_WRITABLE, Effect::None).await.map(drop)
    }

    async fn fresh_answer(&self) -> Result<(), sqlx::Error> {
        let mut conn = self.0.0.pool.connect_options().connect().await?;
        raw_sql(IS_WRITABLE).execute(&mut conn).await?;
        conn.close().await
    }
}

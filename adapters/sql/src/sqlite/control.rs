//! The database as loops see it.

use std::{sync::Arc, time::Duration};

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{ChangeSignal, LeaseTable, Outage, StoreControl};
use sqlx::{ConnectOptions, Connection};

use super::{SYSTEM, Sqlite, lease::Leases};

/// How long another process may write before the database counts as away.
const ANSWER: Duration = Duration::from_secs(1);

pub(super) struct Control(pub(super) Sqlite);

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
        true
    }

    fn system(&self) -> &'static str {
        SYSTEM
    }
}

impl Sqlite {
    async fn answers(self) -> bool {
        self.try_all().await.is_ok()
    }

    /// Opens the file, reads, and sees whether another process keeps everybody from writing.
    async fn try_all(&self) -> Result<(), sqlx::Error> {
        let options = &self.0.connect_options;
        if is_in_memory(options.get_filename()) {
            return Ok(());
        }
        let options = (**options).clone().create_if_missing(false).busy_timeout(ANSWER);
        let mut conn = options.connect().await?;
        sqlx::query("SELECT count(*) FROM main.sqlite_schema").execute(&mut conn).await?;
        // Where somebody in this process is writing, writing works. One that has the turn may wait for another process.
        let queue = self.0.ready.get();
        let _permit = queue.and_then(|queue| queue.try_turn());
        if !queue.is_some_and(|queue| queue.is_writing()) {
            let tx = conn.begin_with("BEGIN IMMEDIATE").await?;
            tx.rollback().await?;
        }
        conn.close().await
    }
}

/// A second connection would see another database.
fn is_in_memory(file: &std::path::Path) -> bool {
    file.to_str().is_some_and(|name| name == ":memory:" || name.starts_with("file:"))
}

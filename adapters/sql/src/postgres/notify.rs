//! NOTIFY after a commit, so that relays of other processes look at once.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use polybus_core::{Error, Result};
use sqlx::postgres::PgListener;

use super::{Postgres, reading};

/// How long a notification of its own may take to come back.
const SELF_TEST: Duration = Duration::from_secs(2);

const NOTIFY: &str = "SELECT pg_notify($1, $2)";

impl Postgres {
    /// A channel is one of the whole database. The schema's name tells our rows from those of another schema.
    fn channel(&self) -> String {
        format!("{}outbox", self.0.options.prefix)
    }

    pub(super) async fn notify(&self) -> Result<()> {
        let schema = &self.statements().await?.schema_name;
        self.send(schema).await
    }

    async fn send(&self, payload: &str) -> Result<()> {
        const OPERATION: &str = "notify";
        let mut conn = self.control_conn(OPERATION).await?;
        let notify = sqlx::query(NOTIFY).bind(self.channel()).bind(payload);
        notify.execute(&mut *conn).await.map(drop).map_err(conn.committing())
    }

    pub(super) async fn listen(&self) -> Result<()> {
        const OPERATION: &str = "listen";
        let schema = self.statements().await?.schema_name.clone();
        // A pool of its own, so that it keeps nobody from a connection.
        let pool = self.own_pool(1);
        let mut listener = PgListener::connect_with(&pool).await.map_err(reading(OPERATION))?;
        listener.ignore_pool_close_event(true);
        listener.listen(&self.channel()).await.map_err(reading(OPERATION))?;
        self.test_itself(&mut listener).await?;
        loop {
            let heard = listener.try_recv().await.map_err(reading(OPERATION))?;
            // Nothing means that the connection was made anew: what came meanwhile is lost.
            if heard.is_none_or(|heard| heard.payload() == schema) {
                self.0.changes.committed();
            }
        }
    }

    /// A pooler in transaction mode takes the LISTEN and delivers nothing.
    async fn test_itself(&self, listener: &mut PgListener) -> Result<()> {
        let test = format!("test:{}", unique());
        self.send(&test).await?;
        let came_back = async {
            loop {
                match listener.recv().await {
                    Ok(heard) if heard.payload() == test => return Ok(()),
                    Ok(_) => {}
                    Err(error) => return Err(reading("listen")(error)),
                }
            }
        };
        tokio::time::timeout(SELF_TEST, came_back).await.unwrap_or_else(|_| {
            Err(Error::config(format!(
                "a notification did not come back within {} s: a connection pooler in transaction mode swallows \
                 LISTEN; connect to the database itself, or do without notifications",
                SELF_TEST.as_secs()
            ))
            .with_backend(super::SYSTEM)
            .with_operation("listen"))
        })
    }
}

fn unique() -> String {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("{}-{time}-{}", std::process::id(), CALLS.fetch_add(1, Ordering::Relaxed))
}

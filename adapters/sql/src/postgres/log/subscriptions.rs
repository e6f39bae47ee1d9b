//! How far subscriptions have come.

use polybus_core::Result;
use polybus_patterns::store::{Checkpoint, StoppedSubscription, StoredSubscription};
use sqlx::PgConnection;

use super::super::{Postgres, reading};
use crate::log::{SubscriptionRow, subscription};

statements! {
    SubscriptionSql {
        advance = "UPDATE {log_subscription} SET pos = $4
            WHERE name = $1 AND pos = $2 AND token = $3 AND stopped_at IS NULL";
        is_at = "SELECT EXISTS (SELECT FROM {log_subscription} WHERE name = $1 AND pos = $2 AND token = $3)";
        list = "SELECT name, pos, token, stopped_at, stopped_why, stopped_on FROM {log_subscription}
            WHERE $1::text IS NULL OR name = $1 ORDER BY name";
        make = "INSERT INTO {log_subscription} (name, pos) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
        stop = "UPDATE {log_subscription} SET token = token + 1, stopped_at = {now}, stopped_why = $4, stopped_on = $5
            WHERE name = $1 AND pos = $2 AND token = $3 AND stopped_at IS NULL";
        resume = "UPDATE {log_subscription}
            SET pos = $4, token = token + 1, stopped_at = NULL, stopped_why = NULL, stopped_on = NULL
            WHERE name = $1 AND pos = $2 AND token = $3 AND stopped_at IS NOT NULL";
        remove = "DELETE FROM {log_subscription} WHERE name = $1";
    }
}

pub(super) async fn advance(
    store: &Postgres,
    conn: &mut PgConnection,
    name: &str,
    from: &Checkpoint,
    to: i64,
) -> Result<bool> {
    let sql = store.statements().await?;
    let advance =
        sqlx::query(sql.log.subscriptions.advance.clone()).bind(name).bind(from.position).bind(from.token).bind(to);
    let moved = advance.execute(conn).await.map_err(reading("log.checkpoint"))?;
    Ok(moved.rows_affected() > 0)
}

pub(super) async fn is_at(store: &Postgres, conn: &mut PgConnection, name: &str, at: &Checkpoint) -> Result<bool> {
    let sql = store.statements().await?;
    let is_at = sqlx::query_scalar(sql.log.subscriptions.is_at.clone()).bind(name).bind(at.position).bind(at.token);
    is_at.fetch_one(conn).await.map_err(reading("log.checkpoint"))
}

pub(super) async fn list(store: &Postgres, name: Option<&str>) -> Result<Vec<StoredSubscription>> {
    let sql = store.statements().await?;
    let mut conn = store.control_conn("log.subscriptions").await?;
    let list = sqlx::query_as(sql.log.subscriptions.list.clone()).bind(name);
    let rows: Vec<SubscriptionRow> = list.fetch_all(&mut *conn).await.map_err(conn.reading())?;
    Ok(rows.into_iter().map(subscription).collect())
}

pub(super) async fn make(store: &Postgres, name: &str, behind: i64) -> Result<StoredSubscription> {
    let sql = store.statements().await?;
    loop {
        let mut conn = store.control_conn("log.subscribe").await?;
        let make = sqlx::query(sql.log.subscriptions.make.clone()).bind(name).bind(behind);
        make.execute(&mut *conn).await.map_err(conn.committing())?;
        drop(conn);
        // Else it was removed between the two.
        if let Some(made) = list(store, Some(name)).await?.pop() {
            return Ok(made);
        }
    }
}

pub(super) async fn stop(store: &Postgres, name: &str, at: &Checkpoint, why: &StoppedSubscription) -> Result<bool> {
    let sql = store.statements().await?;
    let mut conn = store.control_conn("log.stop").await?;
    let stop = sqlx::query(sql.log.subscriptions.stop.clone())
        .bind(name)
        .bind(at.position)
        .bind(at.token)
        .bind(&why.why)
        .bind(why.at);
    Ok(stop.execute(&mut *conn).await.map_err(conn.committing())?.rows_affected() > 0)
}

pub(super) async fn resume(store: &Postgres, name: &str, at: &Checkpoint, behind: i64) -> Result<bool> {
    let sql = store.statements().await?;
    let mut conn = store.control_conn("log.resume").await?;
    let resume =
        sqlx::query(sql.log.subscriptions.resume.clone()).bind(name).bind(at.position).bind(at.token).bind(behind);
    Ok(resume.execute(&mut *conn).await.map_err(conn.committing())?.rows_affected() > 0)
}

pub(super) async fn remove(store: &Postgres, name: &str) -> Result<bool> {
    let sql = store.statements().await?;
    let mut conn = store.control_conn("log.remove").await?;
    let remove = sqlx::query(sql.log.subscriptions.remove.clone()).bind(name);
    Ok(remove.execute(&mut *conn).await.map_err(conn.committing())?.rows_affected() > 0)
}

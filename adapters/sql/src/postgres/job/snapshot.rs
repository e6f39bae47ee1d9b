//! The oldest snapshot: what keeps the database from removing rows that are deleted.

use std::time::Duration;

use polybus_core::Result;
use sqlx::SqlStr;

use super::super::Postgres;

/// Vacuum removes nothing that a transaction here may still see. Sessions of other users show no start where this user
/// may not see it.
const OLDEST: &str = "SELECT age, who FROM (
        SELECT (extract(epoch FROM clock_timestamp() - a.xact_start) * 1000000)::bigint AS age,
            format('pid %s, %s, %s', a.pid, coalesce(nullif(a.application_name, ''), a.backend_type), a.state) AS who
        FROM pg_stat_activity a
        WHERE (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL) AND a.xact_start IS NOT NULL
            AND a.pid <> pg_backend_pid() AND a.backend_type <> 'autovacuum worker'
        UNION ALL
        SELECT (extract(epoch FROM clock_timestamp() - p.prepared) * 1000000)::bigint,
            format('prepared transaction %s of %s', p.gid, p.owner)
        FROM pg_prepared_xacts p
    ) s ORDER BY age DESC LIMIT 1";

pub(super) async fn oldest(store: &Postgres) -> Result<Option<(Duration, String)>> {
    let mut conn = store.control_conn("job.oldest_snapshot").await?;
    let oldest = sqlx::query_as(SqlStr::from_static(OLDEST));
    let oldest: Option<(i64, String)> = oldest.fetch_optional(&mut *conn).await.map_err(conn.reading())?;
    Ok(oldest.map(|(age, who)| (Duration::from_micros(u64::try_from(age).unwrap_or_default()), who)))
}

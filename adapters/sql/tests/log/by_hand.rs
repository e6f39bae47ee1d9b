//! PostgreSQL's log read by hand, step by step.

use sqlx::AssertSqlSafe;

pub(crate) const HEAD: &str = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {log_position}";
pub(crate) const LOWEST: &str = "SELECT min((l.classid::bigint << 32 | l.objid::bigint) & ((1::bigint << 48) - 1))
    FROM pg_locks l CROSS JOIN {log} t WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.classid::bigint >> 16 = t.tag
        AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())";
pub(crate) const BETWEEN: &str =
    "SELECT pos, stream, version FROM {log_event} WHERE pos > $1 AND pos <= $2 ORDER BY pos LIMIT 500";
/// The visible events of ended transactions in the order of these: xmin of a row is the lower half of a transaction's id.
pub(crate) const BY_XMIN: &str = "SELECT pos, stream, version, xmin::text::bigint AS x FROM {log_event}
    WHERE (xmin::text::bigint, pos) > ($1, $2)
        AND xmin::text::bigint < pg_snapshot_xmin(pg_current_snapshot())::text::bigint
    ORDER BY xmin::text::bigint, pos LIMIT 500";

pub(crate) fn of_schema(sql: &str, schema: &str) -> AssertSqlSafe<String> {
    let mut text = sql.to_owned();
    for table in ["log_position", "log_event", "log_stream", "log"] {
        text = text.replace(&format!("{{{table}}}"), &format!("\"{schema}\".\"polybus_{table}\""));
    }
    AssertSqlSafe(text)
}

//! A schema of PostgreSQL.

use polybus_sql::Postgres;
use sqlx::{
    AssertSqlSafe, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::{
    CLIENTS,
    database::{Database, Tables},
};

/// A schema of its own, with these settings in each session.
pub(crate) async fn open(url: &str, name: &str, settings: &[(&str, &str)]) -> Database<Postgres> {
    let schema = format!("{name}_{}", std::process::id());
    let options: PgConnectOptions = url.parse().unwrap();
    let search_path = schema.clone();
    let pool = PgPoolOptions::new()
        .max_connections(CLIENTS as u32 + 2)
        .after_connect(move |conn, _| {
            let statement = format!("SET search_path = {search_path}");
            Box::pin(async move { sqlx::raw_sql(AssertSqlSafe(statement)).execute(conn).await.map(drop) })
        })
        .connect_with(options.options(settings.iter().copied()))
        .await
        .unwrap();
    let make = format!(
        "CREATE SCHEMA {schema}; CREATE TABLE {schema}.business (id TEXT, note TEXT);
         CREATE TABLE {schema}.twin (id BIGINT PRIMARY KEY, data BYTEA)"
    );
    sqlx::raw_sql(AssertSqlSafe(make)).execute(&pool).await.unwrap();
    let store = polybus_sql::postgres(pool).schema(&schema);
    store.migrate().await.unwrap();
    Database { store }
}

impl Tables for Postgres {
    type PlainTx = Transaction<'static, sqlx::Postgres>;

    async fn plain(&self) -> Self::PlainTx {
        self.pool().begin().await.unwrap()
    }

    async fn commit_plain(tx: Self::PlainTx) {
        tx.commit().await.unwrap();
    }

    async fn effect(conn: &mut sqlx::PgConnection, id: &str) {
        let insert = sqlx::query("INSERT INTO business (id, note) VALUES ($1, 'an order')").bind(id);
        insert.execute(conn).await.unwrap();
    }

    async fn clear(&self) {
        let statement = "TRUNCATE business; TRUNCATE polybus_outbox; TRUNCATE polybus_inbox; TRUNCATE polybus_sequence;
            TRUNCATE polybus_sequence_progress";
        sqlx::raw_sql(statement).execute(self.pool()).await.unwrap();
    }

    async fn is_published(&self, queue: &str) -> bool {
        let sql =
            "SELECT NOT EXISTS (SELECT 1 FROM unnest('{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}'::smallint[]) s (slot)
            CROSS JOIN LATERAL (SELECT 1 FROM polybus_outbox o WHERE o.slot = s.slot
                AND o.address >= $1 AND o.address <= $1 ORDER BY o.address, o.id LIMIT 1) o)";
        let query = sqlx::query_scalar(sql).bind(format!("queue:{queue}"));
        query.fetch_one(self.pool()).await.unwrap()
    }

    async fn log_bytes(&self) -> Option<f64> {
        let sql = "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::float8";
        Some(sqlx::query_scalar(sql).fetch_one(self.pool()).await.unwrap())
    }

    fn handing_over(&self) -> Option<Self> {
        Some(self.clone().hand_over_connections())
    }

    async fn remove(self) {
        let schema: String = sqlx::query_scalar("SELECT current_schema()::text").fetch_one(self.pool()).await.unwrap();
        let statement = format!("DROP SCHEMA {schema} CASCADE");
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(self.pool()).await.unwrap();
    }
}

//! Makes and verifies the tables.

use polybus_core::{Error, Result};
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::{Sqlite, Statements, reading, write_queue::Turn};
use crate::{
    migrate::{self, Applied, Component, components},
    names::Names,
};

const COMPONENTS: &[Component] = components!("sqlite");
const SCHEMA_TABLE: &str = include_str!("../../migrations/sqlite/schema.sql");
const RECORD: &str = "INSERT INTO {schema} (component, version, min_code, applied_at) VALUES (?1, ?2, ?3, {now})
    ON CONFLICT (component) DO UPDATE
    SET version = excluded.version, min_code = excluded.min_code, applied_at = excluded.applied_at";

statements! {
    SchemaSql {
        exists = "SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = '{prefix}schema'";
        make = SCHEMA_TABLE;
        applied = "SELECT component, version, min_code FROM {schema}";
        record = RECORD;
        last_id = "SELECT (SELECT seq FROM main.sqlite_sequence WHERE name = '{prefix}outbox'),
            max((SELECT coalesce(max(id), 0) FROM {outbox}), (SELECT coalesce(max(id), 0) FROM {outbox_parked}))";
        mend_sequence = "UPDATE main.sqlite_sequence SET seq = $max WHERE name = '{prefix}outbox'";
    }
}

impl Sqlite {
    /// Makes the tables that are missing, and brings older ones up to date. It can be called at every start, by many
    /// processes at once.
    ///
    /// Tables of a newer polybus are left alone. They will do if they say that code of this version can work with them,
    /// as during a rolling deployment.
    ///
    /// Dropping the future leaves either all of it done or nothing.
    ///
    /// # Errors
    /// `ConfigInvalid` for tables that are too new, or a prefix that cannot be one.
    ///
    /// ```no_run
    /// # async fn example() -> polybus_core::Result<()> {
    /// let store = polybus_sql::sqlite_temp().await?;
    /// store.migrate().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn migrate(&self) -> Result<()> {
        let sql = self.statements()?;
        {
            let mut conn = self.reader("migrate").await?;
            let applied = applied(&sql, &mut conn).await.map_err(reading("migrate"))?;
            if all_there(&applied)? {
                return Ok(());
            }
        }
        let mut tx = self.begin_in_turn(Turn::Normal, "migrate").await?;
        sqlx::raw_sql(sql.schema.make.clone()).execute(&mut *tx).await.map_err(reading("migrate"))?;
        let applied = applied(&sql, &mut tx).await.map_err(reading("migrate"))?;
        for component in COMPONENTS {
            let steps = component.missing(&applied)?;
            if steps.is_empty() {
                continue;
            }
            for step in steps {
                let text = AssertSqlSafe(sql.names.text(step.sql));
                sqlx::raw_sql(text).execute(&mut *tx).await.map_err(reading("migrate"))?;
            }
            sqlx::query(sql.schema.record.clone())
                .bind(component.name)
                .bind(component.version())
                .bind(component.min_code())
                .execute(&mut *tx)
                .await
                .map_err(reading("migrate"))?;
        }
        tx.commit().await
    }

    /// Compares the tables with what this code needs, changing nothing.
    ///
    /// # Errors
    /// `ConfigInvalid` for tables that are missing, older or newer, naming both versions, and for ids of the outbox
    /// that went back, with the statement that mends it.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::Sqlite) -> polybus_core::Result<()> {
    /// store.verify().await
    /// # }
    /// ```
    pub async fn verify(&self) -> Result<()> {
        let names: Vec<_> = COMPONENTS.iter().map(|component| component.name).collect();
        self.verify_components(&names).await
    }

    pub(super) async fn verify_components(&self, names: &[&str]) -> Result<()> {
        let sql = self.statements()?;
        let components = migrate::named(COMPONENTS, names)?;
        let mut conn = self.reader("verify").await?;
        let applied = applied(&sql, &mut conn).await.map_err(reading("verify"))?;
        for component in &components {
            component.verify(&applied)?;
        }
        if components.iter().any(|component| component.name == "outbox") {
            let (last, highest): (Option<i64>, Option<i64>) =
                sqlx::query_as(sql.schema.last_id.clone()).fetch_one(&mut *conn).await.map_err(reading("verify"))?;
            let mend = |highest: i64| sql.schema.mend_sequence.as_str().replace("$max", &highest.to_string());
            migrate::check_sequence(last, highest, mend)?;
        }
        Ok(())
    }

    /// The statements that make all tables in an empty database, for those who run migrations themselves.
    ///
    /// # Errors
    /// `ConfigInvalid` for a prefix that cannot be one.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> polybus_core::Result<()> {
    /// let sql = polybus_sql::sqlite_temp().await?.migration_sql().await?;
    /// assert!(sql.contains("CREATE TABLE \"main\".\"polybus_outbox\""));
    /// # Ok(())
    /// # }
    /// ```
    #[allow(clippy::unused_async, reason = "the same as on PostgreSQL, where the schema is looked up")]
    pub async fn migration_sql(&self) -> Result<String> {
        let sql = self.statements()?;
        Ok(migrate_text(&sql.names))
    }
}

fn migrate_text(names: &Names) -> String {
    migrate::text(names, SCHEMA_TABLE, RECORD, COMPONENTS, |n| format!("?{n}"))
}

fn all_there(applied: &[Applied]) -> Result<bool, Error> {
    let missing = COMPONENTS.iter().map(|component| component.missing(applied)).collect::<Result<Vec<_>>>()?;
    Ok(missing.iter().all(|steps| steps.is_empty()))
}

async fn applied(sql: &Statements, conn: &mut SqliteConnection) -> Result<Vec<Applied>, sqlx::Error> {
    let exists: Option<i64> = sqlx::query_scalar(sql.schema.exists.clone()).fetch_optional(&mut *conn).await?;
    if exists.is_none() {
        return Ok(Vec::new());
    }
    let rows: Vec<(String, i32, i32)> = sqlx::query_as(sql.schema.applied.clone()).fetch_all(&mut *conn).await?;
    Ok(rows.into_iter().map(|(component, version, min_code)| Applied { component, version, min_code }).collect())
}

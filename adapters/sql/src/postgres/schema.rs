//! Makes and verifies the tables.

use polybus_core::{Error, Result};
use sqlx::{AssertSqlSafe, PgConnection};

use super::{Postgres, Statements, reading, version::check_version};
use crate::migrate::{self, Applied, Component, components};

const COMPONENTS: &[Component] = components!("postgres");
const SCHEMA_TABLE: &str = include_str!("../../migrations/postgres/schema.sql");
const RECORD: &str = "INSERT INTO {schema} (component, version, min_code, applied_at) VALUES ($1, $2, $3, {now})
    ON CONFLICT (component) DO UPDATE
    SET version = excluded.version, min_code = excluded.min_code, applied_at = excluded.applied_at";

/// One migration at a time in a database. The number is "polybus" in ASCII.
const LOCK: &str = "SELECT pg_advisory_xact_lock(31647709075240307)";

const FIND_SCHEMA: &str = "SELECT n.nspname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = to_regclass($1)";

statements! {
    SchemaSql {
        applied = "SELECT component, version, min_code FROM {schema}";
        make = SCHEMA_TABLE;
        record = RECORD;
        // Without rights on the sequence there is nothing to compare.
        last_id = "SELECT s.name, has_sequence_privilege(s.name, 'USAGE, SELECT'),
            CASE WHEN has_sequence_privilege(s.name, 'USAGE, SELECT') THEN pg_sequence_last_value(s.name::regclass) END,
            greatest((SELECT max(id) FROM {outbox}), (SELECT max(id) FROM {outbox_parked}))
            FROM (SELECT pg_get_serial_sequence($1, 'id') AS name) s";
        log_positions = "SELECT s.seqcache = 1 AND s.seqincrement = 1 AND NOT s.seqcycle,
                has_sequence_privilege(s.seqrelid, 'USAGE, SELECT'),
                CASE WHEN has_sequence_privilege(s.seqrelid, 'USAGE, SELECT') THEN pg_sequence_last_value(s.seqrelid) END,
                (SELECT max(pos) FROM {log_event}), t.tag,
                (SELECT count(*) FROM pg_description d JOIN pg_class c ON c.oid = d.objoid AND c.relkind = 'S'
                    WHERE d.classoid = 'pg_class'::regclass AND d.objsubid = 0
                        AND d.description = 'polybus log ' || t.tag)
            FROM pg_sequence s CROSS JOIN {log} t WHERE s.seqrelid = $1::regclass";
    }
}

impl Postgres {
    /// Makes the tables that are missing, and brings older ones up to date. It can be called at every start, by many
    /// processes at once.
    ///
    /// Where nothing is to be done it needs no right to make tables. Tables of a newer polybus are left alone. They
    /// will do if they say that code of this version can work with them, as during a rolling deployment. The schema
    /// must be there.
    ///
    /// Dropping the future leaves either all of it done or nothing.
    ///
    /// # Errors
    /// `ConfigInvalid` for tables that are too new, a server that is too old, a schema that is missing, or a prefix
    /// that cannot be one. `PermissionDenied` where the user may not make tables.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::Postgres) -> polybus_core::Result<()> {
    /// store.migrate().await
    /// # }
    /// ```
    pub async fn migrate(&self) -> Result<()> {
        const OPERATION: &str = "migrate";
        let sql = self.statements_before_tables().await?;
        {
            let mut conn = self.control_conn(OPERATION).await?;
            check_version(conn.server_version_num())?;
            if all_there(&applied(&sql, &mut conn).await.map_err(conn.reading())?)? {
                return Ok(());
            }
        }
        let (mut tx, _place) = self.control_begin(OPERATION).await?;
        sqlx::query(LOCK).execute(&mut *tx).await.map_err(reading(OPERATION))?;
        sqlx::raw_sql(sql.schema.make.clone()).execute(&mut *tx).await.map_err(reading(OPERATION))?;
        let applied = applied(&sql, &mut tx).await.map_err(reading(OPERATION))?;
        for component in COMPONENTS {
            let steps = component.missing(&applied)?;
            if steps.is_empty() {
                continue;
            }
            for step in steps {
                let text = AssertSqlSafe(sql.names.text(step.sql));
                sqlx::raw_sql(text).execute(&mut *tx).await.map_err(reading(OPERATION))?;
            }
            sqlx::query(sql.schema.record.clone())
                .bind(component.name)
                .bind(component.version())
                .bind(component.min_code())
                .execute(&mut *tx)
                .await
                .map_err(reading(OPERATION))?;
        }
        tx.commit().await
    }

    /// Compares the tables with what this code needs, changing nothing. It needs no right to make tables.
    ///
    /// # Errors
    /// `ConfigInvalid` for tables that are missing, older or newer, naming both versions, and for ids of the outbox
    /// that went back, as after a logical copy of the database, with the statement that mends it.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::Postgres) -> polybus_core::Result<()> {
    /// store.verify().await
    /// # }
    /// ```
    pub async fn verify(&self) -> Result<()> {
        let names: Vec<_> = COMPONENTS.iter().map(|component| component.name).collect();
        self.verify_components(&names).await
    }

    pub(super) async fn verify_components(&self, names: &[&str]) -> Result<()> {
        const OPERATION: &str = "verify";
        let sql = self.statements_before_tables().await?;
        let components = migrate::named(COMPONENTS, names)?;
        let mut conn = self.control_conn(OPERATION).await?;
        check_version(conn.server_version_num())?;
        let applied = applied(&sql, &mut conn).await.map_err(conn.reading())?;
        for component in &components {
            component.verify(&applied)?;
        }
        let has = |name: &str| components.iter().any(|component| component.name == name);
        if has("log") {
            let sequence = sql.names.table("log_position");
            let found: Option<LogPositions> = sqlx::query_as(sql.schema.log_positions.clone())
                .bind(&sequence)
                .fetch_optional(&mut *conn)
                .await
                .map_err(conn.reading())?;
            check_log(found, &sequence, &sql.names.table("log"))?;
        }
        if !has("outbox") {
            return Ok(());
        }
        let (sequence, allowed, last, highest): (Option<String>, Option<bool>, Option<i64>, Option<i64>) =
            sqlx::query_as(sql.schema.last_id.clone())
                .bind(sql.names.table("outbox"))
                .fetch_one(&mut *conn)
                .await
                .map_err(conn.reading())?;
        let Some(sequence) = sequence.filter(|_| allowed == Some(true)) else {
            tracing::debug!("verify() cannot compare the outbox' sequence: this user has no right to read it");
            return Ok(());
        };
        let sequence = sequence.replace('\'', "''");
        migrate::check_sequence(last, highest, |highest| format!("SELECT setval('{sequence}', {highest})"))
    }

    /// The statements that make all tables in an empty schema, for those who run migrations themselves.
    ///
    /// # Errors
    /// `ConfigInvalid` for a prefix or schema that cannot be one. Without [`schema`](Self::schema) it asks the
    /// database, and fails as that does.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::Postgres) -> polybus_core::Result<()> {
    /// println!("{}", store.migration_sql().await?);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn migration_sql(&self) -> Result<String> {
        let sql = self.statements_before_tables().await?;
        Ok(migrate::text(&sql.names, SCHEMA_TABLE, RECORD, COMPONENTS, |n| format!("${n}")))
    }

    /// Where the tables are.
    pub(super) async fn find_schema(&self) -> Result<String> {
        self.look_for_schema().await?.ok_or_else(|| {
            Error::config(
                "the tables of polybus are not in any schema of the search_path: run migrate() of the store, or name \
                 the schema",
            )
            .with_context("prefix", &self.0.options.prefix)
        })
    }

    async fn look_for_schema(&self) -> Result<Option<String>> {
        crate::names::check_prefix(&self.0.options.prefix)?;
        let mut conn = self.control_conn("connect").await?;
        sqlx::query_scalar(FIND_SCHEMA)
            .bind(format!("{}schema", self.0.options.prefix))
            .fetch_optional(&mut *conn)
            .await
            .map_err(conn.reading())
    }

    /// The statements for where the tables are, or will be made.
    async fn statements_before_tables(&self) -> Result<Statements> {
        let schema = match &self.0.options.schema {
            Some(schema) => schema.clone(),
            None => match self.look_for_schema().await? {
                Some(schema) => schema,
                None => self.first_schema().await?,
            },
        };
        Statements::new(&schema, &self.0.options.prefix, self.0.options.offset.get())
    }

    async fn first_schema(&self) -> Result<String> {
        let mut conn = self.control_conn("connect").await?;
        let schema: Option<String> =
            sqlx::query_scalar("SELECT current_schema()::text").fetch_one(&mut *conn).await.map_err(conn.reading())?;
        schema.ok_or_else(|| Error::config("no schema of the search_path is there: make one, or name it"))
    }
}

/// Whether the sequence is as it was made, whether it may be read, its last value, the last position that is there, the
/// log's number, and how many logs of the database have it.
type LogPositions = (bool, bool, Option<i64>, Option<i64>, i32, i64);

/// # Errors
/// `ConfigInvalid` for what would make readers miss events, or wait for another log's appenders.
fn check_log(found: Option<LogPositions>, sequence: &str, table: &str) -> Result<()> {
    let Some((as_made, readable, last, highest, tag, logs)) = found else {
        return Err(Error::config(
            "the event log has lost its sequence, or the row with its number: restore its tables",
        ));
    };
    if !as_made {
        return Err(Error::config(format!(
            "the sequence of the event log must count by ones, without a cache and without a cycle, or events would be \
             missed. Stop those who append and run: ALTER SEQUENCE {sequence} INCREMENT 1 CACHE 1 NO CYCLE"
        )));
    }
    if logs > 1 {
        return Err(Error::config(format!(
            "{logs} event logs of this database have the number {tag}, as after a copy, and would wait for each other. Stop \
             those who append to one of them and run, with a number that none has: UPDATE {table} SET tag = 77; COMMENT ON \
             SEQUENCE {sequence} IS 'polybus log 77'"
        )));
    }
    let Some(highest) = highest.filter(|highest| readable && last.unwrap_or(0) < *highest) else { return Ok(()) };
    Err(Error::config(format!(
        "positions of the event log went back: the last one given is {}, and an event has {highest}; new events would not \
         be read. Stop those who append and run: SELECT setval('{}', {highest})",
        last.map_or("none".to_owned(), |last| last.to_string()),
        sequence.replace('\'', "''")
    )))
}

fn all_there(applied: &[Applied]) -> Result<bool, Error> {
    let missing = COMPONENTS.iter().map(|component| component.missing(applied)).collect::<Result<Vec<_>>>()?;
    Ok(missing.iter().all(|steps| steps.is_empty()))
}

async fn applied(sql: &Statements, conn: &mut PgConnection) -> Result<Vec<Applied>, sqlx::Error> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(sql.names.table("schema"))
        .fetch_one(&mut *conn)
        .await?;
    if !exists {
        return Ok(Vec::new());
    }
    let rows: Vec<(String, i32, i32)> = sqlx::query_as(sql.schema.applied.clone()).fetch_all(&mut *conn).await?;
    Ok(rows.into_iter().map(|(component, version, min_code)| Applied { component, version, min_code }).collect())
}

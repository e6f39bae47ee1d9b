//! Makes and verifies the tables.

use polybus_core::Result;

use super::{
    MySql,
    control_conn::{Again, decoded, text},
    literals::fill,
    statements::Statements,
};
use crate::{
    error::Effect,
    migrate::{self, Applied, Component, components},
};

const COMPONENTS: &[Component] = components!("mysql");
const SCHEMA_TABLE: &str = include_str!("../../migrations/mysql/schema.sql");
/// Two may migrate at once, the older code last.
const RECORD: &str = "INSERT INTO {schema} (component, version, min_code, applied_at) VALUES (?1, ?2, ?3, {now})
    ON DUPLICATE KEY UPDATE min_code = IF(version < ?2, ?3, min_code), applied_at = IF(version < ?2, {now}, applied_at),
        version = GREATEST(version, ?2)";

statements! {
    SchemaSql {
        exists = "SELECT COUNT(*) FROM information_schema.TABLES
            WHERE TABLE_SCHEMA = CAST(?1 AS CHAR) AND TABLE_NAME = '{prefix}schema'";
        applied = "SELECT component, version, min_code FROM {schema}";
        make = SCHEMA_TABLE;
        record = RECORD;
        // MySQL keeps a copy of such numbers for a day, unless it is told not to.
        last_id = "SELECT CAST(AUTO_INCREMENT AS SIGNED) - 1 FROM information_schema.TABLES
            WHERE TABLE_SCHEMA = CAST(?1 AS CHAR) AND TABLE_NAME = '{prefix}outbox'";
        highest = "SELECT GREATEST((SELECT COALESCE(MAX(id), 0) FROM {outbox}),
            (SELECT COALESCE(MAX(id), 0) FROM {outbox_parked}))";
    }
}

impl MySql {
    /// Makes the tables that are missing, and brings older ones up to date. It can be called at every start, by many
    /// processes at once.
    ///
    /// Where nothing is to be done it needs no right to make tables. Tables of a newer polybus are left alone. They
    /// will do if they say that code of this version can work with them, as during a rolling deployment. The database
    /// must be there.
    ///
    /// MySQL commits after each statement that makes a table. Dropping the future, or a crash, may leave some of it
    /// done, and the next call does the rest.
    ///
    /// # Errors
    /// `ConfigInvalid` for tables that are too new, a server that is too old or whose `sql_mode` is not strict, or a
    /// prefix that cannot be one. `PermissionDenied` where the user may not make tables.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::MySql) -> polybus_core::Result<()> {
    /// store.migrate().await
    /// # }
    /// ```
    pub async fn migrate(&self) -> Result<()> {
        const OPERATION: &str = "migrate";
        let sql = self.statements().await?;
        if all_there(&self.applied(&sql, OPERATION).await?)? {
            return Ok(());
        }
        self.make(sql.schema.make.as_str()).await?;
        let applied = self.applied(&sql, OPERATION).await?;
        for component in COMPONENTS {
            let steps = component.missing(&applied)?;
            if steps.is_empty() {
                continue;
            }
            for step in steps {
                self.make(&sql.names.text(step.sql)).await?;
            }
            let values = [component.name.into(), component.version().into(), component.min_code().into()];
            self.run(OPERATION, &fill(sql.schema.record.as_str(), &values)).await?;
        }
        Ok(())
    }

    /// Runs statements that commit by themselves, each of which can be run again.
    async fn make(&self, text: &str) -> Result<()> {
        let mut again = Again::default();
        loop {
            match self.control_conn("migrate").await?.run(text, Effect::Committed).await {
                Err(e) if again.after(&e).await => {}
                made => return made.map(drop),
            }
        }
    }

    /// Compares the tables with what this code needs, changing nothing. It needs no right to make tables.
    ///
    /// # Errors
    /// `ConfigInvalid` for tables that are missing, older or newer, naming both versions, for ids of the outbox that
    /// went back, as after a TRUNCATE while rows are parked, with the statement that mends it, and for a server that is
    /// too old or whose `sql_mode` is not strict.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::MySql) -> polybus_core::Result<()> {
    /// store.verify().await
    /// # }
    /// ```
    pub async fn verify(&self) -> Result<()> {
        let names: Vec<_> = COMPONENTS.iter().map(|component| component.name).collect();
        self.verify_components(&names).await
    }

    pub(super) async fn verify_components(&self, names: &[&str]) -> Result<()> {
        const OPERATION: &str = "verify";
        let sql = self.statements().await?;
        let components = migrate::named(COMPONENTS, names)?;
        let applied = self.applied(&sql, OPERATION).await?;
        for component in &components {
            component.verify(&applied)?;
        }
        if !components.iter().any(|component| component.name == "outbox") {
            return Ok(());
        }
        let fresh =
            if self.server().await?.is_mariadb { "" } else { "SET SESSION information_schema_stats_expiry = 0; " };
        let last = fill(sql.schema.last_id.as_str(), &[sql.database.as_str().into()]);
        let mut conn = self.control_conn(OPERATION).await?;
        // The highest first: others write rows meanwhile, and what they are given only rises.
        let highest: Vec<(i64,)> =
            decoded(&conn.run(sql.schema.highest.as_str(), Effect::None).await?.rows, OPERATION)?;
        let last: Vec<(Option<i64>,)> =
            decoded(&conn.run(&format!("{fresh}{last}"), Effect::None).await?.rows, OPERATION)?;
        let Some(last) = last.into_iter().find_map(|(last,)| last) else {
            tracing::debug!("verify() cannot compare the outbox' ids: this user has no right to see the last one");
            return Ok(());
        };
        let table = sql.names.table("outbox");
        migrate::check_sequence(Some(last), highest.first().map(|(highest,)| *highest), |highest| {
            format!("ALTER TABLE {table} AUTO_INCREMENT = {}", highest + 1)
        })
    }

    /// The statements that make all tables in an empty database, for those who run migrations themselves.
    ///
    /// # Errors
    /// `ConfigInvalid` for a prefix or database that cannot be one. It looks at the server, and fails as that does.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::MySql) -> polybus_core::Result<()> {
    /// println!("{}", store.migration_sql().await?);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn migration_sql(&self) -> Result<String> {
        let sql = self.statements().await?;
        Ok(migrate::text(&sql.names, SCHEMA_TABLE, RECORD, COMPONENTS, |n| format!("?{n}")))
    }

    async fn applied(&self, sql: &Statements, operation: &'static str) -> Result<Vec<Applied>> {
        let exists = fill(sql.schema.exists.as_str(), &[sql.database.as_str().into()]);
        let exists: Vec<(i64,)> = decoded(&self.look(operation, &exists).await?.rows, operation)?;
        if exists.first().is_none_or(|(tables,)| *tables == 0) {
            return Ok(Vec::new());
        }
        let rows = self.look(operation, sql.schema.applied.as_str()).await?.rows;
        let rows: Vec<(Vec<u8>, i32, i32)> = decoded(&rows, operation)?;
        let applied = |(component, version, min_code)| Applied { component: text(component), version, min_code };
        Ok(rows.into_iter().map(applied).collect())
    }
}

fn all_there(applied: &[Applied]) -> Result<bool> {
    let missing = COMPONENTS.iter().map(|component| component.missing(applied)).collect::<Result<Vec<_>>>()?;
    Ok(missing.iter().all(|steps| steps.is_empty()))
}

//! The database, by its address, and the few calls of sqlx for which SQLite and PostgreSQL differ.
//!
//! A program that knows its database needs none of this: it makes a store of its pool, `polybus_sql::postgres(pool)`, and
//! calls sqlx in its transactions.

use std::{fmt, path::PathBuf, str::FromStr};

use polybus::patterns::store::{InboxStore, OutboxStore};
use polybus_sql::{Postgres, Sqlite};
use sqlx::{
    AssertSqlSafe, Connection, PgConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::Failure;

/// A store with outbox and inbox, and the statements of the application itself.
pub trait Sql: OutboxStore + InboxStore {
    /// The type of a column that numbers its rows.
    const SERIAL: &'static str;

    /// Makes the tables of polybus, and these.
    fn create(&self, tables: String) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Runs a statement in a transaction. The values, `$1` and so on, are whole numbers.
    fn execute(
        conn: &mut Self::Conn,
        sql: &'static str,
        values: &[i64],
    ) -> impl Future<Output = sqlx::Result<()>> + Send;

    /// The one number with which a statement answers.
    fn number(
        conn: &mut Self::Conn,
        sql: &'static str,
        values: &[i64],
    ) -> impl Future<Output = sqlx::Result<i64>> + Send;

    /// All numbers with which a query answers, in no transaction.
    fn numbers(&self, sql: &str) -> impl Future<Output = sqlx::Result<Vec<i64>>> + Send;

    /// Closes all connections.
    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// The code is the same on both, and sqlx takes `$1` on both. Generic over `sqlx::Database` it would need bounds on every
/// function that calls it; a macro needs none.
macro_rules! sql_on {
    ($store:ty, $serial:literal) => {
        impl Sql for $store {
            const SERIAL: &'static str = $serial;

            async fn create(&self, tables: String) -> Result<(), Failure> {
                self.migrate().await?;
                sqlx::raw_sql(AssertSqlSafe(tables)).execute(self.pool()).await?;
                Ok(())
            }

            async fn execute(conn: &mut Self::Conn, sql: &'static str, values: &[i64]) -> sqlx::Result<()> {
                let statement = values.iter().fold(sqlx::query(sql), |statement, value| statement.bind(*value));
                statement.execute(conn).await.map(drop)
            }

            async fn number(conn: &mut Self::Conn, sql: &'static str, values: &[i64]) -> sqlx::Result<i64> {
                let statement = values.iter().fold(sqlx::query_scalar(sql), |statement, value| statement.bind(*value));
                statement.fetch_one(conn).await
            }

            async fn numbers(&self, sql: &str) -> sqlx::Result<Vec<i64>> {
                sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(self.pool()).await
            }

            async fn close(&self) {
                self.pool().close().await;
            }
        }
    };
}

sql_on!(Sqlite, "INTEGER PRIMARY KEY AUTOINCREMENT");
sql_on!(Postgres, "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY");

/// Where the tables are.
#[derive(Clone)]
pub enum Location {
    /// A SQLite file in a temporary folder, for one process.
    Temporary,
    /// A SQLite file.
    File(PathBuf),
    /// A schema of its own in a PostgreSQL database.
    Postgres { url: String, schema: String },
}

/// A store on one of them.
pub enum Database {
    Sqlite(Sqlite),
    Postgres(Postgres),
}

impl Location {
    /// `sqlite:PATH` or `postgres://…`. The schema gets the name.
    pub fn parse(address: Option<&str>, name: &str) -> Result<Self, Failure> {
        let Some(address) = address else { return Ok(Self::Temporary) };
        if let Some(path) = address.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            let path = path.split('?').next().unwrap_or(path);
            if path.is_empty() {
                return Err("the database names no file: write sqlite:PATH, with a path that does not exist".into());
            }
            return Ok(Self::File(PathBuf::from(path)));
        }
        if !address.starts_with("postgres://") && !address.starts_with("postgresql://") {
            return Err("the database is neither sqlite:PATH nor postgres://USER:PASSWORD@HOST/DATABASE".into());
        }
        let schema = name.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        Ok(Self::Postgres { url: address.to_owned(), schema })
    }

    /// Makes the file or the schema, which must be new: it is removed at the end.
    pub async fn create(&self) -> Result<(), Failure> {
        match self {
            Self::Temporary => {}
            Self::File(path) if path.exists() => {
                return Err(format!("{} exists already: name a new file", path.display()).into());
            }
            Self::File(path) => {
                std::fs::File::create_new(path).map_err(|e| format!("cannot make {}: {e}", path.display()))?;
            }
            Self::Postgres { schema, .. } => {
                let mut conn = self.connect().await?;
                let sql = format!("CREATE SCHEMA \"{schema}\"");
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await.map_err(|e| {
                    format!("cannot make the schema {schema} (choose another --prefix if it exists): {e}")
                })?;
            }
        }
        Ok(())
    }

    /// Opens it with so many connections at most.
    pub async fn open(&self, connections: u32) -> Result<Database, Failure> {
        match self {
            Self::Temporary => Ok(Database::Sqlite(polybus_sql::sqlite_temp().await?)),
            Self::File(path) => {
                // NORMAL survives the death of a process. FULL, the default, survives a power cut as well, and waits
                // for the disk at each commit.
                let options = SqliteConnectOptions::new()
                    .filename(path)
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Normal);
                let pool = SqlitePoolOptions::new().max_connections(connections).connect_with(options).await;
                let pool = pool.map_err(|e| format!("cannot open {}: {e}", path.display()))?;
                Ok(Database::Sqlite(polybus_sql::sqlite(pool)))
            }
            Self::Postgres { schema, .. } => {
                let options = self.options()?.options([("search_path", schema)]);
                let pool = PgPoolOptions::new().max_connections(connections).connect_with(options).await;
                let pool = pool.map_err(|e| self.unreachable(&e))?;
                Ok(Database::Postgres(polybus_sql::postgres(pool).schema(schema)))
            }
        }
    }

    /// Removes all that was made. Close the store first.
    pub async fn remove(&self) -> Result<(), Failure> {
        match self {
            Self::Temporary => {}
            Self::File(path) => {
                for end in ["", "-wal", "-shm"] {
                    let mut file = path.clone().into_os_string();
                    file.push(end);
                    // The last connection has removed the other two, if it was closed in peace.
                    let _ = std::fs::remove_file(file);
                }
            }
            Self::Postgres { schema, .. } => {
                let mut conn = self.connect().await?;
                let sql = format!("DROP SCHEMA IF EXISTS \"{schema}\" CASCADE");
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await?;
            }
        }
        Ok(())
    }

    async fn connect(&self) -> Result<PgConnection, Failure> {
        PgConnection::connect_with(&self.options()?).await.map_err(|e| self.unreachable(&e))
    }

    fn options(&self) -> Result<PgConnectOptions, Failure> {
        let Self::Postgres { url, .. } = self else { return Err("this is no PostgreSQL".into()) };
        // The text of its error might show a part of the URL.
        PgConnectOptions::from_str(url).map_err(|_| {
            "the URL of the database is malformed: write postgres://USER:PASSWORD@HOST:PORT/DATABASE, and %40 for an @ \
             in a password"
                .into()
        })
    }

    fn unreachable(&self, error: &sqlx::Error) -> Failure {
        format!("cannot reach the database {self}: {error}").into()
    }
}

/// Shows no user, password or parameter.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Temporary => f.write_str("SQLite"),
            Self::File(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres { url, .. } => match url::Url::parse(url) {
                Ok(url) => {
                    write!(f, "{}://{}", url.scheme(), url.host_str().unwrap_or_default())?;
                    url.port().map_or(Ok(()), |port| write!(f, ":{port}"))
                }
                Err(_) => f.write_str("postgres://"),
            },
        }
    }
}

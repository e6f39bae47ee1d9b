//! The database, by its address, and the few words for which SQLite, PostgreSQL and MySQL differ.
//!
//! The store is a [`Db`], since the address says what it is on. A program that knows its database makes the store of
//! its pool, `polybus_sql::postgres(pool)`, and calls sqlx in its transactions.

use std::{fmt, path::PathBuf};

use polybus_sql::{Db, DbOptions};
use sqlx::{
    AssertSqlSafe,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use url::Url;

use super::Failure;

/// The type of a column that numbers its rows.
pub fn serial(db: &Db) -> &'static str {
    match db.system() {
        "postgres" => "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        "mysql" => "BIGINT AUTO_INCREMENT PRIMARY KEY",
        _ => "INTEGER PRIMARY KEY AUTOINCREMENT",
    }
}

/// Makes the tables of polybus, and these.
pub async fn create(db: &Db, tables: String) -> Result<(), Failure> {
    db.migrate().await?;
    Ok(db.execute_script(AssertSqlSafe(tables)).await?)
}

/// All numbers with which a query answers.
pub async fn numbers(db: &Db, sql: impl Into<String>) -> polybus::Result<Vec<i64>> {
    db.fetch_all(AssertSqlSafe(sql.into()), []).await?.iter().map(|row| row.get(0)).collect()
}

/// The one number with which a query answers.
pub async fn number(db: &Db, sql: impl Into<String>) -> polybus::Result<i64> {
    Ok(numbers(db, sql).await?.first().copied().unwrap_or_default())
}

/// Where the tables are.
#[derive(Clone)]
pub enum Location {
    /// A SQLite file in a temporary folder, for one process.
    Temporary,
    /// A SQLite file.
    File(PathBuf),
    /// A schema of its own on a server. MySQL calls it a database.
    Server { url: Url, schema: String },
}

impl Location {
    /// `sqlite:PATH`, `postgres://…` or `mysql://…`. The schema gets the name.
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
        // The text of its error might show a part of the URL.
        let url = Url::parse(address).ok().filter(Url::has_authority).ok_or(
            "the database is neither sqlite:PATH nor postgres://USER:PASSWORD@HOST/DATABASE nor the same with \
             mysql://; an @ in a password is %40",
        )?;
        let schema = name.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        Ok(Self::Server { url, schema })
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
            Self::Server { url, schema } => {
                let db = DbOptions::new().max_connections(1).connect(url.as_str()).await?;
                let made = db.execute(AssertSqlSafe(format!("CREATE SCHEMA {}", quoted(&db, schema))), []).await;
                db.close().await;
                made.map_err(|e| {
                    format!("cannot make the schema {schema} (choose another --prefix if it exists): {e}")
                })?;
            }
        }
        Ok(())
    }

    /// Opens it with so many connections at most.
    pub async fn open(&self, connections: u32) -> Result<Db, Failure> {
        match self {
            Self::Temporary => Ok(polybus_sql::sqlite_temp().await?.into()),
            Self::File(path) => {
                // NORMAL survives the death of a process. FULL, which `Db::connect` chooses, survives a power cut as
                // well, and waits for the disk at each commit.
                let options = SqliteConnectOptions::new()
                    .filename(path)
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Normal);
                let pool = SqlitePoolOptions::new().max_connections(connections).connect_with(options).await;
                let pool = pool.map_err(|e| format!("cannot open {}: {e}", path.display()))?;
                Ok(polybus_sql::sqlite(pool).into())
            }
            Self::Server { url, schema } => {
                let mut url = url.clone();
                if url.scheme().starts_with("postgres") {
                    url.query_pairs_mut().append_pair("options[search_path]", schema);
                } else {
                    url.set_path(schema);
                }
                Ok(DbOptions::new().max_connections(connections).connect(url.as_str()).await?)
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
            Self::Server { url, schema } => {
                let db = DbOptions::new().max_connections(1).connect(url.as_str()).await?;
                let with_all = if db.system() == "postgres" { " CASCADE" } else { "" };
                let sql = format!("DROP SCHEMA IF EXISTS {}{with_all}", quoted(&db, schema));
                let gone = db.execute(AssertSqlSafe(sql), []).await;
                db.close().await;
                gone?;
            }
        }
        Ok(())
    }
}

/// It has letters, digits and `_` alone, and may begin with a digit.
fn quoted(db: &Db, name: &str) -> String {
    if db.system() == "mysql" { format!("`{name}`") } else { format!("\"{name}\"") }
}

/// Shows no user, password or parameter.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Temporary => f.write_str("SQLite"),
            Self::File(path) => write!(f, "sqlite:{}", path.display()),
            Self::Server { url, .. } => {
                write!(f, "{}://{}", url.scheme(), url.host_str().unwrap_or_default())?;
                url.port().map_or(Ok(()), |port| write!(f, ":{port}"))
            }
        }
    }
}

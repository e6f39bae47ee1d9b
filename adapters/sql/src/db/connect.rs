//! From a URL to a store.

use polybus_core::{Error, Result};

use super::Db;
use crate::error::{self, Effect};

/// Enough for one worker with 16 handlers, the default, and an inbox, which needs two more.
const CONNECTIONS: u32 = 18;

/// How [`Db`] connects.
///
/// ```no_run
/// # async fn example() -> polybus_core::Result<()> {
/// let db = polybus_sql::DbOptions::new().max_connections(34).connect("postgres://shop@localhost/shop").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DbOptions {
    max_connections: u32,
}

impl Default for DbOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl DbOptions {
    /// The options of [`Db::connect`].
    ///
    /// ```
    /// let options = polybus_sql::DbOptions::new();
    /// ```
    pub fn new() -> Self {
        Self { max_connections: CONNECTIONS }
    }

    /// The most connections of the pool; 18 if not given, and at least 1. A worker with an inbox needs one for each
    /// handler and two more.
    ///
    /// ```
    /// let options = polybus_sql::DbOptions::new().max_connections(34);
    /// ```
    #[must_use]
    pub fn max_connections(mut self, connections: u32) -> Self {
        self.max_connections = connections.max(1);
        self
    }

    /// Connects: see [`Db::connect`].
    ///
    /// # Errors
    /// See there.
    ///
    /// ```no_run
    /// # async fn example() -> polybus_core::Result<()> {
    /// let db = polybus_sql::DbOptions::new().max_connections(4).connect("sqlite:shop.db?mode=rwc").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(&self, url: &str) -> Result<Db> {
        let connections = self.max_connections;
        match scheme(url).as_str() {
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => postgres(url, connections).await,
            #[cfg(feature = "mysql")]
            "mysql" | "mariadb" => mysql(url, connections).await,
            #[cfg(feature = "sqlite")]
            "sqlite" => sqlite(url, connections).await,
            #[cfg(not(feature = "postgres"))]
            "postgres" | "postgresql" => Err(switched_off("postgres")),
            #[cfg(not(feature = "mysql"))]
            "mysql" | "mariadb" => Err(switched_off("mysql")),
            #[cfg(not(feature = "sqlite"))]
            "sqlite" => Err(switched_off("sqlite")),
            scheme => Err(unknown(url, scheme)),
        }
    }
}

/// What stands before the first colon, in lower case: schemes are the same in any.
fn scheme(url: &str) -> String {
    url.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase()).unwrap_or_default()
}

#[cfg(not(all(feature = "mysql", feature = "postgres", feature = "sqlite")))]
fn switched_off(feature: &'static str) -> Error {
    let text = format!(
        "this program was built without the database of that URL: switch on the feature `{feature}` of polybus-sql"
    );
    Error::config(text).with_operation("connect")
}

fn unknown(url: &str, scheme: &str) -> Error {
    const KNOWN: &str = "the URL of a database begins with postgres://, mysql://, mariadb:// or sqlite:";
    // What stands before a colon may also be a user, or a password that was pasted.
    let is_scheme = url.get(scheme.len()..).is_some_and(|rest| rest.starts_with("://"))
        && scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    let text = if is_scheme { format!("{KNOWN}, and not with {scheme}://") } else { KNOWN.to_owned() };
    Error::config(text).with_operation("connect")
}

/// Without the client's own text, which may show a part of the URL.
fn malformed(system: &'static str, should: &str) -> Error {
    Error::config(format!("the URL of the database is malformed: write {should}")).of_driver(system, "connect")
}

#[cfg(any(feature = "postgres", feature = "mysql"))]
const OF_A_SERVER: &str = "SCHEME://USER:PASSWORD@HOST:PORT/DATABASE, with %40 for an @ in a password";

/// The options of the URL of a server, which has `://` and a host or a socket.
#[cfg(any(feature = "postgres", feature = "mysql"))]
fn parsed<O: std::str::FromStr>(url: &str, system: &'static str) -> Result<O> {
    let is_of_server = url.split_once(':').is_some_and(|(_, rest)| rest.starts_with("//"));
    url.parse().ok().filter(|_| is_of_server).ok_or_else(|| malformed(system, OF_A_SERVER))
}

#[cfg(any(feature = "postgres", feature = "mysql"))]
fn unreached(system: &'static str) -> impl Fn(sqlx::Error) -> Error {
    move |error| error::of(error, system, "connect", Effect::None)
}

#[cfg(feature = "postgres")]
async fn postgres(url: &str, connections: u32) -> Result<Db> {
    let options: sqlx::postgres::PgConnectOptions = parsed(url, "postgres")?;
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(connections).connect_with(options).await;
    Ok(crate::postgres(pool.map_err(unreached("postgres"))?).into())
}

#[cfg(feature = "mysql")]
async fn mysql(url: &str, connections: u32) -> Result<Db> {
    let options: sqlx::mysql::MySqlConnectOptions = parsed(url, "mysql")?;
    let pool = sqlx::mysql::MySqlPoolOptions::new().max_connections(connections).connect_with(options).await;
    Ok(crate::mysql(pool.map_err(unreached("mysql"))?).into())
}

#[cfg(feature = "sqlite")]
async fn sqlite(url: &str, connections: u32) -> Result<Db> {
    use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

    const SHOULD: &str = "sqlite:PATH, with ?mode=rwc at the end if it is to make the file";
    // The client knows the scheme in lower case alone.
    let url = url.split_once(':').map(|(_, rest)| format!("sqlite:{rest}")).unwrap_or_default();
    let options: SqliteConnectOptions = url.parse().map_err(|_| malformed("sqlite", SHOULD))?;
    let file = options.get_filename().to_string_lossy().into_owned();
    let in_memory = file.starts_with("file:sqlx-in-memory")
        || url.split_once('?').is_some_and(|(_, parameters)| parameters.contains("mode=memory"));
    if file.is_empty() || in_memory {
        // It would be gone with the last connection, which the pool closes when it is idle.
        let text = "the tables of polybus need a file, since a database in memory is gone with its connection: write \
                    sqlite:PATH?mode=rwc, or use sqlite_temp() in tests";
        return Err(Error::config(text).of_driver("sqlite", "connect"));
    }
    let options = options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
    let pool = SqlitePoolOptions::new().max_connections(connections).connect_with(options).await;
    let pool = pool.map_err(|error| match error.as_database_error().and_then(|error| error.code()).as_deref() {
        Some("14") => Error::config("SQLite cannot open the file: with ?mode=rwc at the end of the URL it is made")
            .of_driver("sqlite", "connect")
            .with_context("file", &file)
            .with_source(error),
        _ => error::of(error, "sqlite", "connect", Effect::None),
    })?;
    Ok(crate::sqlite(pool).into())
}

#[cfg(test)]
mod tests {
    use polybus_core::ErrorKind;

    use super::*;

    #[tokio::test]
    async fn a_url_of_no_database_says_what_one_begins_with() {
        for (url, shown) in [
            ("mssql://sa:secret@host/db", Some("and not with mssql://")),
            ("amqp+ssl://sa:secret@host/db", Some("and not with amqp+ssl://")),
            ("shop:secret@host/db", None),
            ("secret", None),
            ("", None),
            ("://secret", None),
            ("Secret Word://x", None),
        ] {
            let error = Db::connect(url).await.unwrap_err();
            let text = format!("{error} {error:?}");
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{url}");
            assert!(text.contains("postgres://, mysql://, mariadb:// or sqlite:"), "{text}");
            assert!(shown.is_none_or(|shown| text.contains(shown)), "{text}");
            assert!(!text.to_lowercase().contains("secret"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_malformed_url_shows_nothing_of_itself() {
        for url in [
            "postgres://shop:secret@:host:x/db",
            "postgres:secret",
            "mysql://shop:secret@host:secret/db",
            "mariadb:secret",
            "sqlite:shop.db?mode=secret",
            "sqlite:shop.db?secret=secret",
        ] {
            let error = Db::connect(url).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{url}");
            let text = format!("{error} {error:?}");
            assert!(!text.contains("secret") && (text.contains("write ") || text.contains("feature")), "{text}");
        }
    }

    #[cfg(feature = "sqlite")]
    #[tokio::test]
    async fn a_database_in_memory_is_refused() {
        for url in ["sqlite::memory:", "sqlite://:memory:", "sqlite:x?mode=memory", "sqlite:", "sqlite://"] {
            let error = Db::connect(url).await.unwrap_err();
            assert!(error.kind() == ErrorKind::ConfigInvalid && error.to_string().contains("sqlite_temp"), "{error}");
        }
    }

    #[cfg(not(feature = "postgres"))]
    #[tokio::test]
    async fn a_database_that_is_not_built_in_says_which_feature_is() {
        let error = Db::connect("postgresql://shop:secret@host/db").await.unwrap_err();
        assert!(error.kind() == ErrorKind::ConfigInvalid && error.to_string().contains("`postgres`"), "{error}");
    }
}

//! A look at the server at the first use: what it is, and whether it cuts texts in silence.

use polybus_core::{Error, Result};

use super::{MySql, SYSTEM, control_conn::decoded};

/// What is known of the server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) is_mariadb: bool,
    /// Where the tables are.
    pub(super) database: String,
    /// The most bytes of one statement.
    pub(super) max_packet: usize,
}

const LOOK: &str = "SELECT CAST(VERSION() AS BINARY), CAST(@@SESSION.sql_mode AS BINARY), \
    CAST(@@GLOBAL.max_allowed_packet AS SIGNED), CAST(@@GLOBAL.innodb_flush_log_at_trx_commit AS SIGNED), \
    CAST(DATABASE() AS BINARY)";

type Look = (Vec<u8>, Vec<u8>, i64, i64, Option<Vec<u8>>);

impl MySql {
    pub(super) async fn server(&self) -> Result<&Server> {
        self.0.server.get_or_try_init(|| self.look_at_server()).await
    }

    async fn look_at_server(&self) -> Result<Server> {
        let answer = self.look("connect", LOOK).await?;
        let look: Vec<Look> = decoded(&answer.rows, "connect")?;
        let [(version, mode, max_packet, flush, database)] = &look[..] else {
            return Err(super::reading("connect")(sqlx::Error::RowNotFound));
        };
        let is_mariadb = check_version(&String::from_utf8_lossy(version))?;
        check_mode(&String::from_utf8_lossy(mode))?;
        if *flush != 1 {
            tracing::warn!(
                target: "polybus", innodb_flush_log_at_trx_commit = flush,
                "a crash of the server may undo transactions whose messages were published or acknowledged"
            );
        }
        let database = match (&self.0.database, database) {
            (Some(database), _) => database.clone(),
            (None, Some(database)) => String::from_utf8_lossy(database).into_owned(),
            (None, None) => {
                return Err(Error::config("no database is chosen: name it in the URL, or with .database(…)")
                    .with_backend(SYSTEM));
            }
        };
        Ok(Server { is_mariadb, database, max_packet: usize::try_from(*max_packet).unwrap_or(usize::MAX) })
    }
}

/// Whether it is MariaDB.
///
/// # Errors
/// `ConfigInvalid` for a server that is too old: it has no JSON_TABLE, window functions or SKIP LOCKED, or forgets its
/// ids at a restart.
fn check_version(version: &str) -> Result<bool> {
    let is_mariadb = version.contains("MariaDB");
    // MariaDB may put this in front, for old replicas.
    let number = version.strip_prefix("5.5.5-").filter(|_| is_mariadb).unwrap_or(version);
    let mut parts = number.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let (name, needed) = if is_mariadb { ("MariaDB", (10, 6)) } else { ("MySQL", (8, 0)) };
    if found >= needed {
        return Ok(is_mariadb);
    }
    let (major, minor) = needed;
    Err(Error::config(format!("{name} {version} is too old: polybus needs {major}.{minor} or newer"))
        .with_backend(SYSTEM))
}

/// # Errors
/// `ConfigInvalid` where values that do not fit are cut with a warning that nobody reads.
fn check_mode(mode: &str) -> Result<()> {
    if mode.split(',').any(|mode| matches!(mode, "STRICT_TRANS_TABLES" | "STRICT_ALL_TABLES")) {
        return Ok(());
    }
    Err(Error::config(
        "the server's sql_mode is not strict, so it would cut values that are too long: add STRICT_TRANS_TABLES to \
         sql_mode",
    )
    .with_backend(SYSTEM)
    .with_context("sql_mode", mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (good, is_mariadb) in [
            ("10.6.0-MariaDB", true),
            ("5.5.5-10.11.19-MariaDB-0+deb12u1", true),
            ("11.4.2-MariaDB-log", true),
            ("8.0.36", false),
            ("8.4.0-commercial", false),
            ("9.1.0", false),
        ] {
            assert_eq!(check_version(good).unwrap(), is_mariadb, "{good}");
        }
        for bad in ["10.5.22-MariaDB", "5.5.5-10.4.1-MariaDB", "5.7.44-log", ""] {
            assert!(check_version(bad).unwrap_err().to_string().contains("too old"), "{bad}");
        }
    }

    #[test]
    fn the_mode_must_be_strict() {
        check_mode("PIPES_AS_CONCAT,STRICT_ALL_TABLES").unwrap();
        check_mode("STRICT_TRANS_TABLES").unwrap();
        let error = check_mode("NO_ENGINE_SUBSTITUTION").unwrap_err();
        assert!(error.to_string().contains("add STRICT_TRANS_TABLES"), "{error}");
    }
}

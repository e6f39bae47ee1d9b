//! Turns errors of sqlx into errors of polybus. No other file does.
//!
//! | PostgreSQL | SQLite | kind |
//! |---|---|---|
//! | 40001, 40P01, 55P03 | BUSY, LOCKED | `Unavailable`, with the context `contention` |
//! | 08xxx, 57P01 to 57P03, 25006 | CANTOPEN, IOERR, NOLFS, PROTOCOL | `Unavailable` |
//! | 53xxx | FULL, NOMEM | `Throttled` |
//! | 57014 | INTERRUPT | `Timeout` |
//! | 42P01, 42703, 42883, 3F000, 3D000 | "no such table", "no such column" | `ConfigInvalid` |
//! | 26000, 42P05: a pooler mixes up prepared statements | | `ConfigInvalid` |
//! | 28xxx | | `Unauthenticated` |
//! | 42501 | PERM, READONLY, AUTH | `PermissionDenied` |
//! | 23505 | CONSTRAINT_UNIQUE, CONSTRAINT_PRIMARYKEY | `Conflict` |
//! | 22xxx, any other 23xxx, 54xxx | any other CONSTRAINT, MISMATCH | `InvalidArgument` |
//! | | TOOBIG | `PayloadTooLarge` |
//!
//! Of the application's own statements 42883, 42804, 42P18 and 42846 are `InvalidArgument`: a value has another type.
//!
//! The numbers of MySQL and MariaDB are in `mysql_codes`: their SQLSTATEs tell less.
//!
//! A connection that is lost, or a pool without a free connection, is `Unavailable`. Anything else is `Unexpected`.

use std::error::Error as StdError;

use polybus_core::{Error, ErrorKind};
use polybus_patterns::store::StoreTrouble;

use crate::mysql_codes;

/// What may have happened if the answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing: it reads, or stands in a transaction that is gone with its connection.
    None,
    /// It may be there: a commit, or a statement that commits by itself.
    Committed,
}

/// Whose statement failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Polybus,
    Application,
}

/// The error of an operation.
pub(crate) fn of(error: sqlx::Error, backend: &'static str, operation: &'static str, effect: Effect) -> Error {
    of_a(Whose::Polybus, error, backend, operation, effect)
}

/// The error of a statement that the application wrote.
pub(crate) fn of_application(
    error: sqlx::Error,
    backend: &'static str,
    operation: &'static str,
    effect: Effect,
) -> Error {
    of_a(Whose::Application, error, backend, operation, effect)
}

fn of_a(whose: Whose, error: sqlx::Error, backend: &'static str, operation: &'static str, effect: Effect) -> Error {
    let code = code(&error);
    let (kind, message) = match &error {
        sqlx::Error::Database(database) if mysql_codes::number(&error).is_some() => {
            let number = mysql_codes::number(&error).unwrap_or_default();
            let kind = mysql_codes::kind(number, database.message());
            (kind, mysql_codes::advice(number).unwrap_or_else(|| of_database(whose, "", kind, database.message())))
        }
        sqlx::Error::Database(database) => {
            let code = code.as_deref().unwrap_or_default();
            let kind = match whose {
                Whose::Application if is_of_types(code) => ErrorKind::InvalidArgument,
                _ => of_code(code, database.message()),
            };
            (kind, of_database(whose, code, kind, database.message()))
        }
        sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => {
            (ErrorKind::Unavailable, format!("the connection to the database was lost: {error}"))
        }
        sqlx::Error::PoolTimedOut => (
            ErrorKind::Unavailable,
            "the pool had no connection in time: the database is away, or all are in use".into(),
        ),
        sqlx::Error::PoolClosed => (ErrorKind::Closed, "the pool is closed".to_owned()),
        sqlx::Error::Tls(_) => (ErrorKind::Unauthenticated, format!("no TLS with the database: {error}")),
        // Not its text: it may show a part of a URL.
        sqlx::Error::Configuration(_) => {
            (ErrorKind::ConfigInvalid, "the database client's configuration is wrong".into())
        }
        sqlx::Error::Encode(_) => {
            (ErrorKind::InvalidArgument, format!("a value that the database cannot hold: {error}"))
        }
        _ => (ErrorKind::Unexpected, error.to_string()),
    };
    let contention = is_contention(&error);
    // Where an answer came, or no connection was there to begin with, nothing can have happened.
    let lost = !contention
        && match &error {
            sqlx::Error::Database(_) => match mysql_codes::number(&error) {
                Some(number) => mysql_codes::may_have_happened(number),
                // A server that cannot be written to has not done it.
                None => kind == ErrorKind::Unavailable && code.as_deref() != Some("25006"),
            },
            sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed | sqlx::Error::Protocol(_) => true,
            _ => false,
        };
    let mut mapped = Error::new(kind, message).of_driver(backend, operation);
    if lost && effect == Effect::Committed {
        mapped = mapped.may_duplicate();
    }
    if let Some(code) = code {
        let key = if contention { "contention" } else { "code" };
        mapped = mapped.with_context(key, code);
    }
    mapped.with_source(error)
}

/// Whether a value has a type that does not fit its place in a statement of PostgreSQL.
fn is_of_types(code: &str) -> bool {
    matches!(code, "42883" | "42804" | "42P18" | "42846")
}

fn of_database(whose: Whose, code: &str, kind: ErrorKind, text: &str) -> String {
    match (code, kind) {
        _ if whose == Whose::Application && is_of_types(code) => {
            format!("the database answered: {text}; say what type a value has, such as CAST(? AS UUID)")
        }
        ("517", _) => "a transaction that began by reading cannot write after another one wrote: begin it with \
                       store.begin() or BEGIN IMMEDIATE"
            .to_owned(),
        ("26000" | "42P05", _) => format!(
            "{text}: a pooler mixes up prepared statements: let it keep them apart (PgBouncer 1.21 and newer, with \
             max_prepared_statements), or connect directly"
        ),
        ("53100" | "13", _) => format!("the database has no room: {text}; make room on its disk, or raise its limit"),
        ("3D000", _) => format!("the database does not exist: {text}"),
        (_, ErrorKind::ConfigInvalid) if whose == Whose::Polybus => {
            format!("{text}: the tables of polybus are not here, or too old; run migrate() of the store")
        }
        (_, ErrorKind::Unauthenticated) => format!("the database refused the login: {text}"),
        _ => format!("the database answered: {text}"),
    }
}

/// The kind of a SQLSTATE or of a result code of SQLite, which is shorter than the five characters of the former.
fn of_code(code: &str, text: &str) -> ErrorKind {
    if code.len() < 5 {
        return of_result_code(code.parse().unwrap_or_default(), text);
    }
    match code {
        "40001" | "40P01" | "55P03" | "57P01" | "57P02" | "57P03" | "57P05" | "25006" => ErrorKind::Unavailable,
        "57014" => ErrorKind::Timeout,
        "42P01" | "42703" | "42883" | "3F000" | "3D000" | "26000" | "42P05" => ErrorKind::ConfigInvalid,
        "42501" => ErrorKind::PermissionDenied,
        "23505" => ErrorKind::Conflict,
        _ => match &code.get(..2) {
            Some("08") if code != "08P01" => ErrorKind::Unavailable,
            Some("28") => ErrorKind::Unauthenticated,
            Some("53") => ErrorKind::Throttled,
            Some("22" | "23" | "54") => ErrorKind::InvalidArgument,
            _ => ErrorKind::Unexpected,
        },
    }
}

/// Result codes are those of <https://www.sqlite.org/rescode.html>; the lowest byte is the primary one.
fn of_result_code(code: i32, text: &str) -> ErrorKind {
    match code & 0xff {
        1 if text.starts_with("no such table")
            || text.contains("no such column")
            || text.contains("no column named") =>
        {
            ErrorKind::ConfigInvalid
        }
        3 | 8 | 23 => ErrorKind::PermissionDenied,
        5 | 6 | 10 | 14 | 15 | 22 => ErrorKind::Unavailable,
        7 | 13 => ErrorKind::Throttled,
        9 => ErrorKind::Timeout,
        18 => ErrorKind::PayloadTooLarge,
        19 if matches!(code, 1555 | 2067) => ErrorKind::Conflict,
        19 | 20 => ErrorKind::InvalidArgument,
        _ => ErrorKind::Unexpected,
    }
}

fn code(error: &sqlx::Error) -> Option<String> {
    if let Some(number) = mysql_codes::number(error) {
        return Some(number.to_string());
    }
    error.as_database_error()?.code().map(|code| code.into_owned())
}

/// Whether the code of the database is that of a transaction that lost against another one.
fn is_contention(error: &sqlx::Error) -> bool {
    if let Some(number) = mysql_codes::number(error) {
        return mysql_codes::is_contention(number, error);
    }
    match code(error).as_deref() {
        Some("40001" | "40P01" | "55P03") => true,
        Some(code) if code.len() < 5 => code.parse().is_ok_and(|code: i32| matches!(code & 0xff, 5 | 6)),
        _ => false,
    }
}

fn may_be_away(error: &sqlx::Error) -> bool {
    if let Some(number) = mysql_codes::number(error) {
        return mysql_codes::may_be_away(number);
    }
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(database) => match database.code().as_deref() {
            Some("57P01" | "57P02" | "57P03" | "57P05" | "53200" | "53300" | "25006") => true,
            Some(code) if code.len() < 5 => code.parse().is_ok_and(|code: i32| matches!(code & 0xff, 10 | 14)),
            Some(code) => code.starts_with("08") && code != "08P01",
            None => false,
        },
        _ => false,
    }
}

/// Whether the disk of the database is full, or a limit of its size is reached.
fn is_full(error: &sqlx::Error) -> bool {
    if let Some(number) = mysql_codes::number(error) {
        return mysql_codes::is_full(number);
    }
    match code(error).as_deref() {
        Some("53100") => true,
        Some(code) if code.len() < 5 => code.parse().is_ok_and(|code: i32| code & 0xff == 13),
        _ => false,
    }
}

/// What an error of a handler, or a cause of it, says about the database.
pub(crate) fn judge(error: &(dyn StdError + 'static)) -> StoreTrouble {
    let mut trouble = StoreTrouble::None;
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<sqlx::Error>().is_some_and(is_full) {
            return StoreTrouble::NoRoom;
        }
        let (contention, away) = if let Some(error) = error.downcast_ref::<sqlx::Error>() {
            (is_contention(error), may_be_away(error))
        } else if let Some(error) = error.downcast_ref::<Error>() {
            let contention = ["mark", "sequence"].iter().any(|what| error.context(what) == Some("busy"))
                || error.context("contention").is_some();
            (contention, error.kind() == ErrorKind::Unavailable && is_ours(error))
        } else {
            (false, false)
        };
        if contention {
            return StoreTrouble::Contention;
        }
        if away {
            trouble = StoreTrouble::MaybeAway;
        }
        cause = error.source();
    }
    trouble
}

/// Whether the error is of a store, not of a broker that a handler published to.
fn is_ours(error: &Error) -> bool {
    matches!(error.backend(), "postgres" | "sqlite" | "mysql")
}

#[cfg(test)]
mod tests {
    use polybus_core::RetrySafety;

    use super::*;

    #[test]
    fn a_lost_answer_may_duplicate_only_where_something_was_committed() {
        let lost = || sqlx::Error::Io(std::io::Error::other("reset"));
        assert_eq!(of(lost(), "postgres", "read", Effect::None).retry(), RetrySafety::Safe);
        assert_eq!(of(lost(), "postgres", "commit", Effect::Committed).retry(), RetrySafety::MayDuplicate);
        let busy = of(sqlx::Error::PoolTimedOut, "postgres", "delete", Effect::Committed);
        assert_eq!((busy.kind(), busy.retry()), (ErrorKind::Unavailable, RetrySafety::Safe));
        assert_eq!(of(sqlx::Error::PoolClosed, "sqlite", "read", Effect::None).kind(), ErrorKind::Closed);
    }

    #[test]
    fn every_code_has_its_kind() {
        for (code, kind) in [
            ("40001", ErrorKind::Unavailable),
            ("40P01", ErrorKind::Unavailable),
            ("08006", ErrorKind::Unavailable),
            ("28P01", ErrorKind::Unauthenticated),
            ("42501", ErrorKind::PermissionDenied),
            ("42P01", ErrorKind::ConfigInvalid),
            ("53100", ErrorKind::Throttled),
            ("53300", ErrorKind::Throttled),
            ("57014", ErrorKind::Timeout),
            ("22021", ErrorKind::InvalidArgument),
            ("23505", ErrorKind::Conflict),
            ("25P02", ErrorKind::Unexpected),
            ("XX000", ErrorKind::Unexpected),
            ("5", ErrorKind::Unavailable),
            ("517", ErrorKind::Unavailable),
            ("13", ErrorKind::Throttled),
            ("2067", ErrorKind::Conflict),
            ("787", ErrorKind::InvalidArgument),
            ("11", ErrorKind::Unexpected),
        ] {
            assert_eq!(of_code(code, "text"), kind, "{code}");
        }
        assert_eq!(of_code("1", "no such table: main.polybus_outbox"), ErrorKind::ConfigInvalid);
        assert_eq!(of_code("1", "near \"x\": syntax error"), ErrorKind::Unexpected);
    }

    #[test]
    fn the_cause_of_a_cause_is_judged() {
        let away = Error::new(ErrorKind::Unexpected, "handler").with_source(sqlx::Error::PoolTimedOut);
        assert_eq!(judge(&away), StoreTrouble::MaybeAway);
        let busy = Error::new(ErrorKind::Unavailable, "another").with_backend("postgres").with_context("mark", "busy");
        assert_eq!(judge(&busy), StoreTrouble::Contention);
        let broker = Error::new(ErrorKind::Unavailable, "the broker is away").with_backend("rabbitmq");
        assert_eq!(judge(&broker), StoreTrouble::None);
        assert_eq!(judge(&sqlx::Error::RowNotFound), StoreTrouble::None);
    }
}

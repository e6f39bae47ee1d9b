//! A statement as the client of a database gets it.

use std::fmt::Write;

use polybus_core::{Error, Result};
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::{
    placeholders::{Dialect, Place, places},
    value::{DbType, DbValue},
};

/// A text with the placeholders of the database, and a value for each.
pub(super) struct Statement {
    pub(super) sql: SqlStr,
    pub(super) values: Vec<DbValue>,
}

impl Statement {
    /// # Errors
    /// `InvalidArgument` where values and placeholders are not as many. SQLite would take a NULL for each that misses.
    pub(super) fn new(dialect: Dialect, sql: SqlStr, values: Vec<DbValue>) -> Result<Self> {
        if sql.as_str().contains('\0') {
            return Err(Error::invalid("a statement must not hold U+0000: give it as a value"));
        }
        let places = places(sql.as_str(), dialect)?;
        let wanted = places.iter().filter(|place| matches!(place, Place::Value(_))).count();
        if wanted != values.len() {
            let text = format!(
                "a statement with {wanted} placeholders got {} values; a ? in quotes and comments is none",
                values.len()
            );
            return Err(Error::invalid(text));
        }
        let sql = if dialect == Dialect::Postgres && !places.is_empty() {
            AssertSqlSafe(numbered(sql.as_str(), &places, &values)).into_sql_str()
        } else {
            sql
        };
        Ok(Self { sql, values })
    }
}

/// With the placeholders of PostgreSQL. Each says its type, since the client keeps one prepared statement for one text:
/// run again with values of other types, it would send bytes that the server takes for something else.
fn numbered(sql: &str, places: &[Place], values: &[DbValue]) -> String {
    let mut text = String::with_capacity(sql.len() + 16 * values.len());
    let (mut copied, mut number) = (0, 0);
    for place in places {
        match *place {
            Place::Value(at) => {
                text.push_str(&sql[copied..at]);
                // A NULL of no type has that which its place gives it.
                let of_type = match values[number] {
                    DbValue::Null => None,
                    DbValue::Integer(_) | DbValue::NullOf(DbType::Integer) => Some("bigint"),
                    DbValue::Real(_) | DbValue::NullOf(DbType::Real) => Some("double precision"),
                    DbValue::Text(_) | DbValue::NullOf(DbType::Text) => Some("text"),
                    DbValue::Bytes(_) | DbValue::NullOf(DbType::Bytes) => Some("bytea"),
                    DbValue::Bool(_) | DbValue::NullOf(DbType::Bool) => Some("boolean"),
                };
                number += 1;
                // Not `$1::bigint`: that would run into a word behind it, and cannot stand behind OFFSET.
                let _ = match of_type {
                    Some(of_type) => write!(text, "CAST(${number} AS {of_type})"),
                    None => write!(text, " ${number} "),
                };
                copied = at + 1;
            }
            Place::Doubled(at) => {
                text.push_str(&sql[copied..=at]);
                copied = at + 2;
            }
        }
    }
    text.push_str(&sql[copied..]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(dialect: Dialect, sql: &'static str, values: Vec<DbValue>) -> Result<String> {
        Ok(Statement::new(dialect, sql.into_sql_str(), values)?.sql.as_str().to_owned())
    }

    #[test]
    fn postgres_gets_numbers_and_types() {
        let sql = "SELECT '?', ?, ?, x ?? ?, ?, ? -- ?";
        let values = vec![7.into(), "a".into(), DbValue::Null, 1.5.into(), true.into()];
        let wanted = "SELECT '?', CAST($1 AS bigint), CAST($2 AS text), x ?  $3 , CAST($4 AS double precision), \
                      CAST($5 AS boolean) -- ?";
        assert_eq!(made(Dialect::Postgres, sql, values).unwrap(), wanted);
        assert_eq!(made(Dialect::Postgres, "SELECT x ?? 'a'", vec![]).unwrap(), "SELECT x ? 'a'");
    }

    #[test]
    fn a_value_runs_into_no_word_and_none_has_a_type() {
        let none = || vec![None::<i64>.into(), None::<String>.into()];
        let sql = made(Dialect::Postgres, "SELECT 1 WHERE id=?AND x=?", none()).unwrap();
        assert_eq!(sql, "SELECT 1 WHERE id=CAST($1 AS bigint)AND x=CAST($2 AS text)");
        assert_eq!(made(Dialect::Postgres, "a=?AND", vec![DbValue::Null]).unwrap(), "a= $1 AND");
    }

    #[test]
    fn others_get_it_as_it_is() {
        for dialect in [Dialect::MySql, Dialect::Sqlite] {
            assert_eq!(made(dialect, "SELECT '?', ?", vec![7.into()]).unwrap(), "SELECT '?', ?");
        }
    }

    #[test]
    fn each_placeholder_has_a_value() {
        for dialect in [Dialect::Postgres, Dialect::MySql, Dialect::Sqlite] {
            for values in [vec![], vec![1.into(), 2.into()]] {
                let error = made(dialect, "SELECT ?", values).unwrap_err();
                assert_eq!(error.kind(), polybus_core::ErrorKind::InvalidArgument);
                assert!(error.to_string().contains("1 placeholder"), "{error}");
            }
        }
    }
}

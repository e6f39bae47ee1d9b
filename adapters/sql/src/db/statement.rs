//! A statement as the client of a database gets it.

use std::fmt::Write;

use polybus_core::{Error, Result};
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::{
    placeholders::{Dialect, Place, places},
    value::DbValue,
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
        let places = places(sql.as_str(), dialect)?;
        let wanted = places.iter().filter(|place| matches!(place, Place::Value(_))).count();
        if wanted != values.len() {
            let text = format!("a statement with {wanted} placeholders got {} values", values.len());
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
                // A NULL has the type that its place gives it.
                let cast = match values[number] {
                    DbValue::Null => "",
                    DbValue::Integer(_) => "::bigint",
                    DbValue::Real(_) => "::double precision",
                    DbValue::Text(_) => "::text",
                    DbValue::Bytes(_) => "::bytea",
                    DbValue::Bool(_) => "::boolean",
                };
                number += 1;
                let _ = write!(text, "${number}{cast}");
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
        let wanted = "SELECT '?', $1::bigint, $2::text, x ? $3, $4::double precision, $5::boolean -- ?";
        assert_eq!(made(Dialect::Postgres, sql, values).unwrap(), wanted);
        assert_eq!(made(Dialect::Postgres, "SELECT x ?? 'a'", vec![]).unwrap(), "SELECT x ? 'a'");
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

//! Rows, and the types that their columns are read as.

use polybus_core::{Error, Result};
use sqlx::{Column, Row};

use super::cell::{Cell, NoCell, cell};
use crate::error::{self, Effect};

/// A row that a query answered with.
///
/// ```no_run
/// # async fn example(db: polybus_sql::Db) -> polybus_core::Result<()> {
/// for row in db.fetch_all("SELECT city, COUNT(*), SUM(cents) FROM orders GROUP BY city", []).await? {
///     let (city, orders, cents): (Option<String>, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
/// }
/// # Ok(())
/// # }
/// ```
pub struct DbRow(Rows);

pub(super) enum Rows {
    #[cfg(feature = "postgres")]
    Postgres(sqlx::postgres::PgRow),
    #[cfg(feature = "mysql")]
    MySql(sqlx::mysql::MySqlRow),
    #[cfg(feature = "sqlite")]
    Sqlite(sqlx::sqlite::SqliteRow),
}

impl DbRow {
    /// The value of a column, counted from 0: an `i64`, `f64`, `bool`, `String` or `Vec<u8>`, or an `Option` of one
    /// where it may be NULL.
    ///
    /// | type | is read from |
    /// |---|---|
    /// | `i64` | whole numbers of any size, also sums that are DECIMAL or NUMERIC; booleans as 0 and 1 |
    /// | `f64` | REAL, DOUBLE, DECIMAL and NUMERIC, and whole numbers |
    /// | `bool` | BOOLEAN, and the numbers 0 and 1 |
    /// | `String` | text; DECIMAL and NUMERIC in all their digits |
    /// | `Vec<u8>` | BYTEA, BLOB |
    ///
    /// The query casts what is of another type, such as a time, to one of these: `CAST(paid_at AS TEXT)`, and `AS CHAR`
    /// on MySQL.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the column and what it holds, for a value of another type, NULL for a type without an
    /// `Option`, a number that does not fit, and a column that is not there.
    ///
    /// ```no_run
    /// # fn example(row: polybus_sql::DbRow) -> polybus_core::Result<()> {
    /// let name: String = row.get(0)?;
    /// let city = row.get::<Option<String>>(1)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn get<T: DbColumn>(&self, column: usize) -> Result<T> {
        let invalid = |text: String| Err(Error::invalid(text).of_driver(self.system(), "get"));
        let Some(name) = self.name(column) else {
            return invalid(format!("column {column} was asked for, counted from 0, in a row of {}", self.len()));
        };
        match cell(&self.0, column) {
            Ok(cell) => {
                let held = cell.what();
                match T::from_cell(cell) {
                    Some(value) => Ok(value),
                    None => invalid(format!("column {column} ({name}) holds {held} that is no {}", T::NAME)),
                }
            }
            Err(NoCell::OfType(of)) => invalid(format!(
                "column {column} ({name}) is of the type {of}: let the query cast it to a number, a text or bytes"
            )),
            Err(NoCell::Failed(error)) => Err(error::of(error, self.system(), "get", Effect::None)),
        }
    }

    /// How many columns it has.
    ///
    /// ```no_run
    /// # fn example(row: polybus_sql::DbRow) -> polybus_core::Result<()> {
    /// for column in 0..row.len() {
    ///     println!("{}", row.get::<String>(column)?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn len(&self) -> usize {
        on_each!(&self.0, Rows, row => row.len())
    }

    /// Whether it has no column.
    ///
    /// ```no_run
    /// # fn example(row: polybus_sql::DbRow) {
    /// assert!(!row.is_empty());
    /// # }
    /// ```
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn name(&self, column: usize) -> Option<&str> {
        on_each!(&self.0, Rows, row => row.columns().get(column).map(|column| column.name()))
    }

    fn system(&self) -> &'static str {
        match &self.0 {
            #[cfg(feature = "postgres")]
            Rows::Postgres(_) => "postgres",
            #[cfg(feature = "mysql")]
            Rows::MySql(_) => "mysql",
            #[cfg(feature = "sqlite")]
            Rows::Sqlite(_) => "sqlite",
        }
    }
}

#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
impl From<sqlx::postgres::PgRow> for DbRow {
    fn from(row: sqlx::postgres::PgRow) -> Self {
        Self(Rows::Postgres(row))
    }
}

#[cfg(feature = "mysql")]
#[cfg_attr(docsrs, doc(cfg(feature = "mysql")))]
impl From<sqlx::mysql::MySqlRow> for DbRow {
    fn from(row: sqlx::mysql::MySqlRow) -> Self {
        Self(Rows::MySql(row))
    }
}

#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
impl From<sqlx::sqlite::SqliteRow> for DbRow {
    fn from(row: sqlx::sqlite::SqliteRow) -> Self {
        Self(Rows::Sqlite(row))
    }
}

/// Shows the names of the columns alone: values may be secrets.
impl std::fmt::Debug for DbRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries((0..self.len()).filter_map(|column| self.name(column))).finish()
    }
}

/// A type that a column is read as: see [`DbRow::get`]. It is sealed.
pub trait DbColumn: sealed::FromCell {}

impl<T: sealed::FromCell> DbColumn for T {}

#[allow(unreachable_pub, reason = "a public trait has it as its supertrait")]
mod sealed {
    use super::Cell;

    pub trait FromCell: Sized {
        /// For errors.
        const NAME: &'static str;

        fn from_cell(cell: Cell) -> Option<Self>;
    }
}

use sealed::FromCell;

impl FromCell for i64 {
    const NAME: &'static str = "i64";

    fn from_cell(cell: Cell) -> Option<Self> {
        match cell {
            Cell::Integer(number) => Some(number),
            Cell::Bool(truth) => Some(truth.into()),
            Cell::Decimal(digits) => {
                let (whole, fraction) = digits.split_once('.').unwrap_or((&digits, ""));
                whole.parse().ok().filter(|_| fraction.bytes().all(|digit| digit == b'0'))
            }
            _ => None,
        }
    }
}

impl FromCell for f64 {
    const NAME: &'static str = "f64";

    fn from_cell(cell: Cell) -> Option<Self> {
        match cell {
            Cell::Real(number) => Some(number),
            Cell::Integer(number) => Some(number as f64),
            Cell::Decimal(digits) => digits.parse().ok(),
            _ => None,
        }
    }
}

impl FromCell for bool {
    const NAME: &'static str = "bool";

    fn from_cell(cell: Cell) -> Option<Self> {
        match cell {
            Cell::Bool(truth) => Some(truth),
            Cell::Integer(0) => Some(false),
            Cell::Integer(1) => Some(true),
            _ => None,
        }
    }
}

impl FromCell for String {
    const NAME: &'static str = "String";

    fn from_cell(cell: Cell) -> Option<Self> {
        match cell {
            Cell::Text(text) | Cell::Decimal(text) => Some(text),
            _ => None,
        }
    }
}

impl FromCell for Vec<u8> {
    const NAME: &'static str = "Vec<u8>";

    fn from_cell(cell: Cell) -> Option<Self> {
        match cell {
            Cell::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }
}

impl<T: FromCell> FromCell for Option<T> {
    const NAME: &'static str = T::NAME;

    fn from_cell(cell: Cell) -> Option<Self> {
        match cell {
            Cell::Null => Some(None),
            cell => T::from_cell(cell).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_as_a_narrower_one_only_where_nothing_is_lost() {
        let decimal = |digits: &str| Cell::Decimal(digits.to_owned());
        assert_eq!(i64::from_cell(decimal("42")), Some(42));
        assert_eq!(i64::from_cell(decimal("-42.00")), Some(-42));
        assert_eq!(i64::from_cell(decimal("42.5")), None);
        assert_eq!(i64::from_cell(decimal("9223372036854775808")), None);
        assert_eq!(i64::from_cell(decimal("NaN")), None);
        assert_eq!(f64::from_cell(decimal("42.5")), Some(42.5));
        assert_eq!(String::from_cell(decimal("42.50")).as_deref(), Some("42.50"));
        assert_eq!(bool::from_cell(Cell::Integer(2)), None);
        assert_eq!(i64::from_cell(Cell::Real(1.0)), None);
        assert_eq!(i64::from_cell(Cell::Text("1".to_owned())), None);
        assert_eq!(<Option<i64>>::from_cell(Cell::Null), Some(None));
        assert_eq!(<Option<i64>>::from_cell(Cell::Text("1".to_owned())), None);
    }
}

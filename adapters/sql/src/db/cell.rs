//! One value of a row, as the database has it.

use sqlx::{Row, TypeInfo, ValueRef};

use super::row::Rows;

/// A value before it is asked for as one type or another.
#[derive(Clone, Debug, PartialEq)]
#[allow(unreachable_pub, reason = "a sealed trait names it")]
pub enum Cell {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    Bytes(Vec<u8>),
    Bool(bool),
    /// A number in digits: NUMERIC and DECIMAL, which sums are of, and what is larger than a BIGINT.
    Decimal(String),
}

impl Cell {
    /// In words, for errors.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Self::Null => "NULL",
            Self::Integer(_) => "a whole number",
            Self::Real(_) => "a number of floating point",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
            Self::Bool(_) => "a boolean",
            Self::Decimal(_) => "a decimal number",
        }
    }
}

/// Why there is no cell.
pub(super) enum NoCell {
    /// Of this type of the database's, which nothing reads.
    OfType(String),
    Failed(sqlx::Error),
}

impl From<sqlx::Error> for NoCell {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error)
    }
}

pub(super) fn cell(rows: &Rows, n: usize) -> Result<Cell, NoCell> {
    match rows {
        #[cfg(feature = "postgres")]
        Rows::Postgres(row) => of_postgres(row, n),
        #[cfg(feature = "mysql")]
        Rows::MySql(row) => of_mysql(row, n),
        #[cfg(feature = "sqlite")]
        Rows::Sqlite(row) => of_sqlite(row, n),
    }
}

#[cfg(feature = "postgres")]
fn of_postgres(row: &sqlx::postgres::PgRow, n: usize) -> Result<Cell, NoCell> {
    let raw = row.try_get_raw(n)?;
    if raw.is_null() {
        return Ok(Cell::Null);
    }
    let of = raw.type_info().into_owned();
    Ok(match of.name() {
        "BOOL" => Cell::Bool(row.try_get(n)?),
        "INT2" => Cell::Integer(row.try_get::<i16, _>(n)?.into()),
        "INT4" => Cell::Integer(row.try_get::<i32, _>(n)?.into()),
        "INT8" => Cell::Integer(row.try_get(n)?),
        "FLOAT4" => Cell::Real(row.try_get::<f32, _>(n)?.into()),
        "FLOAT8" => Cell::Real(row.try_get(n)?),
        "NUMERIC" => Cell::Decimal(super::numeric::text(raw.as_bytes().map_err(sqlx::Error::Decode)?)?),
        "TEXT" | "VARCHAR" | "CHAR" | "NAME" | "UNKNOWN" => Cell::Text(row.try_get_unchecked(n)?),
        "BYTEA" => Cell::Bytes(row.try_get(n)?),
        other => return Err(NoCell::OfType(other.to_owned())),
    })
}

#[cfg(feature = "mysql")]
fn of_mysql(row: &sqlx::mysql::MySqlRow, n: usize) -> Result<Cell, NoCell> {
    let raw = row.try_get_raw(n)?;
    if raw.is_null() {
        return Ok(Cell::Null);
    }
    let of = raw.type_info().into_owned();
    Ok(match of.name() {
        // A TINYINT(1) may hold any number.
        "BOOLEAN" | "TINYINT" | "SMALLINT" | "MEDIUMINT" | "INT" | "BIGINT" => Cell::Integer(row.try_get_unchecked(n)?),
        "TINYINT UNSIGNED" | "SMALLINT UNSIGNED" | "MEDIUMINT UNSIGNED" | "INT UNSIGNED" | "BIGINT UNSIGNED" => {
            let number: u64 = row.try_get_unchecked(n)?;
            i64::try_from(number).map_or_else(|_| Cell::Decimal(number.to_string()), Cell::Integer)
        }
        "FLOAT" | "DOUBLE" => Cell::Real(row.try_get_unchecked(n)?),
        "DECIMAL" => Cell::Decimal(row.try_get_unchecked(n)?),
        // Which of them is text tells the collation alone: what is compared by its bytes, as in utf8mb4_bin, is called
        // bytes, and what SHOW lists is called text and may be none.
        "CHAR" | "VARCHAR" | "TINYTEXT" | "TEXT" | "MEDIUMTEXT" | "LONGTEXT" | "ENUM" | "BINARY" | "VARBINARY"
        | "TINYBLOB" | "BLOB" | "MEDIUMBLOB" | "LONGBLOB" => match row.try_get::<String, _>(n) {
            Err(sqlx::Error::ColumnDecode { .. }) => Cell::Bytes(row.try_get_unchecked(n)?),
            text => Cell::Text(text?),
        },
        other => return Err(NoCell::OfType(other.to_owned())),
    })
}

#[cfg(feature = "sqlite")]
fn of_sqlite(row: &sqlx::sqlite::SqliteRow, n: usize) -> Result<Cell, NoCell> {
    let raw = row.try_get_raw(n)?;
    if raw.is_null() {
        return Ok(Cell::Null);
    }
    // That of the value, whatever the column was declared as.
    let of = raw.type_info().into_owned();
    Ok(match of.name() {
        "INTEGER" => Cell::Integer(row.try_get_unchecked(n)?),
        "REAL" => Cell::Real(row.try_get_unchecked(n)?),
        "TEXT" => Cell::Text(row.try_get_unchecked(n)?),
        "BLOB" => Cell::Bytes(row.try_get_unchecked(n)?),
        other => return Err(NoCell::OfType(other.to_owned())),
    })
}

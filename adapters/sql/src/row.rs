//! A row as it is written.

use polybus_patterns::store::{NewRow, SqlValue, micros};

/// The slot: −1 for a row that waits for its time.
pub(crate) fn written_slot(row: &NewRow) -> i16 {
    if row.delay.is_zero() { row.slot } else { -1 }
}

/// The values of the INSERT of one row, which is the same on both databases but for its placeholders.
pub(crate) fn values(row: &NewRow) -> Vec<SqlValue> {
    vec![
        SqlValue::Integer(i64::from(written_slot(row))),
        SqlValue::Text(row.address.clone()),
        row.key.clone().map_or(SqlValue::Null, SqlValue::Bytes),
        SqlValue::Text(row.head.clone()),
        SqlValue::Bytes(row.data.clone()),
        SqlValue::Integer(micros(row.delay)),
    ]
}

//! The values of statements.

use bytes::Bytes;

/// A value for a placeholder: see [`DbConn::execute`](super::DbConn::execute).
///
/// ```
/// use polybus_sql::{DbType, DbValue};
///
/// let values: [DbValue; 4] = [7.into(), "Ann".into(), 2.5.into(), None::<bool>.into()];
/// assert_eq!(values[0], DbValue::Integer(7));
/// assert_eq!(values[3], DbValue::NullOf(DbType::Bool));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum DbValue {
    /// A SQL NULL of the type that its place in the statement gives it. Where the place gives none, as in `? IS NULL`,
    /// PostgreSQL refuses it.
    Null,
    /// A SQL NULL of this type: what `None` is.
    NullOf(DbType),
    /// A whole number: SMALLINT, INTEGER or BIGINT.
    Integer(i64),
    /// A number with a fraction: DOUBLE PRECISION, DOUBLE or REAL. SQLite writes NULL for one that is no number, and
    /// MySQL refuses it.
    Real(f64),
    /// Text.
    Text(String),
    /// Bytes: BYTEA or BLOB.
    Bytes(Vec<u8>),
    /// A truth: BOOLEAN, which is 0 or 1 on MySQL and SQLite.
    Bool(bool),
}

/// The type of a NULL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DbType {
    /// As [`DbValue::Integer`].
    Integer,
    /// As [`DbValue::Real`].
    Real,
    /// As [`DbValue::Text`].
    Text,
    /// As [`DbValue::Bytes`].
    Bytes,
    /// As [`DbValue::Bool`].
    Bool,
}

/// What makes a value.
#[allow(unreachable_pub, reason = "a public impl names it")]
pub trait OfDbType: Into<DbValue> {
    #[doc(hidden)]
    const TYPE: DbType;
}

/// The same from each of these types.
macro_rules! from {
    ($($variant:ident: $($from:ty),*;)*) => {
        $($(impl From<$from> for DbValue {
            fn from(value: $from) -> Self {
                Self::$variant(value.into())
            }
        }

        impl OfDbType for $from {
            const TYPE: DbType = DbType::$variant;
        })*)*
    };
}

from! {
    Integer: i64, i32, i16, i8, u32, u16, u8;
    Real: f64, f32;
    Text: String, &String, &str;
    Bytes: Vec<u8>, &[u8], Bytes;
    Bool: bool;
}

impl<T: OfDbType> From<Option<T>> for DbValue {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::NullOf(T::TYPE), Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_has_its_value() {
        assert_eq!(DbValue::from(-1_i16), DbValue::Integer(-1));
        assert_eq!(DbValue::from(u32::MAX), DbValue::Integer(4_294_967_295));
        assert_eq!(DbValue::from(1.5_f32), DbValue::Real(1.5));
        assert_eq!(DbValue::from("a".to_owned()), DbValue::from("a"));
        assert_eq!(DbValue::from(&b"a"[..]), DbValue::from(Bytes::from_static(b"a")));
        assert_eq!(DbValue::from(Some(true)), DbValue::Bool(true));
        assert_eq!(DbValue::from(None::<String>), DbValue::NullOf(DbType::Text));
    }
}

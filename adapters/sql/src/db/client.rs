//! What a connection does, on each database.

use std::future::Future;

use sqlx::{SqlStr, query::Query};

use super::{
    placeholders::Dialect,
    row::DbRow,
    statement::Statement,
    value::{DbType, DbValue},
};

/// The connection of one database.
pub(super) trait Client: sqlx::Connection {
    const SYSTEM: &'static str;
    const DIALECT: Dialect;

    fn execute(&mut self, statement: Statement) -> impl Future<Output = sqlx::Result<u64>> + Send;
    fn execute_script(&mut self, sql: SqlStr) -> impl Future<Output = sqlx::Result<()>> + Send;
    fn fetch_all(&mut self, statement: Statement) -> impl Future<Output = sqlx::Result<Vec<DbRow>>> + Send;
    fn fetch_optional(&mut self, statement: Statement) -> impl Future<Output = sqlx::Result<Option<DbRow>>> + Send;
}

/// The name of its database.
pub(super) fn system_of<C: Client>(_: &C) -> &'static str {
    C::SYSTEM
}

/// The code is the same on all. Generic over `sqlx::Database` it would need bounds that do not hold in general.
macro_rules! client {
    ($connection:ty, $database:ty, $system:literal, $dialect:ident, $null:expr) => {
        impl Client for $connection {
            const SYSTEM: &'static str = $system;
            const DIALECT: Dialect = Dialect::$dialect;

            async fn execute(&mut self, statement: Statement) -> sqlx::Result<u64> {
                Ok(bound(statement).execute(self).await?.rows_affected())
            }

            async fn execute_script(&mut self, sql: SqlStr) -> sqlx::Result<()> {
                sqlx::raw_sql(sql).execute(self).await.map(drop)
            }

            async fn fetch_all(&mut self, statement: Statement) -> sqlx::Result<Vec<DbRow>> {
                Ok(bound(statement).fetch_all(self).await?.into_iter().map(DbRow::from).collect())
            }

            async fn fetch_optional(&mut self, statement: Statement) -> sqlx::Result<Option<DbRow>> {
                Ok(bound(statement).fetch_optional(self).await?.map(DbRow::from))
            }
        }

        fn bound(
            Statement { sql, values }: Statement,
        ) -> Query<'static, $database, <$database as sqlx::Database>::Arguments> {
            values.into_iter().fold(sqlx::query(sql), |query, value| match value {
                DbValue::Null => query.bind($null),
                DbValue::NullOf(DbType::Integer) => query.bind(None::<i64>),
                DbValue::NullOf(DbType::Real) => query.bind(None::<f64>),
                DbValue::NullOf(DbType::Text) => query.bind(None::<String>),
                DbValue::NullOf(DbType::Bytes) => query.bind(None::<Vec<u8>>),
                DbValue::NullOf(DbType::Bool) => query.bind(None::<bool>),
                DbValue::Integer(value) => query.bind(value),
                DbValue::Real(value) => query.bind(value),
                DbValue::Text(value) => query.bind(value),
                DbValue::Bytes(value) => query.bind(value),
                DbValue::Bool(value) => query.bind(value),
            })
        }
    };
}

#[cfg(feature = "postgres")]
mod postgres {
    use sqlx::{
        Encode, Postgres, Type,
        encode::IsNull,
        error::BoxDynError,
        postgres::{PgArgumentBuffer, PgTypeInfo, types::Oid},
    };

    use super::*;

    /// A NULL of which the server decides the type.
    struct Untyped;

    impl Type<Postgres> for Untyped {
        fn type_info() -> PgTypeInfo {
            PgTypeInfo::with_oid(Oid(0))
        }
    }

    impl Encode<'_, Postgres> for Untyped {
        fn encode_by_ref(&self, _: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
            Ok(IsNull::Yes)
        }
    }

    client!(sqlx::PgConnection, Postgres, "postgres", Postgres, Untyped);
}

#[cfg(feature = "mysql")]
mod mysql {
    use super::*;

    client!(sqlx::MySqlConnection, sqlx::MySql, "mysql", MySql, None::<i64>);
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use super::*;

    client!(sqlx::SqliteConnection, sqlx::Sqlite, "sqlite", Sqlite, None::<i64>);
}

//! PostgreSQL, in a schema of its own.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use polybus_conformance::{
    Proxy,
    stores::{BoxedError, StoreAbilities, StoreOutage, StoreUnderTest},
};
use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::{OutboxRow, SqlValue};
use polybus_sql::{
    Postgres,
    sqlx::{
        self, AssertSqlSafe, ConnectOptions, PgConnection, PgPool,
        pool::{PoolConnection, PoolOptions},
        postgres::PgConnectOptions,
        query, query_as, raw_sql,
    },
};

use super::{COUNT, Refusing, TABLES, counted, failed, next_place};

pub(super) struct PostgresTarget {
    options: PgConnectOptions,
    /// Where the pooler is, if one stands before the database. Nothing of a session is kept then, and so each scenario
    /// has a database of its own in place of a schema.
    pooler: Option<PgConnectOptions>,
    /// What stands before the database, for each schema.
    proxies: Mutex<HashMap<String, Proxy>>,
}

fn postgres_options(variable: &str) -> Result<PgConnectOptions, String> {
    let url = std::env::var(variable).ok().filter(|url| !url.is_empty());
    let url = url.ok_or_else(|| format!("{variable} is not set"))?;
    url.parse().map_err(|_| format!("{variable} is no URL of PostgreSQL"))
}

impl PostgresTarget {
    pub(super) fn from_env() -> Result<Self, String> {
        Ok(Self { options: postgres_options("POLYBUS_POSTGRES_URL")?, pooler: None, proxies: Mutex::default() })
    }

    /// By way of a pooler in transaction mode that lets every database in, such as PgBouncer with `* = host=…`.
    pub(super) fn through_a_pooler() -> Result<Self, String> {
        let pooler = Some(postgres_options("POLYBUS_POSTGRES_POOLER_URL")?);
        Ok(Self { pooler, ..Self::from_env()? })
    }

    /// A connection that no proxy breaks.
    async fn direct(&self) -> Result<PgConnection> {
        self.options.connect().await.map_err(failed)
    }

    async fn run_direct(&self, statement: String) -> Result<()> {
        raw_sql(AssertSqlSafe(statement)).execute(&mut self.direct().await?).await.map(drop).map_err(failed)
    }

    async fn on(&self, schema: &str, options: PgConnectOptions) -> Result<Postgres> {
        let pool = PoolOptions::new().max_connections(12).acquire_timeout(Duration::from_secs(30));
        if self.pooler.is_some() {
            let pool: PgPool = pool.connect_with(options.database(schema)).await.map_err(failed)?;
            return Ok(polybus_sql::postgres(pool));
        }
        let options = options.options([("search_path", schema)]);
        let pool: PgPool = pool.connect_with(options).await.map_err(failed)?;
        Ok(polybus_sql::postgres(pool).schema(schema))
    }

    /// The schema, or the database, that the scenario has.
    async fn place_of(&self, store: &Postgres) -> Result<String> {
        if self.pooler.is_some() {
            let options = store.pool().connect_options();
            return Ok(options.get_database().unwrap_or_default().to_owned());
        }
        let schema = query_as("SELECT current_schema()::text").fetch_one(store.pool()).await;
        schema.map(|(schema,): (String,)| schema).map_err(failed)
    }
}

impl StoreUnderTest for PostgresTarget {
    type Store = Postgres;
    type Plain = PoolConnection<sqlx::Postgres>;

    fn abilities(&self) -> StoreAbilities {
        StoreAbilities::default().with(|can| {
            (can.parallel_writers, can.clock, can.contention, can.outage) = (true, true, true, true);
            can.notify = self.pooler.is_none();
        })
    }

    async fn fresh(&self) -> Result<Postgres> {
        let place = next_place();
        let options = match &self.pooler {
            None => {
                self.run_direct(format!("DROP SCHEMA IF EXISTS {place} CASCADE; CREATE SCHEMA {place}")).await?;
                &self.options
            }
            Some(pooler) => {
                self.run_direct(format!("CREATE DATABASE {place}")).await?;
                pooler
            }
        };
        let upstream = format!("{}:{}", options.get_host(), options.get_port());
        let proxy = Proxy::start(upstream).await.map_err(|e| failed(e.into()))?;
        let options = options.clone().host(&proxy.addr().ip().to_string()).port(proxy.addr().port());
        let store = self.on(&place, options).await?;
        self.proxies.lock().unwrap_or_else(|e| e.into_inner()).insert(place, proxy);
        store.migrate().await?;
        raw_sql(TABLES).execute(store.pool()).await.map_err(failed)?;
        Ok(store)
    }

    async fn second_handle(&self, store: &Postgres) -> Result<Postgres> {
        let place = self.place_of(store).await?;
        self.on(&place, (*store.pool().connect_options()).clone()).await
    }

    async fn remove(&self, store: Postgres) {
        let Ok(place) = self.place_of(&store).await else { return };
        store.pool().close().await;
        self.proxies.lock().unwrap_or_else(|e| e.into_inner()).remove(&place);
        // Other handles may still have a transaction on it.
        let gone = match &self.pooler {
            None => format!("SET lock_timeout = '5s'; DROP SCHEMA IF EXISTS {place} CASCADE"),
            Some(_) => format!("DROP DATABASE IF EXISTS {place} WITH (FORCE)"),
        };
        let _ = self.run_direct(gone).await;
    }

    async fn plain(&self, store: &Postgres) -> Result<Self::Plain> {
        store.pool().acquire().await.map_err(failed)
    }

    async fn add_effect(conn: &mut PgConnection, name: &str) -> Result<(), BoxedError> {
        query("INSERT INTO effect (name) VALUES ($1)").bind(name).execute(conn).await?;
        Ok(())
    }

    async fn effects(&self, store: &Postgres) -> Result<Vec<(String, u64)>, BoxedError> {
        Ok(counted(query_as(COUNT).fetch_all(store.pool()).await?))
    }

    async fn lock_entity(conn: &mut PgConnection, name: &str) -> Result<(), BoxedError> {
        let locked = "INSERT INTO entity (name, locked) VALUES ($1, 1)
            ON CONFLICT (name) DO UPDATE SET locked = entity.locked + 1";
        query(locked).bind(name).execute(conn).await?;
        Ok(())
    }

    async fn fail_statement(conn: &mut PgConnection) -> BoxedError {
        match query("INSERT INTO strict_one VALUES (1)").execute(conn).await {
            Ok(_) => "a constraint was not kept".into(),
            Err(e) => e.into(),
        }
    }

    async fn execute(conn: &mut PgConnection, row: OutboxRow) -> Result<(), BoxedError> {
        let mut statement = query(AssertSqlSafe(row.sql));
        for value in row.values {
            statement = match value {
                SqlValue::Integer(n) => statement.bind(n),
                SqlValue::Text(text) => statement.bind(text),
                SqlValue::Bytes(bytes) => statement.bind(bytes.to_vec()),
                _ => statement.bind(None::<Vec<u8>>),
            };
        }
        statement.execute(conn).await?;
        Ok(())
    }

    fn move_clock(&self, store: &Postgres, seconds: i64) {
        store.set_clock_offset(seconds * 1_000_000);
    }

    async fn contention(&self, store: &Postgres) -> Result<BoxedError> {
        let mut one = store.pool().begin().await.map_err(failed)?;
        let mut other = store.pool().begin().await.map_err(failed)?;
        query("INSERT INTO entity (name, locked) VALUES ('x', 1)").execute(&mut *one).await.map_err(failed)?;
        query("SET LOCAL lock_timeout = '100ms'").execute(&mut *other).await.map_err(failed)?;
        match query("INSERT INTO entity (name, locked) VALUES ('x', 1)").execute(&mut *other).await {
            Ok(_) => Err(Error::new(ErrorKind::Unexpected, "no lock was waited for")),
            Err(e) => Ok(e.into()),
        }
    }

    async fn outage(&self, store: &Postgres) -> Result<StoreOutage> {
        let place = self.place_of(store).await?;
        let proxy = self.proxies.lock().unwrap_or_else(|e| e.into_inner()).remove(&place);
        let proxy = proxy.ok_or_else(|| Error::invalid("no proxy stands before this database"))?;
        proxy.refuse(true).await;
        proxy.cut();
        Ok(StoreOutage::new(Refusing(Some(proxy))))
    }
}

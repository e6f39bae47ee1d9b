//! One of the store's own connections, for one call.

use std::{
    pin::pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::TryStreamExt;
use polybus_core::{Error, Result};
use sqlx::{
    AssertSqlSafe, Either, FromRow, MySql as Client, MySqlConnection, mysql::MySqlRow, pool::PoolConnection, raw_sql,
};
use tokio::{runtime::Handle, sync::OwnedSemaphorePermit};

use super::{MySql, committing, give_back, reading};
use crate::{error::Effect, mysql_codes};

/// What our own transactions begin with. The level is that of the next transaction alone: nothing of it stays with the
/// session. Without a transaction, a statement would commit or not as the application has set `autocommit`.
pub(super) const WRITE: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION READ WRITE; ";
const READ: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION READ ONLY; ";

/// The same for a transaction of several round trips. The locks of a client that vanished in the middle must not outlive
/// it for long; the server looks at this limit before it waits for the next text.
const BEGIN_PARTS: &str = "SET @polybus_idle = @@SESSION.wait_timeout, SESSION wait_timeout = 30; ";
const COMMIT_PARTS: &str = "COMMIT; SET SESSION wait_timeout = @polybus_idle";

/// How often statements of ours that lost against another transaction are run again.
const AGAIN: u32 = 8;

/// What a text of statements answered.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The rows that all statements together have changed.
    pub(super) affected: u64,
    /// The rows that all statements together have found.
    pub(super) rows: Vec<MySqlRow>,
}

/// A connection of the store's own pool. It goes back only where it is of use.
pub(super) struct ControlConn {
    conn: Option<PoolConnection<Client>>,
    /// Its place among those that are not for leases.
    place: Option<OwnedSemaphorePermit>,
    operation: &'static str,
    /// A statement was begun and has not ended well.
    broken: bool,
}

impl MySql {
    pub(super) async fn control_conn(&self, operation: &'static str) -> Result<ControlConn> {
        let place = self.control_place().await.map_err(reading(operation))?;
        let mut conn = self.lease_conn(operation).await?;
        conn.place = Some(place);
        Ok(conn)
    }

    /// The same for a lease, which waits for nothing but leases.
    pub(super) async fn lease_conn(&self, operation: &'static str) -> Result<ControlConn> {
        let conn = self.control_pool().map_err(reading(operation))?.acquire().await.map_err(reading(operation))?;
        Ok(ControlConn { conn: Some(conn), place: None, operation, broken: false })
    }

    /// Runs statements that write, as one transaction.
    pub(super) async fn run(&self, operation: &'static str, text: &str) -> Result<Answer> {
        let text = format!("{WRITE}{text}; COMMIT");
        let mut again = Again::default();
        loop {
            match self.control_conn(operation).await?.run(&text, Effect::Committed).await {
                Err(e) if again.after(&e).await => {}
                answer => return answer,
            }
        }
    }

    /// The same for leases.
    pub(super) async fn run_for_lease(&self, operation: &'static str, text: &str) -> Result<Answer> {
        let text = format!("{WRITE}{text}; COMMIT");
        let mut again = Again::default();
        loop {
            match self.lease_conn(operation).await?.run(&text, Effect::Committed).await {
                Err(e) if again.after(&e).await => {}
                answer => return answer,
            }
        }
    }

    /// Runs statements that read, as one transaction. It sees what was committed before each of them.
    pub(super) async fn look(&self, operation: &'static str, text: &str) -> Result<Answer> {
        self.control_conn(operation).await?.run(&format!("{READ}{text}; COMMIT"), Effect::None).await
    }

    /// The same for leases.
    pub(super) async fn look_for_lease(&self, operation: &'static str, text: &str) -> Result<Answer> {
        self.lease_conn(operation).await?.run(&format!("{READ}{text}; COMMIT"), Effect::None).await
    }
}

impl ControlConn {
    /// Runs statements in one round trip. After an error no transaction is open.
    pub(super) async fn run(&mut self, text: &str, effect: Effect) -> Result<Answer> {
        self.broken = true;
        let conn = self.conn.as_mut().expect("the connection is here until the call ends");
        let answer = async {
            let mut answer = Answer::default();
            let mut results = pin!(raw_sql(AssertSqlSafe(text)).fetch_many(&mut **conn));
            while let Some(result) = results.try_next().await? {
                match result {
                    Either::Left(done) => answer.affected += done.rows_affected(),
                    Either::Right(row) => answer.rows.push(row),
                }
            }
            Ok(answer)
        };
        let answer: Result<Answer, sqlx::Error> = answer.await;
        self.broken = match &answer {
            Ok(_) => false,
            Err(error) if mysql_codes::number(error).is_some_and(|number| !mysql_codes::is_misled(number)) => {
                raw_sql("ROLLBACK").execute(&mut **conn).await.is_err()
            }
            Err(_) => true,
        };
        answer.map_err(|error| match effect {
            Effect::None => reading(self.operation)(error),
            Effect::Committed => committing(self.operation)(error),
        })
    }

    /// The same for the first part of a transaction: until the last one is run, the connection is of no use to others.
    pub(super) async fn run_part(&mut self, text: &str) -> Result<Answer> {
        let answer = self.run(text, Effect::None).await?;
        self.broken = true;
        Ok(answer)
    }

    /// The first part of a transaction of several round trips.
    pub(super) async fn begin_parts(&mut self, text: &str) -> Result<Answer> {
        self.run_part(&format!("{BEGIN_PARTS}{WRITE}{text}")).await
    }

    /// The last part, which may be empty.
    pub(super) async fn commit_parts(&mut self, text: &str) -> Result<Answer> {
        let separator = if text.is_empty() { "" } else { "; " };
        self.run(&format!("{text}{separator}{COMMIT_PARTS}"), Effect::Committed).await
    }

    /// The connection itself, for a part of a transaction that others write.
    pub(super) fn part_conn(&mut self) -> &mut MySqlConnection {
        self.broken = true;
        self.conn.as_mut().expect("the connection is here until the call ends")
    }
}

impl Drop for ControlConn {
    fn drop(&mut self) {
        // What was cut off may be a call whose answer is lost in silence, or an answer that is half read.
        if let (Some(conn), true, Ok(runtime)) =
            (self.conn.take_if(|_| self.broken), self.broken, Handle::try_current())
        {
            let place = self.place.take();
            runtime.spawn(async move {
                give_back::close(conn).await;
                drop(place);
            });
        }
    }
}

/// Counts how often statements were run again. Only for what has surely not happened.
#[derive(Debug, Default)]
pub(super) struct Again(u32);

impl Again {
    /// Whether to run it again, after a moment that differs from one to the other.
    pub(super) async fn after(&mut self, error: &Error) -> bool {
        if error.context("contention").is_none() || self.0 >= AGAIN {
            return false;
        }
        self.0 += 1;
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
        let longest = 4_u64 << self.0;
        tokio::time::sleep(Duration::from_micros(500 + u64::from(nanos) % (longest * 1000))).await;
        true
    }
}

/// Rows as values.
pub(super) fn decoded<T: for<'r> FromRow<'r, MySqlRow>>(rows: &[MySqlRow], operation: &'static str) -> Result<Vec<T>> {
    rows.iter().map(T::from_row).collect::<Result<_, _>>().map_err(reading(operation))
}

/// Text as it is stored: bytes.
pub(super) fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

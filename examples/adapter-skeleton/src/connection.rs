//! The connection that all senders and consumers of one driver share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use polybus_core::{
    ErrorKind, Result,
    driver::{ConnectUrl, kit::reconnect::SharedAttempt},
};
use redis::{AsyncConnectionConfig, Client, FromRedisValue, Pipeline, RedisResult, aio::MultiplexedConnection};

use crate::error;

pub(crate) struct SharedConnection {
    client: Client,
    current: SharedAttempt<LiveConnection>,
    closed: AtomicBool,
}

struct LiveConnection {
    redis: MultiplexedConnection,
    /// A request on it had no answer.
    broken: AtomicBool,
}

impl SharedConnection {
    pub(crate) fn new(url: &ConnectUrl) -> Result<Self> {
        let client = Client::open(url.secret()).map_err(|e| error::of(e, "connect"))?;
        Ok(Self { client, current: SharedAttempt::default(), closed: AtomicBool::new(false) })
    }

    async fn connect(&self) -> Result<Arc<LiveConnection>> {
        // This client makes no connection anew by itself, and would wait for an answer for half a second.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(5)))
            .set_response_timeout(Some(Duration::from_secs(10)));
        let made = self.client.get_multiplexed_async_connection_with_config(&config).await;
        let redis = made.map_err(|e| error::of(e, "connect"))?;
        Ok(Arc::new(LiveConnection { redis, broken: AtomicBool::new(false) }))
    }

    /// The connection that stands, or one attempt at a new one, which all callers share.
    async fn connection(&self) -> Result<Arc<LiveConnection>> {
        if self.closed.load(Ordering::Acquire) {
            return Err(error::new(ErrorKind::Closed, "the connection was closed"));
        }
        self.current.get(|standing| !standing.broken.load(Ordering::Acquire), self.connect()).await
    }

    /// Connects if nothing stands.
    pub(crate) async fn check(&self) -> Result<()> {
        self.connection().await.map(drop)
    }

    /// One round trip, and each command's own answer. Commands whose answer does not come may have been carried out.
    pub(crate) async fn round_trip<T: FromRedisValue>(
        &self,
        mut commands: Pipeline,
        operation: &'static str,
    ) -> Result<Vec<Result<T>>> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let connection = self.connection().await?;
        let mut redis = connection.redis.clone();
        match commands.ignore_errors().query_async::<Vec<RedisResult<T>>>(&mut redis).await {
            Ok(answers) => Ok(answers.into_iter().map(|a| a.map_err(|e| error::of(e, operation))).collect()),
            Err(e) => {
                connection.broken.store(true, Ordering::Release);
                Err(error::of(e, operation).may_duplicate())
            }
        }
    }

    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.current.take().await;
    }
}

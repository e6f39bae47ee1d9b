//! A polybus adapter for Redis Streams: the walking skeleton of `docs/adapters.md`, which explains every part of it.
//!
//! A queue is a stream with one consumer group. The adapter can publish, receive, ack, release, renew locks,
//! dead-letter and redrive, and says so in its capabilities; it has no topics, order, delays or counts.

mod connection;
mod consume;
mod declare;
mod error;
mod message;
mod scripts;

use std::sync::Arc;

use polybus_core::{
    Address, ErrorKind, Outgoing, Receipt, Result, Source,
    driver::{
        Batching, Capabilities, ConnectUrl, Connector, Driver, PreparedMessage, Receiver, Sender, Settler, async_trait,
    },
    message::cloudevents::CopyState,
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity},
};
use redis::Pipeline;

use crate::{
    connection::SharedConnection,
    consume::{RedisReceiver, RedisSettler, StreamConsumer},
    declare::dead_letters,
    message::EntryFields,
};

const BACKEND: &str = "redis";

/// Serves `redis://[user:password@]host[:port][/database]`.
pub struct RedisConnector;

#[async_trait]
impl Connector for RedisConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &[BACKEND]
    }

    fn default_port(&self, _: &str) -> Option<u16> {
        Some(6379)
    }

    async fn connect(&self, url: &ConnectUrl) -> Result<Arc<dyn Driver>> {
        if let Some(name) = url.parameters()?.keys().next() {
            return Err(url.unknown_parameter(name, "none").with_backend(BACKEND));
        }
        let connection = Arc::new(SharedConnection::new(url)?);
        connection.check().await?;
        let mut can = Capabilities::default();
        (can.declare, can.locks, can.dead_letters, can.redrive) = (true, true, true, true);
        (can.confirmed_settlement, can.attempts_across_crash) = (true, true);
        Ok(Arc::new(RedisDriver { connection, can }))
    }
}

struct RedisDriver {
    connection: Arc<SharedConnection>,
    can: Capabilities,
}

#[async_trait]
impl Driver for RedisDriver {
    fn backend(&self) -> &'static str {
        BACKEND
    }

    fn capabilities(&self) -> &Capabilities {
        &self.can
    }

    fn physical_names(&self, plan: &DeclarePlan) -> Vec<(String, String)> {
        let keys = |s: &Entity<Source>| [s.physical.to_string(), dead_letters(&s.physical)];
        plan.sources.iter().flat_map(|s| keys(s).map(|key| (key, s.name.to_string()))).collect()
    }

    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        let mut report = DeclareReport::default();
        for source in &plan.sources {
            declare::source(&self.connection, source, mode, &mut report).await?;
        }
        Ok(report)
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        Ok(Arc::new(RedisSender { connection: self.connection.clone(), key: to.physical.to_string() }))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        let mut keys = [from.physical.to_string(), dead_letters(&from.physical)];
        if from.name.is_dead_letters() {
            keys.reverse();
        }
        declare::check(&self.connection, &keys[0]).await?;
        let (connection, name) = (self.connection.clone(), uuid::Uuid::new_v4().to_string());
        let consumer = StreamConsumer { connection, keys, name, source: from.name.clone(), lock: from.settings.lock };
        let consumer = Arc::new(consumer);
        let receiver = RedisReceiver { consumer: consumer.clone(), request: None, closed: false };
        Ok((Box::new(receiver), Arc::new(RedisSettler(consumer))))
    }

    async fn delete(&self, plan: &DeclarePlan) -> Result<()> {
        declare::delete(&self.connection, &plan.sources).await
    }

    async fn close(&self) -> Result<()> {
        self.connection.close().await;
        Ok(())
    }
}

struct RedisSender {
    connection: Arc<SharedConnection>,
    key: String,
}

#[async_trait]
impl Sender for RedisSender {
    fn batching(&self) -> Batching {
        Batching::new(100, 1 << 20, 4)
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        let fields = message::encode(&message.envelope, &CopyState::default());
        let size = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
        Ok(PreparedMessage::new(message, size).native(fields))
    }

    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let mut commands = Pipeline::new();
        for prepared in batch {
            let fields = prepared.native.as_ref().and_then(|native| native.get::<EntryFields>().ok());
            commands.cmd("XADD").arg(&self.key).arg("NOMKSTREAM").arg("*").arg(fields);
        }
        let answers = match self.connection.round_trip::<Option<String>>(commands, "publish").await {
            Ok(answers) => answers,
            Err(e) => return e.for_each_of(batch.len()),
        };
        let missing = || error::new(ErrorKind::NotFound, "no such stream: declare it first");
        answers.into_iter().map(|answer| answer?.map(Receipt::with_broker_id).ok_or_else(missing)).collect()
    }
}

//! Checks, declarations and deletions, each one AMQP method on a channel that carries nothing else.
//!
//! AMQP answers a question about an entity that does not exist by closing the channel. So no other channel may be
//! used for questions, and this one is opened again whenever that has happened.

use futures_util::future::try_join_all;
use lapin::{
    Channel, ExchangeKind, Queue,
    options::{
        ExchangeBindOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
        QueueDeleteOptions, QueuePurgeOptions,
    },
    types::{FieldTable, ShortString},
};
use polybus_core::{ErrorKind, Result};

use crate::{
    error,
    transport::connection::{ConnectionRole, DriverConnections, call},
};

/// The flags with which a queue is declared, beside its arguments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueFlags {
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    pub(crate) exclusive: bool,
}

/// A channel for checks and other one-off operations. A failed operation closes it, and the next one opens it again.
///
/// Dropping it closes the channel without waiting for the answer. [`close`](Self::close) waits.
pub(crate) struct ProbeChannel<'a> {
    connections: &'a DriverConnections,
    channel: Option<Channel>,
}

impl<'a> ProbeChannel<'a> {
    pub(crate) fn new(connections: &'a DriverConnections) -> Self {
        Self { connections, channel: None }
    }

    /// The channel that stands, or a new one.
    async fn channel(&mut self) -> Result<&Channel> {
        let fresh = match self.channel.take().filter(|c| c.status().connected()) {
            Some(open) => open,
            None => self.connections.get(ConnectionRole::Manage).await?.channel().await?,
        };
        Ok(self.channel.insert(fresh))
    }

    /// The queue with its counts of ready messages and consumers, or `None` if there is none.
    pub(crate) async fn find_queue(&mut self, name: &str) -> Result<Option<Queue>> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let name = short(name)?;
        let channel = self.channel().await?;
        found(call("find queue", channel.queue_declare(name, options, FieldTable::default())).await)
    }

    /// Whether an exchange of this name exists, of whatever kind.
    pub(crate) async fn find_exchange(&mut self, name: &str) -> Result<bool> {
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let name = short(name)?;
        let channel = self.channel().await?;
        let declared = channel.exchange_declare(name, ExchangeKind::Topic, options, FieldTable::default());
        Ok(found(call("find exchange", declared).await)?.is_some())
    }

    /// Declares a durable queue. One that stands with other settings is `AlreadyExists`.
    pub(crate) async fn declare_queue(&mut self, name: &str, arguments: FieldTable) -> Result<()> {
        self.declare_queue_with(name, arguments, QueueFlags { durable: true, auto_delete: false, exclusive: false })
            .await
    }

    /// Declares a queue with these flags.
    pub(crate) async fn declare_queue_with(
        &mut self,
        name: &str,
        arguments: FieldTable,
        flags: QueueFlags,
    ) -> Result<()> {
        let QueueFlags { durable, auto_delete, exclusive } = flags;
        let options = QueueDeclareOptions { durable, auto_delete, exclusive, ..QueueDeclareOptions::default() };
        let name = short(name)?;
        let channel = self.channel().await?;
        call("declare queue", channel.queue_declare(name, options, arguments)).await.map(|_| ())
    }

    /// Declares a durable exchange. One that stands with other settings is `AlreadyExists`.
    pub(crate) async fn declare_exchange(
        &mut self,
        name: &str,
        kind: ExchangeKind,
        arguments: FieldTable,
    ) -> Result<()> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let name = short(name)?;
        let channel = self.channel().await?;
        call("declare exchange", channel.exchange_declare(name, kind, options, arguments)).await
    }

    /// Adds bindings, all at once. Bindings that exist stay as they are.
    pub(crate) async fn bind(&mut self, bindings: &[ExchangeBinding]) -> Result<()> {
        let channel = self.channel().await?;
        try_join_all(bindings.iter().map(|b| bind(channel, b))).await.map(|_| ())
    }

    /// Deletes queues, then exchanges. A missing one is no error.
    pub(crate) async fn delete(&mut self, queues: &[String], exchanges: &[String]) -> Result<()> {
        let channel = self.channel().await?;
        let queues = queues.iter().map(async |name| {
            let name = short(name)?;
            call("delete queue", channel.queue_delete(name, QueueDeleteOptions::default())).await.map(|_| ())
        });
        try_join_all(queues).await?;
        let exchanges = exchanges.iter().map(async |name| {
            let name = short(name)?;
            call("delete exchange", channel.exchange_delete(name, ExchangeDeleteOptions::default())).await
        });
        try_join_all(exchanges).await.map(|_| ())
    }

    /// Deletes the ready messages of a queue, and answers how many there were.
    pub(crate) async fn purge(&mut self, queue: &str) -> Result<u64> {
        let name = short(queue)?;
        let channel = self.channel().await?;
        call("purge", channel.queue_purge(name, QueuePurgeOptions::default())).await.map(u64::from)
    }

    /// Closes the channel and waits for the answer.
    pub(crate) async fn close(mut self) {
        if let Some(channel) = self.channel.take().filter(|c| c.status().connected()) {
            let _ = call("close channel", channel.close(200, "OK".into())).await;
        }
    }
}

/// A binding, which leads messages from an exchange to a queue or to another exchange.
#[derive(Clone, Debug)]
pub(crate) struct ExchangeBinding {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) to_exchange: bool,
    pub(crate) key: String,
    pub(crate) arguments: FieldTable,
}

async fn bind(channel: &Channel, binding: &ExchangeBinding) -> Result<()> {
    let (from, to, key) = (short(&binding.from)?, short(&binding.to)?, short(&binding.key)?);
    let arguments = binding.arguments.clone();
    if binding.to_exchange {
        call("bind", channel.exchange_bind(to, from, key, ExchangeBindOptions::default(), arguments)).await
    } else {
        call("bind", channel.queue_bind(to, from, key, QueueBindOptions::default(), arguments)).await
    }
}

/// Turns `NotFound` into `None`.
fn found<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// A name as AMQP carries it: a short string of at most 255 bytes.
pub(crate) fn short(name: &str) -> Result<ShortString> {
    let text = || format!("name of {} bytes: AMQP takes 255", name.len());
    ShortString::try_new(name).map_err(|_| error::new(ErrorKind::InvalidArgument, "name", text()))
}

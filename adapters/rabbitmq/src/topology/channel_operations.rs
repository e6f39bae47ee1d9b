//! One-off operations on a channel of their own, which a failed check may close.

use futures_util::future::try_join_all;
use lapin::{
    Channel, ExchangeKind, Queue,
    options::{
        ExchangeBindOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
        QueueDeleteOptions, QueuePurgeOptions,
    },
    types::{FieldTable, ShortString},
};
use polybus_core::{Error, ErrorKind, Result};

use crate::{
    error,
    transport::connection::{Links, Role, call},
};

/// What a queue is declared with beside its arguments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flags {
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    pub(crate) exclusive: bool,
}

/// A channel for managing, opened again whenever a failed operation has closed it.
pub(crate) struct Scratch<'a> {
    links: &'a Links,
    channel: Option<Channel>,
}

impl<'a> Scratch<'a> {
    pub(crate) fn new(links: &'a Links) -> Self {
        Self { links, channel: None }
    }

    async fn channel(&mut self) -> Result<&Channel> {
        let fresh = match self.channel.take().filter(|c| c.status().connected()) {
            Some(open) => open,
            None => self.links.get(Role::Manage).await?.channel().await?,
        };
        Ok(self.channel.insert(fresh))
    }

    /// The queue as it stands, or `None`.
    pub(crate) async fn find_queue(&mut self, name: &str) -> Result<Option<Queue>> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let name = short(name)?;
        let channel = self.channel().await?;
        found(call("find queue", channel.queue_declare(name, options, FieldTable::default())).await)
    }

    pub(crate) async fn find_exchange(&mut self, name: &str) -> Result<bool> {
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let name = short(name)?;
        let channel = self.channel().await?;
        let declared = channel.exchange_declare(name, ExchangeKind::Topic, options, FieldTable::default());
        Ok(found(call("find exchange", declared).await)?.is_some())
    }

    pub(crate) async fn declare_queue(&mut self, name: &str, arguments: FieldTable) -> Result<()> {
        self.declare_lasting(name, arguments, Flags { durable: true, auto_delete: false, exclusive: false }).await
    }

    /// Declares as [`declare_queue`](Self::declare_queue) does, whatever the queue's lifetime.
    pub(crate) async fn declare_lasting(&mut self, name: &str, arguments: FieldTable, flags: Flags) -> Result<()> {
        let Flags { durable, auto_delete, exclusive } = flags;
        let options = QueueDeclareOptions { durable, auto_delete, exclusive, ..QueueDeclareOptions::default() };
        let name = short(name)?;
        let channel = self.channel().await?;
        call("declare queue", channel.queue_declare(name, options, arguments)).await.map(|_| ())
    }

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

    /// Adds bindings, all at once. Those that are there already stay.
    pub(crate) async fn bind(&mut self, bindings: &[Binding]) -> Result<()> {
        let channel = self.channel().await?;
        try_join_all(bindings.iter().map(|b| bind(channel, b))).await.map(|_| ())
    }

    /// Deletes what is there; what is missing is fine.
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

    pub(crate) async fn purge(&mut self, queue: &str) -> Result<u64> {
        let name = short(queue)?;
        let channel = self.channel().await?;
        call("purge", channel.queue_purge(name, QueuePurgeOptions::default())).await.map(u64::from)
    }

    /// Closes the channel. Dropping does so too, without waiting.
    pub(crate) async fn finish(mut self) {
        if let Some(channel) = self.channel.take().filter(|c| c.status().connected()) {
            let _ = call("close channel", channel.close(200, "OK".into())).await;
        }
    }
}

/// What leads messages from an exchange to a queue or another exchange.
#[derive(Clone, Debug)]
pub(crate) struct Binding {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) to_exchange: bool,
    pub(crate) key: String,
    pub(crate) arguments: FieldTable,
}

async fn bind(channel: &Channel, binding: &Binding) -> Result<()> {
    let (from, to, key) = (short(&binding.from)?, short(&binding.to)?, short(&binding.key)?);
    let arguments = binding.arguments.clone();
    if binding.to_exchange {
        call("bind", channel.exchange_bind(to, from, key, ExchangeBindOptions::default(), arguments)).await
    } else {
        call("bind", channel.queue_bind(to, from, key, QueueBindOptions::default(), arguments)).await
    }
}

fn found<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// A name as AMQP carries it.
pub(crate) fn short(name: &str) -> Result<ShortString> {
    ShortString::try_new(name).map_err(|_| too_long(name))
}

fn too_long(name: &str) -> Error {
    error::new(ErrorKind::InvalidArgument, "name", format!("name of {} bytes: AMQP takes 255", name.len()))
}

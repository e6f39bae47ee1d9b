//! Queues, exchanges and bindings as another client would have made them.

use polybus_conformance::{Drift, RawEntities};
use polybus_core::{Bus, Error, ErrorKind, Result, Source, driver::async_trait, topology::Entity};
use polybus_rabbitmq::{
    Native,
    lapin::{
        self, Channel, ExchangeKind,
        options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
        types::{AMQPValue, FieldTable},
    },
};

/// Declares queues of this type as a client does that knows the names of polybus but none of its arguments.
pub(crate) struct ForeignEntities {
    pub(crate) queue_type: &'static str,
}

fn failed(e: lapin::Error) -> Error {
    Error::new(ErrorKind::Unexpected, e.to_string())
}

/// The queue of a source.
fn queue(source: &Entity<Source>) -> String {
    match &source.parent {
        Some(topic) if !source.fixed => format!("{topic}.sub.{}", source.physical),
        _ => source.physical.to_string(),
    }
}

#[async_trait]
impl RawEntities for ForeignEntities {
    fn knows(&self, drift: Drift) -> bool {
        match drift {
            Drift::NoDeadLetters | Drift::TimeToLive(_) | Drift::Routing => true,
            // A classic queue limits nothing.
            Drift::DeliveryLimit(_) => self.queue_type == "quorum",
            _ => false,
        }
    }

    async fn declare(&self, bus: &Bus, drift: Drift) -> Result<()> {
        let native = bus.native::<Native>().ok_or_else(|| Error::unsupported("no lapin connection"))?;
        let channel = native.connection().await?.create_channel().await.map_err(failed)?;
        let plan = bus.topology().plan();
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        for topic in &plan.topics {
            let (name, arguments) = ((&*topic.physical).into(), FieldTable::default());
            channel.exchange_declare(name, ExchangeKind::Topic, durable, arguments).await.map_err(failed)?;
        }
        for source in &plan.sources {
            if source.settings.ordered {
                return Err(Error::unsupported("others have no ordered queues of polybus' kind"));
            }
            self.source(&channel, source, drift).await.map_err(failed)?;
        }
        channel.close(200, "OK".into()).await.map_err(failed)
    }
}

impl ForeignEntities {
    async fn source(&self, channel: &Channel, source: &Entity<Source>, drift: Drift) -> lapin::Result<()> {
        let name = queue(source);
        let dead = format!("{name}.dlq");
        let text = |value: &str| AMQPValue::LongString(value.into());
        let mut letters = FieldTable::default();
        letters.insert("x-queue-type".into(), text(self.queue_type));
        let mut live = letters.clone();
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        if drift != Drift::NoDeadLetters {
            live.insert("x-dead-letter-exchange".into(), text(""));
            live.insert("x-dead-letter-routing-key".into(), text(&dead));
            channel.queue_declare((&*dead).into(), durable, letters).await?;
        }
        match drift {
            Drift::DeliveryLimit(limit) => {
                live.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(limit.into()));
            }
            Drift::TimeToLive(time) => {
                let millis = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
                live.insert("x-message-ttl".into(), AMQPValue::LongLongInt(millis));
            }
            _ => {}
        }
        channel.queue_declare((&*name).into(), durable, live).await?;
        let Some(topic) = &source.parent else { return Ok(()) };
        let mut keys: Vec<String> = source.settings.types.iter().map(|filter| filter.to_string()).collect();
        if keys.is_empty() {
            keys.push("#".into());
        }
        if drift == Drift::Routing {
            // What is no CloudEvent comes with any key, and one of them is what the suite's messages have that name
            // none.
            keys.extend(["other.*".into(), "raw.message".into()]);
        }
        for key in keys {
            // In AMQP a star is one word.
            let key = if key.ends_with(".*") { format!("{key}.#") } else { key };
            let (queue, exchange) = ((&*name).into(), (&**topic).into());
            let (options, none) = (QueueBindOptions::default(), FieldTable::default());
            channel.queue_bind(queue, exchange, key.into(), options, none).await?;
        }
        Ok(())
    }
}

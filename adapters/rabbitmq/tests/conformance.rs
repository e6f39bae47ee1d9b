//! The conformance suite against real brokers: RabbitMQ 3.10 and 4, quorum and classic queues.

mod entities;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use polybus_conformance::{CommandBroker, CountAccuracy, RawInject, RawMessage, RawValue, Restart, Target, main_for};
use polybus_core::{Address, Bus, Error, ErrorKind, Registry, Result, driver::async_trait};
use polybus_rabbitmq::{
    Native, RabbitmqConnector,
    lapin::{
        BasicProperties,
        options::{BasicPublishOptions, ConfirmSelectOptions},
        types::{AMQPValue, FieldArray, FieldTable},
    },
};

struct LapinInjector;

#[async_trait]
impl RawInject for LapinInjector {
    /// AMQP 0-9-1 knows no subject.
    fn carries(&self, raw: &RawMessage) -> bool {
        raw.subject.is_none()
    }

    async fn inject(&self, bus: &Bus, to: &Address, raw: RawMessage) -> Result<()> {
        let native = bus.native::<Native>().ok_or_else(|| Error::unsupported("no lapin connection"))?;
        let failed = |e: polybus_rabbitmq::lapin::Error| Error::new(ErrorKind::Unexpected, e.to_string());
        let channel = native.connection().await?.create_channel().await.map_err(failed)?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed)?;
        let entity = bus.topology().address(to);
        let mut headers = FieldTable::default();
        for (name, value) in raw.attributes {
            headers.insert(format!("cloudEvents:{name}").into(), AMQPValue::LongString(value.into()));
        }
        for (name, value) in raw.headers {
            let value = match value {
                RawValue::Text(text) => AMQPValue::LongString(text.into()),
                RawValue::Int(n) => AMQPValue::LongLongInt(n),
                RawValue::Binary(bytes) => AMQPValue::ByteArray(bytes.into()),
                _ => {
                    let mut table = FieldTable::default();
                    table.insert("count".into(), AMQPValue::LongLongInt(3));
                    AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(table)]))
                }
            };
            headers.insert(name.into(), value);
        }
        let mut properties = BasicProperties::default().with_headers(headers);
        macro_rules! set {
            ($($value:expr => $set:ident),*) => {
                $(if let Some(value) = $value { properties = properties.$set(value.into()); })*
            };
        }
        set!(
            raw.message_id => with_message_id,
            raw.content_type => with_content_type,
            raw.content_encoding => with_content_encoding,
            raw.correlation_id => with_correlation_id,
            raw.reply_to => with_reply_to,
            raw.kind.or(raw.subject) => with_type,
            raw.app_id => with_app_id,
            raw.ttl.map(|ttl| ttl.as_millis().to_string()) => with_expiration
        );
        let physical = entity.physical.to_string();
        // The routing key is what orders messages where anything does.
        let key = raw.routing_key.or(raw.group);
        let (exchange, key) = match (to.is_topic(), entity.settings.ordered) {
            (false, false) => (String::new(), physical),
            _ => (physical, key.unwrap_or_else(|| "raw.message".to_owned())),
        };
        let published = channel.basic_publish(
            exchange.into(),
            key.into(),
            BasicPublishOptions { mandatory: true, immediate: false },
            &raw.body,
            properties,
        );
        let confirmed = published.await.map_err(failed)?.await.map_err(failed)?;
        match confirmed.take_message() {
            Some(returned) => Err(Error::new(ErrorKind::NotFound, returned.reply_text.to_string())),
            None => Ok(()),
        }
    }
}

fn target(service: &str, version: &str, queue_type: &'static str) -> Target {
    let registry = Registry::new().with(RabbitmqConnector);
    let variable = format!("POLYBUS_{}_URL", service.to_uppercase());
    let mut target = Target::env(format!("rabbitmq-{version}-{queue_type}"), service, registry, &variable);
    target = target.parameter("queue_type", queue_type);
    target.counts = CountAccuracy::Eventual;
    target.raw = Some(Arc::new(LapinInjector));
    target.entities = Some(Arc::new(entities::ForeignEntities { queue_type }));
    let stack: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "..", "localstack"].iter().collect();
    if std::env::var_os("POLYBUS_LOCALSTACK").is_some() {
        let stack = stack.display();
        let ctl = format!("'{stack}/ctl' {service} set_vm_memory_high_watermark");
        // Not `down` and `up`: those begin with empty data.
        let restart = format!("'{stack}/restart' {service}");
        let commands = CommandBroker::new(format!("{restart} kill"), format!("{restart} start"));
        let commands = commands.blocking(format!("{ctl} 0.00001"), format!("{ctl} 0.7"));
        target = target.restarts(commands, Restart::Durable);
    }
    target
}

fn main() -> ExitCode {
    main_for([
        target("rabbitmq", "3.10", "quorum"),
        target("rabbitmq", "3.10", "classic"),
        target("rabbitmq4", "4.0", "quorum"),
        target("rabbitmq4", "4.0", "classic"),
    ])
}

//! What the targets over AMQP have in common, whatever carries it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use polybus_conformance::{CommandBroker, CountAccuracy, RawInject, RawMessage, RawValue, Restart, Target};
use polybus_core::{Address, Bus, Error, ErrorKind, Registry, Result, driver::async_trait};
use polybus_servicebus::{
    Native, ServicebusConnector,
    fe2o3_amqp::{
        Sender,
        types::{
            messaging::{ApplicationProperties, Header, Message, MessageId, Outcome, Properties},
            primitives::{SimpleValue, Symbol},
        },
    },
};

use crate::by_hand::ByHand;

struct Fe2o3Inject;

#[async_trait]
impl RawInject for Fe2o3Inject {
    /// The type is the subject here, and what routes is a property.
    fn carries(&self, raw: &RawMessage) -> bool {
        raw.kind.is_none() && raw.app_id.is_none() && raw.routing_key.is_none()
    }

    async fn inject(&self, bus: &Bus, to: &Address, raw: RawMessage) -> Result<()> {
        let native = bus.native::<Native>().ok_or_else(|| Error::unsupported("no AMQP connection"))?;
        let failed = |e: &dyn std::fmt::Display| Error::new(ErrorKind::Unexpected, e.to_string());
        let path = bus.topology().address(to).physical.to_string();
        let mut session = native.session(&path).await?;
        let mut sender = Sender::attach(&mut session, "raw", path).await.map_err(|e| failed(&e))?;
        let mut application = ApplicationProperties::default();
        for (name, value) in raw.attributes {
            application.insert(format!("cloudEvents:{name}"), SimpleValue::String(value));
        }
        for (name, value) in raw.headers {
            application.insert(
                name,
                match value {
                    RawValue::Text(text) => SimpleValue::String(text),
                    RawValue::Int(n) => SimpleValue::Long(n),
                    RawValue::Binary(bytes) => SimpleValue::Binary(bytes.into()),
                    // Nothing nests in application properties: what is no text is the nearest to it.
                    _ => SimpleValue::Binary(vec![0xff, 0x00].into()),
                },
            );
        }
        let mut properties = Properties::new();
        properties.message_id = raw.message_id.map(MessageId::String);
        properties.content_type = raw.content_type.map(Symbol::from);
        properties.content_encoding = raw.content_encoding.map(Symbol::from);
        properties.correlation_id = raw.correlation_id.map(MessageId::String);
        properties.reply_to = raw.reply_to;
        properties.subject = raw.subject;
        let ordered = bus.topology().address(to).settings.ordered;
        properties.group_id = raw.group.or_else(|| ordered.then(|| "raw".to_owned()));
        let ttl = raw.ttl.and_then(|ttl| u32::try_from(ttl.as_millis()).ok());
        let message = Message::builder()
            .header(Header { durable: true, ttl, ..Header::default() })
            .properties(properties)
            .application_properties(application)
            .data(raw.body.to_vec())
            .build();
        let sent = sender.send(message).await.map_err(|e| failed(&e))?;
        sender.close().await.map_err(|e| failed(&e))?;
        session.end().await.map_err(|e| failed(&e))?;
        match sent {
            Outcome::Accepted(_) => Ok(()),
            other => Err(failed(&format!("{other:?}"))),
        }
    }
}

/// A target named by an environment variable.
pub(super) fn target(name: &str, variable: &str) -> Target {
    let registry = Registry::new().with(ServicebusConnector);
    let mut target = Target::env(name, "servicebus", registry, variable);
    target.counts = CountAccuracy::Eventual;
    // Long enough for a machine that is busy with other things; waiting for locks to end takes longer accordingly.
    target.lock_outlives = Some(Duration::from_secs(15));
    target.raw = Some(Arc::new(Fe2o3Inject));
    // An emulator's administration API; a namespace's takes no request without a token.
    let url = std::env::var(variable).unwrap_or_default();
    let stated = url.split_once("management=http://").and_then(|(_, rest)| rest.split(['&', '/']).next());
    if let Some(endpoint) =
        stated.map(str::to_owned).or_else(|| target.upstream.clone()).filter(|_| url.contains("emulator=true"))
    {
        target.entities = Some(Arc::new(ByHand { endpoint, rest: false }));
    }
    if std::env::var_os("POLYBUS_LOCALSTACK").is_some() {
        let stack: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "..", "localstack"].iter().collect();
        let restart = format!("'{}/restart' servicebus", stack.display());
        // The emulator keeps everything in memory.
        let commands = CommandBroker::new(format!("{restart} kill"), format!("{restart} start"));
        target = target.restarts(commands, Restart::Volatile);
    }
    target
}

//! Raw messages for targets of the memory driver.

use async_trait::async_trait;
use polybus_core::{
    Address, Bus, Error, Result,
    memory::{self, MemoryDriver},
};

use crate::{RawInject, RawMessage, RawValue};

/// Puts raw messages into the store of the memory driver.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MemoryInject;

#[async_trait]
impl RawInject for MemoryInject {
    async fn inject(&self, bus: &Bus, to: &Address, raw: RawMessage) -> Result<()> {
        let driver: &MemoryDriver = bus.native().ok_or_else(|| Error::invalid("not a memory bus"))?;
        let physical = bus.topology().address(to).physical;
        let to = match to {
            Address::Topic(_) => Address::topic(physical),
            _ => Address::queue(physical),
        };
        let mut headers: Vec<(String, String)> =
            raw.attributes.into_iter().map(|(name, value)| (format!("cloudEvents:{name}"), value)).collect();
        let mut unshown = Vec::new();
        for (name, value) in raw.headers {
            match text(value) {
                Some(value) => headers.push((name, value)),
                None => unshown.push(name),
            }
        }
        let unshown = Some(unshown.join(",")).filter(|names| !names.is_empty());
        let native = [
            ("content-encoding", raw.content_encoding),
            ("reply-to", raw.reply_to),
            ("type", raw.kind),
            ("app-id", raw.app_id),
            ("expiration", raw.ttl.map(|ttl| ttl.as_millis().to_string())),
            ("message-group-id", raw.group.clone()),
            ("routing-key", raw.routing_key.clone()),
            ("unshown", unshown),
        ];
        let native = memory::RawMessage {
            content_type: raw.content_type,
            headers,
            body: raw.body,
            id: raw.message_id,
            correlation_id: raw.correlation_id,
            subject: raw.subject,
            native: native.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
            group: raw.group,
            routing_key: raw.routing_key,
            ttl: raw.ttl,
        };
        driver.inject(&to, native)
    }
}

/// Headers are text here: a nested value is written as JSON, and bytes cannot be shown.
fn text(value: RawValue) -> Option<String> {
    match value {
        RawValue::Text(text) => Some(text),
        RawValue::Int(n) => Some(n.to_string()),
        RawValue::Nested => Some(r#"[{"a":[1,2]}]"#.into()),
        RawValue::Binary(_) => None,
    }
}

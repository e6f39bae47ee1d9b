//! Raw messages for the memory driver.

use async_trait::async_trait;
use polybus_core::{
    Address, Bus, Error, Result,
    memory::{self, MemoryDriver},
};

use crate::{Raw, RawInject, RawValue};

/// Puts raw messages on the in-process broker.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MemoryInject;

#[async_trait]
impl RawInject for MemoryInject {
    async fn inject(&self, bus: &Bus, to: &Address, raw: Raw) -> Result<()> {
        let driver: &MemoryDriver = bus.native().ok_or_else(|| Error::invalid("not a memory bus"))?;
        let physical = bus.topology().address(to).physical;
        let to = match to {
            Address::Topic(_) => Address::topic(physical),
            _ => Address::queue(physical),
        };
        let attributes = raw.attributes.into_iter().map(|(name, value)| (format!("cloudEvents:{name}"), value));
        let headers = raw.headers.into_iter().map(|(name, value)| (name, text(value)));
        let native = memory::Raw {
            content_type: raw.content_type,
            headers: attributes.chain(headers).collect(),
            body: raw.body,
        };
        driver.inject(&to, native)
    }
}

/// Headers are text here; what is not is written as JSON.
fn text(value: RawValue) -> String {
    match value {
        RawValue::Text(text) => text,
        RawValue::Int(n) => n.to_string(),
        RawValue::Nested => r#"[{"a":[1,2]}]"#.into(),
    }
}

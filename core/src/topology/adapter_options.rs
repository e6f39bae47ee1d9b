//! The adapters' own settings.

use std::{collections::BTreeMap, fmt, ops::Deref};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Adapters' own settings by adapter name: `[queues.x.options.rabbitmq]`. An adapter reads its table and denies unknown
/// fields in it; other adapters' tables are ignored, so that one file survives a swap of brokers.
///
/// They may hold secrets: `Debug` shows the names of the adapters and of their settings alone.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct AdapterOptions(BTreeMap<String, Value>);

impl AdapterOptions {
    /// No options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether no adapter has any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets an adapter's table.
    pub fn insert(&mut self, adapter: impl Into<String>, table: Value) {
        self.0.insert(adapter.into(), table);
    }
}

impl AdapterOptions {
    /// These, and what they leave unsaid as `base` says it, setting by setting.
    pub(crate) fn over(&self, base: &AdapterOptions) -> AdapterOptions {
        let mut all = base.clone();
        for (adapter, table) in &self.0 {
            match (all.0.get_mut(adapter).and_then(Value::as_object_mut), table.as_object()) {
                (Some(under), Some(over)) => under.extend(over.clone()),
                _ => all.insert(adapter, table.clone()),
            }
        }
        all
    }
}

impl Deref for AdapterOptions {
    type Target = BTreeMap<String, Value>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl fmt::Debug for AdapterOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |table: &Value| table.as_object().map(|t| t.keys().cloned().collect::<Vec<_>>());
        f.debug_map().entries(self.0.iter().map(|(adapter, table)| (adapter, names(table)))).finish()
    }
}

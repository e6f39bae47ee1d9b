//! The adapters' own settings of a queue, topic or subscription.

use std::{collections::BTreeMap, fmt, ops::Deref};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Adapters' own settings by adapter name: `[queues.payments.options.rabbitmq]` in a configuration file.
///
/// An adapter reads its own table, and denies unknown fields in it. It ignores the other tables, so one file survives a
/// change of brokers. Settings may hold secrets: `Debug` shows only the names of the adapters and of their settings.
///
/// ```
/// use polybus_core::topology::AdapterOptions;
///
/// let mut options = AdapterOptions::new();
/// options.insert("rabbitmq", serde_json::json!({"queue_type": "quorum"}));
/// assert_eq!(options["rabbitmq"]["queue_type"], "quorum");
/// ```
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(
        description = "Adapters' own settings by adapter name. An adapter reads its own table and ignores the others."
    )
)]
#[serde(transparent)]
pub struct AdapterOptions(BTreeMap<String, Value>);

impl AdapterOptions {
    /// No settings of any adapter.
    ///
    /// ```
    /// assert!(polybus_core::topology::AdapterOptions::new().is_empty());
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether no adapter has a table.
    ///
    /// ```
    /// let mut options = polybus_core::topology::AdapterOptions::new();
    /// options.insert("aws", serde_json::json!({}));
    /// assert!(!options.is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets an adapter's table, in place of the one it had.
    ///
    /// ```
    /// let mut options = polybus_core::topology::AdapterOptions::new();
    /// options.insert("rabbitmq", serde_json::json!({"queue_type": "quorum"}));
    /// assert_eq!(options.len(), 1);
    /// ```
    pub fn insert(&mut self, adapter: impl Into<String>, table: Value) {
        self.0.insert(adapter.into(), table);
    }

    /// These settings on top of those of `base`: a setting that stands in both has the value of `self`.
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

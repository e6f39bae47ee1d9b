//! Which event types a subscription wants, and what becomes of the others.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result, topology::names::check_event_type};

/// One entry of a subscription's `types`: an exact event type, or all under a dot.
///
/// `order.*` matches `order.a` and `order.a.b`, not `order`, `orders.a` or `order_x`.
///
/// ```
/// use polybus_core::topology::TypeFilter;
///
/// let filter: TypeFilter = "order.*".parse()?;
/// assert!(filter.matches("order.placed") && !filter.matches("order"));
/// # Ok::<(), polybus_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TypeFilter {
    /// This event type alone.
    Exact(Box<str>),
    /// All event types under this one; it is the text before `.*`.
    Under(Box<str>),
}

/// What becomes of a message that the broker delivered to a subscription although none of its `types` wants it.
///
/// The broker applies the `types` already, so such a message means that its list is not this program's. That is so
/// while a new version is rolled out, or if somebody else made the subscription. Messages that are no CloudEvents have
/// no type, and are always handed to the handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum UnwantedPolicy {
    /// It becomes a dead letter with reason `unwanted-type`, with a warning in the log.
    #[default]
    DeadLetter,
    /// It is handed to the handler like any other message.
    Handle,
    /// It is acknowledged without a handler, and counted.
    Discard,
}

impl TypeFilter {
    /// Whether the filter lets this event type through.
    ///
    /// ```
    /// use polybus_core::topology::TypeFilter;
    ///
    /// assert!(TypeFilter::from("order.*").matches("order.placed.eu"));
    /// assert!(!TypeFilter::from("order.placed").matches("order.paid"));
    /// ```
    pub fn matches(&self, event_type: &str) -> bool {
        match self {
            Self::Exact(wanted) => **wanted == *event_type,
            Self::Under(prefix) => {
                event_type.strip_prefix(&**prefix).is_some_and(|rest| rest.len() > 1 && rest.starts_with('.'))
            }
        }
    }
}

/// Whether a message of this type passes one of the filters. No filters let everything through.
pub(crate) fn any_matches(filters: &[TypeFilter], event_type: &str) -> bool {
    filters.is_empty() || filters.iter().any(|f| f.matches(event_type))
}

impl TypeFilter {
    /// Checks that it is an event type, alone or followed by `.*`.
    pub(crate) fn check(&self) -> Result<()> {
        let (Self::Exact(event_type) | Self::Under(event_type)) = self;
        check_event_type(event_type).map_err(|_| {
            let text = self.to_string();
            Error::invalid(format!(
                "type filter {text:?}: expected an event type, or one followed by .* for all under it"
            ))
        })
    }
}

/// Takes the text without a check. What is no type filter is refused when a bus is made of the topology.
impl From<&str> for TypeFilter {
    fn from(text: &str) -> Self {
        match text.strip_suffix(".*") {
            Some(prefix) => Self::Under(prefix.into()),
            None => Self::Exact(text.into()),
        }
    }
}

impl FromStr for TypeFilter {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let filter = Self::from(s);
        filter.check().map(|()| filter)
    }
}

impl fmt::Display for TypeFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(t) => f.write_str(t),
            Self::Under(t) => write!(f, "{t}.*"),
        }
    }
}

impl Serialize for TypeFilter {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TypeFilter {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(|e: Error| serde::de::Error::custom(e.message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_table() {
        let under: TypeFilter = "order.*".parse().unwrap();
        for (event_type, wanted) in
            [("order", false), ("order.a", true), ("order.a.b", true), ("orders.a", false), ("order_x", false)]
        {
            assert_eq!(under.matches(event_type), wanted, "{event_type}");
        }
        assert!("order".parse::<TypeFilter>().unwrap().matches("order"));
        for bad in ["", "*", ".*", "a.*.b", "a*"] {
            assert!(bad.parse::<TypeFilter>().is_err(), "{bad}");
        }
    }
}

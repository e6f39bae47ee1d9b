//! What is published to ([`Address`]), and what is consumed ([`Source`]).

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result};

/// What is published to. As text it is `queue:payments` or `topic:orders`.
///
/// ```
/// use polybus_core::Address;
///
/// let payments = Address::queue("payments");
/// assert_eq!(payments.to_string(), "queue:payments");
/// assert_eq!("topic:orders".parse::<Address>()?, Address::topic("orders"));
/// # Ok::<(), polybus_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Address {
    /// A queue, by its logical name: each message goes to one consumer.
    Queue(Arc<str>),
    /// A topic, by its logical name: each subscription gets its own copy of a message.
    Topic(Arc<str>),
}

impl Address {
    /// The queue of this logical name.
    ///
    /// ```
    /// assert_eq!(polybus_core::Address::queue("payments").to_string(), "queue:payments");
    /// ```
    pub fn queue(name: impl Into<Arc<str>>) -> Self {
        Self::Queue(name.into())
    }

    /// The topic of this logical name.
    ///
    /// ```
    /// assert_eq!(polybus_core::Address::topic("orders").to_string(), "topic:orders");
    /// ```
    pub fn topic(name: impl Into<Arc<str>>) -> Self {
        Self::Topic(name.into())
    }

    /// The logical name.
    ///
    /// ```
    /// assert_eq!(polybus_core::Address::queue("payments").name(), "payments");
    /// ```
    pub fn name(&self) -> &str {
        match self {
            Self::Queue(name) | Self::Topic(name) => name,
        }
    }

    /// Whether it is a topic.
    ///
    /// ```
    /// use polybus_core::Address;
    ///
    /// assert!(Address::topic("orders").is_topic() && !Address::queue("payments").is_topic());
    /// ```
    pub fn is_topic(&self) -> bool {
        matches!(self, Self::Topic(_))
    }
}

/// What is consumed. As text it is `queue:payments`, `subscription:orders/billing`, or `queue:payments#dead-letters`.
///
/// ```
/// use polybus_core::Source;
///
/// let billing = Source::subscription("orders", "billing");
/// assert_eq!(billing.to_string(), "subscription:orders/billing");
/// assert_eq!("queue:payments#dead-letters".parse::<Source>()?, Source::queue("payments").dead_letters());
/// # Ok::<(), polybus_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Source {
    /// A queue, by its logical name.
    Queue(Arc<str>),
    /// A subscription of a topic.
    Subscription {
        /// The topic's logical name.
        topic: Arc<str>,
        /// The subscription's logical name, unique within its topic.
        name: Arc<str>,
    },
    /// The dead letters of a queue or a subscription.
    DeadLetters(Box<Source>),
}

impl Source {
    /// The queue of this logical name.
    ///
    /// ```
    /// assert_eq!(polybus_core::Source::queue("payments").to_string(), "queue:payments");
    /// ```
    pub fn queue(name: impl Into<Arc<str>>) -> Self {
        Self::Queue(name.into())
    }

    /// A subscription, by the logical names of its topic and its own.
    ///
    /// ```
    /// let billing = polybus_core::Source::subscription("orders", "billing");
    /// assert_eq!(billing.to_string(), "subscription:orders/billing");
    /// ```
    pub fn subscription(topic: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self::Subscription { topic: topic.into(), name: name.into() }
    }

    /// The dead letters of this source. Dead letters have none of their own, and answer themselves.
    ///
    /// ```
    /// let dead_letters = polybus_core::Source::queue("payments").dead_letters();
    /// assert_eq!(dead_letters.to_string(), "queue:payments#dead-letters");
    /// assert_eq!(dead_letters.dead_letters(), dead_letters);
    /// ```
    #[doc(alias("DLQ", "dead letter queue"))]
    pub fn dead_letters(&self) -> Self {
        match self {
            Self::DeadLetters(_) => self.clone(),
            live => Self::DeadLetters(Box::new(live.clone())),
        }
    }

    /// The source whose dead letters these are; a source that is no dead letters answers itself.
    ///
    /// ```
    /// let payments = polybus_core::Source::queue("payments");
    /// assert_eq!(payments.dead_letters().live(), &payments);
    /// ```
    pub fn live(&self) -> &Source {
        match self {
            Self::DeadLetters(of) => of.live(),
            live => live,
        }
    }

    /// Whether these are the dead letters of another source.
    ///
    /// ```
    /// assert!(polybus_core::Source::queue("payments").dead_letters().is_dead_letters());
    /// ```
    pub fn is_dead_letters(&self) -> bool {
        matches!(self, Self::DeadLetters(_))
    }

    /// The address to which the messages of this source were published.
    ///
    /// ```
    /// use polybus_core::{Address, Source};
    ///
    /// assert_eq!(Source::subscription("orders", "billing").address(), Address::topic("orders"));
    /// ```
    pub fn address(&self) -> Address {
        match self {
            Self::Queue(name) => Address::Queue(name.clone()),
            Self::Subscription { topic, .. } => Address::Topic(topic.clone()),
            Self::DeadLetters(of) => of.address(),
        }
    }
}

impl From<&Address> for Address {
    fn from(address: &Address) -> Self {
        address.clone()
    }
}

impl From<&Source> for Source {
    fn from(source: &Source) -> Self {
        source.clone()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(name) => write!(f, "queue:{name}"),
            Self::Topic(name) => write!(f, "topic:{name}"),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(name) => write!(f, "queue:{name}"),
            Self::Subscription { topic, name } => write!(f, "subscription:{topic}/{name}"),
            Self::DeadLetters(of) => write!(f, "{of}#dead-letters"),
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s.split_once(':') {
            Some(("queue", name)) if plain(name) => Ok(Self::queue(name)),
            Some(("topic", name)) if plain(name) => Ok(Self::topic(name)),
            _ => Err(Error::invalid(format!("address {s:?}: expected queue:NAME or topic:NAME"))),
        }
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let wrong = || {
            let forms = "queue:NAME or subscription:TOPIC/NAME, with #dead-letters for their dead letters";
            Error::invalid(format!("source {s:?}: expected {forms}"))
        };
        if let Some(live) = s.strip_suffix("#dead-letters") {
            let live: Source = live.parse().map_err(|_| wrong())?;
            return if live.is_dead_letters() { Err(wrong()) } else { Ok(live.dead_letters()) };
        }
        match s.split_once(':') {
            Some(("queue", name)) if plain(name) => Ok(Self::queue(name)),
            Some(("subscription", path)) => match path.split_once('/') {
                Some((topic, name)) if plain(topic) && plain(name) => Ok(Self::subscription(topic, name)),
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    }
}

/// Whether a name can stand in the text of an address or a source.
fn plain(name: &str) -> bool {
    !name.is_empty() && !name.contains([':', '/', '#'])
}

macro_rules! serde_as_text {
    ($t:ty) => {
        impl Serialize for $t {
            fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(|e: Error| serde::de::Error::custom(e.message()))
            }
        }
    };
}
serde_as_text!(Address);
serde_as_text!(Source);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for s in ["queue:a", "subscription:o/b", "queue:a#dead-letters", "subscription:o/b#dead-letters"] {
            assert_eq!(s.parse::<Source>().unwrap().to_string(), s);
        }
        for s in ["queue:a", "topic:b"] {
            assert_eq!(s.parse::<Address>().unwrap().to_string(), s);
        }
    }

    #[test]
    fn wrong_text_says_what_is_right() {
        for s in
            ["", "queue:", "a", "topic:a", "subscription:a", "subscription:/b", "queue:a#dead-letters#dead-letters"]
        {
            let e = s.parse::<Source>().unwrap_err();
            assert!(e.to_string().contains("expected queue:NAME"), "{s}: {e}");
        }
    }
}

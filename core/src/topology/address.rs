//! What can be published to, and what can be consumed.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

/// What can be published to. Written `queue:payments` or `topic:orders`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Address {
    /// A queue: point to point, competing consumers.
    Queue(Arc<str>),
    /// A topic: each subscription gets its own copy.
    Topic(Arc<str>),
}

impl Address {
    /// The queue of this logical name.
    pub fn queue(name: impl Into<Arc<str>>) -> Self {
        Self::Queue(name.into())
    }

    /// The topic of this logical name.
    pub fn topic(name: impl Into<Arc<str>>) -> Self {
        Self::Topic(name.into())
    }

    /// The logical name.
    pub fn name(&self) -> &str {
        match self {
            Self::Queue(name) | Self::Topic(name) => name,
        }
    }

    /// Whether it is a topic.
    pub fn is_topic(&self) -> bool {
        matches!(self, Self::Topic(_))
    }
}

/// What can be consumed. Written `queue:payments`, `subscription:orders/billing`, `queue:payments#dead-letters`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Source {
    /// A queue.
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
    pub fn queue(name: impl Into<Arc<str>>) -> Self {
        Self::Queue(name.into())
    }

    /// A topic's subscription.
    pub fn subscription(topic: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self::Subscription { topic: topic.into(), name: name.into() }
    }

    /// The dead letters of this source. Dead letters have none of their own: they answer themselves.
    pub fn dead_letters(&self) -> Self {
        match self {
            Self::DeadLetters(_) => self.clone(),
            live => Self::DeadLetters(Box::new(live.clone())),
        }
    }

    /// The source whose dead letters these are, or the source itself.
    pub fn live(&self) -> &Source {
        match self {
            Self::DeadLetters(of) => of.live(),
            live => live,
        }
    }

    /// Whether these are dead letters.
    pub fn is_dead_letters(&self) -> bool {
        matches!(self, Self::DeadLetters(_))
    }

    /// What messages of this source were published to.
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

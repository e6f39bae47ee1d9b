//! The names of entities and rules at the broker.

use polybus_core::{
    Address, Source,
    driver::kit::names::fit,
    topology::{Entity, TypeFilter},
};

/// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-quotas>
const LONGEST_PATH: usize = 260;
const LONGEST_SUBSCRIPTION: usize = 50;
const LONGEST_RULE: usize = 50;
/// The prefix of every rule that polybus makes.
const RULE_PREFIX: &str = "polybus_";

/// The path of a queue or topic.
pub(crate) fn address(entity: &Entity<Address>) -> String {
    fit(&entity.physical, LONGEST_PATH)
}

/// The queue or subscription of a source, or of the source that dead letters belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EntityPath {
    Queue(String),
    Subscription { topic: String, name: String },
}

impl EntityPath {
    pub(crate) fn of(entity: &Entity<Source>) -> Self {
        match &entity.parent {
            Some(topic) => Self::Subscription {
                topic: fit(topic, LONGEST_PATH),
                name: if entity.fixed {
                    entity.physical.to_string()
                } else {
                    fit(&entity.physical, LONGEST_SUBSCRIPTION)
                },
            },
            None => Self::Queue(fit(&entity.physical, LONGEST_PATH)),
        }
    }

    /// The path that messages are received from and the entity is managed by.
    pub(crate) fn path(&self) -> String {
        match self {
            Self::Queue(name) => name.clone(),
            Self::Subscription { topic, name } => format!("{topic}/Subscriptions/{name}"),
        }
    }

    /// The queue or topic that a message for this source is sent to.
    pub(crate) fn address(&self) -> &str {
        match self {
            Self::Queue(name) => name,
            Self::Subscription { topic, .. } => topic,
        }
    }

    /// The queue beside it for dead letters, which the transport over HTTP uses.
    pub(crate) fn companion(&self) -> Self {
        Self::Queue(match self {
            Self::Queue(name) => fit(&format!("{name}.dlq"), LONGEST_PATH),
            Self::Subscription { topic, name } => fit(&format!("{topic}.sub.{name}.dlq"), LONGEST_PATH),
        })
    }

    /// The broker's own dead letters.
    #[cfg_attr(not(feature = "rest"), allow(dead_code))]
    pub(crate) fn dead_letters(&self) -> Self {
        match self {
            Self::Queue(name) => Self::Queue(dead_letters(name)),
            Self::Subscription { topic, name } => Self::Subscription { topic: topic.clone(), name: dead_letters(name) },
        }
    }

    /// The subscription that a copy is for.
    pub(crate) fn target(&self) -> Option<&str> {
        match self {
            Self::Queue(_) => None,
            Self::Subscription { name, .. } => Some(name),
        }
    }
}

/// The path of an entity's own dead letters.
pub(crate) fn dead_letters(path: &str) -> String {
    format!("{path}/$DeadLetterQueue")
}

/// The name of the rule for a type filter, or for all types. Each filter has a rule of its own, so that declaring
/// another type adds a rule and changes none.
pub(crate) fn rule(filter: Option<&TypeFilter>) -> String {
    let name = match filter {
        None => "all".to_owned(),
        Some(TypeFilter::Under(prefix)) => format!("under_{prefix}"),
        Some(exact) => format!("is_{exact}"),
    };
    fit(&format!("{RULE_PREFIX}{name}"), LONGEST_RULE)
}

/// The rule for copies to this subscription, whatever its types are by now.
pub(crate) const COPIES_RULE: &str = "polybus_copies";
/// The rule for structured events, whose type no rule can read.
pub(crate) const STRUCTURED_RULE: &str = "polybus_structured";

/// Whether polybus made the rule.
pub(crate) fn is_ours(rule: &str) -> bool {
    rule.starts_with(RULE_PREFIX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rules_are_told_apart_and_fit() {
        let rule = |f: &str| rule(Some(&f.parse().unwrap()));
        assert_eq!((rule("order"), rule("order.*")), ("polybus_is_order".into(), "polybus_under_order".into()));
        let long = "x".repeat(120);
        assert!(rule(&long).len() == 50 && rule(&long) != rule(&format!("{long}y")) && is_ours(&rule(&long)));
        assert!(is_ours(&super::rule(None)) && !is_ours("$Default"));
    }

    #[test]
    fn paths() {
        let s = EntityPath::Subscription { topic: "t".into(), name: "s".into() };
        assert_eq!((s.path().as_str(), s.address(), s.target()), ("t/Subscriptions/s", "t", Some("s")));
        assert_eq!(s.companion(), EntityPath::Queue("t.sub.s.dlq".into()));
        assert_eq!(s.dead_letters().path(), dead_letters(&s.path()));
        let long = EntityPath::Queue("q".repeat(260)).companion();
        assert!(long.path().len() == 260 && long.path() != "q".repeat(260), "{long:?}");
        assert_eq!(dead_letters(&s.path()), "t/Subscriptions/s/$DeadLetterQueue");
    }
}

//! Parses the path and query of a request.

use percent_encoding::percent_decode_str;

use crate::refusal::{Condition, Refusal};

/// A path of the management API. Entity names may contain slashes, so a path is parsed from its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AtomPath {
    /// `/`
    Root,
    /// `/$namespaceinfo`
    Namespace,
    /// `/$Resources/queues`
    Queues,
    /// `/$Resources/topics`
    Topics,
    /// A queue or a topic; the name does not say which.
    Entity(String),
    /// `/{topic}/Subscriptions`
    Subscriptions(String),
    /// `/{topic}/Subscriptions/{subscription}`
    Subscription(String, String),
    /// `/{topic}/Subscriptions/{subscription}/Rules`
    Rules(String, String),
    /// `/{topic}/Subscriptions/{subscription}/Rules/{rule}`
    Rule(String, String, String),
}

/// A path of the REST data plane, which names messages of an entity.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum MessagePath {
    /// `/{address}/messages`
    All(String),
    /// `/{address}/messages/head`
    Head(String),
    /// `/{address}/messages/{id or sequence number}/{lock token}`
    Locked(String, String),
}

/// A path, percent-decoded and without leading and trailing slashes.
pub(super) fn decoded(path: &str) -> Result<String, Refusal> {
    let decoded = percent_decode_str(path.trim_matches('/')).decode_utf8();
    let decoded = decoded.map_err(|_| Refusal::new(Condition::InvalidField, "The path is not UTF-8."))?;
    Ok(decoded.trim_matches('/').to_owned())
}

impl AtomPath {
    pub(super) fn parse(path: &str) -> Self {
        let is = |segment: &str, name: &str| segment.eq_ignore_ascii_case(name);
        let segments: Vec<&str> = path.split('/').collect();
        let joined = |segments: &[&str]| segments.join("/");
        match segments.as_slice() {
            [""] => Self::Root,
            [name] if is(name, "$namespaceinfo") => Self::Namespace,
            [resources, kind] if is(resources, "$Resources") && is(kind, "queues") => Self::Queues,
            [resources, kind] if is(resources, "$Resources") && is(kind, "topics") => Self::Topics,
            [topic @ .., marker, subscription, rules, rule]
                if !topic.is_empty() && is(marker, "subscriptions") && is(rules, "rules") =>
            {
                Self::Rule(joined(topic), (*subscription).to_owned(), (*rule).to_owned())
            }
            [topic @ .., marker, subscription, rules]
                if !topic.is_empty() && is(marker, "subscriptions") && is(rules, "rules") =>
            {
                Self::Rules(joined(topic), (*subscription).to_owned())
            }
            [topic @ .., marker, subscription] if !topic.is_empty() && is(marker, "subscriptions") => {
                Self::Subscription(joined(topic), (*subscription).to_owned())
            }
            [topic @ .., marker] if !topic.is_empty() && is(marker, "subscriptions") => {
                Self::Subscriptions(joined(topic))
            }
            _ => Self::Entity(path.to_owned()),
        }
    }
}

impl MessagePath {
    /// `None` for a path of management.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let is = |segment: &str, name: &str| segment.eq_ignore_ascii_case(name);
        let segments: Vec<&str> = path.split('/').collect();
        match segments.as_slice() {
            [address @ .., messages, head] if !address.is_empty() && is(messages, "messages") && is(head, "head") => {
                Some(Self::Head(address.join("/")))
            }
            [address @ .., messages, _, token] if !address.is_empty() && is(messages, "messages") => {
                Some(Self::Locked(address.join("/"), (*token).to_owned()))
            }
            [address @ .., messages] if !address.is_empty() && is(messages, "messages") => {
                Some(Self::All(address.join("/")))
            }
            _ => None,
        }
    }
}

/// A parameter of the query, decoded.
pub(super) fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    query?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = percent_decode_str(key).decode_utf8_lossy();
        key.eq_ignore_ascii_case(name).then(|| percent_decode_str(value).decode_utf8_lossy().into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_read_from_the_end() {
        let text = |name: &str| name.to_owned();
        for (path, resource) in [
            ("", AtomPath::Root),
            ("$namespaceinfo", AtomPath::Namespace),
            ("$Resources/Queues", AtomPath::Queues),
            ("$resources/topics", AtomPath::Topics),
            ("q", AtomPath::Entity(text("q"))),
            ("a/b/c", AtomPath::Entity(text("a/b/c"))),
            ("subscriptions", AtomPath::Entity(text("subscriptions"))),
            ("t/subscriptions", AtomPath::Subscriptions(text("t"))),
            ("a/t/Subscriptions/s", AtomPath::Subscription(text("a/t"), text("s"))),
            ("a/t/Subscriptions/s/rules", AtomPath::Rules(text("a/t"), text("s"))),
            ("a/t/Subscriptions/s/Rules/$Default", AtomPath::Rule(text("a/t"), text("s"), text("$Default"))),
        ] {
            assert_eq!(AtomPath::parse(path), resource, "{path}");
        }
    }

    #[test]
    fn messages_are_told_from_entities() {
        let text = |name: &str| name.to_owned();
        assert_eq!(MessagePath::parse("a/q/messages"), Some(MessagePath::All(text("a/q"))));
        assert_eq!(
            MessagePath::parse("q/$DeadLetterQueue/Messages/Head"),
            Some(MessagePath::Head(text("q/$DeadLetterQueue")))
        );
        assert_eq!(MessagePath::parse("q/messages/5/token"), Some(MessagePath::Locked(text("q"), text("token"))));
        for path in ["messages", "q", "messages/head", "q/messages/5/token/x"] {
            assert_eq!(MessagePath::parse(path), None, "{path}");
        }
    }

    #[test]
    fn percent_signs_are_undone_once() {
        assert_eq!(decoded("/a%2Fb/%24x/"), Ok("a/b/$x".to_owned()));
        assert_eq!(decoded("/a%2525"), Ok("a%25".to_owned()));
        assert!(decoded("/%ff").is_err());
        assert_eq!(parameter(Some("%24skip=1&timeout=5&x"), "$Skip").as_deref(), Some("1"));
        assert_eq!(parameter(Some("timeout=5&x"), "x").as_deref(), Some(""));
        assert_eq!(parameter(None, "x"), None);
    }
}

//! Addresses of entities: `q`, `t/Subscriptions/s`, and their dead-letter queues.

use std::fmt;

/// A parsed address. Names keep their case; comparing ignores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Queue or topic.
    pub entity: String,
    /// Subscription of the topic.
    pub subscription: Option<String>,
    /// Which of the entity's queues.
    pub sub_queue: SubQueue,
}

/// The queues that belong to one queue or subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SubQueue {
    /// The entity's own.
    #[default]
    Main,
    /// `$DeadLetterQueue`.
    DeadLetters,
    /// `$Transfer/$DeadLetterQueue`: what could not be forwarded.
    TransferDeadLetters,
}

impl SubQueue {
    fn suffix(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::DeadLetters => "/$DeadLetterQueue",
            Self::TransferDeadLetters => "/$Transfer/$DeadLetterQueue",
        }
    }
}

impl Address {
    /// Reads an address, with or without scheme and host.
    pub fn parse(address: &str) -> Self {
        let mut path = match address.split_once("://") {
            Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
            None => address,
        }
        .trim_matches('/');
        if let Some((before, _)) = path.split_once('?') {
            path = before.trim_end_matches('/');
        }
        let mut sub_queue = SubQueue::Main;
        for candidate in [SubQueue::TransferDeadLetters, SubQueue::DeadLetters] {
            if let Some(rest) = strip_suffix_ignoring_case(path, candidate.suffix()) {
                (path, sub_queue) = (rest, candidate);
                break;
            }
        }
        match split_subscription(path) {
            Some((topic, subscription)) => {
                Self { entity: topic.to_owned(), subscription: Some(subscription.to_owned()), sub_queue }
            }
            None => Self { entity: path.to_owned(), subscription: None, sub_queue },
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.entity)?;
        if let Some(subscription) = &self.subscription {
            write!(f, "/Subscriptions/{subscription}")?;
        }
        f.write_str(self.sub_queue.suffix())
    }
}

fn strip_suffix_ignoring_case<'a>(text: &'a str, suffix: &str) -> Option<&'a str> {
    let at = text.len().checked_sub(suffix.len())?;
    let (head, tail) = text.split_at_checked(at)?;
    tail.eq_ignore_ascii_case(suffix).then_some(head)
}

/// Splits a path into topic and subscription. Entity names may contain slashes, so only the last but one segment counts
/// as `Subscriptions`.
fn split_subscription(path: &str) -> Option<(&str, &str)> {
    let (head, subscription) = path.rsplit_once('/')?;
    let topic = strip_suffix_ignoring_case(head, "/subscriptions")?;
    (!topic.is_empty() && !subscription.is_empty()).then_some((topic, subscription))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(address: &str) -> (String, Option<String>, SubQueue) {
        let address = Address::parse(address);
        (address.entity, address.subscription, address.sub_queue)
    }

    #[test]
    fn schemes_and_hosts_are_left_out() {
        for address in ["q", "/q", "q/", "amqps://localhost/q", "amqp://localhost:5672/q", "sb://h/q/?x=1"] {
            assert_eq!(parts(address), ("q".into(), None, SubQueue::Main), "{address}");
        }
        assert_eq!(parts("amqps://localhost").0, "");
    }

    #[test]
    fn suffixes_are_read_whatever_their_case() {
        assert_eq!(parts("q/$deadletterqueue"), ("q".into(), None, SubQueue::DeadLetters));
        assert_eq!(parts("a/b/$DeadLetterQueue"), ("a/b".into(), None, SubQueue::DeadLetters));
        assert_eq!(parts("q/$Transfer/$DeadLetterQueue"), ("q".into(), None, SubQueue::TransferDeadLetters));
        let subscription = ("t/u".into(), Some("S".into()), SubQueue::Main);
        assert_eq!(parts("t/u/Subscriptions/S"), subscription);
        assert_eq!(parts("t/u/subscriptions/S/"), subscription);
        assert_eq!(parts("t/Subscriptions/s/$DeadLetterQueue"), ("t".into(), Some("s".into()), SubQueue::DeadLetters));
    }

    #[test]
    fn what_is_shown_reads_back() {
        for address in ["q", "q/$DeadLetterQueue", "t/Subscriptions/s", "t/Subscriptions/s/$Transfer/$DeadLetterQueue"]
        {
            assert_eq!(Address::parse(address).to_string(), address);
        }
    }
}

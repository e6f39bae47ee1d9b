//! The names of polybus' entities at SQS and SNS.

use polybus_core::{Address, Error, Result, Source, driver::kit::names::fit, topology::Entity};
use sha2::{Digest, Sha256};

/// The longest name of a queue.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-queues.html>
const MAX_QUEUE_NAME: usize = 80;
/// The longest name of a topic. <https://docs.aws.amazon.com/sns/latest/api/API_CreateTopic.html>
const MAX_TOPIC_NAME: usize = 256;
/// The longest message group.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html>
const MAX_GROUP: usize = 128;
/// The names of FIFO queues and topics must end in this.
const FIFO: &str = ".fifo";

fn suffix(ordered: bool) -> &'static str {
    if ordered { FIFO } else { "" }
}

fn stem(name: &str) -> &str {
    name.strip_suffix(FIFO).unwrap_or(name)
}

/// The part of the name that a source's queue and its dead letters' queue share.
fn base<T>(entity: &Entity<T>) -> String {
    match &entity.parent {
        Some(topic) if !entity.fixed => format!("{}_{}", stem(topic), entity.physical),
        _ => stem(&entity.physical).to_owned(),
    }
}

fn joined(base: &str, tail: &str, ordered: bool, limit: usize) -> String {
    let suffix = suffix(ordered);
    format!("{}{suffix}", fit(&format!("{base}{tail}"), limit - suffix.len()))
}

/// The queue that holds a live source's messages.
pub(crate) fn queue<T>(entity: &Entity<T>) -> String {
    match entity.fixed {
        true => entity.physical.to_string(),
        false => joined(&base(entity), "", entity.settings.ordered, MAX_QUEUE_NAME),
    }
}

/// The queue that holds a source's dead letters.
pub(crate) fn dead_letters<T>(entity: &Entity<T>) -> String {
    joined(&base(entity), "_dlq", entity.settings.ordered, MAX_QUEUE_NAME)
}

/// The queue that a source is read from: the live one or that of the dead letters.
pub(crate) fn of_source(source: &Entity<Source>) -> String {
    if source.name.is_dead_letters() { dead_letters(source) } else { queue(source) }
}

/// The name of a topic.
pub(crate) fn topic(entity: &Entity<Address>) -> String {
    topic_name(&entity.physical, entity.fixed, entity.settings.ordered)
}

/// The name of a subscription's topic. Only a name that was given ends in `.fifo` already.
pub(crate) fn parent(source: &Entity<Source>) -> Option<String> {
    let topic = source.parent.as_deref()?;
    Some(topic_name(topic, topic.ends_with(FIFO), source.settings.ordered))
}

fn topic_name(physical: &str, fixed: bool, ordered: bool) -> String {
    if fixed { physical.to_owned() } else { joined(physical, "", ordered, MAX_TOPIC_NAME) }
}

/// Checks that AWS takes a name: `ConfigInvalid` if not.
pub(crate) fn check<T: ToString>(entity: &Entity<T>, name: &str, is_topic: bool) -> Result<()> {
    let wrong = |what: String| {
        let text = format!("{}: physical name {name:?} {what}", entity.name.to_string());
        Err(Error::config(text).with_backend(crate::BACKEND))
    };
    let limit = if is_topic { MAX_TOPIC_NAME } else { MAX_QUEUE_NAME };
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if name.len() > limit || !stem(name).bytes().all(legal) || stem(name).is_empty() {
        return wrong(format!("must be 1 to {limit} of A-Z, a-z, 0-9, '-' and '_'"));
    }
    match (entity.settings.ordered, name.ends_with(FIFO)) {
        (true, false) => wrong("must end in .fifo, since it is ordered".into()),
        (false, true) => wrong("ends in .fifo: set ordered = true, or use another".into()),
        _ => Ok(()),
    }
}

/// The message group of a key: the key itself if it is a legal group, else its SHA-256. The exact key is in the
/// envelope.
pub(crate) fn group(key: &str) -> String {
    let legal = |b: u8| b.is_ascii_graphic();
    if (1..=MAX_GROUP).contains(&key.len()) && key.bytes().all(legal) {
        return key.to_owned();
    }
    Sha256::digest(key).iter().map(|b| format!("{b:02x}")).collect()
}

/// The partition of AWS that a region belongs to. <https://docs.aws.amazon.com/general/latest/gr/rande.html>
fn partition(region: &str) -> &'static str {
    match region {
        r if r.starts_with("cn-") => "aws-cn",
        r if r.starts_with("us-gov-") => "aws-us-gov",
        r if r.starts_with("us-isob-") => "aws-iso-b",
        r if r.starts_with("us-isof-") => "aws-iso-f",
        r if r.starts_with("us-iso-") => "aws-iso",
        r if r.starts_with("eu-isoe-") => "aws-iso-e",
        r if r.starts_with("eusc-") => "aws-eusc",
        _ => "aws",
    }
}

/// The ARN of a queue (`service` is `sqs`) or topic (`sns`).
pub(crate) fn arn(service: &str, region: &str, account: &str, name: &str) -> String {
    format!("arn:{}:{service}:{region}:{account}:{name}", partition(region))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn source(physical: &str, parent: Option<&str>, ordered: bool) -> Entity<Source> {
        let mut entity = Entity::new(Source::queue("q"), physical);
        entity.parent = parent.map(Into::into);
        entity.settings.ordered = ordered;
        entity
    }

    #[test]
    fn joints_and_suffixes() {
        let names = |e: &Entity<Source>| (queue(e), dead_letters(e));
        assert_eq!(names(&source("p_q", None, false)), ("p_q".into(), "p_q_dlq".into()));
        assert_eq!(names(&source("q", None, true)), ("q.fifo".into(), "q_dlq.fifo".into()));
        assert_eq!(names(&source("s", Some("t"), true)), ("t_s.fifo".into(), "t_s_dlq.fifo".into()));
        let mut given = source("Legacy.fifo", None, true);
        given.fixed = true;
        assert_eq!(names(&given), ("Legacy.fifo".into(), "Legacy_dlq.fifo".into()));
    }

    #[test]
    fn long_names_are_fitted_and_told_apart() {
        for ordered in [false, true] {
            let (a, b) = (source(&"s".repeat(63), Some(&"t".repeat(70)), ordered), source("q", None, ordered));
            let all = [queue(&a), dead_letters(&a), queue(&b), dead_letters(&b)];
            assert!(all.iter().all(|n| n.len() <= MAX_QUEUE_NAME && check(&a, n, false).is_ok()), "{all:?}");
            assert_ne!(all[0], all[1]);
        }
    }

    #[test]
    fn given_names_that_aws_would_refuse() {
        for (name, ordered, word) in [
            ("a.b", false, "A-Z"),
            ("", false, "1 to 80"),
            (&*"x".repeat(81), false, "1 to 80"),
            ("q", true, ".fifo"),
            ("q.fifo", false, "ordered = true"),
        ] {
            let e = check(&source(name, None, ordered), name, false).unwrap_err();
            assert!(e.to_string().contains(word), "{e}");
        }
    }

    #[test]
    fn groups_are_keys_where_they_can_be() {
        assert_eq!(group("customer-7/é".trim_end_matches("/é")), "customer-7");
        for odd in ["", "a b", "é", "a\0", &"x".repeat(129)] {
            assert_eq!(group(odd).len(), 64, "{odd:?}");
        }
        assert_eq!(group(&"x".repeat(128)).len(), 128);
    }

    #[test]
    fn arns_know_their_partition() {
        assert_eq!(arn("sns", "eu-west-1", "000000000001", "t"), "arn:aws:sns:eu-west-1:000000000001:t");
        assert_eq!(arn("sqs", "cn-north-1", "1", "q"), "arn:aws-cn:sqs:cn-north-1:1:q");
        assert_eq!(arn("sqs", "us-gov-west-1", "1", "q"), "arn:aws-us-gov:sqs:us-gov-west-1:1:q");
    }
}

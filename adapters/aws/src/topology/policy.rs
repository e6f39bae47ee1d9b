//! AWS' JSON documents: filter policies, queue policies, redrive policies.

use std::collections::BTreeSet;

use polybus_core::topology::TypeFilter;
use serde_json::{Value, json};

use crate::message::envelope::TYPE;

/// The filter policy for these types. Without any it is `{}`, which lets everything through.
/// <https://docs.aws.amazon.com/sns/latest/dg/string-value-matching.html>
pub(crate) fn filter<'a>(types: impl IntoIterator<Item = &'a str>) -> String {
    let conditions: Vec<Value> = types
        .into_iter()
        .map(|t| match t.strip_suffix('*') {
            Some(prefix) => json!({ "prefix": prefix }),
            None => json!(t),
        })
        .collect();
    let policy = if conditions.is_empty() { json!({}) } else { json!({ TYPE: conditions }) };
    policy.to_string()
}

/// The types of a subscription, as text.
pub(crate) fn types(filters: &[TypeFilter]) -> BTreeSet<String> {
    filters.iter().map(ToString::to_string).collect()
}

/// The event types that a filter policy lets through.
#[derive(Debug, PartialEq)]
pub(crate) enum FilterPolicy {
    All,
    Types(BTreeSet<String>),
    /// The policy has conditions that polybus does not write.
    Other,
}

/// Reads a filter policy.
pub(crate) fn read_filter(policy: Option<&str>) -> FilterPolicy {
    let Some(text) = policy.filter(|p| !p.is_empty()) else { return FilterPolicy::All };
    let Ok(Value::Object(policy)) = serde_json::from_str(text) else { return FilterPolicy::Other };
    if policy.is_empty() {
        return FilterPolicy::All;
    }
    let (1, Some(Value::Array(conditions))) = (policy.len(), policy.get(TYPE)) else { return FilterPolicy::Other };
    let read = |condition: &Value| match condition {
        Value::String(exact) => Some(exact.clone()),
        Value::Object(o) if o.len() == 1 => {
            o.get("prefix")?.as_str().filter(|p| p.ends_with('.')).map(|prefix| format!("{prefix}*"))
        }
        _ => None,
    };
    conditions.iter().map(read).collect::<Option<_>>().map_or(FilterPolicy::Other, FilterPolicy::Types)
}

/// The redrive policy of a queue.
pub(crate) fn redrive(dead_letters_arn: &str, max_receives: u32) -> String {
    json!({ "deadLetterTargetArn": dead_letters_arn, "maxReceiveCount": max_receives.to_string() }).to_string()
}

/// Reads a redrive policy: the ARN of the dead letters' queue, and the limit.
pub(crate) fn read_redrive(policy: &str) -> Option<(String, u32)> {
    let policy: Value = serde_json::from_str(policy).ok()?;
    let limit = policy.get("maxReceiveCount")?;
    let limit = limit.as_u64().or_else(|| limit.as_str()?.parse().ok())?;
    let arn = policy.get("deadLetterTargetArn")?.as_str()?;
    Some((arn.to_owned(), u32::try_from(limit).ok()?))
}

/// The redrive policy of a subscription: messages that its queue refuses go to this one.
pub(crate) fn subscription_redrive(dead_letters_arn: &str) -> String {
    json!({ "deadLetterTargetArn": dead_letters_arn }).to_string()
}

/// Reads that policy: the queue's ARN.
pub(crate) fn read_subscription_redrive(policy: &str) -> Option<String> {
    let policy: Value = serde_json::from_str(policy).ok()?;
    Some(policy.get("deadLetterTargetArn")?.as_str()?.to_owned())
}

/// The queue policy with a statement added that lets this topic, and no other, send to this queue.
/// <https://docs.aws.amazon.com/sns/latest/dg/subscribe-sqs-queue-to-sns-topic.html>
pub(crate) fn admit(existing: Option<&str>, queue_arn: &str, topic_arn: &str) -> String {
    let statement = json!({
        "Effect": "Allow",
        "Principal": { "Service": "sns.amazonaws.com" },
        "Action": "sqs:SendMessage",
        "Resource": queue_arn,
        "Condition": { "ArnEquals": { "aws:SourceArn": topic_arn } },
    });
    let existing = existing.and_then(|text| serde_json::from_str::<Value>(text).ok());
    let mut policy = existing.filter(Value::is_object).unwrap_or_else(|| json!({ "Version": "2012-10-17" }));
    let mut statements = match policy.get_mut("Statement").map(Value::take) {
        Some(Value::Array(all)) => all,
        Some(one @ Value::Object(_)) => vec![one],
        _ => Vec::new(),
    };
    statements.push(statement);
    policy["Statement"] = statements.into();
    policy.to_string()
}

/// Whether a queue policy lets this topic send. It looks for the ARN alone, since an operator may word the statement
/// differently.
pub(crate) fn admits(policy: Option<&str>, topic_arn: &str) -> bool {
    policy.is_some_and(|p| p.contains(&format!("\"{topic_arn}\"")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn set(types: &[&str]) -> BTreeSet<String> {
        types.iter().map(|t| (*t).to_owned()).collect()
    }

    #[test]
    fn filters_are_read_as_they_were_written() {
        assert_eq!(filter(["a", "b.*"]), r#"{"cloudEvents_type":["a",{"prefix":"b."}]}"#);
        assert_eq!(read_filter(Some(&filter(["a", "b.*"]))), FilterPolicy::Types(set(&["a", "b.*"])));
        for all in [None, Some(""), Some("{}")] {
            assert_eq!(read_filter(all), FilterPolicy::All);
        }
        for other in [
            "x",
            r#"{"tenant":["a"]}"#,
            r#"{"cloudEvents_type":["a"],"tenant":["a"]}"#,
            r#"{"cloudEvents_type":[{"prefix":"a"}]}"#,
            r#"{"cloudEvents_type":[{"anything-but":["a"]}]}"#,
        ] {
            assert_eq!(read_filter(Some(other)), FilterPolicy::Other, "{other}");
        }
    }

    #[test]
    fn redrive_policies_with_numbers_of_both_kinds() {
        assert_eq!(read_redrive(&redrive("arn:x", 10)), Some(("arn:x".into(), 10)));
        assert_eq!(read_redrive(r#"{"maxReceiveCount":7,"deadLetterTargetArn":"a"}"#), Some(("a".into(), 7)));
        assert_eq!(read_redrive("{}"), None);
        let read = read_subscription_redrive;
        assert_eq!((read(&subscription_redrive("arn:x")), read("{}")), (Some("arn:x".into()), None));
    }

    #[test]
    fn a_queue_admits_a_topic_beside_what_its_policy_says() {
        let own = admit(None, "arn:q", "arn:t");
        assert!(admits(Some(&own), "arn:t") && !admits(Some(&own), "arn:t2") && !admits(None, "arn:t"));
        let existing = r#"{"Version":"2008-10-17","Id":"x","Statement":{"Sid":"mine"}}"#;
        let both: Value = serde_json::from_str(&admit(Some(existing), "arn:q", "arn:t")).unwrap();
        assert_eq!((both["Id"].as_str(), both["Statement"].as_array().unwrap().len()), (Some("x"), 2));
        assert_eq!(both["Statement"][1]["Condition"]["ArnEquals"]["aws:SourceArn"], "arn:t");
    }
}

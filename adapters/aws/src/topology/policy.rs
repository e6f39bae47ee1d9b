//! The JSON documents of AWS: filter policies, queue policies, redrive policies.

use std::collections::BTreeSet;

use polybus_core::topology::TypeFilter;
use serde_json::{Value, json};

use crate::message::envelope::TYPE;

/// The filter policy for these types; `{}`, which lets everything through, for none.
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

/// What a filter policy lets through.
#[derive(Debug, PartialEq)]
pub(crate) enum Filter {
    All,
    Types(BTreeSet<String>),
    /// Not one of ours.
    Other,
}

/// Reads a filter policy.
pub(crate) fn read_filter(policy: Option<&str>) -> Filter {
    let Some(text) = policy.filter(|p| !p.is_empty()) else { return Filter::All };
    let Ok(Value::Object(policy)) = serde_json::from_str(text) else { return Filter::Other };
    if policy.is_empty() {
        return Filter::All;
    }
    let (1, Some(Value::Array(conditions))) = (policy.len(), policy.get(TYPE)) else { return Filter::Other };
    let read = |condition: &Value| match condition {
        Value::String(exact) => Some(exact.clone()),
        Value::Object(o) if o.len() == 1 => {
            o.get("prefix")?.as_str().filter(|p| p.ends_with('.')).map(|prefix| format!("{prefix}*"))
        }
        _ => None,
    };
    conditions.iter().map(read).collect::<Option<_>>().map_or(Filter::Other, Filter::Types)
}

/// Dead letters and the broker's own limit.
pub(crate) fn redrive(dead_letters_arn: &str, max_receives: u32) -> String {
    json!({ "deadLetterTargetArn": dead_letters_arn, "maxReceiveCount": max_receives.to_string() }).to_string()
}

/// The dead letters' ARN and the limit of a redrive policy.
pub(crate) fn read_redrive(policy: &str) -> Option<(String, u32)> {
    let policy: Value = serde_json::from_str(policy).ok()?;
    let limit = policy.get("maxReceiveCount")?;
    let limit = limit.as_u64().or_else(|| limit.as_str()?.parse().ok())?;
    let arn = policy.get("deadLetterTargetArn")?.as_str()?;
    Some((arn.to_owned(), u32::try_from(limit).ok()?))
}

/// Where a subscription's messages go that its queue refuses.
pub(crate) fn discarded(dead_letters_arn: &str) -> String {
    json!({ "deadLetterTargetArn": dead_letters_arn }).to_string()
}

/// That queue's ARN.
pub(crate) fn read_discarded(policy: &str) -> Option<String> {
    let policy: Value = serde_json::from_str(policy).ok()?;
    Some(policy.get("deadLetterTargetArn")?.as_str()?.to_owned())
}

/// Lets this topic, and no other, send to this queue; added to the policy there is.
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

/// Whether a queue's policy lets this topic send. By the ARN alone: an operator may have said it in other words.
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
        assert_eq!(read_filter(Some(&filter(["a", "b.*"]))), Filter::Types(set(&["a", "b.*"])));
        for all in [None, Some(""), Some("{}")] {
            assert_eq!(read_filter(all), Filter::All);
        }
        for other in [
            "x",
            r#"{"tenant":["a"]}"#,
            r#"{"cloudEvents_type":["a"],"tenant":["a"]}"#,
            r#"{"cloudEvents_type":[{"prefix":"a"}]}"#,
            r#"{"cloudEvents_type":[{"anything-but":["a"]}]}"#,
        ] {
            assert_eq!(read_filter(Some(other)), Filter::Other, "{other}");
        }
    }

    #[test]
    fn redrive_policies_with_numbers_of_both_kinds() {
        assert_eq!(read_redrive(&redrive("arn:x", 10)), Some(("arn:x".into(), 10)));
        assert_eq!(read_redrive(r#"{"maxReceiveCount":7,"deadLetterTargetArn":"a"}"#), Some(("a".into(), 7)));
        assert_eq!(read_redrive("{}"), None);
        assert_eq!((read_discarded(&discarded("arn:x")), read_discarded("{}")), (Some("arn:x".into()), None));
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

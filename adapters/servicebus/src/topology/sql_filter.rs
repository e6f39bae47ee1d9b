//! The SQL of a subscription's rules. All of them let copies through that are for this subscription, and none that are
//! for another.
//! <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-messaging-sql-filter>

use polybus_core::topology::TypeFilter;

use crate::message::envelope::TARGET;

/// The property with the event type.
pub(crate) const TYPE_NAME: &str = "cloudEvents_type";
/// The spellings of that property: senders over HTTP have names in lower case, others use the second prefix that the
/// binding allows.
const TYPE_NAMES: [&str; 3] = [TYPE_NAME, "cloudevents_type", "cloudEvents:type"];

/// The rule of the subscription `name` for one type filter, or for all types.
pub(crate) fn type_rule(name: &str, filter: Option<&TypeFilter>) -> String {
    let either = |is: String| format!("({})", TYPE_NAMES.map(|name| format!("[{name}] {is}")).join(" OR "));
    let types = match filter {
        None => "1 = 1".to_owned(),
        Some(TypeFilter::Under(prefix)) => either(format!("LIKE {} ESCAPE '\\'", like(prefix))),
        Some(exact) => either(format!("= {}", quote(&exact.to_string()))),
    };
    format!("([{TARGET}] IS NULL OR [{TARGET}] = {}) AND {types}", quote(name))
}

/// The rule for copies to the subscription `name`. The original has passed before, so the type does not matter.
pub(crate) fn copies_rule(name: &str) -> String {
    format!("[{TARGET}] = {}", quote(name))
}

/// The rule for structured events whose type no property tells.
pub(crate) fn structured_rule() -> String {
    let untold = TYPE_NAMES.map(|name| format!("[{name}] IS NULL")).join(" AND ");
    format!("[{TARGET}] IS NULL AND sys.ContentType LIKE 'application/cloudevents+json%' AND {untold}")
}

/// A pattern for types below `prefix`, with at least one character after the dot.
fn like(prefix: &str) -> String {
    let escaped: String =
        prefix.chars().flat_map(|c| matches!(c, '_' | '%' | '\\').then_some('\\').into_iter().chain([c])).collect();
    quote(&format!("{escaped}._%"))
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn filters() {
        let type_rule = |f: &str| type_rule("b's", Some(&f.parse().unwrap()));
        let own = "([polybus-target] IS NULL OR [polybus-target] = 'b''s') AND ";
        let all =
            |is: &str| format!("{own}([cloudEvents_type] {is} OR [cloudevents_type] {is} OR [cloudEvents:type] {is})");
        assert_eq!(type_rule("order.a"), all("= 'order.a'"));
        assert_eq!(type_rule("or_der.*"), all("LIKE 'or\\_der._%' ESCAPE '\\'"));
        assert_eq!(super::type_rule("b's", None), format!("{own}1 = 1"));
    }

    /// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-quotas>
    #[test]
    fn the_longest_filter_is_within_the_brokers_limit() {
        let filter = TypeFilter::Under("_".repeat(126).into());
        assert!(super::type_rule(&"s".repeat(50), Some(&filter)).len() <= 1024);
    }
}

//! Type filters as SQL rules, which every copy for one subscription alone passes through as well.
//! <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-messaging-sql-filter>

use polybus_core::topology::TypeFilter;

use crate::message::envelope::TARGET;

/// The property that holds the event type.
pub(crate) const TYPE: &str = "cloudEvents_type";
/// As it comes from senders over HTTP, where names are in lower case, and from others that write the binding's other prefix.
const TYPES: [&str; 3] = [TYPE, "cloudevents_type", "cloudEvents:type"];

/// The filter of one rule of the subscription `name`: its types, and of copies only its own.
pub(crate) fn sql(name: &str, filter: Option<&TypeFilter>) -> String {
    let either = |is: String| format!("({})", TYPES.map(|name| format!("[{name}] {is}")).join(" OR "));
    let types = match filter {
        None => "1 = 1".to_owned(),
        Some(TypeFilter::Under(prefix)) => either(format!("LIKE {} ESCAPE '\\'", like(prefix))),
        Some(exact) => either(format!("= {}", quote(&exact.to_string()))),
    };
    format!("([{TARGET}] IS NULL OR [{TARGET}] = {}) AND {types}", quote(name))
}

/// What was copied for the subscription `name`: it was there before, so its type is no question any more.
pub(crate) fn copies(name: &str) -> String {
    format!("[{TARGET}] = {}", quote(name))
}

/// Structured events whose type no property tells.
pub(crate) fn structured() -> String {
    let untold = TYPES.map(|name| format!("[{name}] IS NULL")).join(" AND ");
    format!("[{TARGET}] IS NULL AND sys.ContentType LIKE 'application/cloudevents+json%' AND {untold}")
}

/// At least one character under the dot.
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
        let sql = |f: &str| sql("b's", Some(&f.parse().unwrap()));
        let own = "([polybus-target] IS NULL OR [polybus-target] = 'b''s') AND ";
        let all =
            |is: &str| format!("{own}([cloudEvents_type] {is} OR [cloudevents_type] {is} OR [cloudEvents:type] {is})");
        assert_eq!(sql("order.a"), all("= 'order.a'"));
        assert_eq!(sql("or_der.*"), all("LIKE 'or\\_der._%' ESCAPE '\\'"));
        assert_eq!(super::sql("b's", None), format!("{own}1 = 1"));
    }

    /// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-quotas>
    #[test]
    fn the_longest_filter_is_within_the_brokers_limit() {
        let filter = TypeFilter::Under("_".repeat(126).into());
        assert!(super::sql(&"s".repeat(50), Some(&filter)).len() <= 1024);
    }
}

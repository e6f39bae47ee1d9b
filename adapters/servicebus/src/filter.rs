//! Type filters as SQL rules, which every copy for one subscription alone passes through as well.
//! <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-messaging-sql-filter>

use polybus_core::TypeFilter;

use crate::envelope::TARGET;

/// The property that holds the event type, and what it is called by senders whose names take no colon: over HTTP, in lower case.
const TYPE: &str = "cloudEvents:type";
pub(crate) const HTTP_TYPE: &str = "cloudevents_type";

/// The filter of one rule of the subscription `name`: its types, and of copies only its own.
pub(crate) fn sql(name: &str, filter: Option<&TypeFilter>) -> String {
    let either = |is: String| format!("([{TYPE}] {is} OR [{HTTP_TYPE}] {is})");
    let types = match filter {
        None => "1 = 1".to_owned(),
        Some(TypeFilter::Under(prefix)) => either(format!("LIKE {} ESCAPE '\\'", like(prefix))),
        Some(exact) => either(format!("= {}", quote(&exact.to_string()))),
    };
    format!("([{TARGET}] IS NULL OR [{TARGET}] = {}) AND {types}", quote(name))
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
        let exact = format!("{own}([cloudEvents:type] = 'order.a' OR [cloudevents_type] = 'order.a')");
        assert_eq!(sql("order.a"), exact);
        let like = "LIKE 'or\\_der._%' ESCAPE '\\'";
        assert_eq!(sql("or_der.*"), format!("{own}([cloudEvents:type] {like} OR [cloudevents_type] {like})"));
        assert_eq!(super::sql("b's", None), format!("{own}1 = 1"));
    }
}

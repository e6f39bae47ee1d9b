//! Rules of a subscription in management requests: added as maps, listed as described lists.

use super::{ManagementResult, NO_CONTENT, OK, missing};
use crate::broker::{CorrelationFilter, Rule, RuleFilter, Source, SqlAction, SqlFilter, plain};
use crate::codec::Value;

const RULE: u64 = 0x0137_0000_0004;
const EMPTY_ACTION: u64 = 0x0137_0000_0005;
const SQL_ACTION: u64 = 0x0137_0000_0006;
const SQL_FILTER: u64 = 0x0013_7000_0006;
const TRUE_FILTER: u64 = 0x0013_7000_0007;
const FALSE_FILTER: u64 = 0x0013_7000_0008;
const CORRELATION_FILTER: u64 = 0x0013_7000_0009;

/// The version of the SQL dialect, which every listed expression carries.
const COMPATIBILITY: i32 = 20;

/// `add-rule`.
pub(crate) fn add(source: &Source, body: &Value) -> ManagementResult {
    let name = body.get("rule-name").and_then(Value::as_text).ok_or_else(|| missing("rule-name"))?;
    let description = body.get("rule-description").ok_or_else(|| missing("rule-description"))?;
    let expression = |of: &Value| of.get("expression").and_then(Value::as_text).map(str::to_owned);
    let filter = match (present(description, "sql-filter"), present(description, "correlation-filter")) {
        (Some(sql), _) => {
            let text = expression(sql).ok_or_else(|| missing("expression"))?;
            RuleFilter::Sql(SqlFilter::parse(&text, Vec::new())?)
        }
        (None, Some(wanted)) => RuleFilter::Correlation(correlation(wanted)),
        (None, None) => RuleFilter::True,
    };
    let mut rule = Rule::new(name, filter);
    if let Some(text) = present(description, "sql-rule-action").and_then(expression) {
        rule.action = Some(SqlAction::parse(&text, Vec::new())?);
    }
    source.add_rule(rule)?;
    Ok((OK, Vec::new()))
}

/// `remove-rule`.
pub(crate) fn remove(source: &Source, body: &Value) -> ManagementResult {
    source.remove_rule(body.get("rule-name").and_then(Value::as_text).ok_or_else(|| missing("rule-name"))?)?;
    Ok((OK, Vec::new()))
}

/// `enumerate-rules`, a page at a time.
pub(crate) fn list(source: &Source, body: &Value) -> ManagementResult {
    let number = |name: &str| body.get(name).and_then(Value::as_u32).and_then(|n| usize::try_from(n).ok());
    let (skip, top) = (number("skip").unwrap_or(0), number("top").unwrap_or(usize::MAX));
    let rules = source.rules()?;
    let page: Vec<Value> = rules.iter().skip(skip).take(top).map(|rule| listed(rule)).collect();
    if page.is_empty() {
        return Ok((NO_CONTENT, Vec::new()));
    }
    Ok((OK, vec![("rules", Value::List(page))]))
}

fn present<'a>(description: &'a Value, name: &str) -> Option<&'a Value> {
    description.get(name).filter(|value| !value.is_null())
}

fn correlation(wanted: &Value) -> CorrelationFilter {
    let text = |name: &str| wanted.get(name).and_then(Value::as_text).map(str::to_owned);
    let properties = wanted.get("properties").and_then(Value::as_map).unwrap_or_default();
    CorrelationFilter {
        correlation_id: text("correlation-id"),
        message_id: text("message-id"),
        to: text("to"),
        reply_to: text("reply-to"),
        label: text("label"),
        session_id: text("session-id"),
        reply_to_session_id: text("reply-to-session-id"),
        content_type: text("content-type"),
        properties: properties
            .iter()
            .filter_map(|(key, value)| Some((key.as_text()?.to_owned(), value.clone())))
            .collect(),
    }
}

fn listed(rule: &Rule) -> Value {
    let action = match &rule.action {
        None => Value::described(EMPTY_ACTION, Value::List(Vec::new())),
        Some(action) => Value::described(SQL_ACTION, expression(action.text())),
    };
    let fields = vec![filter(&rule.filter), action, Value::string(&rule.name), Value::Timestamp(rule.created_at)];
    Value::Map(vec![(Value::string("rule-description"), Value::described(RULE, Value::List(fields)))])
}

fn filter(filter: &RuleFilter) -> Value {
    match filter {
        RuleFilter::True => Value::described(TRUE_FILTER, Value::List(Vec::new())),
        RuleFilter::False => Value::described(FALSE_FILTER, Value::List(Vec::new())),
        RuleFilter::Sql(sql) => Value::described(SQL_FILTER, expression(sql.text())),
        RuleFilter::Correlation(wanted) => {
            let text = |field: &Option<String>| field.as_deref().map_or(Value::Null, Value::string);
            let properties = wanted.properties.iter().map(|(key, value)| (Value::string(key), plain(value))).collect();
            let fields = vec![
                text(&wanted.correlation_id),
                text(&wanted.message_id),
                text(&wanted.to),
                text(&wanted.reply_to),
                text(&wanted.label),
                text(&wanted.session_id),
                text(&wanted.reply_to_session_id),
                text(&wanted.content_type),
                Value::Map(properties),
            ];
            Value::described(CORRELATION_FILTER, Value::List(fields))
        }
    }
}

fn expression(text: &str) -> Value {
    Value::List(vec![Value::string(text), Value::Int(COMPATIBILITY)])
}

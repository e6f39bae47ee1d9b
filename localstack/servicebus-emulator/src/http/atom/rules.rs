//! Rules of subscriptions, in and out.

use super::description::described;
use super::iso8601::timestamp;
use super::key_values;
use super::xml::{Element, Xml};
use crate::broker::{Correlation, Filter, Rule, SqlAction, SqlFilter};
use crate::refusal::{Condition, Refusal};

/// Reads a `RuleDescription` or `DefaultRuleDescription`. Without a filter it lets everything through.
pub(super) fn read(description: &Element, name: &str) -> Result<Rule, Refusal> {
    let filter = description.child("Filter").map_or(Ok(Filter::True), filter)?;
    let action = description.child("Action").map_or(Ok(None), action)?;
    Ok(Rule { action, ..Rule::new(name, filter) })
}

fn filter(filter: &Element) -> Result<Filter, Refusal> {
    Ok(match kind(filter) {
        "TrueFilter" => Filter::True,
        "FalseFilter" => Filter::False,
        "SqlFilter" => {
            Filter::Sql(SqlFilter::parse(expression(filter)?, key_values::read(filter.child("Parameters"))?)?)
        }
        "CorrelationFilter" => Filter::Correlation(correlation(filter)?),
        other => return Err(invalid(format!("'{other}' is no kind of filter."))),
    })
}

fn correlation(filter: &Element) -> Result<Correlation, Refusal> {
    let text = |name| filter.text_of(name).map(str::to_owned);
    Ok(Correlation {
        correlation_id: text("CorrelationId"),
        message_id: text("MessageId"),
        to: text("To"),
        reply_to: text("ReplyTo"),
        label: text("Label"),
        session_id: text("SessionId"),
        reply_to_session_id: text("ReplyToSessionId"),
        content_type: text("ContentType"),
        properties: key_values::read(filter.child("Properties"))?,
    })
}

fn action(action: &Element) -> Result<Option<SqlAction>, Refusal> {
    match kind(action) {
        "EmptyRuleAction" => Ok(None),
        "" if action.children.is_empty() => Ok(None),
        "SqlRuleAction" => {
            SqlAction::parse(expression(action)?, key_values::read(action.child("Parameters"))?).map(Some)
        }
        other => Err(invalid(format!("'{other}' is no kind of action."))),
    }
}

/// The `i:type`, without a prefix of its own.
fn kind(element: &Element) -> &str {
    let kind = element.attribute("type").unwrap_or_default();
    kind.rsplit_once(':').map_or(kind, |(_, kind)| kind)
}

fn expression(element: &Element) -> Result<&str, Refusal> {
    element.text_of("SqlExpression").ok_or_else(|| invalid("The SqlExpression is missing.".to_owned()))
}

fn invalid(description: String) -> Refusal {
    Refusal::new(Condition::InvalidField, description)
}

/// Writes a `RuleDescription`.
pub(super) fn write(xml: &mut Xml, rule: &Rule) {
    described(xml, "RuleDescription", |xml| {
        write_filter(xml, &rule.filter);
        match &rule.action {
            None => xml.empty("Action", &[("i:type", "EmptyRuleAction")]),
            Some(action) => xml.element("Action", &[("i:type", "SqlRuleAction")], |xml| {
                sql(xml, action.text());
                key_values::write(xml, "Parameters", action.parameters());
            }),
        }
        xml.text("CreatedAt", timestamp(rule.created_at));
        xml.text("Name", &rule.name);
    });
}

fn write_filter(xml: &mut Xml, filter: &Filter) {
    match filter {
        // The JavaScript SDK tells filters apart by whether there is an expression.
        Filter::True => xml.element("Filter", &[("i:type", "TrueFilter")], |xml| sql(xml, "1=1")),
        Filter::False => xml.element("Filter", &[("i:type", "FalseFilter")], |xml| sql(xml, "1=0")),
        Filter::Sql(filter) => xml.element("Filter", &[("i:type", "SqlFilter")], |xml| {
            sql(xml, filter.text());
            key_values::write(xml, "Parameters", filter.parameters());
        }),
        Filter::Correlation(filter) => xml.element("Filter", &[("i:type", "CorrelationFilter")], |xml| {
            xml.optional("CorrelationId", filter.correlation_id.as_deref());
            xml.optional("MessageId", filter.message_id.as_deref());
            xml.optional("To", filter.to.as_deref());
            xml.optional("ReplyTo", filter.reply_to.as_deref());
            xml.optional("Label", filter.label.as_deref());
            xml.optional("SessionId", filter.session_id.as_deref());
            xml.optional("ReplyToSessionId", filter.reply_to_session_id.as_deref());
            xml.optional("ContentType", filter.content_type.as_deref());
            key_values::write(xml, "Properties", &filter.properties);
        }),
    }
}

fn sql(xml: &mut Xml, expression: &str) {
    xml.text("SqlExpression", expression);
    xml.value("CompatibilityLevel", 20);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Value;

    fn back(rule: &Rule) -> Rule {
        let mut xml = Xml::default();
        write(&mut xml, rule);
        read(&Element::parse(xml.into_string().as_bytes()).unwrap(), &rule.name).unwrap()
    }

    #[test]
    fn what_is_written_reads_back() {
        let parameters = vec![("@x".to_owned(), Value::Int(3))];
        let correlation = Correlation {
            correlation_id: Some("c".into()),
            label: Some("<l>".into()),
            properties: vec![("colour".into(), Value::string("red"))],
            ..Correlation::default()
        };
        for filter in [
            Filter::True,
            Filter::False,
            Filter::Sql(SqlFilter::parse("a < @x AND b = 'y'", parameters.clone()).unwrap()),
            Filter::Correlation(correlation),
        ] {
            let action = Some(SqlAction::parse("SET a = @x", parameters.clone()).unwrap());
            for action in [None, action] {
                let rule = Rule { action, ..Rule::new("r", filter.clone()) };
                assert_eq!(back(&rule), rule);
            }
        }
    }

    #[test]
    fn kinds_may_have_prefixes_and_filters_may_be_left_out() {
        let rule = |text: &str| read(&Element::parse(text.as_bytes()).unwrap(), "r");
        assert_eq!(rule("<r/>").unwrap().filter, Filter::True);
        let prefixed =
            rule("<r xmlns:p4=\"i\"><Filter p4:type=\"q:FalseFilter\"/><Action p4:type=\"EmptyRuleAction\"/></r>")
                .unwrap();
        assert_eq!((prefixed.filter, prefixed.action), (Filter::False, None));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "<r><Filter type=\"SqlFilter\"/></r>",
            "<r><Filter type=\"SqlFilter\"><SqlExpression>a = </SqlExpression></Filter></r>",
            "<r><Filter type=\"MagicFilter\"/></r>",
            "<r><Filter/></r>",
            "<r><Action type=\"MagicAction\"/></r>",
            "<r><Action type=\"SqlRuleAction\"><SqlExpression>DROP a</SqlExpression></Action></r>",
        ] {
            let refusal = read(&Element::parse(text.as_bytes()).unwrap(), "r").expect_err(text);
            assert_eq!(refusal.condition, Condition::InvalidField, "{text}");
        }
    }
}

//! Reads and writes the descriptions of rules.

use super::description::described;
use super::key_values;
use crate::broker::{CorrelationFilter, Rule, RuleFilter, SqlAction, SqlFilter};
use crate::http::iso8601::timestamp;
use crate::http::xml::{Xml, XmlElement};
use crate::refusal::{Refusal, invalid};

/// Reads a `RuleDescription` or `DefaultRuleDescription`. A rule without a filter lets everything through.
pub(crate) fn read(description: &XmlElement, name: &str) -> Result<Rule, Refusal> {
    let filter = description.child("Filter").map_or(Ok(RuleFilter::True), filter)?;
    let action = description.child("Action").map_or(Ok(None), action)?;
    Ok(Rule { action, ..Rule::new(name, filter) })
}

fn filter(filter: &XmlElement) -> Result<RuleFilter, Refusal> {
    Ok(match kind(filter) {
        "TrueFilter" => RuleFilter::True,
        "FalseFilter" => RuleFilter::False,
        "SqlFilter" => {
            RuleFilter::Sql(SqlFilter::parse(expression(filter)?, key_values::read(filter.child("Parameters"))?)?)
        }
        "CorrelationFilter" => RuleFilter::Correlation(correlation(filter)?),
        other => return Err(invalid(format!("'{other}' is no kind of filter."))),
    })
}

fn correlation(filter: &XmlElement) -> Result<CorrelationFilter, Refusal> {
    let text = |name| filter.text_of(name).map(str::to_owned);
    Ok(CorrelationFilter {
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

fn action(action: &XmlElement) -> Result<Option<SqlAction>, Refusal> {
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
fn kind(element: &XmlElement) -> &str {
    let kind = element.attribute("type").unwrap_or_default();
    kind.rsplit_once(':').map_or(kind, |(_, kind)| kind)
}

fn expression(element: &XmlElement) -> Result<&str, Refusal> {
    element.text_of("SqlExpression").ok_or_else(|| invalid("The SqlExpression is missing.".to_owned()))
}

/// Writes a `RuleDescription`.
pub(crate) fn write(xml: &mut Xml, rule: &Rule) {
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

fn write_filter(xml: &mut Xml, filter: &RuleFilter) {
    match filter {
        // The JavaScript SDK tells filters apart by whether there is an expression.
        RuleFilter::True => xml.element("Filter", &[("i:type", "TrueFilter")], |xml| sql(xml, "1=1")),
        RuleFilter::False => xml.element("Filter", &[("i:type", "FalseFilter")], |xml| sql(xml, "1=0")),
        RuleFilter::Sql(filter) => xml.element("Filter", &[("i:type", "SqlFilter")], |xml| {
            sql(xml, filter.text());
            key_values::write(xml, "Parameters", filter.parameters());
        }),
        RuleFilter::Correlation(filter) => xml.element("Filter", &[("i:type", "CorrelationFilter")], |xml| {
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
    use crate::codec::Value;
    use crate::refusal::Condition;

    fn back(rule: &Rule) -> Rule {
        let mut xml = Xml::default();
        write(&mut xml, rule);
        read(&XmlElement::parse(xml.into_string().as_bytes()).unwrap(), &rule.name).unwrap()
    }

    #[test]
    fn what_is_written_reads_back() {
        let parameters = vec![("@x".to_owned(), Value::Int(3))];
        let correlation = CorrelationFilter {
            correlation_id: Some("c".into()),
            label: Some("<l>".into()),
            properties: vec![("colour".into(), Value::string("red"))],
            ..CorrelationFilter::default()
        };
        for filter in [
            RuleFilter::True,
            RuleFilter::False,
            RuleFilter::Sql(SqlFilter::parse("a < @x AND b = 'y'", parameters.clone()).unwrap()),
            RuleFilter::Correlation(correlation),
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
        let rule = |text: &str| read(&XmlElement::parse(text.as_bytes()).unwrap(), "r");
        assert_eq!(rule("<r/>").unwrap().filter, RuleFilter::True);
        let prefixed =
            rule("<r xmlns:p4=\"i\"><Filter p4:type=\"q:FalseFilter\"/><Action p4:type=\"EmptyRuleAction\"/></r>")
                .unwrap();
        assert_eq!((prefixed.filter, prefixed.action), (RuleFilter::False, None));
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
            let refusal = read(&XmlElement::parse(text.as_bytes()).unwrap(), "r").expect_err(text);
            assert_eq!(refusal.condition, Condition::InvalidField, "{text}");
        }
    }
}

//! The administration API: entities as XML, and the requests that create, read, list and delete them.

use std::{fmt::Write, time::Duration};

use hyper::{Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use polybus_core::{Error, ErrorKind, Result};
use roxmltree::{Document, Node};

use crate::{
    error,
    transport::http::{HttpPool, TextResponse},
};

const XML_NAMESPACE: &str = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect";
pub(crate) const PATH_ESCAPES: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/').remove(b'$');

/// The description of a new entity. Its elements must be in the order that the service reads them in: it ignores
/// others.
pub(crate) struct NewEntity {
    kind: &'static str,
    inner: String,
}

impl NewEntity {
    pub(crate) fn new(kind: &'static str) -> Self {
        Self { kind, inner: String::new() }
    }

    pub(crate) fn with_element(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        let _ = write!(self.inner, "<{name}>{}</{name}>", escape(&value.to_string()));
        self
    }

    /// Creates a subscription with this rule, in place of one that lets everything through.
    pub(crate) fn default_rule(mut self, name: &str, sql: &str) -> Self {
        let _ = write!(self.inner, "<DefaultRuleDescription>{}</DefaultRuleDescription>", rule_inner(name, sql));
        self
    }

    fn entry(&self) -> String {
        let (kind, inner) = (self.kind, &self.inner);
        format!(
            "<entry xmlns=\"http://www.w3.org/2005/Atom\"><content type=\"application/xml\"><{kind} xmlns=\"{XML_NAMESPACE}\" \
             xmlns:i=\"http://www.w3.org/2001/XMLSchema-instance\">{inner}</{kind}></content></entry>"
        )
    }
}

/// A rule with a SQL filter and no action.
pub(crate) fn rule(name: &str, sql: &str) -> NewEntity {
    NewEntity { kind: "RuleDescription", inner: rule_inner(name, sql) }
}

fn rule_inner(name: &str, sql: &str) -> String {
    format!(
        "<Filter i:type=\"SqlFilter\"><SqlExpression>{}</SqlExpression><CompatibilityLevel>20</CompatibilityLevel></Filter>\
         <Action i:type=\"EmptyRuleAction\"/><Name>{}</Name>",
        escape(sql),
        escape(name)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// An entity as the service describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EntityInfo {
    pub(crate) name: String,
    /// The elements without children of its description, those of the counts among them.
    fields: Vec<(String, String)>,
}

impl EntityInfo {
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.trim().parse().ok()
    }

    pub(crate) fn flag(&self, name: &str) -> Option<bool> {
        self.text(name)?.trim().parse().ok()
    }

    pub(crate) fn duration(&self, name: &str) -> Option<Duration> {
        parse_duration(self.text(name)?.trim())
    }
}

/// Creates an entity. False if it exists already.
pub(crate) async fn create(http: &HttpPool, path: &str, entity: &NewEntity) -> Result<bool> {
    let answer = http.request(Method::PUT, &url(path), Some(entity.entry())).await?;
    match answer.status {
        StatusCode::CONFLICT if is_transient_conflict(&answer.body) => {
            Err(error::new(ErrorKind::Unavailable, "declare", "another operation on the entity is under way"))
        }
        StatusCode::CONFLICT => Ok(false),
        status if status.is_success() => Ok(true),
        _ => Err(refusal(&answer, path)),
    }
}

/// Reads an entity. `None` if it does not exist.
pub(crate) async fn get(http: &HttpPool, path: &str) -> Result<Option<EntityInfo>> {
    let answer = http.request(Method::GET, &url(path), None).await?;
    match answer.status {
        StatusCode::NOT_FOUND => Ok(None),
        status if status.is_success() => Ok(entries(&answer.body)?.into_iter().next()),
        _ => Err(refusal(&answer, path)),
    }
}

/// Lists the entities under a path. `None` if the entity above them does not exist.
pub(crate) async fn list(http: &HttpPool, path: &str) -> Result<Option<Vec<EntityInfo>>> {
    const PAGE: usize = 100;
    let mut all = Vec::new();
    loop {
        let page = format!("{}?$skip={}&$top={PAGE}", url(path), all.len());
        let answer = http.request(Method::GET, &page, None).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !answer.status.is_success() {
            return Err(refusal(&answer, path));
        }
        let found = entries(&answer.body)?;
        let last = found.len() < PAGE;
        all.extend(found);
        if last {
            return Ok(Some(all));
        }
    }
}

/// Deletes an entity; a missing one is no error.
pub(crate) async fn delete(http: &HttpPool, path: &str) -> Result<()> {
    let answer = http.request(Method::DELETE, &url(path), None).await?;
    match answer.status {
        status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
        _ => Err(refusal(&answer, path)),
    }
}

fn url(path: &str) -> String {
    utf8_percent_encode(path, PATH_ESCAPES).to_string()
}

/// Whether a conflict is one with another operation that is under way.
/// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-resource-manager-exceptions>
fn is_transient_conflict(body: &str) -> bool {
    body.contains("SubCode=40901")
}

fn refusal(answer: &TextResponse, path: &str) -> Error {
    let text = detail(&answer.body).unwrap_or_else(|| format!("the administration API answers {}", answer.status));
    let error = error::of_status(i32::from(answer.status.as_u16()), &text, "manage");
    error.with_context("path", path)
}

/// The description of an error in the service's answer.
pub(crate) fn detail(body: &str) -> Option<String> {
    let xml = Document::parse(body).ok()?;
    xml.descendants().find(|n| n.has_tag_name("Detail")).and_then(|n| n.text()).map(str::to_owned)
}

fn entries(body: &str) -> Result<Vec<EntityInfo>> {
    if body.trim().is_empty() {
        return Ok(Vec::new());
    }
    let xml = Document::parse(body)
        .map_err(|e| error::new(ErrorKind::Unexpected, "manage", format!("the administration API: no XML: {e}")))?;
    Ok(xml.descendants().filter(|n| n.tag_name().name() == "entry").map(found).collect())
}

fn found(entry: Node<'_, '_>) -> EntityInfo {
    let child = |node: Node<'_, '_>, name: &str| node.children().find(|n| n.tag_name().name() == name).map(|n| n.id());
    let at = |id| entry.document().get_node(id);
    let title = child(entry, "title").and_then(at).and_then(|n| n.text()).unwrap_or_default().to_owned();
    let mut fields = Vec::new();
    let description = child(entry, "content").and_then(at).and_then(|n| n.first_element_child());
    for node in description.into_iter().flat_map(|d| d.descendants()).filter(Node::is_element) {
        if let Some(text) = node.text().filter(|_| node.first_element_child().is_none()) {
            fields.push((node.tag_name().name().to_owned(), text.to_owned()));
        }
    }
    EntityInfo { name: title, fields }
}

/// ISO 8601, such as `PT30S` or `PT5.500S`.
pub(crate) fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis.is_multiple_of(1000) {
        format!("PT{}S", millis / 1000)
    } else {
        format!("PT{}.{:03}S", millis / 1000, millis % 1000)
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('P')?;
    let (mut total, mut time) = (0.0, false);
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('T') {
            (rest, time) = (after, true);
            continue;
        }
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit = match (&rest[end..=end], time) {
            ("D", false) => 86_400.0,
            ("H", true) => 3_600.0,
            ("M", true) => 60.0,
            ("S", true) => 1.0,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[end + 1..];
    }
    Duration::try_from_secs_f64(total).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ENTRY: &str = r#"<entry xmlns="http://www.w3.org/2005/Atom"><id>https://x/q</id><title type="text">q</title>
        <content type="application/xml"><QueueDescription xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect">
        <LockDuration>PT1M30S</LockDuration><RequiresSession>true</RequiresSession><MaxDeliveryCount>10</MaxDeliveryCount>
        <CountDetails xmlns:d2p1="http://schemas.microsoft.com/netservices/2011/06/servicebus"><d2p1:ActiveMessageCount>3</d2p1:ActiveMessageCount>
        </CountDetails></QueueDescription></content></entry>"#;

    #[test]
    fn entries_and_feeds() {
        let one = &entries(ENTRY).unwrap()[0];
        assert_eq!((one.name.as_str(), one.flag("RequiresSession")), ("q", Some(true)));
        assert_eq!(one.duration("LockDuration"), Some(Duration::from_secs(90)));
        assert_eq!((one.number("MaxDeliveryCount"), one.number("ActiveMessageCount")), (Some(10), Some(3)));
        let feed = format!(r#"<feed xmlns="http://www.w3.org/2005/Atom"><title>x</title>{ENTRY}{ENTRY}</feed>"#);
        assert_eq!(entries(&feed).unwrap().len(), 2);
        assert!(entries("").unwrap().is_empty() && entries("<feed/>").unwrap().is_empty());
        assert_eq!(entries("<cut").unwrap_err().kind(), ErrorKind::Unexpected);
    }

    #[test]
    fn what_is_asked_for_is_escaped() {
        let entry = NewEntity::new("SubscriptionDescription")
            .with_element("LockDuration", format_duration(Duration::from_millis(5500)))
            .default_rule("r", "a < 'b&c'")
            .entry();
        assert!(entry.contains("<LockDuration>PT5.500S</LockDuration>"), "{entry}");
        let xml = Document::parse(&entry).unwrap();
        let sql = xml.descendants().find(|n| n.tag_name().name() == "SqlExpression").unwrap();
        assert_eq!(sql.text(), Some("a < 'b&c'"));
        assert_eq!(url("t/Subscriptions/a b"), "t/Subscriptions/a%20b");
    }

    #[test]
    fn durations() {
        for (text, seconds) in [("PT30S", 30), ("PT5M", 300), ("P1DT2H", 93_600), ("PT1M0.5S", 60)] {
            assert_eq!(parse_duration(text).unwrap().as_secs(), seconds, "{text}");
        }
        for bad in ["", "30", "PT", "PT1X", "P1S", "PT-1S"] {
            assert!(parse_duration(bad).is_none_or(|d| d.is_zero()), "{bad}");
        }
    }

    #[test]
    fn refusals_tell_what_the_service_says() {
        let body = "<Error><Code>401</Code><Detail>claim is empty</Detail></Error>".to_owned();
        let e = refusal(&TextResponse { status: StatusCode::UNAUTHORIZED, body }, "q");
        assert_eq!((e.kind(), e.message()), (ErrorKind::Unauthenticated, "claim is empty"));
    }
}

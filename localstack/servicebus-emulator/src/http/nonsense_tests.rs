//! Input that nobody vouches for: every reader answers it, none panics.

use hyper::HeaderMap;
use hyper::header::HeaderValue;
use proptest::prelude::*;

use super::atom::{authorization_rules, rules, settings};
use super::iso8601::{duration, parse_duration, parse_time_span, parse_timestamp};
use super::path::{AtomPath, MessagePath, decoded, parameter};
use super::rest::messages;
use super::xml::{Xml, XmlElement};
use crate::broker::NamespaceLimits;

/// Documents that come close to descriptions.
fn descriptions() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "Filter",
        "Action",
        "Parameters",
        "KeyValueOfstringanyType",
        "Key",
        "Value",
        "SqlExpression",
        "LockDuration",
        "MaxDeliveryCount",
        "Status",
        "AuthorizationRules",
        "AuthorizationRule",
        "Rights",
    ]);
    let kind = prop::sample::select(vec![
        "SqlFilter",
        "CorrelationFilter",
        "SqlRuleAction",
        "x:int",
        "x:duration",
        "x:guid",
        "",
    ]);
    let text = prop_oneof!["[ -~]{0,12}", "P[0-9.DHMST]{0,12}", any::<String>()];
    let leaf = (name.clone(), kind.clone(), text).prop_map(|(name, kind, text)| {
        let mut xml = Xml::default();
        xml.element(name, &[("type", kind)], |xml| xml.push_text(&text));
        xml.into_string()
    });
    leaf.prop_recursive(6, 40, 6, move |inner| {
        (name.clone(), kind.clone(), prop::collection::vec(inner, 0..6))
            .prop_map(|(name, kind, inner)| format!("<{name} type=\"{kind}\">{}</{name}>", inner.concat()))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn bytes_are_no_document_or_one(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[<>/a&;!\\[\\]\" =?-]{0,60}") {
        let _ = XmlElement::parse(&bytes);
        let _ = XmlElement::parse(text.as_bytes());
    }

    #[test]
    fn descriptions_are_taken_or_refused(inside in prop::collection::vec(descriptions(), 0..8)) {
        let document = format!("<d>{}</d>", inside.concat());
        let element = XmlElement::parse(document.as_bytes()).expect("well-formed");
        let _ = settings::queue(&element, None, &NamespaceLimits::default());
        let _ = settings::topic(&element, None, &NamespaceLimits::default());
        let _ = settings::subscription(&element, None);
        let _ = authorization_rules::read(&element);
        if let Ok(rule) = rules::read(&element, "r") {
            let mut xml = Xml::default();
            rules::write(&mut xml, &rule);
            prop_assert!(XmlElement::parse(xml.into_string().as_bytes()).is_ok());
        }
    }

    #[test]
    fn texts_are_times_or_not(text in prop_oneof!["-?P[0-9.YMWDTHS]{0,20}", "[0-9.:TZ+-]{0,30}", any::<String>()]) {
        let _ = (parse_time_span(&text), parse_timestamp(&text));
        if let Some(Some(ms)) = parse_duration(&text) {
            prop_assert_eq!(parse_duration(&duration(Some(ms))), Some(Some(ms)));
        }
    }

    #[test]
    fn paths_are_read(path in prop_oneof!["(/|%[0-9a-f]{2}|[a-z$]{1,3}|messages|head|Rules|subscriptions){0,12}", any::<String>()]) {
        if let Ok(path) = decoded(&path) {
            let _ = (AtomPath::parse(&path), MessagePath::parse(&path));
        }
        let _ = parameter(Some(&path), "timeout");
    }

    #[test]
    fn messages_are_taken_or_refused(header in any::<Vec<u8>>(), json in "[\\[\\]{}\":,a-zA-Z0-9. -]{0,60}", body in any::<Vec<u8>>()) {
        let mut headers = HeaderMap::new();
        for (name, value) in [("brokerproperties", json.as_bytes()), ("own", &header)] {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                headers.insert(name, value);
            }
        }
        if let Ok(message) = messages::from_request(&headers, &body) {
            prop_assert_eq!(&messages::body(&message)[..], &body[..]);
        }
        let _ = messages::from_batch(json.as_bytes());
        let _ = messages::from_batch(&body);
    }
}

//! The native properties that no field of an envelope shows and that polybus does not write itself, by their portable names.

use std::borrow::Cow;

use lapin::types::ShortString;

use super::{EXPIRATION, Native, is_brokers, routing_key, text};

/// A property's portable name, and its value as text.
type Shown<'a> = (&'static str, Cow<'a, str>);

/// What a handler may want to see of a message of somebody else's. Nothing of polybus' own messages is among it.
pub(super) fn shown<'a>(native: &'a Native, headers: &[(Cow<'a, str>, Cow<'a, str>)]) -> Vec<Shown<'a>> {
    let properties = &native.properties;
    let mut shown = Vec::new();
    let mut show = |name, value: Option<Cow<'a, str>>| shown.extend(value.map(|value| (name, value)));
    let short = |value: &'a Option<ShortString>| value.as_ref().map(|value| Cow::Borrowed(value.as_str()));
    show("reply-to", short(properties.reply_to()));
    show("content-encoding", short(properties.content_encoding()));
    // polybus writes it for other tools.
    let attribute = headers.iter().find(|(name, _)| is_type(name)).map(|(_, value)| &**value);
    show("type", short(properties.kind()).filter(|kind| Some(&**kind) != attribute));
    show("app-id", short(properties.app_id()));
    show("user-id", short(properties.user_id()));
    show("cluster-id", short(properties.cluster_id()));
    show("priority", properties.priority().as_ref().map(|priority| priority.to_string().into()));
    let carried = headers.iter().find(|(name, _)| name == EXPIRATION).map(|(_, value)| value.clone());
    show("expiration", carried.or_else(|| short(properties.expiration())));
    show("routing-key", routing_key(native).filter(|key| Some(&**key) != attribute));
    let unshown = properties.headers().iter().flat_map(|table| table.inner());
    let unshown = unshown.filter(|(name, value)| !is_brokers(name.as_str()) && text(value).is_none());
    let unshown: Vec<&str> = unshown.map(|(name, _)| name.as_str()).collect();
    show("unshown", (!unshown.is_empty()).then(|| unshown.join(",").into()));
    shown
}

/// The attribute `type` of a CloudEvent, as any of the bindings spells it.
fn is_type(header: &str) -> bool {
    ["cloudEvents:type", "cloudEvents_type", "ce-type", "ce_type"].iter().any(|name| header.eq_ignore_ascii_case(name))
}

//! Shows the AMQP properties of other programs' messages under portable names, where no field of an envelope does.

use std::borrow::Cow;

use lapin::types::ShortString;

use super::{AmqpMessage, EXPIRATION, is_broker_header, routing_key, value_as_text};

/// The portable name of a property, and its value as text.
type NativeProperty<'a> = (&'static str, Cow<'a, str>);

/// The properties that a handler may want to see of a message from another program. What polybus itself writes is not
/// among them.
pub(super) fn native_properties<'a>(
    native: &'a AmqpMessage,
    headers: &[(Cow<'a, str>, Cow<'a, str>)],
) -> Vec<NativeProperty<'a>> {
    let properties = &native.properties;
    let mut shown = Vec::new();
    let mut show = |name, value: Option<Cow<'a, str>>| shown.extend(value.map(|value| (name, value)));
    let short = |value: &'a Option<ShortString>| value.as_ref().map(|value| Cow::Borrowed(value.as_str()));
    show("reply-to", short(properties.reply_to()));
    show("content-encoding", short(properties.content_encoding()));
    // polybus writes the event type into the property `type` as well. Only another value is shown.
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
    let unshown = unshown.filter(|(name, value)| !is_broker_header(name.as_str()) && value_as_text(value).is_none());
    let unshown: Vec<&str> = unshown.map(|(name, _)| name.as_str()).collect();
    show("unshown", (!unshown.is_empty()).then(|| unshown.join(",").into()));
    shown
}

/// Whether a header is the attribute `type` of a CloudEvent, in the spelling of any binding.
fn is_type(header: &str) -> bool {
    ["cloudEvents:type", "cloudEvents_type", "ce-type", "ce_type"].iter().any(|name| header.eq_ignore_ascii_case(name))
}

//! The native properties of a message that polybus did not write, under their portable names.

use std::borrow::Cow;

use fe2o3_amqp::types::{
    messaging::{ApplicationProperties, Header, MessageAnnotations, MessageId, Priority, Properties},
    primitives::{SimpleValue, Symbol},
};

use polybus_core::message::cloudevents::STRUCTURED;

use crate::message::{
    annotations::{self, PARTITION_KEY},
    envelope::{self, text},
};

/// The attributes of CloudEvents, in the two spellings that the AMQP binding allows.
const TYPE_NAMES: [&str; 2] = ["cloudEvents_type", "cloudEvents:type"];
const KEY_NAMES: [&str; 2] = ["cloudEvents_partitionkey", "cloudEvents:partitionkey"];
const VERSION_NAMES: [&str; 2] = ["cloudEvents_specversion", "cloudEvents:specversion"];

/// An id as text.
pub(crate) fn id_text(id: &MessageId) -> Cow<'_, str> {
    match id {
        MessageId::String(id) => Cow::Borrowed(id.as_str()),
        MessageId::Ulong(id) => id.to_string().into(),
        MessageId::Uuid(id) => uuid::Uuid::from_bytes(*id.as_inner()).to_string().into(),
        MessageId::Binary(id) => id.iter().map(|b| format!("{b:02x}")).collect::<String>().into(),
    }
}

fn attribute<'a>(application: &'a ApplicationProperties, names: [&str; 2]) -> Option<&'a str> {
    names.iter().find_map(|name| match application.get(*name) {
        Some(SimpleValue::String(text)) => Some(text.as_str()),
        _ => None,
    })
}

/// The label, unless it is the event's type: polybus writes that itself.
pub(crate) fn subject<'a>(properties: &'a Properties, application: &ApplicationProperties) -> Option<&'a str> {
    let subject = properties.subject.as_deref()?;
    (attribute(application, TYPE_NAMES) != Some(subject)).then_some(subject)
}

/// The native properties that have no field in an envelope. The last one, `unshown`, names those that are no text.
pub(crate) fn native_properties<'a>(
    header: Option<&'a Header>,
    annotations: Option<&'a MessageAnnotations>,
    properties: &'a Properties,
    application: &'a ApplicationProperties,
) -> Vec<(&'static str, Cow<'a, str>)> {
    let mut native_properties = Vec::new();
    let mut unshown = Vec::new();
    let mut put =
        |name, value: Option<&'a str>| native_properties.extend(value.map(|value| (name, Cow::Borrowed(value))));
    put("reply-to", properties.reply_to.as_deref());
    put("reply-to-session-id", properties.reply_to_group_id.as_deref());
    put("to", properties.to.as_deref());
    put("content-encoding", properties.content_encoding.as_ref().map(Symbol::as_str));
    put("partition-key", annotations::text(annotations, PARTITION_KEY));
    // A session that polybus has set is the key, or a hash of it.
    let session = properties.group_id.as_deref();
    let own = |session: &&str| {
        attribute(application, KEY_NAMES).is_some_and(|key| key == *session || envelope::session(key) == *session)
    };
    put("session-id", session.filter(|session| !own(session)));
    match properties.user_id.as_ref().map(|id| std::str::from_utf8(id)) {
        Some(Ok(id)) => put("user-id", Some(id)),
        Some(Err(_)) => unshown.push("user-id"),
        None => {}
    }
    if let Some(header) = header {
        if header.priority != Priority::default() {
            native_properties.push(("priority", header.priority.0.to_string().into()));
        }
        // On an event it is the broker's form of `expirytime`, or the default of the entity.
        let structured = properties.content_type.as_ref().is_some_and(|own| own.as_str().starts_with(STRUCTURED));
        if let Some(ttl) = header.ttl.filter(|_| !structured && attribute(application, VERSION_NAMES).is_none()) {
            native_properties.push(("expiration", ttl.to_string().into()));
        }
    }
    let silent = application.iter().filter(|(_, value)| !matches!(value, SimpleValue::Null) && text(value).is_none());
    unshown.extend(silent.map(|(name, _)| name.as_str()));
    if !unshown.is_empty() {
        native_properties.push(("unshown", unshown.join(",").into()));
    }
    native_properties
}

//! Whether a message is exactly as polybus writes it, so that its envelope says all of it and its sections need not be
//! kept; and what is noted on those that are not.

use fe2o3_amqp::types::{
    messaging::{ApplicationProperties, MessageId, Priority, Properties},
    primitives::{SimpleValue, Symbol},
};
use polybus_core::{
    Envelope,
    driver::kit::names,
    message::cloudevents::{self, DecodedMessage},
};

use crate::message::{
    annotations::{self, BrokerAnnotations},
    envelope::{self, MAX_ID_LENGTH, ORIGINAL_ID, ORIGINAL_TIME},
    received::SectionRefs,
};

/// Whether the envelope, encoded again, gives all of the message but the body.
pub(super) fn is_as_written(sections: &SectionRefs<'_>, decoded: &DecodedMessage) -> bool {
    let DecodedMessage { envelope, carried, body: None, malformed: None, .. } = decoded else { return false };
    let SectionRefs { properties, application, .. } = sections;
    if !has_written_properties(properties, envelope, carried.hop)
        || sections.header.is_some_and(|header| header.priority != Priority::default())
        || !annotations::are_all_broker_keys(sections.annotations)
    {
        return false;
    }
    // Properties come in the order in which they were written, as a rule: then none has to be looked up.
    let mut next = application.iter();
    let (mut written, mut same) = (0, true);
    cloudevents::encode_binary_for_http(envelope, carried, &mut |name, value| {
        written += 1;
        let found = match next.next() {
            Some((key, found)) if key == name => Some(found),
            _ => application.get(name),
        };
        same &= matches!(found, Some(SimpleValue::String(text)) if text == value);
    });
    same && written == application.len()
}

fn has_written_properties(properties: &Properties, envelope: &Envelope, hop: u32) -> bool {
    let Properties {
        message_id,
        user_id: None,
        to: None,
        subject,
        reply_to: None,
        correlation_id,
        content_type,
        content_encoding: None,
        // The broker's, and left out of copies.
        absolute_expiry_time: _,
        creation_time,
        group_id,
        group_sequence: None,
        reply_to_group_id: None,
    } = properties
    else {
        return false;
    };
    let is = |id: &Option<MessageId>, text: Option<&str>| match (id, text) {
        (Some(MessageId::String(id)), Some(text)) => id == text,
        (None, None) => true,
        _ => false,
    };
    // A copy has a message id of its own, which the next copy does not need.
    (hop > 0 && matches!(message_id, Some(MessageId::String(_))) || is(message_id, Some(&envelope.id)))
        && group_id
            .as_deref()
            .is_none_or(|group| envelope.key.as_deref().map(envelope::session).as_deref() == Some(group))
        && is(correlation_id, envelope.correlation_id.as_deref().filter(|id| id.len() <= MAX_ID_LENGTH))
        && subject.as_deref() == Some(&*envelope.event_type)
        && content_type.as_ref().map(Symbol::as_str) == envelope.content_type.as_deref()
        && *creation_time == envelope.time.map(envelope::timestamp)
}

/// Notes the id and the time of a message among its application properties, where a copy, which gets an id and a time
/// of its own, would lose them.
pub(super) fn note_identity(
    properties: &Properties,
    application: &mut ApplicationProperties,
    envelope: &Envelope,
    hop: u32,
    broker: BrokerAnnotations,
) {
    let foreign = &*envelope.event_type == Envelope::FOREIGN_TYPE;
    if application.get(ORIGINAL_ID).is_none() {
        let own = match &properties.message_id {
            Some(MessageId::String(id)) => Some(SimpleValue::String(id.clone())),
            Some(MessageId::Ulong(id)) => Some(SimpleValue::Ulong(*id)),
            Some(MessageId::Uuid(id)) => Some(SimpleValue::Uuid(id.clone())),
            Some(MessageId::Binary(id)) => Some(SimpleValue::Binary(id.clone())),
            None => None,
        };
        let envelope_tells = matches!(&properties.message_id, Some(MessageId::String(id))
            if **id == *envelope.id || *id == names::dedup_id(&envelope.source, &envelope.id, 0));
        // The copy of a CloudEvent has an id of its own already, and the event says its id itself.
        if foreign {
            let id = own.unwrap_or_else(|| SimpleValue::String((*envelope.id).into()));
            application.insert(ORIGINAL_ID.into(), id);
        } else if let Some(id) = own.filter(|_| hop == 0 && !envelope_tells) {
            application.insert(ORIGINAL_ID.into(), id);
        }
    }
    if let (true, None, None, Some(at)) =
        (foreign, &properties.creation_time, application.get(ORIGINAL_TIME), broker.enqueued)
    {
        application.insert(ORIGINAL_TIME.into(), SimpleValue::Timestamp(envelope::timestamp(at)));
    }
}

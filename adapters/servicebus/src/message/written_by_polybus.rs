//! Tells whether polybus could have written this message. Then the envelope is enough for an exact copy, and the AMQP
//! sections are dropped. On other messages `note_identity` records the original id and time.

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
    envelope::{self, ORIGINAL_ID, ORIGINAL_TIME},
    received::SectionRefs,
};

/// Whether polybus could have written the message: its envelope, encoded again, gives the same sections. The body is
/// not compared, since the envelope has it as it came.
pub(super) fn is_as_written(sections: &SectionRefs<'_>, decoded: &DecodedMessage) -> bool {
    let DecodedMessage { envelope, carried, body: None, malformed: None, .. } = decoded else { return false };
    let SectionRefs { properties, application, .. } = sections;
    if !has_written_properties(properties, envelope, carried.hop)
        || sections.header.is_some_and(|header| header.priority != Priority::default())
        || !annotations::are_all_broker_keys(sections.annotations)
    {
        return false;
    }
    // The properties usually come in the order in which they were written. Then none has to be looked up by name.
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
        reply_to,
        correlation_id,
        content_type,
        content_encoding: None,
        // The broker sets it, and copies leave it out.
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
    // A copy (hop above 0) has a message id of its own, and the next copy gets another one. So any id will do.
    (hop > 0 && matches!(message_id, Some(MessageId::String(_))) || is(message_id, Some(&envelope.id)))
        && group_id
            .as_deref()
            .is_none_or(|group| envelope.key.as_deref().map(envelope::session).as_deref() == Some(group))
        && is(correlation_id, envelope::native_correlation(envelope))
        && reply_to.as_deref() == envelope::native_reply_queue(envelope)
        && subject.as_deref() == Some(&*envelope.event_type)
        && content_type.as_ref().map(Symbol::as_str) == envelope.content_type.as_deref()
        && *creation_time == envelope.time.map(envelope::timestamp)
}

/// Records the original id and time of a message among its application properties. A copy gets an id and a time of its
/// own, so they would be lost otherwise.
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
        // A CloudEvent says its own id. So its message id is recorded only if it is neither that id nor made of it, and
        // never for a copy, whose message id is not the sender's.
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

//! Encodes messages to bytes, section by section.

use super::{
    ANNOTATIONS, APPLICATION_PROPERTIES, DELIVERY_ANNOTATIONS, FOOTER, HEADER, Message, MessageHeader,
    MessageProperties, PROPERTIES, VALUE,
};
use crate::codec::{
    Value, begin_list, begin_map, encode, end_list, end_map, put_binary, put_bool, put_descriptor, put_null,
    put_string, put_symbol, put_uint, put_value,
};

impl Message {
    /// The whole message, section by section.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.body.len() + 256);
        self.encode_into(&mut out);
        out
    }

    /// Appends the whole message.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        put_header(out, &self.header);
        put_pairs(out, DELIVERY_ANNOTATIONS, &self.delivery_annotations);
        put_pairs(out, ANNOTATIONS, &self.annotations);
        self.encode_bare_into(out);
        put_pairs(out, FOOTER, &self.footer);
    }

    /// Appends the bare message, which no hop changes: properties, application properties and body.
    pub(crate) fn encode_bare_into(&self, out: &mut Vec<u8>) {
        put_properties(out, &self.properties);
        if !self.application_properties.is_empty() {
            put_descriptor(out, APPLICATION_PROPERTIES);
            let map = begin_map(out);
            for (key, value) in &self.application_properties {
                put_string(out, key);
                put_value(out, value);
            }
            end_map(out, map, self.application_properties.len());
        }
        out.extend_from_slice(&self.body);
    }

    /// Makes a value the body.
    pub fn set_body_value(&mut self, value: &Value) {
        let mut body = Vec::new();
        put_descriptor(&mut body, VALUE);
        body.extend(encode(value));
        self.body = body.into();
    }
}

/// Appends the header section. The delivery count is written even when it is 0, because SDKs add to it without a check.
pub(crate) fn put_header(out: &mut Vec<u8>, header: &MessageHeader) {
    put_descriptor(out, HEADER);
    let list = begin_list(out);
    put_bool(out, header.durable);
    put_value(out, &Value::Ubyte(header.priority));
    match header.ttl_ms {
        Some(ttl) => put_uint(out, ttl),
        None => put_null(out),
    }
    put_bool(out, header.first_acquirer);
    put_uint(out, header.delivery_count);
    end_list(out, list, 5);
}

pub(crate) fn put_pairs(out: &mut Vec<u8>, section: u64, pairs: &[(Value, Value)]) {
    if pairs.is_empty() {
        return;
    }
    put_descriptor(out, section);
    let map = begin_map(out);
    for (key, value) in pairs {
        put_value(out, key);
        put_value(out, value);
    }
    end_map(out, map, pairs.len());
}

fn put_properties(out: &mut Vec<u8>, properties: &MessageProperties) {
    if *properties == MessageProperties::default() {
        return;
    }
    put_descriptor(out, PROPERTIES);
    let list = begin_list(out);
    let mut fields = ListFields { out, written: 0, pending: 0 };
    fields.put(properties.message_id.as_ref(), put_value);
    fields.put(properties.user_id.as_deref(), put_binary);
    fields.put(properties.to.as_deref(), put_string);
    fields.put(properties.subject.as_deref(), put_string);
    fields.put(properties.reply_to.as_deref(), put_string);
    fields.put(properties.correlation_id.as_ref(), put_value);
    fields.put(properties.content_type.as_deref(), put_symbol);
    fields.put(properties.content_encoding.as_deref(), put_symbol);
    fields.put(properties.absolute_expiry.as_ref(), |out, ms| put_value(out, &Value::Timestamp(*ms)));
    fields.put(properties.creation_time.as_ref(), |out, ms| put_value(out, &Value::Timestamp(*ms)));
    fields.put(properties.group_id.as_deref(), put_string);
    fields.put(properties.group_sequence.as_ref(), |out, n| put_uint(out, *n));
    fields.put(properties.reply_to_group_id.as_deref(), put_string);
    let written = fields.written;
    end_list(out, list, written);
}

/// Writes the fields of a list and omits the trailing fields that are absent.
struct ListFields<'a> {
    out: &'a mut Vec<u8>,
    written: usize,
    pending: usize,
}

impl ListFields<'_> {
    fn put<T: ?Sized>(&mut self, field: Option<&T>, write: impl FnOnce(&mut Vec<u8>, &T)) {
        match field {
            None => self.pending += 1,
            Some(value) => {
                (0..self.pending).for_each(|_| put_null(self.out));
                self.written += self.pending + 1;
                self.pending = 0;
                write(self.out, value);
            }
        }
    }
}

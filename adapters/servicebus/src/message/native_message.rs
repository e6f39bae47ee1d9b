//! The native message as an application may look at it.

use std::sync::Arc;

use bytes::Bytes;
use fe2o3_amqp::types::{
    messaging::{ApplicationProperties, Body, Footer, Header, MessageAnnotations, Properties},
    primitives::Value,
};

use crate::message::native_view;

/// What `delivery.native::<NativeMessage>()` gives over AMQP: the sections of a message that polybus did not write, as they came.
///
/// There is none for messages exactly as polybus writes them: all that they say is in the envelope. A clone is another handle.
#[derive(Clone, Debug)]
pub struct NativeMessage(pub(crate) Arc<Sections>);

#[derive(Debug)]
pub(crate) struct Sections {
    pub(crate) header: Option<Header>,
    pub(crate) annotations: Option<MessageAnnotations>,
    pub(crate) properties: Properties,
    pub(crate) application: ApplicationProperties,
    /// Empty where `bytes` is all of it.
    pub(crate) body: Body<Value>,
    pub(crate) bytes: Bytes,
    pub(crate) footer: Option<Footer>,
}

impl NativeMessage {
    /// Durability, priority, time to live and the broker's count of deliveries.
    pub fn header(&self) -> Option<&Header> {
        self.0.header.as_ref()
    }

    /// The annotations, the broker's own (`x-opt-sequence-number` …) among them.
    pub fn annotations(&self) -> Option<&MessageAnnotations> {
        self.0.annotations.as_ref()
    }

    /// Ids, addresses, session, content type and encoding, in their own types.
    pub fn properties(&self) -> &Properties {
        &self.0.properties
    }

    /// The application properties, in their own types.
    pub fn application_properties(&self) -> &ApplicationProperties {
        &self.0.application
    }

    /// The body where it is no binary data: an AMQP value or sequences. `Empty` where [`bytes`](Self::bytes) is all of it.
    pub fn body(&self) -> &Body<Value> {
        &self.0.body
    }

    /// The body as bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    /// How long its message id is, as text.
    pub(crate) fn id_length(&self) -> usize {
        self.0.properties.message_id.as_ref().map_or(0, |id| native_view::id(id).len())
    }

    /// The footer.
    pub fn footer(&self) -> Option<&Footer> {
        self.0.footer.as_ref()
    }
}

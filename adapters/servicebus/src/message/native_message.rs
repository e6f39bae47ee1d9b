//! The native message as applications see it.

use std::sync::Arc;

use bytes::Bytes;
use fe2o3_amqp::types::{
    messaging::{ApplicationProperties, Body, Footer, Header, MessageAnnotations, Properties},
    primitives::Value,
};

use crate::message::native_view;

/// What `delivery.native::<NativeMessage>()` gives over AMQP: the sections of a message that polybus did not write, as
/// they came.
///
/// There is none for a message exactly as polybus writes it, whose envelope says all of it. A clone is a handle of the
/// same message.
///
/// ```
/// use polybus_core::Delivery;
/// use polybus_servicebus::NativeMessage;
///
/// fn reply_to(delivery: &Delivery) -> Option<&str> {
///     delivery.native::<NativeMessage>()?.properties().reply_to.as_deref()
/// }
/// ```
#[derive(Clone, Debug)]
pub struct NativeMessage(pub(crate) Arc<MessageSections>);

#[derive(Debug)]
pub(crate) struct MessageSections {
    pub(crate) header: Option<Header>,
    pub(crate) annotations: Option<MessageAnnotations>,
    pub(crate) properties: Properties,
    pub(crate) application: ApplicationProperties,
    /// `Empty` where `bytes` is all of it.
    pub(crate) body: Body<Value>,
    pub(crate) bytes: Bytes,
    pub(crate) footer: Option<Footer>,
}

impl NativeMessage {
    /// Durability, priority, time to live in milliseconds, and the broker's count of earlier deliveries.
    pub fn header(&self) -> Option<&Header> {
        self.0.header.as_ref()
    }

    /// All annotations, also the broker's own such as `x-opt-sequence-number`.
    pub fn annotations(&self) -> Option<&MessageAnnotations> {
        self.0.annotations.as_ref()
    }

    /// Ids, addresses, session, content type and encoding, in their native types.
    pub fn properties(&self) -> &Properties {
        &self.0.properties
    }

    /// The application properties, in their native types.
    pub fn application_properties(&self) -> &ApplicationProperties {
        &self.0.application
    }

    /// The body where it is no data: an AMQP value or sequences. `Empty` where [`bytes`](Self::bytes) is all of it.
    pub fn body(&self) -> &Body<Value> {
        &self.0.body
    }

    /// The body as bytes: data as it is, text as UTF-8, other values as they are encoded.
    pub fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    /// The length of its message id as text, in bytes.
    pub(crate) fn id_length(&self) -> usize {
        self.0.properties.message_id.as_ref().map_or(0, |id| native_view::id_text(id).len())
    }

    /// The footer, if there is one.
    pub fn footer(&self) -> Option<&Footer> {
        self.0.footer.as_ref()
    }
}

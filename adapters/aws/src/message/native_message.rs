//! A message of SQS as it came.

use std::collections::HashMap;

use aws_sdk_sqs::types::MessageAttributeValue;

/// A message of SQS as it came: what `delivery.native::<NativeMessage>()` gives.
///
/// Deliveries have it where another program wrote the message, and on dead letters. The envelope shows everything that
/// is text; binary attributes and data types are here alone.
///
/// ```
/// fn has_signature(delivery: &polybus_core::Delivery) -> bool {
///     let native = delivery.native::<polybus_aws::NativeMessage>();
///     native.is_some_and(|message| message.attributes().contains_key("signature"))
/// }
/// ```
#[derive(Clone, Debug, Default)]
pub struct NativeMessage {
    pub(crate) id: String,
    pub(crate) body: String,
    pub(crate) attributes: HashMap<String, MessageAttributeValue>,
    pub(crate) group: Option<String>,
    pub(crate) dedup: Option<String>,
    pub(crate) trace: Option<String>,
    /// The text members of what polybus sent along with a copy, by name.
    pub(crate) carried: HashMap<String, String>,
}

impl NativeMessage {
    /// SQS' id of this message. A copy, such as a dead letter that polybus made, has its own.
    pub fn message_id(&self) -> &str {
        &self.id
    }

    /// The body. Where a subscription has no raw delivery, it is the document that SNS wrapped around the message.
    pub fn body(&self) -> &str {
        &self.body
    }

    /// The message attributes with their data types, binary ones included. A copy has all of its original's.
    pub fn attributes(&self) -> &HashMap<String, MessageAttributeValue> {
        &self.attributes
    }

    /// The message group. Every message of a FIFO queue has one; on a standard queue it is rare.
    pub fn message_group_id(&self) -> Option<&str> {
        self.group.as_deref()
    }

    /// The deduplication id, on FIFO queues. On a copy it is the one of the original.
    pub fn message_deduplication_id(&self) -> Option<&str> {
        self.dedup.as_deref()
    }

    /// X-Ray's trace header, `AWSTraceHeader`.
    pub fn trace_header(&self) -> Option<&str> {
        self.trace.as_deref()
    }
}

//! A message of SQS as it came.

use std::collections::HashMap;

use aws_sdk_sqs::types::MessageAttributeValue;

/// A message of SQS as it came: what `delivery.native::<NativeMessage>()` gives, where somebody else than polybus wrote it, and on dead
/// letters.
///
/// The envelope shows all of it that is text; binary attributes and data types are here alone.
#[derive(Clone, Debug, Default)]
pub struct NativeMessage {
    pub(crate) id: String,
    pub(crate) body: String,
    pub(crate) attributes: HashMap<String, MessageAttributeValue>,
    pub(crate) group: Option<String>,
    pub(crate) dedup: Option<String>,
    pub(crate) trace: Option<String>,
    /// What polybus sent along with a copy, by name.
    pub(crate) carried: HashMap<String, String>,
}

impl NativeMessage {
    /// SQS' id of this message. A copy, such as a dead letter that polybus made, has its own.
    pub fn message_id(&self) -> &str {
        &self.id
    }

    /// The body; under a subscription without raw delivery the document that SNS wrapped around the message.
    pub fn body(&self) -> &str {
        &self.body
    }

    /// The message attributes, binary ones and data types included. On copies those of the original, all of them.
    pub fn attributes(&self) -> &HashMap<String, MessageAttributeValue> {
        &self.attributes
    }

    /// The message group: always there on FIFO queues, seldom on others.
    pub fn message_group_id(&self) -> Option<&str> {
        self.group.as_deref()
    }

    /// On FIFO queues: the id by which SQS deduplicated; on copies that of the original.
    pub fn message_deduplication_id(&self) -> Option<&str> {
        self.dedup.as_deref()
    }

    /// X-Ray's header, `AWSTraceHeader`.
    pub fn trace_header(&self) -> Option<&str> {
        self.trace.as_deref()
    }
}

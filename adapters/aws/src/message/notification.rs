//! The JSON document that SNS wraps around a message for a subscription without raw delivery.
//! <https://docs.aws.amazon.com/sns/latest/dg/sns-large-payload-raw-message-delivery.html>

use std::collections::BTreeMap;

use serde::Deserialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::message::native_message::NativeMessage;

/// The message inside the document, and what SNS adds to it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct SnsNotification {
    #[serde(rename = "Type")]
    kind: String,
    pub(crate) message_id: String,
    pub(crate) topic_arn: String,
    pub(crate) message: String,
    #[serde(default)]
    timestamp: Option<String>,
    #[serde(default)]
    pub(crate) subject: Option<String>,
    #[serde(default)]
    message_attributes: BTreeMap<String, NotificationAttribute>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NotificationAttribute {
    #[serde(rename = "Type")]
    kind: String,
    value: String,
}

impl SnsNotification {
    /// When SNS accepted the message.
    pub(crate) fn time(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::parse(self.timestamp.as_deref()?, &Rfc3339).ok()
    }

    /// Names and values of the attributes that are text.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        let texts = self.message_attributes.iter().filter(|(_, a)| !a.kind.starts_with("Binary"));
        texts.map(|(name, a)| (&**name, &*a.value))
    }

    /// Names of the binary attributes.
    pub(crate) fn binaries(&self) -> impl Iterator<Item = &str> {
        self.message_attributes.iter().filter(|(_, a)| a.kind.starts_with("Binary")).map(|(name, _)| &**name)
    }
}

/// Takes off SNS' wrapper; `None` if there is none.
///
/// A wrapper has no message attributes, since they are inside. A message of polybus always has some, so none of its
/// payloads is taken for a wrapper.
pub(crate) fn unwrap(native: &NativeMessage) -> Option<SnsNotification> {
    if !native.attributes.is_empty() || !native.body.starts_with('{') || !native.body.contains("\"Notification\"") {
        return None;
    }
    let inside: SnsNotification = serde_json::from_str(&native.body).ok()?;
    let genuine = inside.kind == "Notification" && inside.topic_arn.starts_with("arn:");
    genuine.then_some(inside)
}
